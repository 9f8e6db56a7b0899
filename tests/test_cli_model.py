"""The command line with a real model: the bundled one, whole and damaged in every way that happens to files.

In: `deepfast` commands on deepfast/bundled or on a spoiled copy. Out: answers, numbers, one-line errors.
Does not know: how well the model answers (its card does).
"""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import hf_config, make_checkpoint
from click.testing import CliRunner, Result
from quantised_checkpoints import Form, make_pair
from text_fixtures import END_ID, SIZE

from deepfast.cli.bench import weight_bytes_read
from deepfast.cli.main import cli
from deepfast.config import ModelConfig
from deepfast.model.hub import BUNDLED
from deepfast.model.shapes import parameter_count

QUESTION = "What is 47 * 86?"


def call(*args: str, stdin: str = "") -> Result:
    """Run one command in this process."""
    return CliRunner().invoke(cli, args, input=stdin, env={"DEEPFAST_MODEL": None})


def answer(*args: str) -> dict[str, Any]:
    """The object that `run --json` prints."""
    done = call("run", "--json", "--max-tokens", "600", *args, QUESTION)
    assert done.exit_code == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_the_bundled_model_thinks_and_answers() -> None:
    said = answer("--think", "--temperature", "0")
    assert "4042" in said["content"]
    assert said["reasoning"] and said["usage"]["reasoning_tokens"] > 0
    assert (said["thinking"]["mode"], said["thinking"]["stop"]) == ("on", "natural")
    assert said["finish_reason"] == "stop"


def test_without_thought_it_answers_at_once() -> None:
    said = answer("--no-think", "--temperature", "0")
    assert said["content"] and not said["reasoning"] and said["usage"]["reasoning_tokens"] == 0
    assert (said["thinking"]["mode"], said["thinking"]["stop"]) == ("off", "none")


def test_a_budget_cuts_the_thought_and_leaves_an_answer() -> None:
    said = answer("--budget", "8", "--seed", "1")
    assert said["usage"]["reasoning_tokens"] >= 8 and said["content"]
    assert (said["thinking"]["budget"], said["thinking"]["stop"]) == (8, "budget")


def test_the_streamed_text_is_the_text_of_json_and_a_seed_repeats_it() -> None:
    said = answer("--think", "--seed", "7")
    streamed = call("run", "--think", "--seed", "7", "--max-tokens", "600", QUESTION)
    assert streamed.stdout == said["content"] + "\n"
    assert streamed.stderr.startswith(said["reasoning"])


def test_the_answer_matches_the_schema_and_the_thought_stays_free() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "enum": [4042]}}, "required": ["n"]}
    said = answer("--think", "--schema", json.dumps({**schema, "additionalProperties": False}))
    assert json.loads(said["content"]) == {"n": 4042}
    assert "=4042" in said["reasoning"]
    assert answer("--no-think", "--regex", "[5-9]{3}")["content"].strip("56789") == ""


def test_several_samples_agree_on_what_the_model_can_do() -> None:
    said = answer("--think", "--seed", "1", "-n", "5")
    assert said["vote"]["answer"] == "4042" == said["content"]
    assert said["vote"]["count"] >= 3 and said["vote"]["total"] == 5
    alone = answer("--think", "--seed", "2")
    assert said["samples"][1]["reasoning"] == alone["reasoning"]


def test_a_grammar_that_cannot_be_enforced_is_refused() -> None:
    done = call("run", "--regex", "[0-9", QUESTION)
    assert (done.exit_code, done.stdout) == (2, "") and "unclosed" in done.stderr


def test_chat_remembers_through_a_pipe() -> None:
    done = call(
        "chat",
        "--temperature",
        "0",
        "--max-tokens",
        "600",
        stdin=f"/no_think\n{QUESTION}\n/think\n{QUESTION}\n",
    )
    assert done.exit_code == 0
    assert len(done.stdout.splitlines()) >= 2
    assert "thought" in done.stderr


