"""Our problems and rewards for verl, which trains with GRPO on Ray clusters: data, reward, settings.

In: tasks, a seed, the sizes of a cluster. Out: rows of chat messages with the key that their verifier needs,
the YAML of a run, the score of an answer. The keys are those of verl 0.9.1: trainer/config/ppo_trainer.yaml
with what it includes, utils/dataset/rl_dataset.py, experimental/reward_loop/reward_manager/naive.py. It
imports neither verl nor PyTorch, and pyarrow only to write a file.
"""

import importlib
import json
import random
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepfast.train.answers import Asked, keeps_mode, known_tasks
from deepfast.train.documents import FLAG
from deepfast.train.problems import TASKS, Language, Problem, Split, sample, verify
from deepfast.types import UsageError

VERSION = "0.9.1"
SOURCE = "deepfast/"  # begins every data_source; the task follows
REWARD = '''"""The reward of an answer, as verl calls it. deepfast must be installed where it runs."""

from deepfast.train.verl import compute_score

__all__ = ["compute_score"]
'''


BOXED: dict[Language, str] = {
    "en": "Put your final answer within \\boxed{}.",
    "zh": "请将最终答案写在\\boxed{}中。",
}
"""As Qwen's model cards ask: who has not learned our form answers in prose, which no verifier reads."""

GRPO = """# GRPO with verifiable rewards, for verl {version}. Written by recipes/export_verl.py.
# {command}

hydra:
  searchpath: [pkg://verl.trainer.config]  # where the defaults of verl are
defaults: [ppo_trainer, _self_]  # its FSDP workers; what follows overrides them

data:
  train_files: {train}
  val_files: {test}  # held-out problems
  train_batch_size: {prompts}  # prompts a step: a large batch, as the Qwen3 report has it (4.2)
  max_prompt_length: {max_prompt}
  max_response_length: {max_response}  # a longer thought gets no reward: its answer is never said
  filter_overlong_prompts: true  # leave them out instead of ending the run
  truncation: error
  seed: 0

actor_rollout_ref:
  model:
    path: {model}  # a checkpoint that thinks already: cold_start, or an instruct model
  actor:
    strategy: fsdp2
    optim:
      lr: 1.0e-06  # as in verl's own Qwen3 example
    ppo_mini_batch_size: {mini_batch}  # prompts of an update: four updates a step
    use_dynamic_bsz: true  # micro-batches by tokens: thoughts differ much in length
    ppo_max_token_len_per_gpu: {micro_tokens}  # tokens of a micro-batch; at least one answer
    use_kl_loss: true  # stay near the start, so that other abilities are kept
    kl_loss_coef: 0.001
    kl_loss_type: low_var_kl  # the estimator that is never negative
    entropy_coeff: 0  # no bonus for randomness
    checkpoint:
      save_contents: [model, optimizer, extra, hf_model]  # hf_model: also as transformers reads it
      load_contents: [model, optimizer, extra]
  ref:
    fsdp_config:
      param_offload: true  # only read once a step
  rollout:
    name: vllm
    n: {group}  # answers to a prompt, whose mean reward is the baseline
    temperature: 1.0  # the policy's own distribution
    tensor_model_parallel_size: 1  # each GPU answers alone; raise it for models that need several
    gpu_memory_utilization: 0.6  # the rest is for training, on the same GPUs
    val_kwargs:
      do_sample: true  # greedy thoughts loop; these are Qwen3's settings for thinking
      temperature: 0.6
      top_p: 0.95
      top_k: 20

algorithm:
  adv_estimator: grpo
  use_kl_in_reward: false  # it is in the loss

reward:
  num_workers: 8  # processes that verify; deepfast must be installed where they run
  custom_reward_function:
    path: {reward}
    name: compute_score

trainer:
  nnodes: {nodes}
  n_gpus_per_node: {gpus}
  total_epochs: {epochs}
  save_freq: 10  # steps
  test_freq: 10
  max_actor_ckpt_to_keep: 2
  resume_mode: auto  # started again, it goes on from the newest checkpoint
  project_name: deepfast
  experiment_name: grpo
  default_local_dir: {checkpoints}
  logger: [console, tensorboard, file]  # file: one JSON line a step
"""


def exportable(names: Sequence[str]) -> tuple[str, ...]:
    """The tasks to export. Raises UsageError for the task with tools, which verl wants as its own classes."""
    tasks = known_tasks(names)
    if "tools" in names:
        raise UsageError(
            "the task 'tools' cannot be exported: each problem has tools and a clock of its own, and verl "
            "offers the same tools to all. Train it with recipes/general.py."
        )
    return tuple(name for name in tasks if name != "tools")


