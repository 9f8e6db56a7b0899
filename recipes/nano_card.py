"""Measures the bundled model and writes the table of its card: `python recipes/nano_card.py`.

In: held-out problems of `deepfast.train`, a model directory. Out: accuracy with a 95 % Wilson interval and
mean thinking tokens, with and without thinking, on stdout and in the directory's README.md, between two
comments. It knows nothing of how the model was trained; it uses the engine as any user would.
"""

import argparse
import random
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from deepfast import LLM, SamplingParams, Thinking
from deepfast.train.basics import TASKS, Problem, check, sample

START, END = "<!-- measured: begin -->", "<!-- measured: end -->"


class Row(NamedTuple):
    task: str
    asked: int
    right: dict[str, int]  # mode -> right answers
    tokens: float  # mean thinking tokens


def held_out_problems(task: str, count: int, seed: int) -> list[Problem]:
    """Half of them in English, half in Chinese."""
    rng = random.Random(f"{task} {seed}")
    return [sample(task, rng, held_out=True, language="zh" if i % 2 else "en") for i in range(count)]


def wilson(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share, in percent."""
    share, spread = right / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z * (share * (1 - share) / count + spread / (4 * count)) ** 0.5 / (1 + spread)
    return 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)


def answers(
    llm: LLM, problems: Sequence[Problem], mode: str, at_once: int = 16
) -> Iterator[tuple[bool, int]]:
    """(right, thinking tokens) of each problem, `at_once` in the engine together."""
    thinking = Thinking(mode="on" if mode == "think" else "off")
    for first in range(0, len(problems), at_once):
        group = problems[first : first + at_once]
        streams = [
            llm.stream(problem.question, SamplingParams(seed=first + index, max_tokens=512), thinking)
            for index, problem in enumerate(group)
        ]
        for problem, stream in zip(group, streams, strict=True):
            with stream:
                completion = stream.result()
            yield check(problem, completion.content), completion.usage.reasoning_tokens


def measure(llm: LLM, task: str, count: int, seed: int) -> Row:
    problems = held_out_problems(task, count, seed)
    right, tokens = {}, 0.0
    for mode in ("think", "no_think"):
        results = list(answers(llm, problems, mode))
        right[mode] = sum(correct for correct, _ in results)
        if mode == "think":
            tokens = sum(used for _, used in results) / count
    return Row(task, count, right, tokens)


def table(rows: list[Row]) -> str:
    lines = [
        "| task | with thinking | without | mean thinking tokens |",
        "|---|---|---|---|",
    ]
    for row in rows:
        cells = []
        for mode in ("think", "no_think"):
            low, high = wilson(row.right[mode], row.asked)
            cells.append(f"{100 * row.right[mode] / row.asked:.1f} % ({low:.1f} to {high:.1f})")
        lines.append(f"| {row.task} | {cells[0]} | {cells[1]} | {row.tokens:.0f} |")
    return "\n".join(lines)


def write_table(card: Path, text: str) -> None:
    pattern = f"(?s){re.escape(START)}.*{re.escape(END)}"
    new = re.sub(pattern, f"{START}\n{text}\n{END}".replace("\\", r"\\"), card.read_text(encoding="utf-8"))
    card.write_text(new, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("deepfast/bundled"), help="model directory")
    parser.add_argument("--count", type=int, default=500, help="held-out problems per task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="rewrite the table in the model's README.md")
    args = parser.parse_args()
    began = time.monotonic()
    with LLM(args.model) as llm:
        rows = [measure(llm, task, args.count, args.seed) for task in TASKS]
    text = table(rows)
    print(text)
    print(f"{len(rows) * args.count * 2} questions in {time.monotonic() - began:.0f} s")
    if args.write:
        write_table(args.model / "README.md", text)


if __name__ == "__main__":
    main()