def test_show_counts_without_loading() -> None:
    facts = json.loads(call("show", "--json").stdout)
    shapes, kv = facts["shapes"], facts["kv_bytes"]
    assert facts["modes"] == ["think", "no_think"]
    assert facts["parameters"]["active"] == facts["parameters"]["total"] > 1_000_000
    assert facts["weight_bytes"]["q4"] < facts["weight_bytes"]["q8"] < facts["weight_bytes"]["bf16"]
    per_position = 2 * shapes["num_layers"] * shapes["num_kv_heads"] * shapes["head_dim"]
    assert kv["f16"][str(facts["context"])] == 2 * per_position * facts["context"]
    assert facts["files"]["model.safetensors"] == (BUNDLED / "model.safetensors").stat().st_size
    assert facts["source"] == "safetensors, q8 of Deepfast" and facts["stored"] == "q8"
    assert facts["template"] == {"origin": "chat_template.jinja", "names": ["default"]}
    assert facts["tags"]["</think>"] == facts["tags"]["<think>"] + 1 and facts["notes"] == []
    assert {"id": END_ID, "text": "<|im_end|>"} in facts["eos"] and facts["tokenizer"]["ids"] == SIZE
    assert facts["sampling"]["of_the_model"]["temperature"] == 0.6
    matrices = 7 * shapes["num_layers"] + 1
    assert facts["kept"] == {
        "q8": {"count": matrices, "bytes": facts["kept"]["q8"]["bytes"], "lossless": True}
    }
    assert facts["tensors"]["Q8"]["count"] == matrices and set(facts["tensors"]) == {"Q8", "F32"}
    fits = facts["fit"]["formats"]
    assert list(fits) == ["as stored", "q4"] and fits["as stored"]["context"] == 2048
    assert fits["q4"]["total"] < fits["as stored"]["total"] < facts["fit"]["free"] and fits["q4"]["fits"]
    text = call("show").stdout
    for said in (
        "think, no_think",
        "Qwen3ForCausalLM",
        f"</think> {facts['tags']['</think>']}",
        "fits here",
        f"kept as            q8: {matrices}",
    ):
        assert said in text


