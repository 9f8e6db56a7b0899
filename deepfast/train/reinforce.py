"""Reinforcement learning with verifiable rewards (GRPO) on TRL: what the stages reasoning and general share.

In: the checkpoint of the stage before, prompts, weighted rewards, settings. Out: a Hugging Face checkpoint;
log.csv, curves.png, TensorBoard; states from which a killed run goes on exactly. The loss is TRL's with its
default, DAPO (arXiv 2503.14476): the mean over tokens, a higher upper clip, no KL term. It knows no task.
"""

import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel
from trl import GRPOConfig, GRPOTrainer

from deepfast.train.curves import Callback, LogCallback
from deepfast.train.live import DrawSettings
from deepfast.train.presets import Preset, Reinforced, check_sampler
from deepfast.train.prompts import Prompt, Tried, choose, episode
from deepfast.train.publish import CostCallback, publish
from deepfast.train.rewards import Reward, is_correct
from deepfast.train.rollout import Episode, RolloutFunc, Rollouts
from deepfast.train.stage import Stage, cpu_threads
from deepfast.train.supervised import start_from
from deepfast.types import UsageError

CLIP, CLIP_HIGH = 0.2, 0.28  # DAPO
LONGEST_PROMPT = 1024  # tokens; the context of rollouts is this and max_tokens
RUNNING = 64  # sequences in our engine at once
SAVE_EVERY = 5  # generations
TRIES = 12  # prompts tried at most for each that is wanted

Weighted = Mapping[Reward, float]


class Trainer(GRPOTrainer):  # type: ignore[misc]
    """TRL's, without most of its work on padding: sequences of like length share a micro-batch, begin at its
    left margin, and it ends where they do. The loss and its gradient stay the same."""

    _buffered_inputs: Any

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        before, seconds = self._buffered_inputs, self.rollout_func.seconds
        inputs: dict[str, Any] = super()._prepare_inputs(generation_batch)
        if self._buffered_inputs is before or not self.model.training:
            return inputs
        self._metrics["train"]["rollout_seconds"].append(self.rollout_func.seconds - seconds)
        self._buffered_inputs = sorted_by_length(self._buffered_inputs, self.args.gradient_accumulation_steps)
        found: dict[str, Any] = self._buffered_inputs[self._step % self.args.steps_per_generation]
        return found

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> Any:
        lengths = attention_mask.sum(1)
        order = torch.argsort(lengths, stable=True)
        parts = [
            self._of_rows(model, input_ids[rows], attention_mask[rows], logits_to_keep, kwargs)
            for rows in order.split(batch_size or len(order))
        ]
        back = torch.argsort(order)
        logps, entropies, losses = zip(*parts, strict=True)
        return (
            torch.cat(logps)[back],
            None if entropies[0] is None else torch.cat(entropies)[back],
            None if losses[0] is None else torch.stack(losses).mean(),
        )

    def _of_rows(self, model: Any, ids: Tensor, mask: Tensor, keep: int, kwargs: dict[str, Any]) -> Any:
        """The same with every row moved to the left margin, [B, keep] again at the end."""
        lengths, prompts = mask.sum(1), mask[:, :-keep].sum(1)
        width, common = int(lengths.max()), int(prompts.min())  # no row's completion begins before `common`
        columns = torch.arange(width, device=ids.device)
        from_ = (mask.argmax(1)[:, None] + columns).clamp(max=ids.size(1) - 1)
        kept = max(1, width - common)
        found = super()._get_per_token_logps_and_entropies(
            model, ids.gather(1, from_), (columns < lengths[:, None]).to(mask), kept, **kwargs
        )
        to = prompts[:, None] - (width - kept) + torch.arange(keep, device=ids.device)
        outside = to >= (lengths - (width - kept))[:, None]
        logps, entropies = (
            None if part is None else part.gather(1, to.clamp(max=kept - 1)).masked_fill(outside, 0.0)
            for part in found[:2]
        )
        return logps, entropies, found[2]

    def _send_telemetry(self) -> None:
        """Nobody is told of anybody's training."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """The recipes have one of their own."""


def sorted_by_length(batches: Sequence[dict[str, Any]], together: int) -> list[dict[str, Any]]:
    """Micro-batches whose rows are sorted by length, within every `together` of them: those
    are one step of the optimiser, whose gradient is a sum over its rows."""
    made: list[dict[str, Any]] = []
    for start in range(0, len(batches), together):
        group = list(batches[start : start + together])
        lengths = torch.cat(
            [batch["prompt_mask"].sum(1) + batch["completion_mask"].sum(1) for batch in group]
        )
        order = torch.argsort(lengths, stable=True).split([len(batch["completion_mask"]) for batch in group])
        rows = {
            key: torch.cat([batch[key] for batch in group])
            for key, value in group[0].items()
            if isinstance(value, Tensor) and value.dim() > 0
        }
        made += [
            {**batch, **{key: values[index] for key, values in rows.items()}}
            for batch, index in zip(group, order, strict=True)
        ]
    return made


class _Begin(Callback):
    """Does something when training begins: before that, FSDP has not spread the weights, and neither
    vLLM nor transformers could draw from them."""

    def __init__(self, do: Callable[[], None]) -> None:
        self.do = do

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Once."""
        self.do()


