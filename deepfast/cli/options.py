"""The options of commands, and what they mean: a loaded model, sampling, thinking, what an answer must match.

In: click's keyword arguments. Out: LLM, SamplingParams, Thinking, tools, EngineConfig. Defaults are not
repeated: an option that was not given is None and the library fills it.
Does not know: where answers are printed.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

from ..config import ENV_MODEL, EngineConfig, KVFormat
from ..types import ControlError, Grammar, Mode, SamplingParams, Thinking, UsageError
from .fetching import FetchBar
from .terminal import note

if TYPE_CHECKING:
    from rich.progress import Progress

    from ..engine.llm import LLM

Command = TypeVar("Command", bound=Callable[..., Any])
Options = Mapping[str, Any]

QUIET_SECONDS = 0.5  # a load shorter than this shows no progress bar
LONG_SECONDS = 3.0  # a load that takes longer should be the last one of its kind

positive = click.IntRange(min=1)


def _add(command: Command, *options: Callable[[Command], Command]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


def model_option(command: Command) -> Command:
    """-m / --model, alone."""
    text = "A directory or .gguf file, a name (qwen3:4b, see `deepfast list --available`) or an id of a hub "
    text += "(Qwen/Qwen3-4B). Left out: the model that comes with Deepfast."
    option = click.option("-m", "--model", envvar=ENV_MODEL, show_envvar=True, metavar="MODEL", help=text)
    return option(command)


def engine_options(command: Command) -> Command:
    """Which model, in which weight format, with how many threads, context and KV format."""
    return _add(command, model_option, tuning_options)


def tuning_options(command: Command) -> Command:
    """The same without the model."""
    return _add(
        command,
        click.option("--quantize", type=click.Choice(["q8", "q4"]), help="Quantise weights while loading."),
        click.option("--threads", type=positive, metavar="N", help="Worker threads. Default: one per core."),
        click.option("--context", type=positive, metavar="N", help="Positions a conversation may have."),
        click.option(
            "--yarn", type=float, metavar="FACTOR", help="Extend the model's context so many times; 1: never."
        ),
        click.option("--kv", type=click.Choice(get_args(KVFormat)), help="Number format of the KV cache."),
    )


def thinking_options(command: Command) -> Command:
    """How the model thinks and how its tokens are drawn."""
    return _add(
        command,
        click.option("--think/--no-think", default=None, help="Think first, or answer at once."),
        click.option("--budget", type=int, metavar="N", help="At most N tokens of thought, then the answer."),
        click.option(
            "--min-tokens", type=int, metavar="N", help="At least N tokens of thought: a shorter one goes on."
        ),
        click.option(
            "--soft-landing", type=int, metavar="N", help="Lead a thought to its end over its last N tokens."
        ),
        click.option(
            "--on-loop",
            type=click.Choice(["close", "ignore"]),
            help="A thought goes in circles: close it (default), or ignore that.",
        ),
        click.option("--max-tokens", type=int, metavar="N", help="At most N tokens of thought and answer."),
        click.option("--seed", type=int, metavar="N", help="Same seed, same question: same answer."),
        click.option("--temperature", type=float, metavar="T", help="0 always takes the likeliest token."),
        click.option("--top-p", type=float, metavar="P", help="Draw from the smallest set of probability P."),
        click.option("--top-k", type=int, metavar="K", help="Draw from the K likeliest tokens; 0 for all."),
        click.option("--min-p", type=float, metavar="P", help="Drop tokens below P times the likeliest."),
        click.option("--presence-penalty", type=float, metavar="X", help="Penalty on tokens already used."),
        click.option("--system", metavar="TEXT", help="A system message before the conversation."),
    )


def answer_options(command: Command) -> Command:
    """What the answer must match, which tools may be called, and how many answers vote."""
    choice = "auto, none, required, or the name of the tool that must be called."
    return _add(
        command,
        click.option("--schema", metavar="FILE|JSON", help="The answer matches this JSON schema."),
        click.option("--regex", metavar="RE", help="The answer matches this regular expression, whole."),
        click.option(
            "--tools", metavar="FILE|JSON", help="Tools it may call: a JSON list in OpenAI's shape."
        ),
        click.option("--tool-choice", metavar="WHICH", help=choice),
        click.option(
            *("-n", "--samples"),
            type=click.IntRange(min=1),
            default=1,
            metavar="N",
            help="Answer N times at once and print what most answers say.",
        ),
    )


def sampling_params(options: Options) -> SamplingParams:
    """What the user chose; the rest stays open."""
    names = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "seed", "max_tokens")
    return SamplingParams(**{name: options[name] for name in names}, grammar=_grammar(options))


def thinking(options: Options) -> Thinking:
    """--think, --no-think, --budget and their kin as one value. Raises ControlError when they contradict each
    other."""
    mode: Mode = {True: "on", False: "off", None: "auto"}[options["think"]]  # type: ignore[assignment]
    names = ("budget", "min_tokens", "soft_landing", "on_loop")
    given = {name: options[name] for name in names if options[name] is not None}
    switch = {"on": ["--think"], "off": ["--no-think"], "auto": []}[mode]
    if mode == "off" and given:
        name, value = next(iter(given.items()))
        raise ControlError(
            f"{spelled(name)} {value} needs a thought and --no-think forbids it. Drop one of them."
        )
    return Thinking(mode=mode, **given, source=", ".join([*switch, *map(spelled, given)]))


def tools(options: Options) -> tuple[list[dict[str, Any]] | None, str]:
    """--tools and --tool-choice. Raises UsageError when they make no sense, together or alone."""
    given, choice = options["tools"], options["tool_choice"]
    if given is None:
        if choice is not None:
            raise UsageError(f"--tool-choice {choice} needs tools to choose from. Add --tools FILE.")
        return None, "auto"
    if choice not in (None, "auto", "none") and (options["schema"] or options["regex"]) is not None:
        raise UsageError(
            f"--tool-choice {choice} asks for a call, --schema and --regex for a text. Drop one of them."
        )
    found = _json("--tools", given)[1]
    if not isinstance(found, list) or not found or not all(isinstance(tool, dict) for tool in found):
        raise UsageError("--tools holds no list of tools. Give a JSON list of objects in OpenAI's shape.")
    return found, choice or "auto"


def _grammar(options: Options) -> Grammar | None:
    """--schema or --regex; commands without these options have none."""
    schema, regex = options.get("schema"), options.get("regex")
    if schema is not None and regex is not None:
        raise UsageError("--schema and --regex cannot both shape the answer. Drop one of them.")
    if schema is not None:
        return Grammar("json_schema", _json("--schema", schema)[0])
    return None if regex is None else Grammar("regex", regex)


def _json(option: str, value: str) -> tuple[str, Any]:
    """The text and what it says, from the value itself or from the file it names."""
    text, where = value, option
    if not value.lstrip().startswith(("{", "[")):
        where = f"{option} {value}"
        try:
            text = Path(value).read_text("utf-8-sig")
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8"
            raise UsageError(f"{where} cannot be read: {reason}. Give a file, or the JSON itself.") from error
    try:
        return text, json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is no JSON: {error}. Correct it.") from error


def spelled(name: str) -> str:
    """An option as it is typed."""
    return "--" + name.replace("_", "-")


def engine_config(options: Options, **more: Any) -> EngineConfig:
    """The engine settings that were given, over the library's defaults; more: those of one command alone."""
    given = {"threads": options["threads"], "max_context": options["context"], "kv": options["kv"]}
    given |= {"yarn": options["yarn"], **more}
    return EngineConfig(**{name: value for name, value in given.items() if value is not None})