def test_show_says_what_is_odd_about_a_checkpoint(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    path = make_checkpoint(tmp_path / "m", "Qwen3MoeForCausalLM", dtype="BF16", rope_scaling=yarn, **experts)
    (path / "generation_config.json").write_text('{"top_k": 40, "eos_token_id": [5]}')
    facts = json.loads(call("show", "-m", str(path), "--json").stdout)
    assert facts["modes"] == [] and any("tokenizer.json is missing" in text for text in facts["notes"])
    assert (facts["yarn_factor"], facts["trained_context"]) == (4, 128)
    assert facts["parameters"]["active"] < facts["parameters"]["total"]
    assert facts["tensors"]["BF16"]["count"] == sum(row["count"] for row in facts["tensors"].values())
    assert facts["sampling"]["of_the_model"] == {"top_k": 40}
    assert list(facts["fit"]["formats"]) == ["as stored", "q8", "q4"]
    text = call("show", "-m", str(path)).stdout
    assert "YaRN factor 4 over 128" in text and "only ids in" in text and "active" in text
    done = call("quantize", str(path), "--out", str(tmp_path / "q4"))
    assert done.exit_code == 0, done.stderr
    packed = json.loads(call("show", "-m", str(tmp_path / "q4"), "--json").stdout)
    assert packed["source"] == "packed by deepfast quantize, 4 bits" and packed["stored"] == "q4"
    assert set(packed["kept"]) == {"q4", "bf16"} and list(packed["fit"]["formats"]) == ["as stored"]
    assert packed["kept"]["q4"]["count"] + packed["kept"]["bf16"]["count"] == facts["kept"]["bf16"]["count"]


def test_a_directory_of_gguf_files_names_one_of_them(tmp_path: Path) -> None:
    for name in ("b.gguf", "a.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    done = call("show", "-m", str(tmp_path))
    assert done.exit_code == 1 and f"opened by name: {tmp_path}/a.gguf." in done.stderr


def test_show_names_how_others_quantised_and_what_loading_keeps(tmp_path: Path) -> None:
    """Groups in any order are no FP8; what lies beside plain keys stays floats, without loss."""
    path, _ = make_pair(tmp_path, Form("gptq", act_order=True))
    facts = json.loads(call("show", "-m", str(path), "--json").stdout)
    assert {kind: row["count"] for kind, row in facts["tensors"].items()} == {"GPTQ 4 bits": 13, "F32": 12}
    assert {kind: (row["count"], row["lossless"]) for kind, row in facts["kept"].items()} == {
        "f32": (5, True),
        "q8": (11, False),
    }


def test_show_and_quantize_take_a_gguf_file(tmp_path: Path) -> None:
    gguf_files = pytest.importorskip("gguf_files")
    kinds = gguf_files.Kind
    gguf_files.write_model(
        tmp_path / "tiny.gguf",
        kind=lambda name: kinds.Q8_0 if "v_proj" in name else kinds.Q4_0,
        more=lambda writer: (writer.add_name("Tiny"), writer.add_license("mit")),
    )
    facts = json.loads(call("show", "-m", str(tmp_path / "tiny.gguf"), "--json").stdout)
    assert facts["source"] == "GGUF" and facts["metadata"] == {"name": "Tiny", "license": "mit"}
    assert facts["modes"] == ["think", "no_think"] and facts["template"]["origin"] == "tiny.gguf"
    assert facts["tensors"]["Q8_0"]["count"] == 2 and set(facts["tensors"]) == {"Q4_0", "Q8_0", "F32"}
    assert set(facts["kept"]) == {"q4", "q8"} and all(row["lossless"] for row in facts["kept"].values())
    assert list(facts["files"]) == ["tiny.gguf"]
    done = call("quantize", str(tmp_path / "tiny.gguf"), "--json")
    report = json.loads(done.stdout)
    assert report["out"] == str(tmp_path / "tiny-q4"), done.stderr
    kinds_of_error = report["errors"]["kinds"]
    assert kinds_of_error["q_proj"] == 0 and kinds_of_error["v_proj"] > 0.05
    shown = json.loads(call("show", "-m", report["out"], "--json").stdout)
    assert shown["modes"] == facts["modes"] and shown["eos"] == facts["eos"]


def test_a_context_that_memory_cut_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepfast.engine.llm.free_memory", lambda: 16 * 10**6)
    done = call("run", "--no-think", "--max-tokens", "20", QUESTION)
    assert done.exit_code == 0 and re.search(r"\[context 1,\d\d\d of the model's 2,048: 16.0 MB", done.stderr)
    assert "the model's 2,048" not in call("run", "--no-think", "--context", "512", QUESTION).stderr
    monkeypatch.setattr("deepfast.engine.llm.free_memory", lambda: 10 * 10**6)
    done = call("run", QUESTION)
    assert done.exit_code == 2 and "10.0 MB of memory are free. Try --quantize q4" in done.stderr


def test_the_limit_of_a_speed_is_that_of_the_weights_in_memory() -> None:
    """Their bytes, less the embedding table that an untied model does not read."""
    config = ModelConfig.from_hf(hf_config("Qwen3ForCausalLM", {}))
    table = config.vocab_size * config.hidden_size / parameter_count(config)
    assert weight_bytes_read(config, 10**6, 1) == pytest.approx(10**6 * (1 - table))


def test_bench_measures_the_bundled_model() -> None:
    report = json.loads(call("bench", "--quick", "--json").stdout)
    assert report["load_s"] > 0 and report["bandwidth_gb_s"] > 0 and report["int8_gmac_s"] > 0
    points = {(row["depth"], row["batch"]) for row in report["generation"]}
    assert points == {(0, 1), (1024, 1), (0, 4)}
    for row in (report["prompt"], *report["generation"]):
        assert row["fraction"] == pytest.approx(row["tok_s"] / row["roofline_tok_s"], rel=0.01, abs=0.001)
    assert "of the limit" in call("bench", "--quick", "--context", "256", "--threads", "1").stdout


def test_a_prompt_longer_than_the_context_names_both_lengths() -> None:
    done = call("run", "--context", "64", "count " * 100)
    assert done.exit_code == 2 and done.stderr.count("\n") == 1
    assert "the context holds 64" in done.stderr


@pytest.mark.parametrize("name, value", [("DEEPFAST_THREADS", "many"), ("DEEPFAST_ISA", "abacus")])
def test_an_environment_variable_that_makes_no_sense_is_named(name: str, value: str) -> None:
    done = CliRunner().invoke(cli, ["run", QUESTION], env={"DEEPFAST_MODEL": None, name: value})
    assert (done.exit_code, done.stdout) == (2, "")
    assert name in done.stderr and repr(value) in done.stderr and done.stderr.count("\n") == 1


def _edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _layers(count: int) -> dict[str, Any]:
    return {"num_hidden_layers": count, "layer_types": ["full_attention"] * count}


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def _spoil_weight(folder: Path) -> None:
    """Write a NaN into the first norm weight or scale of the file."""
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    tensor = next(entry for name, entry in header.items() if name.endswith(".q_norm.weight"))
    width = {"F32": 4, "BF16": 2, "F16": 2}[tensor["dtype"]]
    start = 8 + length + tensor["data_offsets"][0]
    data[start : start + width] = b"\xff" * width
    path.write_bytes(data)


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated safetensors": (_truncate, "model.safetensors"),
    "wrong JSON": (lambda d: (d / "config.json").write_text('{"architectures": ['), "config.json"),
    "JSON that is a list": (lambda d: (d / "config.json").write_text("[]"), "config.json"),
    "NaN weight": (_spoil_weight, "q_norm"),
    "no config": (lambda d: (d / "config.json").unlink(), "config.json"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "model.safetensors"),
    "empty weights": (lambda d: (d / "model.safetensors").write_bytes(b""), "model.safetensors"),
    "no tokenizer": (lambda d: (d / "tokenizer.json").unlink(), "tokenizer.json"),
    "wrong tokenizer": (lambda d: (d / "tokenizer.json").write_text("{}"), "tokenizer"),
    "unknown architecture": (lambda d: _edit_config(d, architectures=["Mamba2"]), "Mamba2"),
    "wrong shapes": (lambda d: _edit_config(d, hidden_size=256), "shape"),
    "fewer layers": (lambda d: _edit_config(d, **_layers(1)), "layers.1."),
    "more layers": (lambda d: _edit_config(d, **_layers(99)), "missing"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_gets_one_line_and_exit_code_1(damage: str, tmp_path: Path) -> None:
    spoil, says = DAMAGE[damage]
    folder = tmp_path / "model"
    shutil.copytree(BUNDLED, folder)
    spoil(folder)
    done = call("run", "-m", str(folder), QUESTION)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("deepfast: error: ")
    assert says in done.stderr and "bug in Deepfast" not in done.stderr


@pytest.mark.parametrize("name", ["qwen3:0.6b", "Qwen/Qwen3-0.6B", "no/such/folder", "model.gguf", ""])
@pytest.mark.parametrize("command", ["run", "show", "bench", "chat"])
def test_an_unknown_model_is_named(command: str, name: str) -> None:
    done = call(command, "-m", name, *([QUESTION] if command == "run" else []))
    assert (done.exit_code, done.stdout) == (1, "")
    assert repr(name) in done.stderr and done.stderr.count("\n") == 1
