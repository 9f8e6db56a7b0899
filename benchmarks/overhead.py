"""What Python adds to a step of the engine: `python benchmarks/overhead.py --model-dir DIR`.

In: a checkpoint (bfloat16; packed as --quantize says). Out: for one sequence that generates token by token,
medians over all steps: the time of a step, and what of it was spent outside the native core (which says how
long it was inside), part by part. Then, from other runs, the time of each native op; these carry a clock
around every call, so their sum is a little more. Does not know: whether a kernel could be faster.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deepfast import LLM, EngineConfig, SamplingParams

PROMPT = list(range(100, 116))


class Clocks:
    """Milliseconds by name, one dictionary for each step."""

    def __init__(self, core: Any) -> None:
        self.core = core
        self.steps: list[dict[str, float]] = []

    def wrap(self, owner: Any, name: str) -> None:
        """Time `owner.name`: all of it, and outside the core."""
        function = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            start, busy = time.perf_counter(), self.core.busy
            try:
                return function(*args, **kwargs)
            finally:
                seconds = time.perf_counter() - start
                self.add(name, seconds - (self.core.busy - busy))
                self.add(f"{name}, all", seconds)

        setattr(owner, name, call)

    def wrap_step(self, engine: Any) -> None:
        """Time `engine.step`, and begin a new dictionary with it."""
        self.wrap(engine, "step")
        step = engine.step

        def call() -> Any:
            self.steps.append({})
            return step()

        engine.step = call

    def add(self, name: str, seconds: float) -> None:
        """To the step that runs."""
        self.steps[-1][name] = self.steps[-1].get(name, 0.0) + seconds * 1e3

    def median(self, value: Callable[[dict[str, float]], float]) -> float:
        """Over the steps."""
        return statistics.median(value(step) for step in self.steps)


class OpClocks:
    """The native core with a clock around each op."""

    def __init__(self, core: Any) -> None:
        self.core = core
        self.seconds: dict[str, list[float]] = {}

    def __getattr__(self, name: str) -> Any:
        op, seconds = getattr(self.core, name), self.seconds.setdefault(name, [])

        def call(*args: Any) -> Any:
            start = time.perf_counter()
            result = op(*args)
            seconds.append(time.perf_counter() - start)
            return result

        setattr(self, name, call)
        return call


def generate(llm: LLM, tokens: int, temperature: float) -> float:
    """Milliseconds per token after the first."""
    params = SamplingParams(
        max_tokens=tokens, seed=1, ignore_eos=True, temperature=temperature, top_k=20, top_p=0.95
    )
    done = llm.generate([PROMPT], params)[0]
    return (done.timing.total_s - done.timing.first_token_s) / (tokens - 1) * 1e3


def print_ops(ops: OpClocks, tokens: int) -> None:
    """Each native op: how often per step, and how long (medians)."""
    print(f"{'native op':28} {'calls':>5} {'us/call':>8} {'ms/step':>8}")
    for name, seconds in sorted(ops.seconds.items()):
        calls, median = len(seconds) / tokens, statistics.median(seconds)
        print(f"{name:28} {calls:5.0f} {median * 1e6:8.1f} {sum(seconds) / tokens * 1e3:8.3f}")


def print_parts(clocks: Clocks) -> None:
    """What the parts of the engine take outside the core."""
    step = clocks.median(lambda s: s["step, all"])
    parts = {
        "forward": clocks.median(lambda s: s["forward"]),
        "sample": clocks.median(lambda s: s["sample"]),
        "schedule": clocks.median(lambda s: s["schedule"]),
        "append, update, output": clocks.median(
            lambda s: s["step"] - s["forward"] - s["sample"] - s["schedule"]
        ),
        "Python, in all": clocks.median(lambda s: s["step"]),
    }
    print(f"{'outside the native core':28} {'ms/step':>14} {'share':>8}")
    for name, ms in parts.items():
        print(f"{name:28} {ms:14.3f} {ms / step:8.1%}")
    print(f"{'step':28} {step:14.3f}")


def main() -> None:
    """Load; generate with clocks around the parts, around the ops, and with none; report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-dir", type=Path, required=True, help="a checkpoint in Hugging Face format")
    parser.add_argument("--quantize", choices=["q8", "q4"], default="q4")
    parser.add_argument("--tokens", type=int, default=64, help="per run")
    parser.add_argument("--runs", type=int, default=5, help="with clocks around the parts")
    parser.add_argument("--temperature", type=float, default=0.6)
    args = parser.parse_args()
    config = EngineConfig(max_context=1024, max_kv_tokens=1024, speculation=False, prefix_cache=False)
    with LLM(args.model_dir, quantize=args.quantize, config=config) as llm:
        generate(llm, 16, args.temperature)
        plain = [generate(llm, args.tokens, args.temperature) for _ in range(args.runs)]
        engine: Any = llm.engine
        backend = engine.runner.backend
        core, ops = backend._core, OpClocks(backend._core)
        backend._core = ops
        generate(llm, args.tokens, args.temperature)
        backend._core = core
        clocks = Clocks(core)
        for owner, name in ((engine.scheduler, "schedule"), (engine.runner, "forward")):
            clocks.wrap(owner, name)
        clocks.wrap(engine.runner, "sample")
        clocks.wrap_step(engine)
        for _ in range(args.runs):
            generate(llm, args.tokens, args.temperature)
    print_ops(ops, args.tokens)
    print_parts(clocks)
    shown = " ".join(f"{ms:.2f}" for ms in plain)
    print(f"\nwithout any clocks, ms per token: {shown}; median {statistics.median(plain):.2f}")


if __name__ == "__main__":
    main()
