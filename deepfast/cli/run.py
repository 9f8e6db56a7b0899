"""`deepfast run`: one question, one answer; or, with --batch, a file of requests (batch.py).

In: a prompt as an argument, or `-` for stdin. Out: the answer on stdout and the thought on stderr as they
come, or with --json one object on stdout; with --samples what most of several answers say, and a tally on
stderr. Does not know: how models run, what the defaults are, how answers are compared.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ..types import Completion, Message, SamplingParams, Thinking, UsageError, Variant, as_dict
from .options import (
    answer_options,
    engine_options,
    open_llm,
    sampling_params,
    spelled,
    thinking,
    thinking_options,
    tools,
)
from .terminal import Printer, brief, note, summary, tally

if TYPE_CHECKING:
    from ..engine.llm import LLM


@click.command()
@engine_options
@thinking_options
@answer_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@click.option(
    "--batch",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Answer every line of FILE, in OpenAI's batch format, instead of a PROMPT.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Where the answers of --batch go. What is there already is not done again.",
)
@click.argument("prompt", required=False)
def run(
    prompt: str | None, as_json: bool, batch: Path | None, out: Path | None, **options: Any
) -> int | None:
    """Answer one PROMPT ('-' reads it from stdin).

    \b
    deepfast run --think "What is 47 * 86?"
    deepfast run --budget 64 --json "Sort: 5, 3, 9"
    deepfast run -n 5 "What is 47 * 86?"
    git diff | deepfast run -m qwen3:4b -
    deepfast run --batch requests.jsonl --out answers.jsonl
    """
    if batch is not None:
        _check_alone(prompt, {**options, "json": as_json or None})
        from .batch import run_batch

        return run_batch(batch, out, options)
    if out is not None:
        raise UsageError("--out belongs to --batch. Drop it, and use > FILE for one answer.")
    if prompt is None:
        raise click.UsageError("Missing argument 'PROMPT'.", click.get_current_context())
    text = _read(prompt)
    messages = [Message("system", options["system"])] if options["system"] else []
    messages.append(Message("user", text))
    ask = Ask(messages, sampling_params(options), thinking(options), *tools(options))
    samples = options["samples"]
    if samples > 1 and ask.params.temperature == 0:
        raise UsageError(
            f"--temperature 0 gives one answer, so --samples {samples} have nothing to vote on. "
            "Drop one of them."
        )
    with open_llm(options) as llm:
        if samples > 1:
            _vote(llm, ask, samples, as_json)
        elif as_json:
            done = llm.chat(*ask)
            _print_json(llm, {**_report(done), "timing": _timing(llm, done)})
        else:
            _stream(llm, ask)
    return None


def _check_alone(prompt: str | None, options: dict[str, Any]) -> None:
    """Raises UsageError for what --batch leaves no room for: every line says how it is to be answered."""
    if prompt is not None:
        raise UsageError(
            f"--batch answers a file, so there is no place for {prompt[:40]!r}. Drop one of them."
        )
    for name, value in options.items():
        engine = name in ("model", "quantize", "threads", "context", "kv")
        if not engine and value is not None and (name, value) != ("samples", 1):
            switch = {"think": "--think" if value else "--no-think"}.get(name, spelled(name))
            raise UsageError(f"{switch} cannot be used with --batch: write it into the bodies. Drop it.")


class Ask(NamedTuple):
    """What LLM.chat and LLM.stream take, in their order."""

    messages: list[Message]
    params: SamplingParams
    wish: Thinking
    tools: list[dict[str, Any]] | None
    tool_choice: str


def _stream(llm: LLM, ask: Ask) -> None:
    stream = llm.stream(*ask)
    with Printer() as printer:
        for delta in stream:
            printer.show(delta)
    done = stream.completion
    if sys.stderr.isatty() or _is_odd(done):
        note(summary(done))


def _vote(llm: LLM, ask: Ask, samples: int, as_json: bool) -> None:
    """Answer several times at once; print the first of those who say what most say, and the tally."""
    from ..thinking.select import ballot, majority

    params = replace(ask.params, logprobs=0)  # they decide between groups of equal size
    streams = llm.fork_streams(
        ask.messages, Variant.branches(samples, params, ask.wish), ask.tools, ask.tool_choice
    )
    done: list[Completion] = []
    for stream in streams:
        done.append(stream.result())
        if sys.stderr.isatty() and not as_json:
            note(f"{len(done)} of {samples}: {brief(ballot(done[-1]))} {summary(done[-1])}")
    vote = majority(done)
    if as_json:
        report = {**_report(vote.winner), "timing": _timing(llm, vote.winner)}
        report["vote"] = {
            "answer": vote.answer,
            "count": vote.count,
            "total": vote.total,
            "groups": {answer: len(voters) for answer, voters in vote.groups.items()},
        }
        report["samples"] = [{"answer": ballot(one), **_report(one)} for one in done]
        _print_json(llm, report)
        return
    with Printer() as printer:
        printer.show_all(vote.winner)
    note(tally(vote.groups, samples))
    if _is_odd(vote.winner):
        note(summary(vote.winner))


def _is_odd(done: Completion) -> bool:
    """Is there something to say even where nobody watches?"""
    return done.finish_reason not in ("stop", "tool_calls") or bool(done.malformed)


def _read(prompt: str) -> str:
    """The prompt's text. Raises UsageError when there is none or it is not text."""
    try:
        if prompt == "-":
            text = sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
        else:
            text = prompt.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError as error:
        raise UsageError(
            "the prompt is not valid UTF-8. Convert it first, for example with iconv."
        ) from error
    if not text.strip():
        raise UsageError('the prompt is empty. Ask something: deepfast run "What is 47 * 86?"')
    return text


def _ascii_only() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"


def _print_json(llm: LLM, report: dict[str, Any]) -> None:
    click.echo(json.dumps({"model": llm.name, **report}, ensure_ascii=_ascii_only()))


def _report(done: Completion) -> dict[str, Any]:
    """What `--json` prints of a completion; other tools read it, so its keys stay."""
    return {
        "reasoning": done.reasoning,
        "content": done.content,
        "tool_calls": [as_dict(call) for call in done.tool_calls],
        "finish_reason": done.finish_reason,
        "usage": as_dict(done.usage),
        "thinking": _rounded(as_dict(done.thinking)),
        "timing": _rounded(as_dict(done.timing)),
        "cache_miss": done.cache_miss,
        "malformed": list(done.malformed),
    }


def _timing(llm: LLM, done: Completion) -> dict[str, Any]:
    return _rounded({"load_s": llm.load_seconds, **as_dict(done.timing)})


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in values.items()}
