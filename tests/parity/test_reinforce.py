"""Reinforcement learning on the live weights: our engine draws what the model would, TRL learns only from
that, and a killed run goes on as if nothing had been.

In: a tiny random model with the bundled tokenizer, a few steps. Needs PyTorch, transformers and TRL.
"""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from text_fixtures import PAD_ID

import deepfast

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
trl = pytest.importorskip("trl")

from deepfast.train import curves, reinforce  # noqa: E402
from deepfast.train.live import Ask, DrawSettings, LiveEngine  # noqa: E402
from deepfast.train.presets import NANO, Reinforced  # noqa: E402
from deepfast.train.prompts import Prompt, episode, prompts, read_tried  # noqa: E402
from deepfast.train.rewards import correct, well_formed  # noqa: E402
from deepfast.train.rollout import RolloutFunc  # noqa: E402
from deepfast.train.stage import Stage  # noqa: E402
from deepfast.types import ModelError, UsageError  # noqa: E402

BUNDLED = Path(deepfast.__file__).parent / "bundled"
PRESET = NANO
SMALL = Reinforced(4, 2, 4, 1e-3, 12, {"sum": 1.0}, micro=4)
QUIET = (  # what others say about themselves
    "ignore:.*experimental feature.*:UserWarning",
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
)
pytestmark = [pytest.mark.filterwarnings(rule) for rule in QUIET]


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than these runs."""
    monkeypatch.setattr(curves, "draw", lambda rows, path, title: path.write_bytes(b""))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("tiny")
    bundled = json.loads((BUNDLED / "config.json").read_text())
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=bundled["vocab_size"], hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, intermediate_size=64, max_position_embeddings=2048,
        tie_word_embeddings=True, eos_token_id=bundled["eos_token_id"], pad_token_id=PAD_ID,
        initializer_range=0.3,
    )  # fmt: skip
    transformers.Qwen3ForCausalLM(config).save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(BUNDLED / name, path)
    return path


def load(path: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def engine(model: Any, path: Path, **settings: Any) -> LiveEngine:
    return LiveEngine(model, path, DrawSettings(threads=1, **settings))


PROMPTS = [[5, 9, 100, 42], [7, 300, 2], [5, 9, 100, 42], [600, 601]]


def test_greedy_rollouts_and_their_logprobs_are_the_models_also_after_an_update(tiny: Path) -> None:
    model = load(tiny)
    ours = engine(model, tiny, temperature=0.0, logprobs=True)
    before = None
    for _ in range(2):
        drawn = ours.draw([Ask(ids, 24, 0) for ids in PROMPTS])
        for ids, (new, logprobs) in zip(PROMPTS, drawn, strict=True):
            with torch.no_grad():
                whole = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=24)[0]
                theirs = torch.log_softmax(model(whole[None]).logits[0, len(ids) - 1 : -1], -1)
            assert whole[len(ids) :].tolist() == new
            expected = theirs.gather(1, torch.tensor(new)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(logprobs), expected, rtol=1e-3, atol=1e-4)
        assert drawn != before
        before = drawn
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight) * 0.05)
        ours.refresh()


def test_draws_follow_the_policys_own_distribution(tiny: Path) -> None:
    model = load(tiny)
    count, ids = 2000, [5, 9, 100, 42]
    with torch.no_grad():
        expected = torch.softmax(model(torch.tensor([ids])).logits[0, -1].double(), -1).numpy()
    ours = engine(model, tiny)
    drawn = Counter(each.ids[0] for each in ours.draw([Ask(ids, 1, seed) for seed in range(count)]))
    assert ours.draw([Ask(ids, 9, 3)] * 2)[0] == ours.draw([Ask(ids, 9, 3)])[0]
    likely = [token for token in range(len(expected)) if count * expected[token] >= 5]
    rest = 1 - sum(expected[token] for token in likely)
    cells = [(drawn[token], count * expected[token]) for token in likely]
    cells.append((count - sum(seen for seen, _ in cells), max(count * rest, 1.0)))
    chi2 = sum((seen - wanted) ** 2 / wanted for seen, wanted in cells)
    assert len(likely) > 20 and chi2 < len(likely) + 5 * math.sqrt(2 * len(likely))


def test_a_model_that_went_astray_is_told_of(tiny: Path) -> None:
    model = load(tiny)
    ours = engine(model, tiny)
    with torch.no_grad():
        model.model.norm.weight[0] = math.nan
    with pytest.raises(ModelError, match=r"model.norm.weight of the model holds NaN.*Lower the rate"):
        ours.refresh()


# --- training ---


def vowels(completions: list[str], turns: list[list[str]], **_: Any) -> list[float]:
    """A reward whose values differ among random texts."""
    return [sum(letter in "aeiou" for letter in "".join(each)) / 10 for each in turns]


def candidates(count: int) -> list[Prompt]:
    return prompts("test", {"sum": 1.0}, {"think": 1.0, "budget": 1.0}, count)


def run(tiny: Path, work: Path, settings: Reinforced = SMALL, reward: Any = vowels) -> Stage:
    stage = Stage(work, "reasoning")
    rewards = {reward: 1.0, correct: 1.0, well_formed: 0.1}
    reinforce.reinforce(stage, tiny, PRESET, settings, rewards, candidates, learnable=False)
    return stage


def rows(stage: Stage) -> list[dict[str, str]]:
    """The log without what a clock says."""
    table = csv.DictReader((stage.run / "log.csv").read_text().splitlines())
    clocked = ("seconds", "time", "per_second", "flos", "train_")
    return [
        {k: v for k, v in row.items() if not any(c in k for c in clocked)} for row in table if row["loss"]
    ]


def test_a_killed_run_goes_on_as_if_nothing_had_been(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reinforce, "SAVE_EVERY", 1)
    settings = replace(SMALL, steps=4, updates=2, micro=2)
    whole = run(tiny, tmp_path / "whole", settings)

    class Killed(BaseException):
        pass

    def dies(
        completions: list[str], turns: list[list[str]], trainer_state: Any, **columns: Any
    ) -> list[float]:
        if trainer_state.global_step == 2:
            raise Killed
        return vowels(completions, turns)

    dies.__name__ = "vowels"
    with pytest.raises(Killed):
        run(tiny, tmp_path / "killed", settings, dies)
    killed = Stage(tmp_path / "killed", "reasoning")
    assert [state.name for state in killed.states()] == ["checkpoint-2"] and not killed.done
    run(tiny, tmp_path / "killed", settings)
    assert len(rows(killed)) == 4 and rows(killed) == rows(whole)
    ours, theirs = load(whole.directory).state_dict(), load(killed.directory).state_dict()
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())
    assert any(not torch.equal(weight, ours[name]) for name, weight in load(tiny).state_dict().items())
    with deepfast.LLM(whole.directory) as llm:
        assert llm.generate([[5, 9]], deepfast.SamplingParams(temperature=0, max_tokens=4))[0].token_ids
    assert list(whole.run.glob("**/events.out.tfevents*")) and (whole.run / "curves.png").exists()
    assert whole.cost()["steps"] == 4


def test_what_was_forced_or_came_from_a_tool_is_never_trained_on(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = RolloutFunc.__call__

    def none_drawn(self: RolloutFunc, names: Any, trainer: Any) -> dict[str, Any]:
        made = real(self, names, trainer)
        made["env_mask"] = [[0] * (len(ids) - 1) + [1] for ids in made["completion_ids"]]
        return made

    gradients = []
    step = reinforce.Trainer.training_step

    def watched(self: Any, model: Any, inputs: Any, *more: Any) -> Any:
        loss = step(self, model, inputs, *more)
        gradients.append(model.model.embed_tokens.weight.grad.abs().sum().item())
        return loss

    def of_last(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Log-probabilities that depend on the weights nowhere but where the mask is 0."""
        logps, entropies, loss = plain(self, *args, **kwargs)
        lengths = args[2].sum(1) - args[2][:, : -args[3]].sum(1)
        last = torch.arange(logps.size(1)) == (lengths - 1)[:, None]
        return torch.where(last, logps.detach(), logps), entropies, loss

    plain = reinforce.Trainer._get_per_token_logps_and_entropies
    monkeypatch.setattr(reinforce.Trainer, "training_step", watched)
    settings = replace(SMALL, steps=1)
    run(tiny, tmp_path / "a", settings)
    assert max(gradients) > 0
    gradients.clear()
    monkeypatch.setattr(RolloutFunc, "__call__", none_drawn)
    monkeypatch.setattr(reinforce.Trainer, "_get_per_token_logps_and_entropies", of_last)
    run(tiny, tmp_path / "b", settings)
    assert gradients and max(gradients) == 0


