"""What a limit on the thought does to the bundled model: budget, soft landing, minimum.

In: held-out products, which it works out in some 150 tokens. Out: a line per setting: how thoughts ended,
their tokens, how often the answer is right; with --json, JSON in the last line. Does not know: speed.
"""

import argparse
import json
import random
from collections import Counter

from deepfast import LLM, SamplingParams, Thinking, UsageError
from deepfast.train.problems import Problem, sample, verify

LEVEL = 3  # two digits times two
SETTINGS = {
    "no limit": Thinking("on"),
    **{f"budget {n}": Thinking("on", budget=n) for n in (32, 64, 96, 128, 192)},
    **{
        f"budget {n}, soft landing {s}": Thinking("on", budget=n, soft_landing=s)
        for n in (64, 128)
        for s in (16, 32)
    },
    **{f"at least {n}": Thinking("on", min_tokens=n) for n in (192, 320)},
    "no thought": Thinking("off"),
}


def measure(llm: LLM, problems: list[Problem], wish: Thinking) -> dict[str, object]:
    """One setting over all problems, 16 at a time."""
    stops, tokens, right, by_itself = Counter[str](), 0, 0, 0
    for first in range(0, len(problems), 16):
        group = problems[first : first + 16]
        streams = [
            llm.stream(problem.question, SamplingParams(seed=first + i, max_tokens=1024), wish)
            for i, problem in enumerate(group)
        ]
        for problem, stream in zip(group, streams, strict=True):
            done = stream.result()
            stops[done.thinking.stop] += 1
            tokens += done.usage.reasoning_tokens
            right += verify(problem, done.content)
            by_itself += all(done.sampled)
    count = len(problems)
    return {
        "stops": dict(stops),
        "tokens": tokens / count,
        "right": right / count,
        "nothing_forced": by_itself / count,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=320, metavar="N", help="default %(default)s")
    parser.add_argument("--json", action="store_true", help="one JSON object in the last line")
    args = parser.parse_args()
    if args.problems < 1:
        raise UsageError(f"--problems {args.problems} is below 1. Give at least one.")
    rng = random.Random("limits")
    problems = [sample("product", rng, "test", LEVEL) for _ in range(args.problems)]
    rows = {}
    with LLM() as llm:
        print(f"{'setting':32} {'tokens':>7} {'right':>7} {'nothing forced':>15}  how it ended")
        for name, wish in SETTINGS.items():
            row = rows[name] = measure(llm, problems, wish)
            ends = ", ".join(f"{stop} {count}" for stop, count in sorted(row["stops"].items()))
            right, own = row["right"], row["nothing_forced"]
            print(f"{name:32} {row['tokens']:7.1f} {right:7.1%} {own:15.1%}  {ends}", flush=True)
    if args.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
