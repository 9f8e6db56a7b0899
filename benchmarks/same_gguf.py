"""The same GGUF file in Deepfast and in llama.cpp: `python benchmarks/same_gguf.py` (with the extra `bench`).

In: kinds of files (default: q4_k_m, q6_k, q8_0); Qwen3 with random weights is made in the true shapes and
quantised by llama.cpp itself. Each engine opens the file in a process of its own; samples alternate.
Out: seconds to load, tokens per second of a prompt of 512 and of generation, medians and ratios. llama.cpp
runs without and with flash attention, the better counts. Does not know: quality, depths (vs_llama_cpp.py).
"""

import argparse
import statistics
from pathlib import Path

from clock import wait_for_quiet
from full_size import add_model_options, model_directory
from random_gguf import FILE_TYPES, gguf_of
from vs_llama_cpp import Child

from deepfast.backend.machine import available_cpus

ORDERS = {
    "prompt_512": {"do": "prompt", "tokens": 512},
    "generate_0": {"do": "generate", "depth": 0, "sequences": 1, "tokens": 24},
}
KINDS = ["q4_k_m", "q6_k", "q8_0"]


def engines(file: Path, threads: int) -> dict[str, Child]:
    """A child for each way to run the file."""
    common = {"model": str(file), "threads": threads, "context": 1024, "room": 4096, "kv": "f16"}
    return {
        "deepfast": Child("deepfast", common | {"engine": "deepfast"}, None),
        "llama.cpp": Child("llama.cpp", common | {"engine": "llama.cpp", "flash": False}, None),
        "llama.cpp, flash": Child("llama.cpp, flash", common | {"engine": "llama.cpp", "flash": True}, None),
    }


def compare(kind: str, file: Path, threads: int, rounds: int) -> None:
    """Print what one file gives."""
    children = engines(file, threads)
    loads = ", ".join(f"{name} {child.loaded['load_s']:.2f} s" for name, child in children.items())
    print(f"{kind} ({file.stat().st_size / 1e6:.0f} MB), loaded: {loads}", flush=True)
    samples: dict[str, dict[str, list[float]]] = {order: {name: [] for name in children} for order in ORDERS}
    for number in range(rounds):
        for order, fields in ORDERS.items():
            wait_for_quiet(2)
            for name, child in children.items():
                samples[order][name].append(child.do(**fields, seed=number + 1)["tok_s"])
    for child in children.values():
        child.close()
    for order, taken in samples.items():
        middle = {name: statistics.median(values) for name, values in taken.items()}
        ours, theirs = middle["deepfast"], max(v for n, v in middle.items() if n != "deepfast")
        print(
            f"{kind} {order}: {ours:.1f} tok/s, llama.cpp {theirs:.1f}, ratio {ours / theirs:.2f}", flush=True
        )


def main() -> None:
    """One kind after another."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_options(parser)
    parser.add_argument("kinds", nargs="*", default=KINDS, metavar="KIND", help=", ".join(FILE_TYPES))
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if wrong := set(args.kinds) - set(FILE_TYPES):
        parser.error(f"{', '.join(wrong)}: expected {', '.join(FILE_TYPES)}")
    path = model_directory(args)
    for kind in args.kinds:
        compare(kind, gguf_of(path, kind), available_cpus(), args.rounds)


if __name__ == "__main__":
    main()
