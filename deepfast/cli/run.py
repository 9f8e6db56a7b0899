"""`deepfast run`: one question, one answer.

In: a prompt as an argument, or `-` for stdin. Out: the answer on stdout and the thought on stderr as they
come, or with --json one object on stdout. Does not know: how models run, what the defaults are.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from ..types import Completion, EngineError, Message, UsageError, as_dict
from .options import engine_options, open_llm, sampling_params, thinking, thinking_options
from .terminal import Printer, note, summary


@click.command()
@engine_options
@thinking_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@click.argument("prompt")
def run(prompt: str, as_json: bool, **options: Any) -> None:
    """Answer one PROMPT ('-' reads it from stdin).

    \b
    deepfast run --think "What is 47 * 86?"
    deepfast run --budget 64 --json "Sort: 5, 3, 9"
    git diff | deepfast run -m ~/models/Qwen3-4B --quantize q4 -
    """
    text = _read(prompt)
    params, wish = sampling_params(options), thinking(options)
    messages = [Message("system", options["system"])] if options["system"] else []
    messages.append(Message("user", text))
    with open_llm(options) as llm:
        if as_json:
            done = llm.chat(messages, params, wish)
            click.echo(json.dumps(_report(llm.name, llm.load_seconds, done), ensure_ascii=_ascii_only()))
        else:
            stream = llm.stream(messages, params, wish)
            with Printer() as printer:
                for delta in stream:
                    printer.show(delta)
            done = stream.completion
            if sys.stderr.isatty() or done.finish_reason != "stop":
                note(summary(done))
    if done.finish_reason == "error":
        raise EngineError("the engine failed while it answered. Try again with --debug.")


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


def _report(name: str, load_seconds: float, done: Completion) -> dict[str, Any]:
    """The object that `--json` prints; other tools read it, so its keys stay."""
    return {
        "model": name,
        "reasoning": done.reasoning,
        "content": done.content,
        "tool_calls": [as_dict(call) for call in done.tool_calls],
        "finish_reason": done.finish_reason,
        "usage": as_dict(done.usage),
        "thinking": _rounded(as_dict(done.thinking)),
        "timing": _rounded({"load_s": load_seconds, **as_dict(done.timing)}),
    }


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in values.items()}
