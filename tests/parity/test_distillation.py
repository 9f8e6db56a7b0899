"""Distillation: it lowers the distance to the teacher, is nothing between equals, and needs one tokenizer.

In: tiny random Qwen3 models with the tokenizer of the bundled one. A few steps of TRL's trainer; needs PyTorch,
transformers and trl.
"""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("trl")

from deepfast import LLM  # noqa: E402
from deepfast.config import EngineConfig  # noqa: E402
from deepfast.train import answers, distillation  # noqa: E402
from deepfast.train.presets import Distilled  # noqa: E402
from deepfast.types import UsageError  # noqa: E402

BUNDLED = Path(__file__).resolve().parents[2] / "deepfast/bundled"
pytestmark = pytest.mark.filterwarnings("ignore")  # what trl and tensorboard say is not ours


def checkpoint(path: Path, seed: int, **changes: Any) -> Path:
    """A tiny random model beside the bundled tokenizer. Its logits are far from uniform."""
    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "vocab_size": 640, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "tie_word_embeddings": True,
        "max_position_embeddings": 512, "eos_token_id": 616, "initializer_range": 0.3,
    }  # fmt: skip
    transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**shape | changes)).save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copyfile(BUNDLED / name, path / name)
    return path


def settings(**changes: Any) -> Distilled:
    base: dict[str, Any] = {
        "answers": 2, "off_policy": None, "steps": 8, "prompts": 8, "rate": 3e-3, "max_tokens": 6,
    }  # fmt: skip
    return Distilled(**base | changes)


def distance(student: Any, teacher: Any, sequences: Any) -> float:
    """KL(student || teacher) per token, in nats, as its definition says."""
    with torch.no_grad():
        p, q = (model(sequences).logits.log_softmax(-1) for model in (student, teacher))
    return float((p.exp() * (p - q)).sum(-1).mean())


def load(path: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype="float32").eval()


def test_distilling_lowers_the_kl_to_the_teacher(tmp_path: Path) -> None:
    teacher, student = checkpoint(tmp_path / "t", 1), checkpoint(tmp_path / "s", 2, num_hidden_layers=1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(teacher)
    texts = distillation.make_prompts(tokenizer, ["sum"], 8, seed=99)
    sequences = torch.tensor([tokenizer(text)["input_ids"][:14] for text in texts])
    run = tmp_path / "distill" / "run"
    trainer = distillation.on_policy(student, teacher, run, settings(rate=1e-2), tasks=["sum"])
    before = distance(load(student), load(teacher), sequences)
    after = distance(trainer.model.eval(), load(teacher), sequences)
    assert after < 0.8 * before
    log = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(log) == 8 and log[-1] < log[0]
    assert (run / "log.csv").read_text().count("\n") >= 9
    assert list((run / "tensorboard").glob("events*"))

    distillation.publish(trainer, teacher, run.parent)
    assert not (run / "final").exists()
    saved = load(run.parent)
    assert distance(saved, trainer.model, sequences) == pytest.approx(0, abs=1e-6)
    assert (run.parent / "tokenizer.json").read_bytes() == (BUNDLED / "tokenizer.json").read_bytes()
    with LLM(run.parent, config=EngineConfig(threads=1, max_context=64)) as llm:
        prompt = llm.template.encode([answers.Message("user", "2+2?")])
        (ours,) = llm.generate([prompt], answers.SamplingParams(temperature=0, max_tokens=8))
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
        student, teacher, tmp_path / "run", settings(steps=1), tasks=["sum"], micro_batch=4, rollout=rollout
    )
    total = tokens = 0.0
    for prompt, made in seen:
        with torch.no_grad():
            ids = torch.tensor([prompt + made])
            p, q = (load(path)(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1) for path in (student, teacher))
        total, tokens = total + float((p.exp() * (p - q)).sum()), tokens + len(made)
    assert len(seen) == 8
    assert trainer.state.log_history[0]["loss"] == pytest.approx(total / tokens, rel=1e-3)


def test_between_equals_the_kl_is_zero(tmp_path: Path) -> None:
    teacher = checkpoint(tmp_path / "t", 1)
    trainer = distillation.on_policy(
        teacher, teacher, tmp_path / "run", settings(steps=2, rate=0.0), tasks=["sum"]
    )
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses == pytest.approx([0, 0], abs=1e-5)


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    teacher, student = checkpoint(tmp_path / "t", 1), checkpoint(tmp_path / "s", 2)
    whole = distillation.on_policy(student, teacher, tmp_path / "a", settings(steps=2), tasks=["sum"])
    run = tmp_path / "b"
    distillation.on_policy(student, teacher, run, settings(steps=2), tasks=["sum"], save_every=1)
    shutil.rmtree(run / "checkpoint-2")
    again = distillation.on_policy(
        student, teacher, run, settings(steps=2), tasks=["sum"], resume=run / "checkpoint-1"
    )
    for ours, theirs in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    steps = [line.split(",")[0] for line in (run / "log.csv").read_text().split("\n")[1:3]]
    assert steps == ["1", "2"]


def test_a_teacher_with_another_tokenizer_is_refused(tmp_path: Path) -> None:
    teacher, student = checkpoint(tmp_path / "t", 1), checkpoint(tmp_path / "s", 2)
    raw = json.loads((teacher / "tokenizer.json").read_text())
    vocab = raw["model"]["vocab"]
    first, second = (next(t for t, i in vocab.items() if i == number) for number in (300, 301))
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (teacher / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(UsageError, match="different tokenizers.*is not token 300 of both"):
        distillation.on_policy(student, teacher, tmp_path / "run", settings(), tasks=["sum"])
    wide = checkpoint(tmp_path / "w", 1, vocab_size=704)
    with pytest.raises(UsageError, match="704 logits"):
        distillation.check_shared_tokenizer(wide, student)


def test_a_batch_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    teacher = checkpoint(tmp_path / "t", 1)
    with pytest.raises(UsageError, match="8 prompts a step do not divide"):
        distillation.on_policy(teacher, teacher, tmp_path, settings(), tasks=["sum"], micro_batch=3)
