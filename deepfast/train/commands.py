"""What the recipes' command lines share: arguments, the preset, threads, errors in one line.

In: a description, the arguments of one recipe. Out: a `Run` with preset, working directory and arguments. It
knows no trainer.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deepfast.train.presets import PRESETS, Preset, preset_named
from deepfast.train.stage import Stage, cpu_threads
from deepfast.types import DeepfastError, UsageError

EXTRA = ("torch", "transformers", "trl", "accelerate", "datasets", "tensorboard", "matplotlib")


@dataclass(frozen=True)
class Run:
    """What a recipe was asked to do."""

    preset: Preset
    work: Path
    args: Any  # the recipe's own arguments, from argparse


def run_recipe(
    main: Callable[[Run], None],
    description: str | None,
    add: Callable[[argparse.ArgumentParser], None] | None = None,
) -> None:
    """Reads the command line, runs `main`, and leaves with 1 or 2 and one line where that fails."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="nano", help=f"one of {', '.join(PRESETS)} (default: nano)")
    parser.add_argument("--work", type=Path, help="where stages are kept (default: build/PRESET)")
    if add is not None:
        add(parser)
    args = parser.parse_args()
    with one_line():
        preset = preset_named(args.preset)
        work = args.work or Path("build") / preset.name
        if work.exists() and not work.is_dir():
            raise UsageError(f"--work {work} is a file. Name a directory.")
        require_extra(*EXTRA)
        _prepare()
        main(Run(preset, work, args))


def already_made(stage: Stage) -> bool:
    """Whether the stage is done, and then a line that says so."""
    if stage.done and _first():
        print(f"{stage.directory} is there already; remove it to make it again")
    return stage.done


def require_extra(*packages: str) -> None:
    """Raises UsageError unless these packages of the extra `train` are installed."""
    if missing := [name for name in packages if find_spec(name) is None]:
        raise UsageError(f"{', '.join(missing)} must be installed for this: pip install '.[train]'.")


def _prepare() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch
    from transformers.utils import logging

    torch.set_num_threads(cpu_threads())
    logging.disable_progress_bar()


def _first() -> bool:
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def one_line() -> Iterator[None]:
    """Turns what a person can mend into one line and the exit status: 2 for wishes, 1 for files, 130 for a
    stop by hand."""
    try:
        yield
    except UsageError as error:
        if _first():  # all processes find the same
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (DeepfastError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        if _first():
            print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
