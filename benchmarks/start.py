"""How long a person waits: `python benchmarks/start.py`.

In: the installed `deepfast` command and the bundled model. Out: the medians of several runs of `deepfast
--help` and of the time from the shell to the first character of a thought, each also as processor time,
which a busy machine hardly changes. Does not know: how fast the model goes on.
"""

import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

RUNS = 9
DEEPFAST = str(Path(sys.executable).parent / "deepfast")
COMMANDS = {
    "--help": ["--help"],
    "first token": ["run", "--think", "--max-tokens", "64", "What is 47 * 86?"],
}


def measure(arguments: list[str]) -> tuple[float, float]:
    """Seconds until the first character of output, and processor seconds until the end."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    with subprocess.Popen(
        [DEEPFAST, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
    ) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        first = time.perf_counter() - start
        process.stdout.read()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return first, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print one line for each command."""
    for name, arguments in COMMANDS.items():
        measure(arguments)
        firsts, busy = zip(*(measure(arguments) for _ in range(RUNS)), strict=True)
        waited, worked = statistics.median(firsts), statistics.median(busy)
        print(f"{name:12} {waited:6.3f} s until output, {worked:6.3f} s of processor time")


if __name__ == "__main__":
    main()
