"""The numbers of card.py as markdown, and the model's README.md with them between two comments.

In: results as they are measured or read back from JSON. Out: text. It measures nothing.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepfast.train.card import WEAK, Results
from deepfast.train.measure import Share
from deepfast.train.problems import HARD
from deepfast.types import ModelError

START, END = "<!-- measured: begin -->", "<!-- measured: end -->"
PICTURES = {"accuracy": "card_accuracy.png", "budget": "card_budget.png"}
ENFORCED = (
    "As Deepfast serves it: `enable_thinking` opens the thought or closes it, and a tool call that was "
    "begun can only become a valid one. What flags ask for, whether a tool is called, with what, and what is "
    "made of the result is left to the model."
)
SPLIT_NAMES = {"test": "held out", "ood": "one size larger"}


def percent(share: Sequence[int]) -> str:
    """ "98.0 % (92.9 to 99.4)": a share with its 95 % Wilson interval."""
    found = Share(*share)
    if not found.total:
        return "-"
    low, high = found.interval
    return f"{100 * found.rate:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def pooled(rows: Sequence[Results], split: str, mode: str, hard: bool = False) -> Share:
    """All tasks of a split together, or the hard ones. It is the mean of those with equally many problems."""
    chosen = [row for row in rows if row["split"] == split and (not hard or row["task"] in HARD)]
    return Share(sum(row[mode][0] for row in chosen), sum(row[mode][1] for row in chosen))


def card(results: Results, pictures: bool = True) -> str:
    """Everything, as markdown."""
    parts = [_accuracy(results, pictures), _budget(results, pictures), _behaviour(results)]
    if results.get("stages"):
        parts.append(_stages(results["stages"]))
    parts.append(_failures(results["accuracy"]["failures"]))
    return "\n\n".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def _accuracy(results: Results, pictures: bool) -> str:
    rows = results["accuracy"]["rows"]
    count = results["key"]["settings"]["count"]
    lines = []
    for task in dict.fromkeys(row["task"] for row in rows):
        by_split = {row["split"]: row for row in rows if row["task"] == task}
        cells = [percent(by_split[split][mode]) for split in by_split for mode in ("think", "no_think")]
        tokens = " / ".join(f"{row['tokens']:.0f}" for row in by_split.values())
        lines.append([f"**{task}**" if task in HARD else task, *cells, tokens])
    for name, hard in (("all tasks", False), ("**hard tasks**", True)):
        pairs = [pooled(rows, split, mode, hard) for split in SPLIT_NAMES for mode in ("think", "no_think")]
        lines.append([name, *map(percent, pairs), ""])
    head = [f"{name}, {mode}" for name in SPLIT_NAMES.values() for mode in ("think", "no_think")]
    thinking, without = (pooled(rows, "test", mode, True) for mode in ("think", "no_think"))
    worth = f"; on them thinking is worth {100 * (thinking.rate - without.rate):+.1f} points"
    scarce = {row["task"]: row["think"][1] for row in rows if row["think"][1] < count}
    fewer = f" There are only {', '.join(f'{n} of {task}' for task, n in scarce.items())}." if scarce else ""
    text = [
        "### Accuracy",
        f"{count} problems for each number, no two alike, half English, half Chinese, sampled at the "
        "defaults of each mode; in brackets 95 % Wilson intervals. Held out is what has a number, a word, a "
        "name or a puzzle that training never had; one size larger is the level above. Tasks in bold (the "
        f"hard ones) need search or long arithmetic{worth if thinking.total else ''}.{fewer}",
        _table(["task", *head, "mean thinking tokens"], lines),
    ]
    promises = results["accuracy"]["promises"]
    if promises:
        told = [[name, percent(share)] for name, share in promises.items()]
        text.append(_table(["with thinking, held out", "right"], told))
    if pictures:
        text.append(f"![accuracy of each task]({PICTURES['accuracy']})")
    return "\n\n".join(text)


def _budget(results: Results, pictures: bool) -> str:
    points = results["budget"]["points"]
    lines = [["no_think", percent(results["budget"]["no_think"]), "0"]]
    lines += [[str(p["budget"]), percent(p["right"]), f"{p['tokens']:.0f}"] for p in points]
    pairs = list(zip(points, points[1:], strict=False))
    rises = sum(_rate(b) > _rate(a) for a, b in pairs)
    falls = [str(b["budget"]) for a, b in pairs if _rate(b) < _rate(a)]
    shape = f"{rises} of {len(pairs)} doublings raise the accuracy"
    shape += f"; it falls at {', '.join(falls)}." if falls else "; none lowers it."
    told = (
        f"{points[0]['right'][1]} held-out problems of all tasks but tools, the same ones at every budget. "
        f"{shape} The sentence with which a thought is ended at its budget counts as thought."
    )
    text = ["### Accuracy against thinking budget", told]
    text.append(_table(["budget (tokens)", "right", "mean thinking tokens"], lines))
    if pictures:
        text.append(f"![accuracy against thinking budget]({PICTURES['budget']})")
    return "\n\n".join(text)


def _rate(point: Results) -> float:
    return Share(*point["right"]).rate


def _behaviour(results: Results) -> str:
    modes = results["modes"]
    every = Share(sum(s[0] for s in modes.values()), sum(s[1] for s in modes.values()))
    shares = {"**mode followed**": every, **modes}
    shares["thoughts that loop or never end"] = results["accuracy"]["loops"]
    shares |= {f"tools: {name}": share for name, share in results["accuracy"]["tools"].items()}
    shares["questions outside its field refused"] = results["refusals"]
    lines = [[name, percent(share), f"{share[0]:,} of {share[1]:,}"] for name, share in shares.items()]
    text = ["### Behaviour", ENFORCED, _table(["what", "share", "counted"], lines)]
    if same := results.get("same_tokens"):
        text.append(f"Same greedy tokens in transformers, float32: {same[0]} of {same[1]} prompts.")
    return "\n\n".join(text)


def _stages(stages: Sequence[Results]) -> str:
    lines = []
    for stage in stages:
        cost = stage["cost"]
        cells = [percent(stage[mode][part]) for part in ("all", "hard") for mode in ("think", "no_think")]
        lines.append([stage["stage"], *cells, *_cost(cost)])
    head = ["stage", "all, think", "all, no_think", "hard, think", "hard, no_think"]
    note = (
        "The same held-out problems after each stage, asked in the chat format that pre-training never saw."
    )
    machines = list(dict.fromkeys(str(s["cost"]["machine"]) for s in stages if s["cost"].get("machine")))
    note += f" Trained on: {'; '.join(machines)}." if machines else ""
    table = _table([*head, "tokens", "steps", "time"], lines)
    return f"### What each stage added\n\n{note}\n\n{table}"


def _cost(cost: Results) -> list[str]:
    """Tokens, steps, time; a dash for what the stage did not write down."""
    found = [cost.get(key) for key in ("tokens", "steps", "seconds")]
    tokens, steps, seconds = (value if isinstance(value, int | float) else None for value in found)
    return [
        f"{tokens / 1e6:.2f} M" if tokens is not None else "-",
        f"{steps:,}" if steps is not None else "-",
        f"{seconds / 60:.0f} min" if seconds is not None else "-",
    ]


def _failures(failures: Sequence[Results]) -> str:
    title = "### Where it fails"
    if not failures:
        return f"{title}\n\nNo task is below {100 * WEAK:.0f} % with thinking."
    text = [title, f"One wrong answer of each task below {100 * WEAK:.0f} % with thinking, word for word."]
    for failure in failures:
        parts: list[tuple[str, Any]] = [
            ("question", failure["question"]), ("right", failure["wanted"]),
            ("end of the thought", failure["thought"]), ("answer", failure["answer"]),
        ]  # fmt: skip
        body = "\n".join(f"{name}: {value or '(nothing)'}" for name, value in parts)
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", body)), default=0))
        text.append(f"{failure['task']}, {SPLIT_NAMES[failure['split']]}:\n\n{fence}text\n{body}\n{fence}")
    return "\n\n".join(text)


def write_between(path: Path, text: str) -> None:
    """Replaces what stands between the two comments; a file without them gets them at its end.

    What a model said cannot close the part: comments in the text are broken up. ModelError when the file has
    one comment without the other.
    """
    text = text.replace("<!--", "<! --")
    old = path.read_text(encoding="utf-8") if path.exists() else f"# {path.resolve().parent.name}\n"
    begin, end = old.find(START), old.rfind(END)
    if (begin < 0) != (end < 0) or end < begin:
        raise ModelError(f"{path}: {START} and {END} must both be there, in this order. Write them again.")
    if begin < 0:
        old, begin = f"{old.rstrip()}\n\n{START}{END}\n", len(old.rstrip()) + 2
        end = begin + len(START)
    path.write_text(f"{old[:begin]}{START}\n{text}\n{old[end:]}", encoding="utf-8")
