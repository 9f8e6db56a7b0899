"""How long a person waits: `python benchmarks/start.py [-m DIR]`.

In: the installed `deepfast` command; the bundled model, or another, also packed. Out: the medians of several
runs of `import deepfast`, of `deepfast --help` and of the time from the shell to the first character of an
answer, each also as processor time, which a busy machine hardly changes; and what loading is made of.
Does not know: how fast the model goes on.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

RUNS = 9
DEEPFAST = str(Path(sys.executable).parent / "deepfast")


def measure(command: list[str]) -> tuple[float, float]:
    """Seconds until the first character of output (or the end), and processor seconds until the end."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0, cwd="/"
    ) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        first = time.perf_counter() - start
        process.stdout.read()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return first, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def load_parts(model: str | None) -> None:
    """Seconds for the weights and for the tokenizer, the medians of several runs in this process."""
    from deepfast.backend.cpu import CpuBackend
    from deepfast.model import hub
    from deepfast.model.decoder import Decoder
    from deepfast.model.weights import Checkpoint
    from deepfast.text.tokenizer import Tokenizer

    path, backend = hub.resolve(model), CpuBackend()
    for name, part in (
        ("weights", lambda: Decoder.load(Checkpoint.open(path), backend)),
        ("tokenizer", lambda: Tokenizer.from_dir(path)),
    ):
        seconds = []
        for _ in range(RUNS):
            start = time.perf_counter()
            part()
            seconds.append(time.perf_counter() - start)
        print(f"{name:12} {statistics.median(seconds):6.3f} s of loading")


def main() -> None:
    """Print one line for each command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-m", "--model")
    model = parser.parse_args().model
    named = [] if model is None else ["-m", str(Path(model).resolve())]
    commands = {
        "import": [sys.executable, "-c", "import deepfast"],
        "--help": [DEEPFAST, "--help"],
        "first token": [DEEPFAST, "run", *named, "--think", "--max-tokens", "64", "What is 47 * 86?"],
    }
    for name, command in commands.items():
        measure(command)
        firsts, busy = zip(*(measure(command) for _ in range(RUNS)), strict=True)
        waited, worked = statistics.median(firsts), statistics.median(busy)
        print(f"{name:12} {waited:6.3f} s until output, {worked:6.3f} s of processor time", flush=True)
    load_parts(model)


if __name__ == "__main__":
    main()
