"""A training run's log: rows survive new columns, a kill and a resumed run; series are what gets a panel.

In: rows, and a trainer's state by hand. Out: nothing. It draws nothing and needs no transformers.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from deepfast.train import curves
from deepfast.train.curves import LogCallback, append_row, read_rows, series, smoothed


def state(step: int, first_process: bool = True) -> Any:
    return SimpleNamespace(global_step=step, is_world_process_zero=first_process)


def train(callback: LogCallback, first: int, last: int, monkeypatch: Any = None) -> None:
    callback.on_train_begin(None, state(first), None)
    for step in range(first + 1, last + 1):
        callback.on_log(None, state(step), None, logs={"loss": 1 / step, "epoch": step / 10})


def test_rows_come_back_and_a_new_column_widens_the_file(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    assert read_rows(log) == []
    rows: list[dict[str, object]] = [
        {"step": 1, "loss": 0.5, "note": 'a "b", c'},
        {"step": 2, "loss": float("nan"), "kl": None},
        {"step": 3, "loss": 0.25, "eval_loss": 1e-7},
    ]
    for row in rows:
        append_row(log, row)
    assert read_rows(log) == [
        {"step": 1.0, "loss": 0.5, "note": 'a "b", c'},
        {"step": 2.0},
        {"step": 3.0, "loss": 0.25, "eval_loss": 1e-7},
    ]
    assert log.read_text().splitlines()[0] == "step,loss,note,eval_loss"


def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    append_row(log, {"step": 1, "loss": 2.0})
    log.write_text(log.read_text() + "2,1.")
    append_row(log, {"step": 2, "loss": 1.5})
    assert read_rows(log) == [{"step": 1.0, "loss": 2.0}, {"step": 2.0, "loss": 1.5}]


def test_a_resumed_run_has_every_step_once(tmp_path: Path) -> None:
    callback = LogCallback(tmp_path / "reasoning" / "run")
    train(callback, 0, 8)
    train(callback, 5, 12)
    assert [row["step"] for row in read_rows(callback.log)] == [*range(1, 13)]
    train(callback, 0, 3)
    assert [row["step"] for row in read_rows(callback.log)] == [1, 2, 3]
    assert callback.title == "reasoning"


def test_only_the_first_process_writes_and_other_events_do_nothing(tmp_path: Path) -> None:
    callback = LogCallback(tmp_path)
    callback.on_log(None, state(1, first_process=False), None, logs={"loss": 1.0})
    assert not callback.log.exists()
    assert callback.on_step_end(None, state(1), None, model=None) is None
    assert not hasattr(callback, "report")


def test_it_draws_at_a_save_and_at_the_end(tmp_path: Path, monkeypatch: Any) -> None:
    drawn: list[tuple[int, str]] = []
    monkeypatch.setattr(curves, "draw", lambda rows, path, title: drawn.append((len(rows), path.name)))
    callback = LogCallback(tmp_path)
    callback.on_save(None, state(0), None)
    train(callback, 0, 4)
    callback.on_save(None, state(4), None)
    callback.on_train_end(None, state(4), None)
    assert drawn == [(4, "curves.png"), (4, "curves.png")]


def test_what_belongs_together_shares_a_panel() -> None:
    rows: list[dict[str, float | str]] = [
        {"step": float(n), "completions/mean_length": n, "completions/max_length": 2.0 * n, "loss": 1.0 / n,
         "eval_loss": 2.0 / n, "rewards/mode/mean": n, "rewards/mode/std": 1.0 / n, "frac_zero_std": n * 1.0,
         "clip": 0.0, "train_loss": n * 1.0}
        for n in map(float, range(1, 4))
    ]  # fmt: skip
    found = series(rows)
    assert {title: sorted(lines) for title, lines in found.items()} == {
        "loss": ["", "held out"],
        "rewards/mode": ["mean", "std"],
        "completions/length": ["max", "mean"],
        "frac_zero_std": ["std"],
    }
    assert next(iter(found)) == "loss"
    assert found["loss"]["held out"] == ([1.0, 2.0, 3.0], [2.0, 1.0, 2 / 3])


def test_a_moving_average_keeps_a_straight_line() -> None:
    line = [float(n) for n in range(20)]
    assert smoothed(line, 4) == line
    assert smoothed([0.0, 3.0, 0.0], 1) == [0.0, 1.0, 0.0]
