"""The model card's two pictures: accuracy of each task, and accuracy against thinking budget.

In: results of card.py. Out: PNG files. matplotlib is imported when something is drawn. It measures nothing.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepfast.train.card import Results
from deepfast.train.card_text import PICTURES, SPLIT_NAMES
from deepfast.train.measure import Share

COLOURS = {"think": "#2f6db3", "no_think": "#d9822b"}


def draw_card(results: Results, directory: Path) -> list[Path]:
    """Both pictures, beside the README; gives their paths."""
    made = [directory / PICTURES["accuracy"], directory / PICTURES["budget"]]
    draw_accuracy(results["accuracy"]["rows"], made[0])
    draw_budget(results["budget"]["points"], Share(*results["budget"]["no_think"]), made[1])
    return made


def draw_accuracy(rows: Sequence[Results], path: Path) -> None:
    """A dot with its 95 % interval for each task and mode; the two sides of the split side by side."""
    splits = [split for split in SPLIT_NAMES if any(row["split"] == split for row in rows)]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure = _figure(2.0 + 3.4 * len(splits), 1.1 + 0.27 * len(tasks))
    for number, split in enumerate(splits):
        axes = figure.add_subplot(1, len(splits), number + 1)
        by_task = {row["task"]: row for row in rows if row["split"] == split}
        for mode, shift in (("think", -0.13), ("no_think", 0.13)):
            shares = [Share(*by_task[task][mode]) for task in tasks]
            _dots(axes, shares, [place + shift for place in range(len(tasks))], mode)
        axes.set_yticks(range(len(tasks)), tasks if number == 0 else [""] * len(tasks))
        axes.set_ylim(len(tasks) - 0.5, -0.5)
        axes.set_xlim(-3, 103)
        axes.set_xlabel("right, %", fontsize=9)
        axes.set_title(SPLIT_NAMES[split], fontsize=10, loc="left")
        _plain(axes)
        axes.tick_params(axis="y", length=0)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower right", ncols=2, fontsize=8.5, frameon=False)
    _save(figure, path)


def _dots(axes: Any, shares: Sequence[Share], places: Sequence[float], mode: str) -> None:
    values = [100 * share.rate for share in shares]
    low = [value - 100 * share.interval[0] for value, share in zip(values, shares, strict=True)]
    high = [100 * share.interval[1] - value for value, share in zip(values, shares, strict=True)]
    spread = [[max(0.0, one) for one in low], [max(0.0, one) for one in high]]
    label = "with thinking" if mode == "think" else "without"
    axes.errorbar(
        values, places, xerr=spread, fmt="o", ms=4, lw=1.2, color=COLOURS[mode], ecolor=COLOURS[mode] + "88",
        label=label, clip_on=False,
    )  # fmt: skip


def draw_budget(points: Sequence[Results], level: Share, path: Path) -> None:
    """Accuracy over the budget on a log axis with its 95 % band; the level without thinking as a line."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    budgets = [point["budget"] for point in points]
    shares = [Share(*point["right"]) for point in points]
    figure = _figure(6.4, 3.9)
    axes = figure.add_subplot()
    bands = list(zip(*(share.interval for share in shares), strict=True))
    low, high = ([100 * value for value in band] for band in bands)
    axes.fill_between(budgets, low, high, color=COLOURS["think"], alpha=0.15, lw=0)
    axes.plot(budgets, [100 * s.rate for s in shares], "o-", color=COLOURS["think"], ms=4.5, label="thinking")
    axes.axhline(100 * level.rate, color=COLOURS["no_think"], lw=1.4, ls="--", label="no_think")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(budgets))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    axes.set_ylim(0, 102)
    axes.set_xlabel("thinking budget, tokens", fontsize=9)
    axes.set_ylabel("right, mean over tasks, %", fontsize=9)
    axes.legend(fontsize=8.5, frameon=False, loc="best")
    _plain(axes)
    _save(figure, path)


def _plain(axes: Any) -> None:
    axes.grid(True, color="0.92", lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("0.6")
    axes.tick_params(labelsize=8.5, color="0.6")


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> None:
    part = path.with_name(path.name + ".part")
    figure.savefig(part, format="png", dpi=130)
    os.replace(part, path)
