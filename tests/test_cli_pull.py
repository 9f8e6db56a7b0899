"""`deepfast pull` and `deepfast list`, and every command with a model that must be fetched first.

In: a hub in this process, a random model that speaks. Out: paths on stdout, sizes and progress on stderr.
Does not know: how bytes travel (test_hub.py does).
"""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checkpoints import chat_checkpoint
from click.testing import CliRunner, Result
from hub_server import Fault, HubServer

from deepfast import LLM, SamplingParams
from deepfast.cli import list as listing
from deepfast.cli.main import cli
from deepfast.model.catalog import CATALOG
from deepfast.model.fit import MARGIN, fit

TINY = "acme/tiny"
ASK = ("--no-think", "--max-tokens", "4", "--temperature", "0", "hi")


def call(*args: str) -> Result:
    """Run one command in this process."""
    return CliRunner().invoke(cli, args, env={"DEEPFAST_MODEL": None})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A random model that speaks, as files."""
    path = tmp_path_factory.mktemp("tiny")
    chat_checkpoint(path)
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.fixture
def tiny(hub: HubServer, checkpoint: dict[str, bytes]) -> HubServer:
    """The hub, with that model on it, also under a name of the catalog."""
    hub.add(TINY, checkpoint)
    hub.add("Qwen/Qwen3-0.6B", checkpoint)
    return hub


def test_pull_prints_the_path_and_says_what_it_fetches(tiny: HubServer, tmp_path: Path) -> None:
    done = call("pull", TINY)
    path = Path(done.stdout.strip())
    assert done.exit_code == 0 and (path / "config.json").is_file() and tmp_path in path.parents
    assert re.match(r"fetching acme/tiny: [\d.]+ [kM]B\n", done.stderr)
    again = call("pull", TINY)
    assert (again.stdout, again.stderr) == (done.stdout, "everything is here already\n")


def test_pull_json_says_everything(tiny: HubServer, checkpoint: dict[str, bytes]) -> None:
    facts = json.loads(call("pull", "--json", "qwen3:0.6b-q4").stdout)
    assert list(facts) == ["model", "path", "quantize", "bytes", "note"]
    assert (facts["quantize"], facts["note"]) == ("q4", None)
    assert facts["bytes"] == sum(map(len, checkpoint.values()))


def test_a_revision_is_named_once(tiny: HubServer) -> None:
    assert call("pull", TINY, "--revision", "v1").exit_code == 0
    assert call("pull", f"{TINY}@v1", "--revision", "v1").exit_code == 0
    done = call("pull", f"{TINY}@main", "--revision", "v1")
    assert done.exit_code == 2 and "main" in done.stderr and "v1" in done.stderr
    done = call("pull", TINY, "--revision", "v7")
    assert done.exit_code == 1 and "'v7'" in done.stderr and done.stderr.count("\n") == 1
    done = call("pull", TINY, "--revision", "../x")
    assert done.exit_code == 2 and "'../x'" in done.stderr
    facts = json.loads(call("pull", "qwen3:0.6b-q4", "--revision", "v1", "--json").stdout)
    assert facts["quantize"] == "q4"
    assert call("pull", facts["path"], "--revision", "v1").exit_code == 2
    assert call("pull", facts["path"], "--verify").exit_code == 2
    assert call("pull", facts["path"]).exit_code == 0


def test_an_endpoint_may_be_named(tiny: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    failed = call("pull", TINY)
    assert failed.exit_code == 1 and "127.0.0.1:9" in failed.stderr and failed.stderr.count("\n") == 1
    assert call("pull", TINY, "--endpoint", tiny.url).exit_code == 0
    offline = call("pull", TINY)
    assert offline.exit_code == 0 and "the copy in the cache is used" in offline.stderr
    assert "verify" not in offline.stderr
    assert call("pull", TINY, "--verify").exit_code == 1, "a promise that can not be kept"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in call("pull", TINY, "--verify").stderr
    assert call("pull", TINY).exit_code == 0


def test_run_fetches_answers_and_then_needs_no_network(
    tiny: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: dict[str, bytes]
) -> None:
    first = call("run", "--json", "-m", TINY, *ASK)
    assert "fetching acme/tiny" in first.stderr
    said = json.loads(first.stdout)
    assert said["model"] == TINY and said["usage"]["completion_tokens"] == 4
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    requests = len(tiny.log)
    second = call("run", "--json", "-m", TINY, *ASK)
    assert json.loads(second.stdout)["content"] == said["content"] and "fetching" not in second.stderr
    folder = tmp_path / "by-hand"
    folder.mkdir()
    for name, data in checkpoint.items():
        (folder / name).write_bytes(data)
    assert json.loads(call("run", "--json", "-m", str(folder), *ASK).stdout)["content"] == said["content"]
    assert len(tiny.log) == requests


def test_every_command_takes_these_names(
    tiny: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = call("show", "--json", "-m", "qwen3:0.6b-bf16")
    assert shown.exit_code == 0 and "fetching" in shown.stderr
    packed = call("quantize", f"modelscope:{TINY}", "--to", "q8")
    assert packed.exit_code == 0, packed.stderr
    assert Path(packed.stdout.strip()) == Path("tiny-q8") and (tmp_path / "tiny-q8" / "config.json").is_file()
    assert call("run", "-m", "tiny-q8", *ASK).exit_code == 0
    done = call("chat", "-m", "acme/none")
    assert done.exit_code == 1 and "acme/none" in done.stderr and done.stderr.count("\n") == 1


def test_a_name_carries_its_format_and_must_not_be_contradicted(tiny: HubServer) -> None:
    with LLM("qwen3:0.6b-q4") as named, LLM(TINY, quantize="q4") as asked:
        params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
        assert (
            named.generate([[1, 2, 3]], params)[0].token_ids
            == asked.generate([[1, 2, 3]], params)[0].token_ids
        )
        assert named.name == "qwen3:0.6b-q4"
    done = call("run", "-m", "qwen3:0.6b-q4", "--quantize", "q8", *ASK)
    assert done.exit_code == 2 and "name says q4, --quantize says q8" in done.stderr


def test_a_path_has_nothing_to_fetch(tmp_path: Path) -> None:
    done = call("pull", str(tmp_path))
    assert done.exit_code == 0 and done.stderr == f"{tmp_path} is a path: there is nothing to fetch\n"
    done = call("pull", str(tmp_path), "--endpoint", "https://hf-mirror.com")
    assert done.exit_code == 2 and "has no endpoint" in done.stderr
    done = call("pull", TINY, "--endpoint", "")
    assert done.exit_code == 2 and "is no address" in done.stderr


def test_show_says_what_the_name_means(tiny: HubServer) -> None:
    assert json.loads(call("show", "--json", "-m", "qwen3:0.6b-q4").stdout)["loaded_as"] == "q4"
    assert "(stored as f32; the model's name means q4)" in call("show", "-m", "qwen3:0.6b-q4").stdout
    assert "name means" not in call("show", "-m", TINY).stdout


def test_a_benchmark_names_the_format_that_runs(tiny: HubServer) -> None:
    done = call("bench", "--quick", "--json", "-m", "qwen3:0.6b-q4")
    assert json.loads(done.stdout)["weights"] == "q4"


def test_revisions_are_listed_by_names_that_open_them(tiny: HubServer, tmp_path: Path) -> None:
    old = Path(call("pull", TINY).stdout.strip())
    assert call("pull", f"ms:{TINY}").exit_code == call("pull", f"ms:{TINY}@v1").exit_code == 0
    tiny.add(TINY, {**tiny.repos[TINY], "README.md": b"new", "generation_config.json": b"{}"})
    assert call("pull", f"{TINY}@v1").exit_code == 0
    new = Path(call("pull", TINY).stdout.strip())
    assert new != old
    models = {m["name"]: m["path"] for m in json.loads(call("list", "--json").stdout)["models"]}
    assert models[TINY] == str(new) and models[f"{TINY}@{old.name}"] == str(old)
    assert set(models) == {TINY, f"{TINY}@{old.name}", f"modelscope:{TINY}", f"modelscope:{TINY}@v1"}
    for name, path in models.items():
        assert call("pull", name).stdout.strip() == path


def test_python_users_are_told_what_is_fetched(tiny: HubServer) -> None:
    events: list[Any] = []
    with LLM(f"modelscope:{TINY}", fetching=events.append):
        pass
    assert [events[0].state, events[-1].state] == ["start", "end"]
    assert events[-1].done == events[-1].total == events[0].total and events[0].repo == TINY
    assert all(a.done <= b.done for a, b in zip(events, events[1:], strict=False))


def test_list_shows_what_is_here(tiny: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = call("list")
    assert (empty.exit_code, empty.stdout) == (0, "") and "deepfast pull" in empty.stderr
    tiny.add("acme/tiny-GGUF", {"tiny-Q4_K_M.gguf": b"GGUF" * 1000, "tiny-Q8_0.gguf": b"GGUF" * 9000})
    for name in (TINY, f"ms:{TINY}", "acme/tiny-GGUF:Q4_K_M"):
        assert call("pull", name).exit_code == 0
    tiny.faults = {
        "tiny-Q8_0.gguf": Fault(cut=500),
        "cdn/acme/tiny-GGUF/tiny-Q8_0.gguf": Fault(99, status=500),
    }
    assert call("pull", "acme/tiny-GGUF:Q8_0").exit_code == 1
    (blobs,) = tmp_path.glob("hf/hub/models--acme--tiny-GGUF/blobs")
    (blobs / "abc.0123abcd.incomplete").write_bytes(b"of huggingface_hub, which begins again")
    done = call("list")
    assert "acme/tiny-GGUF is not whole, 500 B" in done.stderr
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert names == ["NAME", TINY, "acme/tiny-GGUF:Q4_K_M", f"modelscope:{TINY}"]
    facts = json.loads(call("list", "--json").stdout)
    assert facts["unfinished_bytes"] == {"acme/tiny-GGUF": 500}
    for model in facts["models"]:
        assert call("pull", model["name"], "--json").exit_code == 0
        assert Path(model["path"]).exists() and model["size"] > 0
    assert {model["format"] for model in facts["models"]} == {"safetensors", "GGUF Q4_K_M"}


def test_the_catalog_says_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepfast.backend.machine.free_memory", lambda: 24 * 10**9)
    text = call("list", "--available").stdout
    rows = {line.split()[0]: line for line in text.splitlines()[1:]}
    assert set(rows) == {entry.name for entry in CATALOG}
    assert rows["qwen3:235b-a22b"].endswith("no") and rows["qwen3:0.6b"].endswith("bf16, all of it")
    assert "32,768 (131,072)" in rows["qwen3:8b"] and "8.19 B" in rows["qwen3:8b"]
    facts = json.loads(call("list", "--available", "--json").stdout)
    assert facts["free_bytes"] == 24 * 10**9
    models = {model["name"]: model for model in facts["models"]}
    four = models["qwen3:4b"]
    assert four["parameters"] == 4_022_468_096 and four["modes"] == ["think", "no_think"]
    assert four["variants"]["qwen3:4b"] == {"repo": "Qwen/Qwen3-4B-GGUF", "file": "Q4_K_M", "quantize": None}
    assert four["sampling"]["think"]["temperature"] == 0.6 and four["licence"] == "Apache-2.0"


@pytest.mark.parametrize("free", [10**9, 5 * 10**9, 24 * 10**9, 10**12])
def test_the_largest_context_fits_and_the_next_does_not(free: int) -> None:
    for entry in CATALOG:
        for format in listing.FORMATS:
            context = listing.largest_context(entry, format, free)
            per_position = 2 * 2 * entry.config.num_layers * entry.config.num_kv_heads * entry.config.head_dim
            weights = entry.weight_bytes(format)
            if context:
                assert weights + context * per_position <= free and listing.ENOUGH <= context <= entry.native
            if context < entry.native:
                step = max(context + listing.ROUND, listing.ENOUGH)
                around = fit(entry.config, format, "f16", entry.config.max_positions, free, weights=weights)
                beside = around.total - around.kv + free // MARGIN
                assert beside + step * per_position > free


def test_a_terminal_shows_a_bar_and_a_file_shows_lines(tiny: HubServer) -> None:
    command = [sys.executable, "-P", "-m", "deepfast.cli.main", "pull", TINY]
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, text=True) as process:
        os.close(theirs)
        seen = b""
        while True:
            try:
                seen += os.read(ours, 4096)
            except OSError:
                break
        assert process.stdout is not None
        path = process.stdout.read().strip()
    os.close(ours)
    assert Path(path).is_dir() and "fetching acme/tiny" in seen.decode() and "━" in seen.decode()
    piped = call("pull", f"modelscope:{TINY}")
    assert "━" not in piped.stderr and "\x1b" not in piped.stderr


def test_help_needs_no_client() -> None:
    code = (
        "import sys; from deepfast.cli.main import cli\n"
        "try: cli(['pull', '--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('huggingface_hub', 'httpx2', 'numpy', 'rich') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
