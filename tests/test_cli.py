"""The command line: what goes to which stream, exit codes, one clear line for every mistake, a real terminal.

In: `deepfast` with a scripted model inside. Out: that people and scripts get what the README promises.
Does not know: real models (test_cli_model.py does).
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from scripted_llm import ScriptedLLM

import deepfast
from deepfast.cli.main import cli
from deepfast.types import Grammar, Thinking

HERE = Path(__file__).resolve().parent
SCRIPTED = [sys.executable, str(HERE / "scripted_llm.py")]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "TERM": "xterm"}

Run = Callable[..., Result]
THINKING = ("mode", "budget", "stop", "seconds", "source", "waits")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call `deepfast` in this process with the scripted model."""
    monkeypatch.setitem(deepfast.__dict__, "LLM", ScriptedLLM)
    monkeypatch.delenv("DEEPFAST_MODEL", raising=False)
    return lambda *args, stdin="": CliRunner().invoke(cli, args, input=stdin)


def test_run_prints_the_answer_on_stdout_and_the_thought_on_stderr(run: Run) -> None:
    done = run("run", "hello")
    assert (done.exit_code, done.stdout) == (0, "1 turns: hello\n")
    assert done.stderr == "let me see\n\n"
    assert ScriptedLLM.last.closed


def test_run_without_thought_leaves_stderr_alone(run: Run) -> None:
    done = run("run", "--no-think", "hello")
    assert (done.stdout, done.stderr) == ("1 turns: hello\n", "")


def test_run_json_has_exactly_the_documented_keys(run: Run) -> None:
    done = run("run", "--json", "--budget", "8", "hello")
    report = json.loads(done.stdout)
    assert done.stderr == "" and done.stdout.count("\n") == 1
    assert list(report) == [
        *("model", "reasoning", "content", "tool_calls"),
        *("finish_reason", "usage", "thinking", "timing", "cache_miss", "malformed"),
    ]
    assert list(report["usage"]) == [
        "prompt_tokens",
        "cached_tokens",
        "completion_tokens",
        "reasoning_tokens",
    ]
    thinking = ("auto", 8, "natural", 0.01, "--budget", 0)
    assert report["thinking"] == dict(zip(THINKING, thinking, strict=True))
    assert (report["cache_miss"], report["malformed"]) == ("diverged", [])
    assert report["timing"] == {"load_s": 0.25, "first_token_s": 0.01, "total_s": 0.5}
    assert (report["reasoning"], report["content"]) == ("let me see", "1 turns: hello")


def test_run_hands_every_option_on(run: Run) -> None:
    sampling = ["--temperature", "0.5", "--top-p", "0.9", "--top-k", "7", "--min-p", "0.1", "--seed", "3"]
    sampling += ["--presence-penalty", "1.5", "--max-tokens", "40", "--regex", "[0-9]+"]
    thought = ["--think", "--budget", "9", "--min-tokens", "4", "--soft-landing", "3", "--on-loop", "ignore"]
    engine = ["-m", "some/dir", "--quantize", "q4", "--threads", "3", "--context", "256", "--kv", "f32"]
    assert run("run", *sampling, *engine, *thought, "--system", "be brief", "hello").exit_code == 0
    messages, params, wish = ScriptedLLM.last.calls[0]
    assert [(m.role, m.content) for m in messages] == [("system", "be brief"), ("user", "hello")]
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.5, 0.9, 7, 0.1)
    assert (params.seed, params.presence_penalty, params.max_tokens) == (3, 1.5, 40)
    assert params.grammar == Grammar("regex", "[0-9]+") and params.logprobs is None
    assert wish == Thinking(
        "on", 9, 4, None, 3, "ignore", "--think, --budget, --min-tokens, --soft-landing, --on-loop"
    )
    settings = ScriptedLLM.last.engine_config
    assert (settings.threads, settings.max_context, settings.kv) == (3, 256, "f32")
    assert (ScriptedLLM.last.name, ScriptedLLM.last.quantize) == ("some/dir", "q4")


