"""Shows problems, or measures them: `python -m deepfast.train.problems [TASK ...]`.

In: names of tasks. Out: a table of lengths and speed on stdout, or with --show so many problems with their
traces. It knows no model.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Sequence

from deepfast.train.problems import TASKS, Problem, is_held_out, sample
from deepfast.types import UsageError


def thought(problem: Problem) -> str:
    """All that is thought: the trace, or the thoughts of every turn of the assistant."""
    turns = [turn["reasoning_content"] for turn in problem.turns if "reasoning_content" in turn]
    return "\n".join(turns) or problem.trace


def row(name: str, level: int, count: int) -> str:
    """One line of the table: characters of thought and question, problems a second, share held out."""
    task, rng = TASKS[name], random.Random(level)
    began = time.process_time()
    problems = [task.generate(rng, level, "zh" if n % 2 else "en") for n in range(count)]
    seconds = time.process_time() - began
    lengths = sorted(len(thought(problem)) for problem in problems)
    mean, most = statistics.mean(lengths), lengths[int(0.95 * count)]
    asked = statistics.mean(len(problem.question) for problem in problems)
    held = sum(is_held_out(problem.key) for problem in problems) / count
    side = "ood" if level == task.beyond else f"{100 * held:.0f} %"
    speed = count / max(seconds, 1e-9)
    return f"| {name} | {level} | {mean:.0f} | {most} | {asked:.0f} | {speed:,.0f} | {side} |"


def show(problem: Problem) -> str:
    text = f"--- {problem.key}\n{problem.question}\n"
    if problem.turns:
        return text + "".join(f"{json.dumps(turn, ensure_ascii=False)}\n" for turn in problem.turns[1:])
    return f"{text}<think>\n{problem.trace}\n</think>\n\n{problem.reply}\n"


def show_some(args: argparse.Namespace) -> None:
    rng = random.Random(args.seed or 0)
    for name in args.tasks or TASKS:
        for _ in range(args.show):
            print(show(sample(name, rng, args.split or "train", args.level, args.language)))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m deepfast.train.problems", description=__doc__)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help="default: all")
    parser.add_argument("--count", type=int, help="problems per level to measure (default: 1000)")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print N problems per task instead")
    parser.add_argument("--split", choices=("train", "test", "ood"), help="default: train")
    parser.add_argument("--level", type=int)
    parser.add_argument("--language", choices=("en", "zh"))
    parser.add_argument("--seed", type=int, help="default: 0")
    args = parser.parse_args(arguments)
    if unknown := set(args.tasks) - set(TASKS):
        parser.error(f"no task {sorted(unknown)[0]}; there are {', '.join(TASKS)}")
    for name, value, least in (("--count", args.count, 1), ("--show", args.show, 0)):
        if value is not None and value < least:
            parser.error(f"{name} {value} is below {least}")
    if args.show:
        if args.count is not None:
            parser.error(f"--count {args.count} is for the table; --show N says how many are printed")
        try:
            show_some(args)
        except UsageError as error:  # a level that the task has not
            parser.error(str(error))
        return
    if chosen := [name for name in ("split", "level", "language", "seed") if getattr(args, name) is not None]:
        parser.error(
            f"--{chosen[0]} chooses what --show N prints; the table has every level and both languages"
        )
    print("| task | level | characters of thought, mean | 95 % | of question | problems/s | held out |")
    print("|---|---|---|---|---|---|---|")
    for name in args.tasks or TASKS:
        for level in (*TASKS[name].levels, TASKS[name].beyond):
            print(row(name, level, args.count or 1000))


if __name__ == "__main__":
    main()
