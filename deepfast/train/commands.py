"""What the recipes' command lines share: arguments, the preset, threads, errors in one line.

In: a description, the arguments of one recipe. Out: a `Run` with preset, working directory and arguments. It
knows no stage.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepfast.train.presets import PRESETS, Preset, preset_named
from deepfast.train.stage import cpu_threads
from deepfast.types import DeepfastError, UsageError


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
    with _one_line():
        preset = preset_named(args.preset)
        work = args.work or Path("build") / preset.name
        if work.exists() and not work.is_dir():
            raise UsageError(f"--work {work} is a file. Name a directory.")
        _prepare()
        main(Run(preset, work, args))


def _prepare() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch
    from transformers.utils import logging

    torch.set_num_threads(cpu_threads())
    logging.disable_progress_bar()


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except UsageError as error:
        if os.environ.get("RANK", "0") == "0":  # all processes find the same
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except DeepfastError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