def rows(
    tasks: Sequence[str], count: int, split: Split, seed: int, thinking: float = 1.0
) -> Iterator[dict[str, Any]]:
    """Rows of verl's RLHFDataset, each problem once; `thinking` is the share that is asked to think.

    A row is asked in its mode by a flag: verl renders all prompts with one enable_thinking.
    """
    rng, seen, index, missed = random.Random(f"{seed} {split}"), set[str](), 0, 0
    while index < count:
        problem = sample(tasks[index % len(tasks)], rng, split)
        if problem.key in seen:
            missed += 1
            if missed > 100 * count:
                raise UsageError(
                    f"there are not {count} different problems in {', '.join(tasks)}. Ask for fewer."
                )
            continue
        seen.add(problem.key)
        yield row(problem, split, index, rng.random() < thinking)
        index += 1


def row(problem: Problem, split: Split, index: int, thinking: bool) -> dict[str, Any]:
    """One problem as verl reads it."""
    asked = f"{problem.question} {BOXED[problem.language]}"
    return {
        "data_source": f"{SOURCE}{problem.task}",
        "prompt": [{"role": "user", "content": asked if thinking else f"{asked} {FLAG[False]}"}],
        "ability": problem.task,
        "reward_model": {"style": "rule", "ground_truth": problem.answer},
        "extra_info": {
            "split": split,
            "index": index,
            "key": problem.key,
            "level": problem.level,
            "language": problem.language,
            "thinking": thinking,
        },
    }


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, Any] | None = None,
    **_: Any,
) -> dict[str, float]:
    """The reward of an answer: 1 if it is right and in the mode that was asked for, else 0.

    verl takes "score" as reward and averages all values over the validation set, "acc" first. The problem is
    found by its key, so that every right answer counts, not only the one in `ground_truth`. Raises UsageError
    for rows that were not exported here.
    """
    task = data_source.removeprefix(SOURCE)
    if task not in TASKS or task == data_source or not extra_info or "key" not in extra_info:
        raise UsageError(
            f"data_source {data_source!r} is not from recipes/export_verl.py, or lacks its extra_info."
        )
    level, language = int(extra_info["level"]), extra_info["language"]
    problem = Problem(task, level, language, "", "", ground_truth, str(extra_info["key"]))
    right = verify(problem, solution_str)
    kept = keeps_mode(Asked(problem, bool(extra_info["thinking"]), (), None), solution_str)
    return {"score": float(right and kept), "acc": float(right), "mode_kept": float(kept)}


def write_parquet(path: Path, data: Sequence[Mapping[str, Any]]) -> None:
    """Rows to a file. Raises UsageError where pyarrow is not installed."""
    try:
        pyarrow, parquet = (importlib.import_module(name) for name in ("pyarrow", "pyarrow.parquet"))
    except ImportError:
        raise UsageError("parquet files need pyarrow, which is not installed: pip install pyarrow.") from None
    parquet.write_table(pyarrow.Table.from_pylist([dict(item) for item in data]), str(path))


@dataclass(frozen=True)
class Cluster:
    """What a run depends on. prompts: of a step; group: answers to each; tokens count without padding."""

    model: str
    directory: Path  # of the exported files, on a file system that all nodes see
    nodes: int = 1
    gpus: int = 8
    prompts: int = 1024
    group: int = 8
    max_prompt: int = 512
    max_response: int = 2048
    epochs: int = 15

    def __post_init__(self) -> None:
        """Refuse what verl would stumble over later."""
        for name in ("nodes", "gpus", "prompts", "group", "max_prompt", "max_response", "epochs"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)} is below 1.")
        if self.group < 2:
            raise UsageError("group=1 gives GRPO nothing to compare. Ask for at least 2 answers to a prompt.")
        if self.prompts % 4 or self.prompts * self.group // 4 % (self.nodes * self.gpus):
            raise UsageError(
                f"a quarter of {self.prompts} prompts x {self.group} answers does not divide among "
                f"{self.nodes * self.gpus} GPUs. Choose other numbers."
            )


def settings(cluster: Cluster) -> str:
    """grpo.yaml: what we set, and why; all the rest is verl's default."""

    def path(name: str) -> str:
        return json.dumps(str(cluster.directory / name))

    return GRPO.format(
        version=VERSION,
        command=launch(cluster),
        train=path("train.parquet"),
        test=path("test.parquet"),
        reward=path("reward.py"),
        checkpoints=path("checkpoints"),
        model=json.dumps(cluster.model),
        prompts=cluster.prompts,
        mini_batch=cluster.prompts // 4,
        group=cluster.group,
        max_prompt=cluster.max_prompt,
        max_response=cluster.max_response,
        micro_tokens=max(16384, 2 * (cluster.max_prompt + cluster.max_response)),
        nodes=cluster.nodes,
        gpus=cluster.gpus,
        epochs=cluster.epochs,
    )


def launch(cluster: Cluster) -> str:
    """The command that starts the run, on the head node of the Ray cluster."""
    where = shlex.quote(str(cluster.directory))
    return f"python -m verl.trainer.main_ppo --config-path {where} --config-name grpo"
