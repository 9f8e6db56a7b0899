"""What matters and what is chosen for it: importance, the search for scales, directories of any source,
and the command that does it all.

In: tiny random models. Out: equal numbers, refusals. Does not know: how well a trained model survives.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from checkpoints import GOLDEN, chat_checkpoint, make_checkpoint, make_golden, random_tensors
from click.testing import CliRunner, Result
from compared import ARCHITECTURES, IDS, packed, source_of
from decoding import make_backend, prompt_logits
from hypothesis import given
from hypothesis import strategies as st

from deepfast import LLM, EngineConfig, SamplingParams
from deepfast.backend.cpu import CpuBackend
from deepfast.backend.quant import dequantise_q4, dequantise_q8, quantise_q4, quantise_q8
from deepfast.cli.main import cli
from deepfast.config import Llama3Rope, ModelConfig
from deepfast.model.compare import (
    compare,
    matrix_errors,
)
from deepfast.model.decoder import Decoder
from deepfast.model.gguf_model import open_gguf
from deepfast.model.hub import BUNDLED
from deepfast.model.importance import Importance, calibrate
from deepfast.model.least_error import Rounder, fitted
from deepfast.model.packed import write_packed
from deepfast.model.safetensors import write_safetensors
from deepfast.model.shapes import EMBEDDING, tensor_shapes
from deepfast.model.small_files import config_json
from deepfast.model.weights import Checkpoint
from deepfast.types import ModelError, UsageError


@pytest.fixture(params=ARCHITECTURES)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return source_of(request.param, tmp_path / "model")


def test_importance_is_the_mean_square_of_what_comes_in(source: Path) -> None:
    """Seen through another door: the reference backend's own ops, one text at once."""
    ids = IDS[:40]
    seen: dict[int, list[npt.NDArray[Any]]] = {}
    ops = make_backend("reference")
    linear = ops.linear

    def noted(x: Any, w: Any, bias: Any = None) -> Any:
        seen.setdefault(id(w), []).append(np.array(x))
        return linear(x, w, bias)

    ops.linear = noted  # type: ignore[method-assign]
    decoder = Decoder.load(Checkpoint.open(source), ops)
    prompt_logits(decoder, ids)
    found = calibrate(Checkpoint.open(source), CpuBackend(2), ids)
    layers = [(f"model.layers.{i}", layer) for i, layer in enumerate(decoder.layers)]
    pairs = [(f"{name}.self_attn.{p}_proj.weight", layer.qkv) for name, layer in layers for p in "qkv"]
    pairs += [(f"{name}.self_attn.o_proj.weight", layer.output) for name, layer in layers]
    for name, layer in layers:
        if hasattr(layer.mlp, "router"):
            pairs.append((f"{name}.mlp.gate.weight", layer.mlp.router))
        else:
            pairs.append((f"{name}.mlp.gate_proj.weight", layer.mlp.gate_up))
            pairs.append((f"{name}.mlp.down_proj.weight", layer.mlp.down))
    head = EMBEDDING if decoder.head is decoder.embedding else "lm_head.weight"
    pairs.append((head, decoder.head))
    for name, weight in pairs:
        (x,) = seen[id(weight)]
        np.testing.assert_allclose(
            found.means[name], (x.astype(np.float64) ** 2).mean(axis=0), rtol=1e-3, atol=1e-7
        )
        assert found.counts[name] == len(ids)
        columns = found.of(name, x.shape[1])
        assert columns is not None and columns.mean() == pytest.approx(1, rel=1e-3) and columns.min() > 0


def test_experts_count_their_own_tokens(tmp_path: Path) -> None:
    config = {"num_experts": 64, "num_experts_per_tok": 2}
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path, "Qwen3MoeForCausalLM", **config))
    found = calibrate(checkpoint, CpuBackend(2), IDS[:9])
    names = [f"model.layers.1.mlp.experts.{e}.down_proj.weight" for e in range(64)]
    counts = [found.counts[name] for name in names]
    assert sum(counts) == 9 * 2 and 0 in counts
    for name, count in zip(names, counts, strict=True):
        assert (found.of(name, 40) is None) == (count == 0)
        assert found.counts[name.replace("down", "gate")] == count