def test_less_padding_changes_neither_the_loss_nor_its_gradient(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(SMALL, steps=2, updates=2, micro=2, max_tokens=40, tasks={"story": 1.0})
    ours = rows(run(tiny, tmp_path / "ours", settings))
    with monkeypatch.context() as plain:
        plain.delattr(reinforce.Trainer, "_get_per_token_logps_and_entropies")
        plain.delattr(reinforce.Trainer, "_prepare_inputs")
        theirs = rows(run(tiny, tmp_path / "theirs", settings))
    for a, b in zip(ours, theirs, strict=True):
        for name in ("loss", "grad_norm"):
            assert float(a[name]) == pytest.approx(float(b[name]), rel=1e-3, abs=2e-5), name
    assert len(ours) == 2 and ours[0]["reward"] == theirs[0]["reward"]


def test_transformers_can_draw_too_and_only_learnable_prompts_are_asked(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = RolloutFunc.sample

    def noted(self: RolloutFunc, chosen: Any, trainer: Any, key: object) -> Any:
        asked.extend(each.messages[0].content for each in chosen)
        return real(self, chosen, trainer, key)

    monkeypatch.setattr(RolloutFunc, "sample", noted)
    monkeypatch.setattr(reinforce, "is_correct", lambda problem, text: len(text) % 2 == 0)
    settings = replace(SMALL, steps=2, rollouts="transformers", pool=3)
    stage = Stage(tmp_path, "reasoning")
    rewards = {vowels: 1.0, correct: 1.0}
    reinforce.reinforce(stage, tiny, PRESET, settings, rewards, candidates, learnable=True)
    tried = read_tried(stage.run / "prompts.jsonl")
    kept = [each.prompt for each in tried if each.learnable][:3]
    questions = {episode(prompt, 0).messages[0].content for prompt in kept}
    assert len(kept) == 3 and set(asked[-16:]) == questions and len(rows(stage)) == 2


@pytest.mark.parametrize("change", ["group", "micro", "steps", "rollouts"])
def test_settings_that_do_not_go_together_are_refused_by_name(change: str) -> None:
    wrong: dict[str, Any] = {
        "group": {"group": 1}, "micro": {"micro": 3}, "steps": {"steps": 3, "updates": 2},
        "rollouts": {"rollouts": "magic"},
    }  # fmt: skip
    settings = replace(SMALL, **wrong[change])
    with pytest.raises(UsageError, match=f"{change}="):
        reinforce.check(settings)
        reinforce.arguments(Stage(Path("nowhere"), "reasoning"), PRESET, settings, [1.0])
