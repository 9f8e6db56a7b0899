"""The command line, where the answer is more than a text: tool calls, schemas, votes of several answers.

In: `deepfast run` with a scripted model inside. Out: what reaches the model, stdout, stderr and --json.
Does not know: real models (test_cli_model.py does).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from scripted_llm import ScriptedLLM

import deepfast
from deepfast.cli.main import cli
from deepfast.cli.terminal import Printer, brief, tally
from deepfast.types import Delta, Grammar

Run = Callable[..., Result]

SCHEMA = '{"type": "object", "properties": {"n": {"type": "integer"}}}'
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call `deepfast run` in this process with the scripted model."""
    monkeypatch.setitem(deepfast.__dict__, "LLM", ScriptedLLM)
    monkeypatch.delenv("DEEPFAST_MODEL", raising=False)
    return lambda *args: CliRunner().invoke(cli, ["run", *args])


def test_schema_and_tools_come_from_a_file_or_from_the_command_line(run: Run, tmp_path: Path) -> None:
    schema, tools = tmp_path / "schema.json", tmp_path / "tools.json"
    schema.write_bytes(b"\xef\xbb\xbf" + SCHEMA.encode())  # as Windows writes it
    tools.write_text(json.dumps(TOOLS))
    for a, b in ((str(schema), str(tools)), (SCHEMA, json.dumps(TOOLS))):
        assert run("--schema", a, "--tools", b, "hello").exit_code == 0
        llm = ScriptedLLM.last
        assert llm.calls[0][1].grammar == Grammar("json_schema", SCHEMA)
        assert (llm.tools, llm.tool_choice) == (TOOLS, "auto")
    assert run("--tools", str(tools), "--tool-choice", "add", "--json", "hello").exit_code == 0
    assert ScriptedLLM.last.tool_choice == "add"


def test_a_tool_call_is_an_answer_on_one_line_of_stdout(run: Run) -> None:
    done = run("--no-think", "call")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == '1 turns: call\nadd {"a": 1, "b": 2}\nnow {}\n'
    assert run("--think", "call").stderr == "let me see\n\n"
    calls = json.loads(run("--json", "call").stdout)["tool_calls"]
    assert calls[1] == {"name": "now", "arguments": "{}", "id": "call_1"}


def test_a_call_that_cannot_be_read_is_shown_as_text_and_explained(run: Run) -> None:
    done = run("--no-think", "garble")
    assert done.stdout.endswith('<tool_call>{"name": "add", "arguments": {"a": x</tool_call>\n')
    assert "add {" not in done.stdout
    assert "no tool call: 'x' is no value" in done.stderr
    assert json.loads(run("--json", "garble").stdout)["malformed"] == ["'x' is no value"]


def test_half_a_call_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), Printer() as printer:
        printer.show(Delta("content", "so"))
        printer.show(Delta("tool_call", "", 0, "call_0", "add"))
        printer.show(Delta("tool_call", '{"a": '))
        raise KeyboardInterrupt
    assert capsys.readouterr().out == "so\n"


def test_a_call_right_after_the_thought_and_text_after_it(capsys: pytest.CaptureFixture[str]) -> None:
    with Printer() as printer:
        for delta in (
            Delta("reasoning", "hm"),
            Delta("tool_call", "", 0, "call_0", "add"),
            Delta("tool_call", '{"b": "\u2028"}'),
            Delta("content", "\n"),
            Delta("content", "\n and so "),
            Delta("content", "\non"),
        ):
            printer.show(delta)
    said = capsys.readouterr()
    assert said.out == 'add {"b": "\u2028"}\nand so \non\n'
    assert said.err == "hm\n\n"


def test_samples_vote_and_the_winner_is_printed_with_the_tally(run: Run) -> None:
    done = run("-n", "5", "--seed", "1", "--no-think", "odd")
    assert (done.exit_code, done.stdout) == (0, "it is 1\n")
    assert done.stderr == "3 of 5 say 1 · 2 say 0\n"
    assert [params.seed for _, params, _ in ScriptedLLM.last.calls] == [1, 2, 3, 4, 5]
    assert {params.logprobs for _, params, _ in ScriptedLLM.last.calls} == {0}
    assert run("-n", "2", "hello").stderr == "let me see\n\n2 of 2 say 1\n"