@pytest.mark.parametrize("format", ["q4", "q8"])
@given(
    seed=st.integers(0, 2**32 - 1),
    width=st.integers(1, 100),
    spread=st.sampled_from([0.0, 1.0, 5.0]),
    size=st.sampled_from([1e-30, 1e-6, 0.02, 1.0, 1e4, 1e30]),
)
def test_no_group_is_worse_than_under_the_plain_rule(
    format: Any, seed: int, width: int, spread: float, size: float
) -> None:
    random = np.random.default_rng(seed)
    w = (random.standard_normal((3, width)) * size).astype(np.float32)
    w[1, ::2] = 0
    w[2] = np.abs(w[2])
    counts = np.exp(spread * random.standard_normal(width)).astype(np.float32)
    found = fitted(w, counts if spread else None, format)
    assert found.codes.shape == w.shape and np.isfinite(found.scales).all()
    assert found.codes.min() >= (0 if format == "q4" else -127)
    assert found.codes.max() <= (15 if format == "q4" else 127)
    plain = dequantise_q4(*quantise_q4(w), width) if format == "q4" else dequantise_q8(*quantise_q8(w), width)
    values = found.floats().astype(np.float64)
    for first in range(0, width, 32):
        group = slice(first, first + 32)
        ours, theirs = (
            (counts[group].astype(np.float64) * (w[:, group].astype(np.float64) - v[:, group]) ** 2).sum(
                axis=1
            )
            for v in (values, plain.astype(np.float64))
        )
        assert (ours <= theirs * (1 + 1e-4) + 1e-70).all()


def test_the_search_finds_less_error_and_exact_values_stay(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    w = random.standard_normal((64, 256)).astype(np.float32)
    counts = np.exp(random.standard_normal(256)).astype(np.float32)
    plain = dequantise_q4(*quantise_q4(w), 256)
    assert ((w - fitted(w, None, "q4").floats()) ** 2).sum() < 0.92 * ((w - plain) ** 2).sum()
    weighed = fitted(w, counts, "q4").floats()
    assert (counts * (w - weighed) ** 2).sum() < 0.8 * (counts * (w - plain) ** 2).sum()
    np.testing.assert_array_equal(fitted(plain, counts, "q4").floats(), plain)


@pytest.mark.parametrize("threads", [1, 3])
def test_what_is_chosen_is_what_is_packed(source: Path, threads: int) -> None:
    original = Checkpoint.open(source)
    importance = calibrate(original, CpuBackend(2), IDS[:64])
    with Rounder("q4", importance.of, threads) as rounder:
        other = packed(source, "q4", rounder)
    errors = {e.name: e for e in matrix_errors(original, other, CpuBackend(2))}
    for name, w in random_tensors(original.config, 0):
        if w.ndim == 2 and not name.endswith("mlp.gate.weight"):
            left = w - fitted(w, importance.of(name, w.shape[1]), "q4").floats()
            assert errors[name].difference == pytest.approx(float((left**2).sum()), rel=1e-4)


def test_importance_is_kept_in_a_file(source: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(source)
    found = calibrate(checkpoint, CpuBackend(2), IDS[:20])
    found.save(tmp_path / "i")
    again = Importance.load(tmp_path / "i", checkpoint)
    assert again.tokens == 20 and again.counts == found.counts and again.means.keys() == found.means.keys()
    for name, shape in tensor_shapes(checkpoint.config):
        if name in found.means:
            np.testing.assert_array_equal(again.means[name], found.means[name])
            assert (again.of(name, shape[1]) is None) == (found.of(name, shape[1]) is None)


def test_the_head_of_its_own_of_a_tied_model_is_kept(tmp_path: Path) -> None:
    head = np.ones((160, 64), np.float32)
    config: dict[str, Any] = {"tie_word_embeddings": True, "extra": {"lm_head.weight": head}}
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path / "m", **config))
    found = calibrate(checkpoint, CpuBackend(1), IDS[:9])
    assert "lm_head.weight" in found.means and EMBEDDING not in found.means
    found.save(tmp_path / "i")
    assert "lm_head.weight" in Importance.load(tmp_path / "i", checkpoint).means


