"""Where a training stage keeps its files, and what it costs.

In: a working directory and the name of a stage. Out: the paths that all recipes agree on, the stage that
comes before, cost.json. WORK/NAME is a Hugging Face checkpoint once the stage is done; WORK/NAME/run holds
what resumes it and its logs. It knows no trainer.
"""

import hashlib
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepfast.backend.machine import available_cpus
from deepfast.types import UsageError

STAGES = ("tokenizer", "pretrain", "cold_start", "reasoning", "fusion", "general", "distill")


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe under a working directory."""

    work: Path
    name: str

    @property
    def directory(self) -> Path:
        """The checkpoint that the stage makes."""
        return self.work / self.name

    @property
    def run(self) -> Path:
        """Resumable states, log.csv, curves.png, tensorboard/, cost.json."""
        return self.directory / "run"

    @property
    def done(self) -> bool:
        """Whether the checkpoint is whole: this file is written last."""
        last = "tokenizer_config.json" if self.name == "tokenizer" else "model.safetensors"
        return (self.directory / last).exists() or (self.directory / f"{last}.index.json").exists()

    def require(self, name: str) -> Path:
        """The directory of an earlier stage. Raises UsageError naming the command that makes it."""
        earlier = Stage(self.work, name)
        if not earlier.done:
            raise UsageError(
                f"{self.name} starts from {earlier.directory}, which is not there or not finished. Run "
                f"python recipes/{name}.py --work {self.work}, with the same --preset."
            )
        return earlier.directory

    def begin(self, start: Path, preset: str, **asked: object) -> None:
        """Makes run/ and writes down what it starts from, and what else was asked of it. Raises UsageError
        where it was begun otherwise."""
        self.open_logs()
        begun, now = self.run / "begun.json", {"preset": preset, "start": fingerprint(start), **asked}
        if begun.exists():
            before = json.loads(begun.read_text(encoding="utf-8"))
            if changed := [key for key, value in now.items() if before.get(key) != value]:
                raise UsageError(
                    f"{self.run} was begun with another {changed[0]} ({before.get(changed[0])}, "
                    f"not {now[changed[0]]}). Remove {self.directory}, or name another --work."
                )
        elif os.environ.get("RANK", "0") == "0":
            _write_whole(begun, now)

    def open_logs(self) -> None:
        """Makes run/ and tells TensorBoard's writer where it is (transformers reads that from the
        environment).
        """
        self.run.mkdir(parents=True, exist_ok=True)
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(self.run / "tensorboard")

    def add_cost(self, other: "Stage") -> None:
        """Counts a stage that was part of this one."""
        mine, its = self.cost(), other.cost()
        tokens, steps = (int(mine.get(key, 0)) + int(its.get(key, 0)) for key in ("tokens", "steps"))
        self.write_cost(tokens, steps, its.get("seconds", 0.0))

    def states(self) -> list[Path]:
        """The resumable states, oldest first."""
        found = [path for path in self.run.glob("checkpoint-*") if (path / "trainer_state.json").exists()]
        return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))

    def write_cost(self, tokens: int, steps: int, seconds: float) -> None:
        """Adds what this process did to run/cost.json: tokens and steps are totals, seconds are added."""
        self.run.mkdir(parents=True, exist_ok=True)
        before = self.cost()
        cost = {
            "tokens": tokens,
            "steps": steps,
            "seconds": round(before.get("seconds", 0.0) + seconds, 1),
            "machine": machine(),
        }
        _write_whole(self.run / "cost.json", cost)

    def cost(self) -> dict[str, Any]:
        """What the stage has cost so far; empty before its first save."""
        path = self.run / "cost.json"
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def fingerprint(directory: Path) -> str:
    """Which checkpoint or tokenizer this is: a hash of its tokenizer.json, and of the names, sizes, first and
    last MB of its weight files.
    """
    digest = hashlib.sha256()
    files = [file for file in (directory / "tokenizer.json",) if file.exists()]
    for file in [*files, *sorted(directory.glob("*.safetensors"))]:
        digest.update(f"{file.name} {file.stat().st_size}".encode())
        with file.open("rb") as data:
            digest.update(data.read(1 << 20))
            data.seek(max(0, file.stat().st_size - (1 << 20)))
            digest.update(data.read())
    return digest.hexdigest()[:16]


def cpu_threads() -> int:
    """Threads for this process: the CPUs, shared among the processes that a launcher started here."""
    return max(1, available_cpus() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def num_processes() -> int:
    """How many a launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def machine() -> str:
    """The processor (or accelerators) that train, in a few words."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    model = platform.processor() or platform.machine()
    for line in _lines(Path("/proc/cpuinfo")):
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{available_cpus()} CPUs, {model}"


def _write_whole(path: Path, value: dict[str, Any]) -> None:
    """A kill leaves the old file or the new one."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    part.replace(path)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
