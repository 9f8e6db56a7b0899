"""Distillation: it lowers the distance to the teacher, is nothing between equals, and needs one tokenizer.

In: tiny random Qwen3 models with the tokenizer of the bundled one. A few steps of TRL's trainer; needs
PyTorch, transformers and trl.
"""

import argparse
import json
import random
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from text_fixtures import END_ID, SIZE

ROOT = Path(__file__).resolve().parents[2]
BUNDLED = ROOT / "deepfast/bundled"
sys.path.insert(0, str(ROOT / "recipes"))
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("trl")

import distill as recipe  # noqa: E402

from deepfast import LLM  # noqa: E402
from deepfast.config import EngineConfig  # noqa: E402
from deepfast.train import answers, distillation  # noqa: E402
from deepfast.train.commands import Run  # noqa: E402
from deepfast.train.documents import Mixture  # noqa: E402
from deepfast.train.presets import Distilled, Shape, Supervised, preset_named  # noqa: E402
from deepfast.train.publish import publish  # noqa: E402
from deepfast.train.stage import Stage  # noqa: E402
from deepfast.types import SamplingParams, UsageError  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # what trl and tensorboard say is not ours


OFF_POLICY = Supervised(6_000, Mixture({"think": 1.0}), 1e-3, 512, 512, 512)


def checkpoint(path: Path, seed: int, **changes: Any) -> Path:
    """A tiny random model beside the bundled tokenizer. Its logits are far from uniform."""
    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "vocab_size": SIZE, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "tie_word_embeddings": True,
        "max_position_embeddings": 512, "eos_token_id": END_ID, "initializer_range": 0.3,
    }  # fmt: skip
    transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**shape | changes)).save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copyfile(BUNDLED / name, path / name)
    return path


def settings(**changes: Any) -> Distilled:
    base: dict[str, Any] = {
        "answers": 2, "off_policy": OFF_POLICY, "steps": 8, "prompts": 8, "rate": 3e-3, "max_tokens": 6,
    }  # fmt: skip
    return Distilled(**base | changes)