def test_the_vote_in_json(run: Run) -> None:
    plain = json.loads(run("--json", "--seed", "1", "odd").stdout)
    voted = json.loads(run("--json", "--samples", "5", "--seed", "1", "odd").stdout)
    assert list(voted) == [*plain, "vote", "samples"]
    assert {key: voted[key] for key in plain} == plain
    assert voted["vote"] == {"answer": "1", "count": 3, "total": 5, "groups": {"1": 3, "0": 2}}
    assert [sample["answer"] for sample in voted["samples"]] == ["1", "0", "1", "0", "1"]
    assert list(voted["samples"][0]) == ["answer", *(key for key in plain if key != "model")]


def test_tool_calls_vote_and_silence_does_not(run: Run) -> None:
    done = run("-n", "3", "--no-think", "call")
    assert done.stdout == '1 turns: call\nadd {"a": 1, "b": 2}\nnow {}\n'
    assert done.stderr == '3 of 3 say add {"a": 1, "b": 2}; now {}\n'
    done = run("-n", "3", "--no-think", "nothing")
    assert (done.exit_code, done.stderr) == (0, "3 of 3 gave no answer\n")


def test_a_tally_is_one_line_whatever_the_answers() -> None:
    assert tally({"4042": "abcd", "4041": "e"}, 6) == "4 of 6 say 4042 · 1 says 4041 · 1 gave no answer"
    assert tally({"x\ny": "a"}, 1) == "1 of 1 says x y"
    assert brief("x" * 99) == "x" * 59 + "…"


MISTAKES = [
    (["--schema", "{}", "--regex", "a", "hello"], "--schema and --regex cannot both"),
    (["--schema", "no/such/file", "hello"], "--schema no/such/file cannot be read: No such file"),
    (["--schema", '{"type": ', "hello"], "--schema is no JSON"),
    (["--tools", "{}", "hello"], "--tools holds no list of tools"),
    (["--tools", "[]", "hello"], "--tools holds no list of tools"),
    (["--tools", "[1]", "hello"], "--tools holds no list of tools"),
    (["--tool-choice", "auto", "hello"], "--tool-choice auto needs tools"),
    (
        ["--tools", "[{}]", "--tool-choice", "add", "--regex", "a", "hello"],
        "--tool-choice add asks for a call",
    ),
    (["--no-think", "--min-tokens", "8", "hello"], "--min-tokens 8 needs a thought and --no-think"),
    (["--no-think", "--soft-landing", "8", "hello"], "--soft-landing 8 needs a thought"),
    (["--no-think", "--on-loop", "ignore", "hello"], "--on-loop ignore needs a thought"),
    (["--budget", "4", "--min-tokens", "8", "hello"], "min_tokens=8 is more than budget=4"),
    (["--on-loop", "shrug", "hello"], "'shrug' is not one of"),
    (["--min-tokens", "-1", "hello"], "min_tokens=-1 is negative"),
    (["-n", "0", "hello"], "0 is not in the range"),
    (["-n", "3", "--temperature", "0", "hello"], "--samples 3 have nothing to vote on"),
    (["-n", "3", "a long prompt"], "the context holds 64"),
]


@pytest.mark.parametrize("args, says", MISTAKES, ids=[" ".join(args) for args, _ in MISTAKES])
def test_what_makes_no_sense_is_refused_in_one_line_with_exit_code_2(
    run: Run, args: list[str], says: str
) -> None:
    done = run(*args)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("deepfast: error: ") and says in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_file_that_is_no_text_is_named(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"\xff\xfe\x00")
    done = run("--tools", str(path), "hello")
    assert done.exit_code == 2 and "weights.bin cannot be read: it is not UTF-8" in done.stderr


def test_an_engine_that_fails_during_a_vote_is_exit_code_1(run: Run) -> None:
    done = run("-n", "3", "fail")
    assert (done.exit_code, done.stdout) == (1, "") and "hold NaN" in done.stderr