def open_llm(options: Options, config: EngineConfig | None = None) -> LLM:
    """Load the model; a load that takes long shows a bar on stderr when that is a terminal."""
    from .. import LLM
    from ..model import hub

    model, format = options["model"], options["quantize"]
    settings = config or engine_config(options)
    with FetchBar(model, format) as fetching, LoadBar("loading the model") as bar:
        llm = LLM(model, quantize=format, config=settings, progress=bar, fetching=fetching)
    remarks = llm.fit.remarks(options["context"]) if config is None else ()
    for text in (*llm.notes, *remarks):
        note(f"[{text}]")
    long = model is not None and llm.load_seconds > LONG_SECONDS
    if long and (packing := hub.find(model, quantize=format).quantize) is not None:
        took = f"quantising took {llm.load_seconds:.0f} s; once and for all:"
        note(f"[{took} deepfast quantize {shlex.quote(model)} --to {packing}]")
    return llm


class LoadBar:
    """A progress bar that appears only when loading takes longer than a blink, and only on a terminal."""

    def __init__(self, what: str) -> None:
        """Nothing is shown, and rich not imported, until it is needed."""
        self.what = what
        self.start = time.perf_counter()
        self.progress: Progress | None = None

    def __enter__(self) -> LoadBar:
        """Start counting time."""
        return self

    def __call__(self, fraction: float) -> None:
        """Show that `fraction` of the weights is loaded."""
        if self.progress is None:
            if time.perf_counter() - self.start < QUIET_SECONDS or not sys.stderr.isatty():
                return
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn(self.what),
                BarColumn(),
                TaskProgressColumn(),
                TimeRemainingColumn(),
            )
            self.progress = Progress(*columns, console=Console(stderr=True), transient=True)
            self.progress.add_task("load", total=1.0)
            self.progress.start()
        self.progress.update(self.progress.task_ids[0], completed=fraction)

    def __exit__(self, *exc: object) -> None:
        """Take the bar away."""
        if self.progress is not None:
            self.progress.stop()
