"""Every stage as its command runs it, from wording to the reinforced model, in one process.

In: a preset so small that it learns little more than the form of one task. It needs the extra `train` and a
minute or two.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("trl")
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "recipes"))

import cold_start  # noqa: E402
import fusion  # noqa: E402
import general  # noqa: E402
import pretrain  # noqa: E402
import reasoning  # noqa: E402
import tokenizer  # noqa: E402

from deepfast import LLM, SamplingParams, Thinking  # noqa: E402
from deepfast.config import EngineConfig  # noqa: E402
from deepfast.train.commands import Run  # noqa: E402
from deepfast.train.presets import MINI, Preset, Supervised  # noqa: E402
from deepfast.train.stage import STAGES, Stage  # noqa: E402

TASKS = {"decimals": 1.0}
MAINS = {
    "tokenizer": tokenizer.main, "pretrain": pretrain.main, "cold_start": cold_start.main,
    "reasoning": reasoning.main, "fusion": fusion.main, "general": general.main,
}  # fmt: skip


def tiny() -> Preset:
    def of(settings: Supervised | None, tokens: int) -> Supervised:
        assert settings is not None
        mixture = replace(settings.mixture, tasks=TASKS)
        samples = min(settings.samples, 8)
        return replace(settings, tokens=tokens, mixture=mixture, samples=samples, step_tokens=2048)

    assert MINI.shape is not None
    return replace(
        MINI,
        shape=replace(MINI.shape, hidden_size=64, num_hidden_layers=2),
        pretrain=of(MINI.pretrain, 250_000),
        cold_start=of(MINI.cold_start, 600_000),
        reasoning=replace(MINI.reasoning, steps=2, prompts=4, group=4, max_tokens=96, tasks=TASKS, pool=4),
        fusion=of(MINI.fusion, 80_000),
        general=replace(
            MINI.general, steps=2, prompts=4, group=4, max_tokens=96, tasks={**TASKS, "tools": 1.0}
        ),
    )


@pytest.mark.slow
def test_all_stages_in_their_order(tmp_path: Path) -> None:
    run = Run(tiny(), tmp_path, argparse.Namespace(only=None))
    for name, main in MAINS.items():
        main(run)
        assert Stage(tmp_path, name).done, name
        main(run)  # there is nothing left to do
    for name in STAGES[1:-1]:
        stage = Stage(tmp_path, name)
        lines = (stage.run / "log.csv").read_text().splitlines()
        assert len(lines) > 1 and stage.cost()["tokens"] > 0, name
        assert (stage.run / "curves.png").stat().st_size > 1000, name
        assert list((stage.run / "tensorboard").rglob("events*")), name
    tried = (Stage(tmp_path, "reasoning").run / "prompts.jsonl").read_text().splitlines()
    assert tried and {json.loads(line)["task"] for line in tried} == {"decimals"}
    assert "mode_followed" in (Stage(tmp_path, "general").run / "log.csv").read_text().splitlines()[0]
    with LLM(tmp_path / "general", config=EngineConfig(threads=1)) as llm:
        params = SamplingParams(max_tokens=96)
        quick = llm.chat("9.11 or 9.9: which is larger?", params, Thinking("off"))
        assert not quick.reasoning and quick.content