def spoiled(kind: str, path: Path) -> None:
    """A file that is no importance matrix of the model, in one way."""
    good = {"kind": "deepfast-imatrix-1"}
    stack = "model.layers.0.self_attn.qkv_proj.weight"
    means: dict[str, Any] = {stack: ("F32", np.ones((1, 64), np.float32))}
    count = {f"{stack}.count": ("I64", np.ones(1, np.int64))}
    if kind == "text":
        path.write_text("hello")
    elif kind == "plain tensors":
        write_safetensors(path, means)
    elif kind == "half of a pair":
        write_safetensors(path, means, good)
    elif kind == "NaN":
        write_safetensors(path, {stack: ("F32", np.full((1, 64), np.nan, np.float32)), **count}, good)
    elif kind == "negative":
        write_safetensors(path, {stack: ("F32", -np.ones((1, 64), np.float32)), **count}, good)
    elif kind == "another shape":
        write_safetensors(path, {stack: ("F32", np.ones((1, 2, 32), np.float32)), **count}, good)
    elif kind == "little":
        write_safetensors(path, means | count, good)
    elif kind == "another model":
        other = Checkpoint.open(make_checkpoint(path.with_name("other"), hidden_size=96))
        calibrate(other, CpuBackend(1), IDS[:3]).save(path)


SPOILED = {
    "text": "not a safetensors file",
    "plain tensors": "is no importance matrix",
    "half of a pair": "no means .* with counts",
    "NaN": "negative number, a NaN",
    "negative": "negative number, a NaN",
    "another shape": "no means",
    "little": "knows no model",
    "another model": "96 columns for .*, the model 64",
}


@pytest.mark.parametrize("kind", SPOILED)
def test_a_file_that_is_no_importance_matrix_is_one_clear_line(kind: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path / "model"))
    spoiled(kind, tmp_path / "i")
    with pytest.raises(UsageError, match=SPOILED[kind]) as caught:
        Importance.load(tmp_path / "i", checkpoint)
    assert "\n" not in str(caught.value)


def call(*args: object) -> Result:
    return CliRunner().invoke(cli, ["quantize", *map(str, args)], env={"DEEPFAST_MODEL": None})


def test_the_command_weighs_measures_and_keeps(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    source = chat_checkpoint(tmp_path / "m", hidden_size=64)
    (tmp_path / "text").write_text("What is 47 * 86? <|im_end|>\n" * 40, "utf-8")
    options = ["--calibrate", tmp_path / "text", "--imatrix", tmp_path / "i", "--measure", tmp_path / "text"]
    done = call(source, *options, "--tokens", 300)
    assert done.exit_code == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'm-q4'}\n"
    for said in (
        "300 tokens",
        "in q4",
        "KL divergence",
        "perplexity",
        "worst: model.",
        "layer 1",
        "only its first",
    ):
        assert said in done.stderr
    again = call(source, "--imatrix", tmp_path / "i", "--out", tmp_path / "again", "--json")
    report = json.loads(again.stdout)
    assert report["rule"] == "importance" and report["calibration_tokens"] == 300
    first, second = (tmp_path / name / "model.safetensors" for name in ("m-q4", "again"))
    assert first.read_bytes() == second.read_bytes()
    assert report["bytes"]["packed"] < report["bytes"]["original"] and report["measured"] is None
    assert (
        set(report["errors"]) == {"all", "layers", "kinds", "worst"} and 0.05 < report["errors"]["all"] < 0.1
    )
    plain = json.loads(call(source, "--plain", "--out", tmp_path / "plain", "--json").stdout)
    search = json.loads(call(source, "--out", tmp_path / "search", "--json").stdout)
    assert (plain["rule"], search["rule"]) == ("plain", "search")
    assert search["errors"]["all"] < 0.97 * plain["errors"]["all"]
    with LLM(tmp_path / "m-q4", config=EngineConfig(max_context=64)) as llm:
        assert llm.fit.mapped


