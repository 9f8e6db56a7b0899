"""What a training run logs: rows of a CSV file, and a picture of them.

In: the `logs` of transformers' Trainer, or any rows of numbers. Out: log.csv, which a resumed run continues,
and curves.png with a panel for each quantity. matplotlib is imported when something is drawn, transformers
never. It knows no model and no stage; TensorBoard is Trainer's own business.
"""

import csv
import io
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

Value = float | str
Row = dict[str, Value]
Points = tuple[list[float], list[float]]  # steps, values

_STATISTIC = re.compile(r"(?:^|(?<=[/_]))(mean|std|min|max)(?=$|[/_])")
_FIRST = ("loss", "reward", "entropy", "kl", "grad_norm", "learning_rate")
_COLOURS = ("#2f6db3", "#d9822b", "#5a9e4b", "#8c6bb1")
_SUMMARY = ("total_flos", "train_")  # what Trainer logs once, at the end


def append_row(path: Path, row: Mapping[str, object]) -> None:
    """Adds a row. A new column widens the file; None and NaN leave their cells empty."""
    cells = {key: _cell(value) for key, value in row.items()}
    header = _header(path)
    if header is None or not set(cells) <= set(header):
        rows = [{key: _cell(value) for key, value in old.items()} for old in read_rows(path)]
        _rewrite(path, [*rows, cells])
        return
    with path.open("a", encoding="utf-8", newline="") as file:
        file.write(_line(cells.get(key, "") for key in header))


def read_rows(path: Path) -> list[Row]:
    """The rows of the file, numbers as floats, without empty cells; none where there is no file.

    A line that a killed run left without its end does not count.
    """
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    return [
        {key: _value(cell) for key, cell in row.items() if key is not None and cell}
        for row in csv.DictReader(io.StringIO(whole, newline=""))
    ]


def drop_after(path: Path, step: int) -> None:
    """Keeps the rows up to this step: what a run that resumes there has not done again yet."""
    rows = read_rows(path)
    kept = [row for row in rows if _number(row.get("step")) <= step]
    if len(kept) < len(rows) or _header(path) is None:
        _rewrite(path, [{key: _cell(value) for key, value in row.items()} for row in kept])