def reinforce(
    stage: Stage,
    start: Path,
    preset: Preset,
    settings: Reinforced,
    rewards: Weighted,
    candidates: Callable[[int], list[Prompt]],
    *,
    learnable: bool,
) -> None:
    """Trains the checkpoint `start` and writes the stage's. Goes on from the newest state of an earlier run.

    candidates(n): the stage's first n prompts. learnable: ask only those which `start` solves at times.
    Raises UsageError for settings that contradict each other or that this machine cannot follow.
    """
    check(settings)
    stage.begin(start, preset.name)
    args = arguments(stage, preset, settings, list(rewards.values()))
    model = start_from(start)
    wanted = settings.pool or settings.steps // settings.updates * settings.prompts
    episodes: dict[str, Episode] = {}
    func = rollout_func(settings, preset, start, episodes, seed=0)
    trainer = make_trainer(model, start, stage, args, list(rewards), func, settings)
    if settings.rollouts == "transformers" and trainer.is_fsdp_enabled:
        raise UsageError(
            "rollouts='transformers' cannot draw from weights that FSDP spreads: tools and budgets make one "
            "process draw more often than another. Use 'vllm', or start with accelerate launch --multi_gpu."
        )
    tries, parameters = candidates(TRIES * wanted if learnable else wanted), model.num_parameters()

    def fill() -> None:
        chosen = tries
        if learnable:
            chosen = learnable_prompts(trainer, func, tries, wanted, settings, stage, parameters)
        episodes.update(slots(chosen, settings, parameters))

    trainer.add_callback(_Begin(fill))
    states = stage.states()
    trainer.train(resume_from_checkpoint=str(states[-1]) if states else None)
    publish(trainer, start, stage)


def check(settings: Reinforced) -> None:
    """Raises UsageError where the numbers do not go together."""
    if settings.group < 2:
        raise UsageError(f"group={settings.group} leaves nothing to compare. Give 2 or more.")
    if settings.steps % settings.updates:
        raise UsageError(
            f"steps={settings.steps} is no multiple of updates={settings.updates}. Change one of them."
        )
    check_sampler(settings.rollouts)


def rollout_func(
    settings: Reinforced, preset: Preset, start: Path, episodes: Mapping[str, Episode], seed: int
) -> RolloutFunc:
    """Rollouts for the episodes of a mapping that may be filled later."""
    context = LONGEST_PROMPT + settings.max_tokens
    draws = DrawSettings(
        temperature=settings.temperature, threads=cpu_threads(), running=RUNNING, context=context
    )
    rollouts = Rollouts(start, context=context, max_tokens=settings.max_tokens, seed=seed)
    return RolloutFunc(rollouts, episodes, settings.rollouts, draws, start)