def test_measuring_says_how_far_q8_and_q4_are(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    source = chat_checkpoint(tmp_path / "m", hidden_size=64)
    (tmp_path / "text").write_text("Sort 5, 3, 8. " * 40, "utf-8")
    found = {}
    for format in ("q8", "q4"):
        options = ["--to", format, "--out", tmp_path / format, "--measure", tmp_path / "text", "--json"]
        found[format] = json.loads(call(source, *options).stdout)["measured"]
    assert 0 < found["q8"]["kl_mean"] < 0.02 * found["q4"]["kl_mean"]
    assert found["q8"]["perplexity_original"] == found["q4"]["perplexity_original"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--plain", "--calibrate", "text"], "--plain does not look"),
        (["--calibrate", "nowhere"], "nowhere cannot be read"),
        (["--calibrate", "binary"], "no text in UTF-8"),
        (["--calibrate", "empty"], "no tokens"),
        (["--measure", "empty"], "0 tokens; two are the least"),
        (["--imatrix", "nowhere"], "nowhere"),
        (["--imatrix", "llama.gguf"], "llama.cpp are not read"),
        (["--calibrate", "text", "--imatrix", "text"], "is there already"),
        (["--out", "text"], "is there already"),
        (["--tokens", "0"], "--tokens"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    options: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("hello")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "empty").write_text("")
    (tmp_path / "llama.gguf").write_bytes(b"GGUF")
    before = sorted(p.name for p in tmp_path.iterdir())
    done = call(*options)
    assert done.exit_code == 2 and done.stderr.count("\n") == 1
    assert says in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", [*GOLDEN, "bundled"])
def test_what_came_in_one_file_is_written_as_a_directory(name: str, tmp_path: Path) -> None:
    if name == "bundled":
        path = BUNDLED
    else:
        (tmp_path / "m").mkdir()
        path = make_golden(tmp_path / "m", name)
    opened = Checkpoint.open(path)
    single = tmp_path / "model.gguf"
    single.write_bytes(b"")
    one = Checkpoint(single, opened.config, opened.source, opened.eos_ids, opened.text)
    write_packed(one, CpuBackend(1), "q8", tmp_path / "out")
    again = Checkpoint.open(tmp_path / "out")
    assert config_json(again.config) | {"eos_token_id": 0} == config_json(opened.config) | {"eos_token_id": 0}
    assert again.config.inverse_frequencies() == opened.config.inverse_frequencies()
    assert set(again.eos_ids) == set(opened.eos_ids)
    assert again.text.tokenizer == opened.text.tokenizer and again.text.thinking == opened.text.thinking
    assert again.text.templates == opened.text.templates


def test_the_context_extension_of_llama_3_is_written() -> None:
    config = replace(Checkpoint.open(BUNDLED).config, llama3=Llama3Rope(8.0, 1.0, 4.0, 8192))
    assert ModelConfig.from_hf(config_json(config)).llama3 == config.llama3


def test_a_model_that_no_config_describes_is_refused() -> None:
    config = Checkpoint.open(BUNDLED).config
    with pytest.raises(ModelError, match="cannot say this model's rope_factors"):
        config_json(replace(config, rope_factors=(2.0,) * 16))
    with pytest.raises(ModelError, match="cannot say this model's qk_norm False"):
        config_json(replace(config, qk_norm=False))


@pytest.mark.parametrize("architecture", ["Qwen3ForCausalLM", "Qwen3MoeForCausalLM"])
@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "BF16"])
def test_a_gguf_becomes_a_directory_that_says_the_same(architecture: str, kind: str, tmp_path: Path) -> None:
    gguf_files = pytest.importorskip("gguf_files")
    path = tmp_path / "model.gguf"
    gguf_files.write_model(path, architecture, kind=gguf_files.Kind[kind], max_position_embeddings=256)
    original = Checkpoint(path, *open_gguf(path))
    cpu = CpuBackend(2)
    with Rounder("q4", calibrate(original, cpu, IDS[:40]).of, 2) as rounder:
        write_packed(original, cpu, "q4", tmp_path / "packed", None, rounder)
    other = Checkpoint.open(tmp_path / "packed")
    found = compare(original, other, cpu, IDS[:60])
    errors = [
        e.relative for e in matrix_errors(original, other, cpu) if not e.name.endswith("mlp.gate.weight")
    ]
    if kind == "BF16":
        assert 0.02 < min(errors) and found.kl_mean > 1e-4
    else:
        assert max(errors) == 0 and found.kl_max < 1e-9
    with LLM(tmp_path / "packed", config=EngineConfig(max_context=64)) as llm:
        assert llm.chat("2+2", SamplingParams(max_tokens=9, temperature=0)).token_ids
