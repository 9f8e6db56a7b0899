"""The card beside the real libraries: greedy tokens of transformers, pictures of matplotlib, logs of Trainer.

In: the bundled model, results made by hand, a trainer with two weights. Out: pictures in a temporary folder.
"""

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from deepfast.model.hub import BUNDLED  # noqa: E402
from deepfast.train import card, curves  # noqa: E402
from deepfast.train.measure import Share  # noqa: E402


def test_the_bundled_model_says_the_same_in_transformers() -> None:
    assert card.same_tokens(BUNDLED, prompts=4, new_tokens=24) == Share(4, 4)


def test_other_tokens_are_noticed(monkeypatch: Any) -> None:
    real = card._transformers_tokens
    changed: list[list[int]] = []

    def one_changed(*args: Any) -> list[list[int]]:
        changed.extend(real(*args))
        changed[0][1] += 1
        return changed

    monkeypatch.setattr(card, "_transformers_tokens", one_changed)
    assert card.same_tokens(BUNDLED, prompts=2, new_tokens=6) == Share(1, 2)


def is_picture(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000


def test_the_card_and_the_curves_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from deepfast.train.card_plot import draw_card

    rows = [
        {"task": task, "split": split, "think": (9, 10), "no_think": (0, 10), "tokens": 9.0}
        for task in ("sum", "river")
        for split in ("test", "ood")
    ]
    points = [{"budget": 2**n, "right": (n, 12), "tokens": 9.0} for n in range(4, 9)]
    results = {"accuracy": {"rows": rows}, "budget": {"points": points, "no_think": (2, 12)}}
    assert all(is_picture(path) for path in draw_card(results, tmp_path))
    log: list[dict[str, float | str]] = [{"step": float(n), "loss": 1 / n, "rate": n} for n in range(1, 60)]
    for rows_drawn in (log, []):
        curves.draw(rows_drawn, tmp_path / "curves.png", "pretrain")
        assert is_picture(tmp_path / "curves.png") or not rows_drawn


class Line(torch.nn.Module):
    """y = a x + b"""

    def __init__(self) -> None:
        super().__init__()
        self.line = torch.nn.Linear(1, 1)

    def forward(self, x: Any, labels: Any) -> dict[str, Any]:
        return {"loss": ((self.line(x) - labels) ** 2).mean()}


def test_a_trainer_logs_and_a_resumed_one_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    data = [{"x": torch.tensor([n / 8]), "labels": torch.tensor([n / 4])} for n in range(8)]
    callback = curves.LogCallback(tmp_path / "pretrain" / "run")

    def train(steps: int, **resume: Any) -> None:
        args = transformers.TrainingArguments(
            str(tmp_path), max_steps=steps, logging_steps=1, save_steps=2, use_cpu=True, report_to="none",
            per_device_train_batch_size=4, disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = transformers.Trainer(Line(), args, train_dataset=data, callbacks=[callback])
        trainer.train(**resume)

    train(3)
    train(6, resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    steps = [row["step"] for row in curves.read_rows(callback.log) if "loss" in row]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert is_picture(callback.directory / "curves.png")
