"""`deepfast serve` before it serves: what it will use, and what it refuses, each in one line.

In: the command in this process, with memory and packages as the test wants them. Out: exit codes and lines.
Does not know: what a running server does (test_server_core.py, test_server_faults.py).
"""

from __future__ import annotations

import importlib.util
import json
import re
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from serve_process import Caller, here, process

from deepfast import LLM
from deepfast.backend import machine
from deepfast.cli import serve as module
from deepfast.cli.main import cli
from deepfast.cli.memory import plan
from deepfast.config import EngineConfig, ServerConfig
from deepfast.types import UsageError

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call `deepfast serve` in this process; it never comes so far as to serve."""
    for name in ("DEEPFAST_MODEL", "DEEPFAST_API_KEYS"):
        monkeypatch.delenv(name, raising=False)

    def served(*_: object) -> None:
        raise RuntimeError("it serves")

    monkeypatch.setattr("deepfast.cli.serve._serve", served)
    return lambda *args: CliRunner().invoke(cli, ["serve", "--port", "0", "--no-store", *args])


def test_it_says_what_it_will_use(run: Run) -> None:
    done = run()
    assert "it serves" in done.stderr and done.stdout == ""
    first, second = (json.loads(line) for line in done.stderr.splitlines()[:2])
    shown = r"deepfast-nano: weights [\d.]+ MB \(q8\), KV cache [\d.]+ MB \([\d,]+ positions in f16\), "
    shown += r"[\d.]+ MB to work in, "
    assert re.match(shown + r"context 2,048, \d+ threads", first["message"])
    assert first["weights"] > 10**6 and re.match(r"memory: [\d.]+ MB of [\d.]+ GB", second["message"])


def test_too_little_memory_is_refused_with_numbers_and_a_way_out(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    need = plan({"nano": None}, None, EngineConfig(max_context=2048), 10**9)[0].fit
    kv = need.kv * 2048 // need.kv_tokens
    monkeypatch.setattr(machine, "free_memory", lambda: need.total - need.kv + 2 * kv // 3)
    done = run("--context", "2048")
    assert done.exit_code == 2 and done.stderr.count("\n") == 1
    numbers = (
        r"3\.0 MB of weights, 6\.3 MB of KV cache \(2,048 positions in f16\) and [\d.]+ MB to work in need "
    )
    assert re.search(numbers + r"[\d.]+ MB, but [\d.]+ MB of memory are free", done.stderr)
    assert int(re.search(r"--context (\d+)", done.stderr)[1]) in range(1300, 1366)
    assert "--quantize q4" in done.stderr and "--kv q8" in done.stderr


def test_several_models_are_counted_together() -> None:
    one = plan({"a": None}, None, EngineConfig(max_context=1024), 10**9)[0]
    both = plan({"a": None, "b": None}, None, EngineConfig(max_context=1024), 10**9)
    assert [need.name for need in both] == ["a", "b"] and both[0].fit.weights == one.fit.weights
    least = one.fit.total - one.fit.kv * 3 // 4  # with a cache of one context
    with pytest.raises(UsageError, match="a and b: "):
        plan({"a": None, "b": None}, None, EngineConfig(max_context=1024), 2 * least - 10**5)
    squeezed = plan({"a": None, "b": None}, None, EngineConfig(max_context=1024), 2 * least)
    assert [need.fit.kv_tokens for need in squeezed] == [1024, 1024]


def test_the_plan_is_what_is_loaded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    monkeypatch.setattr(module, "_serve", lambda models, *_: loaded.extend(m.llm for m in models.values()))
    done = run("--context", "512", "--kv", "q8", "--max-running", "3", "--max-tokens", "9", "--threads", "1")
    assert done.exit_code == 0, done.stderr
    settings = loaded[0].requests.settings
    assert (settings.max_context, settings.kv, settings.max_running) == (512, "q8", 3)
    assert (settings.max_new_tokens, settings.threads) == (9, 1)
    positions = f"{loaded[0].engine.scheduler.pool.num_positions:,} positions in q8"
    assert positions in done.stderr


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--max-body", "10x"], 2, "'10x' is no size"),
        (["--max-body", "5"], 2, "max_body=5 is below"),
        (["--host", "no-such-host.invalid"], 2, "not known here"),
        (["-m", "a=/x", "-m", "a=/y"], 2, "two models are named 'a'"),
        (["-m", "/no/such/model"], 1, "'/no/such/model' was not found"),
        (["--context", "999999"], 2, "beyond the model's 2048"),
        (["--api-key", "two words"], 2, "without spaces"),
        (["--port", "99999"], 2, "--port"),
        (["--remote", "http://127.0.0.1:9/v1"], 2, "is no remote model"),
        (["--remote", "deepfast-nano=http://127.0.0.1:9/v1"], 2, "two models are named"),
    ],
)
def test_wrong_options_are_one_line(run: Run, options: list[str], code: int, said: str) -> None:
    done = run(*options)
    assert (done.exit_code, done.stderr.count("\n")) == (code, 1) and said in done.stderr


def test_a_busy_port_is_said_before_anything_is_loaded(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        done = run("--port", str(busy.getsockname()[1]))
    assert done.exit_code == 1 and done.stderr.count("\n") == 1
    assert "address already in use. Give another --host or --port" in done.stderr


def test_a_missing_extra_is_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else found(name))
    done = run()
    assert done.exit_code == 1
    assert "needs uvicorn" in done.stderr and "pip install 'deepfast[server]'" in done.stderr


def test_an_open_door_to_others_is_warned_of(run: Run) -> None:
    assert "has no API key" in run("--host", "0.0.0.0").stderr
    assert "has no API key" not in run("--host", "0.0.0.0", "--api-key", "some-key").stderr
    assert "has no API key" not in run().stderr


def test_keys_come_from_options_a_file_and_the_environment(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[ServerConfig] = []
    monkeypatch.setattr(module, "_serve", lambda models, config, *_: made.append(config))
    monkeypatch.setenv("DEEPFAST_API_KEYS", "from-env, more-env,")
    (tmp_path / "keys").write_text("\ufefffrom-file\n# ours\n\n other-file \n")
    done = run("--api-key", "from-option", "--api-key-file", str(tmp_path / "keys"))
    assert made[0].api_keys == ("from-option", "from-file", "other-file", "from-env", "more-env")
    assert made[0].hosts == () and "from-" not in done.stderr


def test_without_keys_only_names_of_this_machine_are_served(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[ServerConfig] = []
    monkeypatch.setattr(module, "_serve", lambda models, config, *_: made.append(config))
    run("--allow-host", "Mine.local", "--cors", "http://localhost:3000/")
    run("--host", "0.0.0.0")
    assert made[0].cors == ("http://localhost:3000",)  # as browsers send it
    assert [config.hosts for config in made] == [("127.0.0.1", "localhost", "::1", "mine.local"), ()]


def test_a_remote_model_is_one_more() -> None:
    with LLM() as llm, here(llm, ServerConfig(api_keys=("there",))) as (far, _):
        remote = f"far=http://127.0.0.1:{far}/v1,model=nano,dialect=deepfast,key=FAR_KEY"
        with process("--remote", remote, FAR_KEY="there") as near:
            with Caller(near.port, "/v1/models") as call:
                assert [card["id"] for card in call.json()["data"]] == ["deepfast-nano", "far"]
            body = {"model": "far", "messages": [{"role": "user", "content": "What is 2 + 3?"}]}
            with Caller(near.port, "/v1/chat/completions", body) as call:
                assert call.json()["choices"][0]["message"]["content"].strip() == "5"
            with Caller(near.port, "/tokenize", {"model": "far", "prompt": "x"}) as call:
                assert "runs elsewhere" in call.json()["error"]["message"]
            near.popen.send_signal(signal.SIGTERM)
            assert near.wait() == 0
        assert "there" not in "".join(near.log)


def test_a_file_without_keys_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# none\n")
    done = run("--api-key-file", str(tmp_path / "keys"))
    assert done.exit_code == 2 and "holds no key" in done.stderr