def distance(student: Any, teacher: Any, sequences: Any) -> float:
    """KL(student || teacher) per token, in nats, as its definition says."""
    with torch.no_grad():
        p, q = (model(sequences).logits.log_softmax(-1) for model in (student, teacher))
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They cost more than the training here, and have tests of their own."""
    monkeypatch.setattr("deepfast.train.curves.draw", lambda *_: None)


class Solver:
    """An LLM that answers questions about sums rightly, in the mode that the prompt asks for."""

    def __init__(self, llm: LLM) -> None:
        self.template, self.tokenizer, self._llm = llm.template, llm.tokenizer, llm

    def __enter__(self) -> "Solver":
        return self

    def __exit__(self, *_: object) -> None:
        self._llm.close()

    def generate(self, prompts: list[list[int]], params: SamplingParams) -> list[Any]:
        made = []
        for prompt in prompts:
            text = self.tokenizer.decode(prompt)
            first, second = map(int, re.findall(r"[0-9]+", text)[:2])
            thought = "" if text.endswith("</think>\n\n") else "<think>\n\n</think>\n\n"
            if thought and "/no_think" not in text:
                thought = "<think>\nI add.\n</think>\n\n"
            ids = self.tokenizer.encode(f"{thought}\\boxed{{{first + second}}}<|im_end|>", control=True)
            made.append(SimpleNamespace(token_ids=tuple(ids), finish_reason="stop"))
        return made


def load(path: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype="float32").eval()


def test_distilling_lowers_the_kl_to_the_teacher(tmp_path: Path) -> None:
    teacher, student = checkpoint(tmp_path / "t", 1), checkpoint(tmp_path / "s", 2, num_hidden_layers=1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(teacher)
    texts = distillation.make_prompts(tokenizer, ["sum"], 8, seed=99)
    sequences = torch.tensor([tokenizer(text)["input_ids"][:14] for text in texts])
    stage = Stage(tmp_path, "distill")
    run = stage.run
    trainer = distillation.on_policy(student, teacher, stage, settings(rate=1e-2), tasks=["sum"])
    before = distance(load(student), load(teacher), sequences)
    after = distance(trainer.model.eval(), load(teacher), sequences)
    assert after < 0.8 * before
    log = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(log) == 8 and log[-1] < log[0]
    assert (run / "log.csv").read_text().count("\n") >= 9
    assert list((run / "tensorboard").glob("events*"))

    assert not stage.done
    publish(trainer, teacher, stage)
    assert stage.done and stage.cost()["steps"] == 8 and stage.cost()["tokens"] > 8 * 8 * 6
    assert not (run / "final").exists()
    saved = load(run.parent)
    assert distance(saved, trainer.model, sequences) == pytest.approx(0, abs=1e-6)
    assert (run.parent / "tokenizer.json").read_bytes() == (BUNDLED / "tokenizer.json").read_bytes()
    with LLM(run.parent, config=EngineConfig(threads=1, max_context=64)) as llm:
        prompt = llm.template.encode([answers.Message("user", "2+2?")])
        (ours,) = llm.generate([prompt], SamplingParams(temperature=0, max_tokens=8))
    theirs = saved.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=8)[0, len(prompt) :]
    assert list(ours.token_ids) == theirs.tolist()


def test_the_loss_is_the_kl_on_the_students_own_answers(tmp_path: Path) -> None:
    teacher, student = checkpoint(tmp_path / "t", 1), checkpoint(tmp_path / "s", 2)
    seen: list[tuple[list[int], list[int]]] = []

    def rollout(trainer: Any, prompts: list[list[int]]) -> list[list[int]]:
        rng = random.Random(len(seen))
        made = [[rng.randrange(600) for _ in range(rng.randint(1, 9))] for _ in prompts]
        seen.extend(zip(prompts, made, strict=True))
        return made

    trainer = distillation.on_policy(
        student,
        teacher,
        Stage(tmp_path, "x"),
        settings(steps=1),
        tasks=["sum"],
        micro_batch=4,
        rollout=rollout,
    )
    total = tokens = 0.0
    for prompt, made in seen:
        with torch.no_grad():
            ids = torch.tensor([prompt + made])
            p, q = (
                load(path)(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1) for path in (student, teacher)
            )
        total, tokens = total + float((p.exp() * (p - q)).sum()), tokens + len(made)
    assert len(seen) == 8
    assert trainer.state.log_history[0]["loss"] == pytest.approx(total / tokens, rel=1e-3)


def test_between_equals_the_kl_is_zero(tmp_path: Path) -> None:
    teacher = checkpoint(tmp_path / "t", 1)
    trainer = distillation.on_policy(
        teacher, teacher, Stage(tmp_path, "x"), settings(steps=2, rate=0.0), tasks=["sum"]
    )
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses == pytest.approx([0, 0], abs=1e-5)


def test_a_killed_run_ends_where_an_undisturbed_one_does(tmp_path: Path) -> None:
    teacher, student = checkpoint(tmp_path / "t", 1), checkpoint(tmp_path / "s", 2)
    ends = []
    for name in ("whole", "killed"):
        stage = Stage(tmp_path, name)
        for _ in range(1 if name == "whole" else 2):
            rollout = distillation.engine_rollout(teacher, settings(), 1)
            trainer = distillation.on_policy(
                student, teacher, stage, settings(steps=2), tasks=["sum"], save_every=1, rollout=rollout
            )
            shutil.rmtree(stage.run / "checkpoint-2")
        ends.append(trainer.model)
        assert [line.split(",")[0] for line in (stage.run / "log.csv").open()][1:3] == ["1", "2"]
    for ours, theirs in zip(ends[0].parameters(), ends[1].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_recipe_from_answers_to_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher is a stub that knows the answers of sums, so that there is something to learn."""
    general = checkpoint(tmp_path / "general", 1)
    monkeypatch.setattr(recipe, "cpu_threads", lambda: 1)
    monkeypatch.setattr(recipe, "LLM", lambda path, config: Solver(LLM(path, config=EngineConfig(threads=1))))
    preset = replace(
        preset_named("nano"), distill=settings(steps=1, shape=Shape(0, 64, 1, 2, 1, 32, 64, 512))
    )
    asked = {
        "teacher": None,
        "student": None,
        "rollouts": None,
        "tasks": ["sum"],
        "micro_batch": 8,
        "seed": 0,
    }
    stage = Stage(tmp_path, "distill")

    def run(only: str | None) -> None:
        recipe.main(Run(preset, tmp_path, argparse.Namespace(only=only, **asked)))

    with pytest.raises(UsageError, match="answers to 0 of 2 problems.*--only answers"):
        run("off-policy")
    (stage.run / "answers.jsonl").write_text('{"documents":[]}\n' * 2)
    with pytest.raises(UsageError, match="there is nothing to learn"):
        run("off-policy")
    asked["tasks"] = ["product"]
    with pytest.raises(UsageError, match="begun with another tasks"):
        run(None)
    asked["tasks"] = ["sum"]
    (stage.run / "answers.jsonl").unlink()
    run(None)
    both, first = stage.cost(), Stage(stage.run, "off_policy").cost()
    assert both["steps"] == first["steps"] + 1 and both["seconds"] > first["seconds"] > 0
    assert len(answers.read_answers(stage.run / "answers.jsonl", 2)) == 4
    assert (stage.run / "off_policy/run/log.csv").exists()
    assert load(stage.directory).num_parameters() == 24_832 + 64 * SIZE
    assert (stage.directory / "chat_template.jinja").read_text() == (
        general / "chat_template.jinja"
    ).read_text()
    run(None)  # nothing left to do


def test_a_teacher_with_another_tokenizer_is_refused(tmp_path: Path) -> None:
    teacher, student = checkpoint(tmp_path / "t", 1), checkpoint(tmp_path / "s", 2)
    raw = json.loads((teacher / "tokenizer.json").read_text())
    vocab = raw["model"]["vocab"]
    first, second = (next(t for t, i in vocab.items() if i == number) for number in (300, 301))
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (teacher / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(UsageError, match="different tokenizers.*is not token 300 of both"):
        distillation.on_policy(student, teacher, Stage(tmp_path, "x"), settings(), tasks=["sum"])
    wide = checkpoint(tmp_path / "w", 1, vocab_size=SIZE + 64)
    with pytest.raises(UsageError, match=f"{SIZE + 64} logits"):
        distillation.check_shared_tokenizer(wide, student)


def test_a_batch_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    teacher = checkpoint(tmp_path / "t", 1)
    with pytest.raises(UsageError, match="8 prompts a step do not divide"):
        distillation.on_policy(
            teacher, teacher, Stage(tmp_path, "x"), settings(), tasks=["sum"], micro_batch=3
        )