def slots(chosen: Sequence[Prompt], settings: Reinforced, parameters: int) -> dict[str, Episode]:
    """Slot i of the dataset -> what is asked there: every pass over the prompts has an order of its own."""
    made: dict[str, Episode] = {}
    total, passes = settings.steps // settings.updates * settings.prompts, 0
    while len(made) < total:
        order = list(chosen)
        random.Random(f"pass {passes}").shuffle(order)
        for prompt in order[: total - len(made)]:
            made[str(len(made))] = episode(prompt, parameters)
        passes += 1
    return made


def make_trainer(
    model: PreTrainedModel,
    start: Path,
    stage: Stage,
    args: GRPOConfig,
    rewards: list[Reward],
    func: RolloutFunc,
    settings: Reinforced,
) -> Trainer:
    """The trainer; its dataset holds the names of episodes."""
    total = settings.steps // settings.updates * settings.prompts
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*experimental feature")
        return Trainer(
            model=model,
            reward_funcs=rewards,
            args=args,
            train_dataset=Dataset.from_dict({"prompt": [str(i) for i in range(total)]}),
            processing_class=AutoTokenizer.from_pretrained(start),
            rollout_func=func,
            callbacks=[LogCallback(stage.run), CostCallback(stage)],
        )


def arguments(stage: Stage, preset: Preset, settings: Reinforced, weights: list[float]) -> GRPOConfig:
    """What TRL is told. A state is kept only where a generation begins: a run that goes on draws anew
    there."""
    cuda = torch.cuda.is_available()
    whole, processes = settings.prompts * settings.group, PartialState(cpu=not cuda).num_processes
    in_step, rest = divmod(whole, settings.micro * settings.updates * processes)
    if rest:
        raise UsageError(
            f"prompts x group = {whole} completions are no multiple of micro={settings.micro} x "
            f"updates={settings.updates} x {processes} processes. Change one of them."
        )
    return GRPOConfig(
        output_dir=str(stage.run),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.micro,
        gradient_accumulation_steps=in_step,
        steps_per_generation=in_step * settings.updates,
        num_generations=settings.group,
        max_completion_length=settings.max_tokens,
        temperature=settings.temperature,
        learning_rate=settings.rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=min(5, settings.steps // 4),
        weight_decay=0.0,
        epsilon=CLIP,
        epsilon_high=CLIP_HIGH,
        reward_weights=weights,
        shuffle_dataset=False,
        use_vllm=settings.rollouts == "vllm",
        use_cpu=not cuda,
        bf16=cuda and preset.precision == "bfloat16",
        ddp_backend="gloo" if processes > 1 and not cuda else None,
        ddp_find_unused_parameters=False,
        gradient_checkpointing=cuda,
        logging_steps=1,
        save_steps=SAVE_EVERY * settings.updates,
        save_total_limit=2,
        report_to=["tensorboard"],
        dataloader_pin_memory=cuda,
        disable_tqdm=True,
        seed=0,
    )


def learnable_prompts(
    trainer: Any,
    func: RolloutFunc,
    tries: Sequence[Prompt],
    wanted: int,
    settings: Reinforced,
    stage: Stage,
    parameters: int,
) -> list[Prompt]:
    """Those that the policy solves at times, each tried with a group of rollouts (Qwen3 report, section 4.2:
    learnable, and as hard as possible). parameters: of the model."""
    accelerator = trainer.accelerator
    count, mine = accelerator.num_processes, accelerator.process_index

    def attempt(some: Sequence[Prompt]) -> list[Tried]:
        share = list(some[mine::count])
        asked = [episode(prompt, parameters) for prompt in share for _ in range(settings.group)]
        made = func.sample(asked, trainer, key=some[0].seed) if asked else []
        right = [
            e.problem is not None and bool(r.turns) and is_correct(e.problem, r.turns[-1])
            for e, r in zip(asked, made, strict=True)
        ]
        group = settings.group
        sums = [sum(right[i * group : (i + 1) * group]) for i in range(len(share))]
        found: dict[Prompt, int] = dict(gather_object(list(zip(share, sums, strict=True))))
        return [Tried(prompt, found[prompt], group) for prompt in some]

    report = partial(print, flush=True) if accelerator.is_main_process else None
    path = stage.run / "prompts.jsonl"
    return choose(tries, wanted, 2 * settings.prompts, attempt, path, report)
