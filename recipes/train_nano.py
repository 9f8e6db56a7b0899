"""All stages in their order, then the card: `python recipes/train_nano.py --preset mini`.

In: a preset that starts from random weights. Out: every WORK/STAGE, and a model card in the last. Supervised
stages run as one process per GPU or, without one, per CPU, which no barrier holds up inside a step. Started
again after a kill, it goes on where it was.
"""

import argparse
import os
import socket
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
# A CPU gets its buffers from the C library, which by default gives freed pages back to the kernel at every
# step and has them cleared again at the next.
KEEP_PAGES = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in (("hugetlb", 1), ("mmap_threshold", 1 << 30), ("trim_threshold", 1 << 33))
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this recipe is asked beside the preset."""
    parser.add_argument(
        "--processes", type=int, help="of supervised stages (default: one per GPU, else per CPU: 1, 2 or 4)"
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
        import torch

        processes = torch.cuda.device_count() or 1 << (min(4, available_cpus()).bit_length() - 1)
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
            _call(name, run, "--only", "answers")
        _call(name, run, processes=processes if name in SUPERVISED else 1)
    if args.count and args.until is None:
        card = [
            "--model",
            str(Stage(run.work, last).directory),
            "--stages",
            str(run.work),
            "--tasks",
            *preset.tasks,
        ]
        _command([str(RECIPES / "card.py"), *card, "--count", str(args.count), "--write"])
    print(f"{(time.monotonic() - began) / 60:.1f} minutes; the model is {Stage(run.work, last).directory}")


def _call(name: str, run: Run, *more: str, processes: int = 1) -> None:
    recipe = [str(RECIPES / f"{name}.py"), "--preset", run.preset.name, "--work", str(run.work), *more]
    _command(recipe, processes)


def _command(words: list[str], processes: int = 1) -> None:
    """Runs a recipe in processes that know of each other. When one fails the others are ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = []
    for rank in range(processes):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        more = {**place, **meeting} if processes > 1 else {}
        environment = {"GLIBC_TUNABLES": KEEP_PAGES, **os.environ}
        environment.update({key: str(value) for key, value in more.items()})
        running.append(subprocess.Popen([sys.executable, *words], env=environment))
    try:
        ended: list[int | None] = [None]
        while None in ended and not any(ended):
            time.sleep(0.2)
            ended = [child.poll() for child in running]  # all of them: the others wait for one that failed
        status = next(filter(None, ended), 0)
    finally:
        for child in running:
            child.terminate()
            child.wait()
    if status:
        raise DeepfastError(f"{' '.join(words)} ended with status {status}. Run the same command to go on.")


if __name__ == "__main__":
    run_recipe(main, __doc__, add_arguments)
