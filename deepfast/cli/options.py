"""The options that commands share, and what they mean: a loaded model, sampling, thinking, engine settings.

In: click's keyword arguments. Out: LLM, SamplingParams, Thinking, EngineConfig. Defaults are not repeated: an
option that was not given is None and the library fills it. Does not know: where answers are printed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..config import ENV_MODEL, EngineConfig
from ..types import ControlError, Mode, SamplingParams, Thinking

if TYPE_CHECKING:
    from rich.progress import Progress

    from ..engine.llm import LLM

Command = TypeVar("Command", bound=Callable[..., Any])
Options = Mapping[str, Any]

QUIET_SECONDS = 0.5  # a load shorter than this shows no progress bar


def _add(command: Command, *options: Callable[[Command], Command]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


def model_option(command: Command) -> Command:
    """-m / --model, alone."""
    text = "A directory with a Hugging Face checkpoint. Left out: the model that comes with Deepfast."
    option = click.option("-m", "--model", envvar=ENV_MODEL, show_envvar=True, metavar="MODEL", help=text)
    return option(command)


def engine_options(command: Command) -> Command:
    """Which model, in which weight format, with how many threads, context and KV format."""
    positive = click.IntRange(min=1)
    return _add(
        command,
        model_option,
        click.option("--quantize", type=click.Choice(["q8", "q4"]), help="Quantise weights while loading."),
        click.option("--threads", type=positive, metavar="N", help="Worker threads. Default: one per core."),
        click.option("--context", type=positive, metavar="N", help="Positions a conversation may have."),
        click.option("--kv", type=click.Choice(["f16", "f32"]), help="Number format of the KV cache."),
    )


def thinking_options(command: Command) -> Command:
    """How the model thinks and how its tokens are drawn."""
    return _add(
        command,
        click.option("--think/--no-think", default=None, help="Think first, or answer at once."),
        click.option("--budget", type=int, metavar="N", help="At most N tokens of thought, then the answer."),
        click.option("--max-tokens", type=int, metavar="N", help="At most N tokens of thought and answer."),
        click.option("--seed", type=int, metavar="N", help="Same seed, same question: same answer."),
        click.option("--temperature", type=float, metavar="T", help="0 always takes the likeliest token."),
        click.option("--top-p", type=float, metavar="P", help="Draw from the smallest set of probability P."),
        click.option("--top-k", type=int, metavar="K", help="Draw from the K likeliest tokens; 0 for all."),
        click.option("--min-p", type=float, metavar="P", help="Drop tokens below P times the likeliest."),
        click.option("--presence-penalty", type=float, metavar="X", help="Penalty on tokens already used."),
        click.option("--system", metavar="TEXT", help="A system message before the conversation."),
    )


def sampling_params(options: Options) -> SamplingParams:
    """What the user chose; the rest stays open."""
    names = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "seed", "max_tokens")
    return SamplingParams(**{name: options[name] for name in names})


def thinking(options: Options) -> Thinking:
    """--think, --no-think and --budget as one value. Raises ControlError when they contradict each other."""
    mode: Mode = {True: "on", False: "off", None: "auto"}[options["think"]]  # type: ignore[assignment]
    budget = options["budget"]
    if mode == "off" and budget is not None:
        raise ControlError(f"--budget {budget} needs a thought and --no-think forbids it. Drop one of them.")
    return Thinking(mode=mode, budget=budget)


def engine_config(options: Options) -> EngineConfig:
    """The engine settings that were given, over the library's defaults."""
    given = {"threads": options["threads"], "max_context": options["context"], "kv": options["kv"]}
    return EngineConfig(**{name: value for name, value in given.items() if value is not None})


def open_llm(options: Options, config: EngineConfig | None = None) -> LLM:
    """Load the model; a load that takes long shows a bar on stderr when that is a terminal."""
    from .. import LLM

    with LoadBar() as bar:
        return LLM(
            options["model"],
            quantize=options["quantize"],
            config=config or engine_config(options),
            progress=bar,
        )


class LoadBar:
    """A progress bar that appears only when loading takes longer than a blink, and only on a terminal."""

    def __init__(self) -> None:
        """Nothing is shown, and rich not imported, until it is needed."""
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
                TextColumn("loading the model"),
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
