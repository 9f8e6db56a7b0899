"""What is exported for verl: rows as it reads them, rewards by the verifiers, settings that it knows.

In: the problems, a list of the names of verl's settings. No PyTorch, no verl; pyarrow for the files alone.
"""

import random
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from deepfast.train import verl
from deepfast.train.problems import TASKS, is_held_out, sample
from deepfast.types import UsageError

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "recipes"))
import export_verl  # noqa: E402

KEYS = ROOT / f"tests/golden/verl-{verl.VERSION}-keys.txt"
CLUSTER = verl.Cluster("Qwen/Qwen3-0.6B", Path("/shared/it's verl"), nodes=2)


def sections(tree: dict[str, Any], path: str = "") -> dict[str, set[str]]:
    found = {path or ".": set(tree)}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= sections(value, f"{path}.{key}".lstrip("."))
    return found


def test_every_setting_exists_in_verl() -> None:
    known = {}
    for line in KEYS.read_text(encoding="utf-8").splitlines()[1:]:
        section, _, names = line.partition(": ")
        known[section] = set(names.split())
    ours = yaml.safe_load(verl.settings(CLUSTER))
    assert ours.pop("hydra") == {"searchpath": ["pkg://verl.trainer.config"]}
    assert ours.pop("defaults") == ["ppo_trainer", "_self_"]
    for section, names in sections(ours).items():
        assert names <= known[section], f"verl has no {section}: {names - known[section]}"


def test_settings_are_consistent() -> None:
    found = yaml.safe_load(verl.settings(CLUSTER))
    actor, rollout, trainer = (
        found["actor_rollout_ref"]["actor"], found["actor_rollout_ref"]["rollout"], found["trainer"]
    )  # fmt: skip
    assert found["algorithm"]["adv_estimator"] == "grpo" and rollout["name"] == "vllm"
    assert found["data"]["train_batch_size"] % actor["ppo_mini_batch_size"] == 0
    longest = found["data"]["max_prompt_length"] + found["data"]["max_response_length"]
    assert actor["ppo_max_token_len_per_gpu"] >= longest
    assert (trainer["nnodes"], trainer["n_gpus_per_node"]) == (2, 8)
    assert found["data"]["train_files"] == "/shared/it's verl/train.parquet"
    assert found["reward"]["custom_reward_function"]["path"] == "/shared/it's verl/reward.py"
    assert isinstance(actor["optim"]["lr"], float)
    assert "--config-path '/shared/it'\"'\"'s verl' --config-name grpo" in verl.launch(CLUSTER)


@pytest.mark.parametrize("name", [name for name in TASKS if name != "tools"])
def test_a_right_answer_is_rewarded_and_a_wrong_one_is_not(name: str) -> None:
    problem = sample(name, random.Random(3))
    for thinking in (True, False):
        row = verl.row(problem, "train", 0, thinking)
        thought = f"<think>\n{problem.trace if thinking else ''}\n</think>\n\n"
        given = {"ground_truth": row["reward_model"]["ground_truth"], "extra_info": row["extra_info"]}

        def score(text: str, given: Any = given, source: str = row["data_source"]) -> dict[str, float]:
            return verl.compute_score(data_source=source, solution_str=text, **given)

        assert score(thought + problem.reply) == {"score": 1.0, "acc": 1.0, "mode_kept": 1.0}
        assert score(thought + "\\boxed{?}") == {"score": 0.0, "acc": 0.0, "mode_kept": 1.0}
        other = "<think>\n\n</think>\n\n" if thinking else "<think>\nHm.\n</think>\n\n"
        assert score(other + problem.reply) == {"score": 0.0, "acc": 1.0, "mode_kept": 0.0}
        assert score(f"<think>\n{problem.trace}")["score"] == 0.0


def test_rows_are_different_problems_of_one_side() -> None:
    names = ("sum", "sorting")
    for split in ("train", "test"):
        made = list(verl.rows(names, 40, split, 0, thinking=0.5))
        keys = [row["extra_info"]["key"] for row in made]
        assert len(set(keys)) == 40 and all(is_held_out(key) == (split == "test") for key in keys)
        assert [row["extra_info"]["index"] for row in made] == list(range(40))
        assert sum(row["ability"] == "sum" for row in made) == 20
        asked = {row["extra_info"]["thinking"]: row["prompt"][0]["content"] for row in made}
        assert all("\\boxed{}" in text for text in asked.values())
        assert asked[False].endswith(" /no_think") and "think" not in asked[True]
        assert made == list(verl.rows(names, 40, split, 0, thinking=0.5))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="'tools' cannot be exported"):
        verl.exportable(["sum", "tools"])
    assert "tools" not in verl.exportable([])
    with pytest.raises(UsageError, match="no task 'golf'"):
        verl.exportable(["golf"])
    with pytest.raises(UsageError, match="not from recipes/export_verl.py"):
        verl.compute_score("openai/gsm8k", "#### 3", "3", {"index": 0})
    with pytest.raises(UsageError, match="group=1"):
        verl.Cluster("m", Path(), group=1)
    with pytest.raises(UsageError, match="divide among 7 GPUs"):
        verl.Cluster("m", Path(), gpus=7)
    with pytest.raises(UsageError, match="nodes=0 is below 1"):
        verl.Cluster("m", Path(), nodes=0)


def test_the_recipe_writes_what_verl_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(
        sys, "argv", ["export_verl.py", "--out", str(tmp_path / "out"), "--train", "32", "--prompts", "32",
                      "--test", "8", "--tasks", "sum", "path"],
    )  # fmt: skip
    export_verl.main()
    rows = parquet.read_table(str(tmp_path / "out/train.parquet")).to_pylist()
    assert rows == list(verl.rows(("sum", "path"), 32, "train", 0))
    assert len(parquet.read_table(str(tmp_path / "out/test.parquet"))) == 8
    assert yaml.safe_load((tmp_path / "out/grpo.yaml").read_text())["data"]["train_batch_size"] == 32
    score = runpy.run_path(str(tmp_path / "out/reward.py"))["compute_score"]
    row = rows[0]
    text = f"<think>\nI add.\n</think>\n\n\\boxed{{{row['reward_model']['ground_truth']}}}"
    assert (
        score(row["data_source"], text, row["reward_model"]["ground_truth"], row["extra_info"])["score"] == 1
    )
    monkeypatch.setattr(sys, "argv", ["export_verl.py", "--out", str(tmp_path), "--train", "9"])
    with pytest.raises(SystemExit):
        export_verl.main()


def test_without_pyarrow_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match="pip install pyarrow"):
        verl.write_parquet(tmp_path / "x.parquet", [])