class Callback:
    """A callback of transformers' Trainer without its base class: events that are none of its business do
    nothing, in any version of Trainer."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("on_"):
            return _nothing
        raise AttributeError(name)


class LogCallback(Callback):
    """Every `logs` becomes a row of directory/log.csv.

    A run that resumes at a step drops the rows behind it, a fresh run all. directory/curves.png is drawn at
    every save and at the end. Only the first process of several writes.
    """

    def __init__(self, directory: str | Path, title: str = "") -> None:
        self.directory = Path(directory)
        self.title = title or self.directory.resolve().parent.name

    @property
    def log(self) -> Path:
        return self.directory / "log.csv"

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self.directory.mkdir(parents=True, exist_ok=True)
            drop_after(self.log, state.global_step if state.global_step else -1)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if state.is_world_process_zero and logs:
            self.directory.mkdir(parents=True, exist_ok=True)
            append_row(self.log, {"step": state.global_step, **logs})

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._draw(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._draw(state)

    def _draw(self, state: Any) -> None:
        if state.is_world_process_zero and (rows := read_rows(self.log)):
            draw(rows, self.directory / "curves.png", self.title)


def _nothing(*_: Any, **__: Any) -> None:
    """An event that we do not look at."""


def series(rows: Sequence[Mapping[str, Value]]) -> dict[str, dict[str, Points]]:
    """What is worth a panel: title -> name of a line -> its points.

    A quantity and the same held out share a panel, and so do mean, spread, least and most of a quantity.
    Left out: what never changes, and what is logged once.
    """
    columns: dict[str, Points] = {}
    for row in rows:
        for key, value in row.items():
            if key in ("step", "epoch") or not isinstance(value, float) or not math.isfinite(value):
                continue
            steps, values = columns.setdefault(key, ([], []))
            steps.append(_number(row.get("step")))
            values.append(value)
    panels: dict[str, dict[str, Points]] = {}
    names: dict[str, str] = {}
    for key, (steps, values) in columns.items():
        if len(set(values)) < 2 or key.startswith(_SUMMARY):
            continue
        title, line = _panel(key)
        panels.setdefault(title, {})[line] = steps, values
        names[title] = key
    plain = {(names[title] if len(lines) == 1 else title): lines for title, lines in panels.items()}
    return dict(sorted(plain.items(), key=lambda item: _rank(item[0])))


def draw(rows: Sequence[Mapping[str, Value]], path: Path, title: str = "") -> None:
    """Small multiples over the step, written as a PNG: a panel for each quantity, a loss on a log axis.

    Long lines are drawn faint with their centred moving average on top.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = series(rows)
    columns = min(4, max(1, len(panels)))
    lines = max(1, -(-len(panels) // columns))
    figure = Figure(figsize=(max(4.0, 3.1 * columns), 2.2 * lines + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    for number, (name, of_panel) in enumerate(panels.items()):
        axes = figure.add_subplot(lines, columns, number + 1)
        _draw_panel(axes, name, of_panel)
        if number >= len(panels) - columns:
            axes.set_xlabel("step", fontsize=8)
    if not panels:
        figure.text(0.5, 0.5, "nothing logged yet", ha="center", va="center", color="0.4")
    figure.suptitle(title, fontsize=11, fontweight="bold")
    part = path.with_name(path.name + ".part")
    figure.savefig(part, format="png", dpi=110)
    os.replace(part, path)


def _draw_panel(axes: Any, name: str, lines: Mapping[str, Points]) -> None:
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    for (line, (steps, values)), colour in zip(sorted(lines.items()), _COLOURS * 2, strict=False):
        many = len(values) > 30 and "held out" not in line
        marker = "o" if len(values) < 12 else ""
        axes.plot(steps, values, color=colour, lw=0.8 if many else 1.4, alpha=0.35 if many else 1.0)
        smooth = smoothed(values, len(values) // 60 + 1) if many else values
        axes.plot(steps, smooth, color=colour, lw=1.4, marker=marker, ms=2.5, label=line or "value")
    if "loss" in name and all(value > 0 for _, values in lines.values() for value in values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4))
        most = max(abs(value) for _, values in lines.values() for value in values)
        if most >= 10000:
            axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        elif most < 0.01:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_title(name, fontsize=8.5, loc="left")
    axes.tick_params(which="both", labelsize=7, length=2, color="0.6")
    axes.grid(True, color="0.92", lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("0.6")
    if len(lines) > 1:
        axes.legend(fontsize=6.5, frameon=False, handlelength=1.2)


def smoothed(values: Sequence[float], width: int) -> list[float]:
    """The mean over `width` neighbours on either side, fewer, and as many on both, near the ends."""
    sums = [0.0, *accumulate(values)]
    made = []
    for place in range(len(values)):
        reach = min(width, place, len(values) - 1 - place)
        made.append((sums[place + reach + 1] - sums[place - reach]) / (2 * reach + 1))
    return made


def _panel(key: str) -> tuple[str, str]:
    """ "eval_completions/mean_length" -> ("completions/length", "mean, held out")."""
    held_out = key.startswith("eval_")
    base = key.removeprefix("eval_")
    statistic = found[1] if (found := _STATISTIC.search(base)) else ""
    if statistic:
        base = re.sub(r"([/_])[/_]+", r"\1", _STATISTIC.sub("", base, count=1)).strip("/_")
    return base, ", ".join(filter(None, (statistic, "held out" if held_out else "")))


def _rank(title: str) -> tuple[int, str]:
    for place, word in enumerate(_FIRST):
        if title == word or (word in ("loss", "reward") and title.startswith(word)):
            return place, title
    return len(_FIRST), title


def _header(path: Path) -> list[str] | None:
    """The columns of a file that can be appended to; None when it is missing, empty or ends in mid-line."""
    if not path.exists() or path.stat().st_size == 0:
        return None
    with path.open("rb") as file:
        first = file.readline().decode("utf-8")
        file.seek(-1, os.SEEK_END)
        return next(csv.reader([first])) if file.read(1) == b"\n" else None


def _rewrite(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    header = list(dict.fromkeys(key for row in rows for key in row))
    lines = [_line(header), *(_line(row.get(key, "") for key in header) for row in rows)] if header else []
    part = path.with_name(path.name + ".part")
    part.write_text("".join(lines), encoding="utf-8", newline="")
    os.replace(part, path)


def _line(cells: Any) -> str:
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="\n").writerow(cells)
    return out.getvalue()


def _cell(value: object) -> str:
    """Whole numbers without a point, others with six digits; text on one line."""
    if hasattr(value, "item"):
        value = value.item()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.6g}"
    return " ".join(str(value).split())


def _value(cell: str) -> Value:
    try:
        return float(cell)
    except ValueError:
        return cell


def _number(value: object) -> float:
    return value if isinstance(value, float) else -1.0