def test_run_reads_the_prompt_from_stdin_and_the_model_from_the_environment(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPFAST_MODEL", "env/dir")
    assert run("run", "-", stdin="zwei\nZeilen 你好\n").stdout == "1 turns: zwei\nZeilen 你好\n"
    assert ScriptedLLM.last.name == "env/dir"


def test_run_says_when_the_answer_was_cut(run: Run) -> None:
    assert "cut: no tokens left" in run("run", "cut").stderr


MISTAKES = [
    (["run", ""], 2, "prompt is empty"),
    (["run", " \n"], 2, "prompt is empty"),
    (["run"], 2, "Missing argument 'PROMPT'"),
    (["run", "--budget", "-1", "hello"], 2, "budget=-1 is negative"),
    (["run", "--budget", "many", "hello"], 2, "'many' is not a valid integer"),
    (["run", "--no-think", "--budget", "8", "hello"], 2, "--budget 8 needs a thought"),
    (["run", "--temperature", "nan", "hello"], 2, "temperature=nan"),
    (["run", "--max-tokens", "0", "hello"], 2, "max_tokens=0"),
    (["run", "--threads", "0", "hello"], 2, "--threads"),
    (["run", "--quantize", "q3", "hello"], 2, "'q3' is not one of"),
    (["run", "--thonk", "hello"], 2, "No such option"),
    (["rum", "hello"], 2, "No such command 'rum'"),
    (["run", "a long prompt"], 2, "the context holds 64"),
    (["run", "-m", "nowhere", "hello"], 1, "'nowhere' is not a directory"),
    (["run", "fail"], 1, "hold NaN"),
    (["run", "--json", "fail"], 1, "hold NaN"),
    (["chat", "--budget", "-1"], 2, "budget=-1 is negative"),
]


@pytest.mark.parametrize("args, code, says", MISTAKES, ids=[" ".join(args) for args, _, _ in MISTAKES])
def test_every_mistake_gets_one_line_and_its_exit_code(
    run: Run, args: list[str], code: int, says: str
) -> None:
    done = run(*args)
    assert done.exit_code == code
    assert done.stdout == ""
    line = done.stderr.splitlines()[-1]
    assert line.startswith("deepfast: error: ") and says in line
    assert "Traceback" not in done.stderr


def test_a_bug_is_one_line_too_and_debug_shows_where(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScriptedLLM, "stream", lambda *_: 1 / 0)
    plain, debug = run("run", "hello"), run("--debug", "run", "hello")
    assert plain.stderr.startswith("deepfast: error: unexpected ZeroDivisionError") and plain.exit_code == 1
    assert plain.stderr.count("\n") == 1
    assert "Traceback" in debug.stderr


def test_chat_keeps_the_conversation_and_obeys_its_commands(run: Run) -> None:
    lines = [
        "/system be brief",
        "one",
        "/no_think",
        "/budget 5",
        "two",
        "/think",
        "three",
        "/budget off",
        "four",
    ]
    done = run(
        "chat", stdin="\n".join([*lines, "/auto", "/clear", "/system", "five", "/help", "/quit", "six"])
    )
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [
        f"{n} turns: {w}" for n, w in zip((1, 2, 3, 4, 1), WORDS, strict=True)
    ]
    calls = ScriptedLLM.last.calls
    assert [(wish.mode, wish.budget) for _, _, wish in calls] == [
        ("auto", None),
        ("off", None),
        ("on", 5),
        ("on", None),
        ("auto", None),
    ]
    assert [m.role for m in calls[1][0]] == ["system", "user", "assistant", "user"]
    assert calls[1][0][2].reasoning == "let me see"
    assert [m.role for m in calls[4][0]] == ["user"]
    assert "at most 5 tokens of thought, as soon as it thinks again" in done.stderr
    assert "/no_think     answer at once" in done.stderr


WORDS = ("one", "two", "three", "four", "five")


@pytest.mark.parametrize(
    "line, says",
    [
        ("/thonk", "/thonk is no command"),
        ("/budget -3", "expected a number of tokens"),
        ("/budget", "expected a number of tokens"),
        ("/budget " + "9" * 5000, "expected a number of tokens"),
        ("/min many", "/min many: expected a number of tokens"),
        ("/think about it", "stands alone"),
        ("a long prompt", "the context holds 64"),
    ],
)
def test_chat_refuses_what_makes_no_sense_and_a_script_gets_the_exit_code(
    run: Run, line: str, says: str
) -> None:
    done = run("chat", stdin=f"{line}\nnever answered\n")
    assert (done.exit_code, done.stdout) == (2, "")
    assert says in done.stderr


def test_chat_sends_a_line_that_begins_with_a_space_and_joins_lines_that_end_in_a_backslash(run: Run) -> None:
    done = run("chat", "--no-think", stdin=" /usr/bin?\n\nsplit\\\nin two\n")
    assert done.stdout == "1 turns: /usr/bin?\n2 turns: split\nin two\n"


def test_chat_limits_the_thought_from_both_sides_and_keeps_what_was_asked_at_the_start(run: Run) -> None:
    lines = [
        "/min 5",
        "one",
        "/budget off",
        "/min off",
        "two",
        "/no_think",
        "/min 7",
        "three",
        "/think",
        "four",
    ]
    done = run("chat", "--budget", "9", "--soft-landing", "2", "--on-loop", "ignore", stdin="\n".join(lines))
    assert done.exit_code == 0
    assert [(w.mode, w.budget, w.min_tokens, w.soft_landing) for _, _, w in ScriptedLLM.last.calls] == [
        ("auto", 9, 5, 2),
        ("auto", None, 0, 2),
        ("off", None, 0, 0),
        ("on", None, 7, 2),
    ]
    assert {wish.on_loop for _, _, wish in ScriptedLLM.last.calls} == {"ignore"}
    assert "at least 7 tokens of thought, as soon as it thinks again" in done.stderr
    refused = run("chat", "--budget", "4", stdin="/min 5\nnever answered\n")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "min_tokens=5 is more than budget=4" in refused.stderr


def test_help_needs_no_heavy_module() -> None:
    code = "import sys, deepfast.cli.main as m\ntry: m.main()\nexcept SystemExit: pass\nprint(*sys.modules)"
    command = [sys.executable, "-c", code, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=ENVIRONMENT)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "deepfast.cli.run" in loaded
    assert not loaded & {"numpy", "rich", "tokenizers", "jinja2", "torch", "deepfast.engine", "deepfast._C"}
    assert all(name in done.stdout for name in ("run", "chat", "bench", "show"))


def _start(*args: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen([*SCRIPTED, *args], stdout=pipe, stderr=pipe, text=True, env=ENVIRONMENT)


def test_interrupt_ends_quietly_with_130() -> None:
    with _start("run", "slowly") as process:
        assert process.stderr is not None and process.stderr.read(3) == "let"
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert "Traceback" not in rest and "error" not in rest


def test_a_closed_pipe_ends_quietly() -> None:
    with _start("run", "slowly") as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        rest = process.stderr.read()
    assert process.returncode != 0
    assert "Traceback" not in rest and "Exception" not in rest


class Terminal:
    """`deepfast` in a pseudo-terminal, as a person would have it."""

    def __init__(self, *args: str) -> None:
        import pty

        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [*SCRIPTED, *args],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env=ENVIRONMENT,
        )
        os.close(slave)
        self.seen = ""

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self.master, text.encode())

    def expect(self, text: str, seconds: float = 60.0) -> None:
        """Read on until `text` has appeared, and forget everything up to its end."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            ready, _, _ = select.select([self.master], [], [], max(end - time.monotonic(), 0))
            assert ready, f"waited for {text!r}, saw {self.seen!r}"
            self.seen += os.read(self.master, 4096).decode()
        self.seen = self.seen[self.seen.index(text) + len(text) :]

    def interrupt(self, after: float = 0.0) -> None:
        """What Ctrl-C does. At a prompt no person is faster than half a second, and the line editor that has
        just shown it does not hear a signal at once."""
        time.sleep(after)
        self.process.send_signal(signal.SIGINT)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    """Start a terminal; it is closed after the test."""
    pytest.importorskip("pty")
    opened: list[Terminal] = []

    def start(*args: str) -> Terminal:
        opened.append(Terminal(*args))
        return opened[-1]

    yield start
    for one in opened:
        one.process.kill()
        one.process.wait()
        os.close(one.master)


def test_in_a_terminal_thoughts_are_dimmed_and_ctrl_c_stops_only_the_answer(
    terminal: Callable[..., Terminal],
) -> None:
    chat = terminal("chat")
    chat.expect(">>> ")
    chat.type("hello\r")
    chat.expect("\x1b[2mlet me \x1b[0m")
    chat.expect("1 turns: hello")
    chat.expect("thought 2 tokens")
    chat.expect(">>> ")
    chat.type("slowly\r")
    chat.expect("2 turns: ")
    chat.interrupt()
    chat.expect("[stopped]")
    chat.expect(">>> ")
    chat.type("/thonk\r")
    chat.expect("/thonk is no command")
    chat.expect(">>> ")
    chat.type("after\r")
    chat.expect("3 turns: after")
    chat.expect(">>> ")
    chat.interrupt(after=0.5)
    chat.expect("Ctrl-C again")
    chat.expect(">>> ")
    chat.interrupt(after=0.5)
    assert chat.process.wait(timeout=60) == 0


def test_an_answer_stopped_before_it_said_anything_leaves_no_trace(terminal: Callable[..., Terminal]) -> None:
    chat = terminal("chat")
    chat.expect(">>> ")
    chat.type("ponder\r")
    chat.expect("let me")
    chat.interrupt()
    chat.expect("thought ended")
    chat.interrupt()
    chat.expect("[stopped]")
    chat.expect(">>> ")
    chat.type("hello\r")
    chat.expect("1 turns: hello")
    chat.expect(">>> ")
    chat.type("\x04")
    assert chat.process.wait(timeout=60) == 0


def test_ctrl_c_ends_the_thought_and_once_more_stops_the_answer(terminal: Callable[..., Terminal]) -> None:
    chat = terminal("chat")
    chat.expect(">>> ")
    chat.type("ponder slowly\r")
    chat.expect("let me")
    chat.interrupt()
    chat.expect("(thought ended; Ctrl-C again to stop the answer)\x1b[0m\r\n")
    chat.expect("so be it\x1b[0m\x1b[2m\r\n\x1b[0m\r\n1 turns: ponder slowly")
    chat.interrupt()
    chat.expect("[stopped]")
    chat.expect(">>> ")
    chat.type("ponder\r")
    chat.expect("let me")
    chat.interrupt()
    chat.expect("2 turns: ponder")
    chat.expect("ended by you")
    chat.expect("3 of 5 prompt tokens cached]")
    chat.expect(">>> ")


def test_a_thought_that_is_just_over_cannot_be_ended_and_nothing_breaks(
    terminal: Callable[..., Terminal],
) -> None:
    chat = terminal("chat")
    chat.expect(">>> ")
    chat.type("ponder late\r")
    chat.expect("let me")
    chat.interrupt()
    chat.expect("(thought ended; Ctrl-C again")
    chat.interrupt()
    chat.expect("[stopped]")
    chat.expect(">>> ")
