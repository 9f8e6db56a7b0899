"""All stages in their order, then the card: `python recipes/train_nano.py --preset mini`.

In: a preset that starts from random weights. Out: every WORK/STAGE, and a model card in the last. Supervised
stages run as one process per CPU, which no barrier holds up inside a step. Started again after a kill, it
goes on where it was.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from deepfast.backend.machine import available_cpus
from deepfast.train.commands import Run, run_recipe
from deepfast.train.stage import STAGES, Stage
from deepfast.types import DeepfastError, UsageError

RECIPES = Path(__file__).resolve().parent
SUPERVISED = ("pretrain", "cold_start", "fusion")
ORDER = tuple(name for name in STAGES if name != "distill")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this recipe is asked beside the preset."""
    parser.add_argument(
        "--processes", type=int, help="of supervised stages (default: one per CPU; 1, 2 or 4)"
    )
    parser.add_argument("--until", choices=ORDER, help="the last stage; no card is made")
    parser.add_argument("--count", type=int, default=100, help="problems per task of the card (0: no card)")


def main(run: Run) -> None:
    """Runs what is not done."""
    args, preset = run.args, run.preset
    if preset.shape is None:
        raise UsageError(
            f"preset {preset.name} needs GPUs and a launcher; docs/training.md has its commands."
        )
    processes = args.processes
    if processes is None:
        processes = 1 << (min(4, available_cpus()).bit_length() - 1)
    if processes < 1:
        raise UsageError(f"--processes {processes} is below 1. Give at least 1.")
    if args.count < 0:
        raise UsageError(f"--count {args.count} is below 0. Give 0 for no card.")
    began = time.monotonic()
    last = args.until or ORDER[-1]
    for name in ORDER[: ORDER.index(last) + 1]:
        if Stage(run.work, name).done:
            print(f"--- {name} is done")
            continue
        print(f"--- {name}", flush=True)
        if name == "fusion":
            _call([sys.executable], name, run, "--only", "answers")
        several = name in SUPERVISED and processes > 1
        _call(_launcher(processes) if several else [sys.executable], name, run)
    if args.count and args.until is None:
        tasks = dict.fromkeys((*preset.fusion.mixture.tasks, "tools"))
        card = ["--model", str(Stage(run.work, last).directory), "--stages", str(run.work), "--tasks", *tasks]
        _command([sys.executable, str(RECIPES / "card.py"), *card, "--count", str(args.count), "--write"])
    print(f"{(time.monotonic() - began) / 60:.1f} minutes; the model is {Stage(run.work, last).directory}")


def _launcher(processes: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]


def _call(python: list[str], name: str, run: Run, *more: str) -> None:
    recipe = str(RECIPES / f"{name}.py")
    _command([*python, recipe, "--preset", run.preset.name, "--work", str(run.work), *more])


def _command(words: list[str]) -> None:
    status = subprocess.run(words, check=False).returncode
    if status:
        raise DeepfastError(
            f"{' '.join(words[1:])} ended with status {status}. Run the same command to go on."
        )


if __name__ == "__main__":
    run_recipe(main, __doc__, add_arguments)
