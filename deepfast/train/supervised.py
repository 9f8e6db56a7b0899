"""Next-token training on documents: pre-training, cold start and fusion, on transformers' Trainer.

In: a start (random weights or a checkpoint), documents, settings. Out: a Hugging Face checkpoint with its
text files; logs; states from which a killed run goes on exactly. Documents of like length share a
micro-batch, padded on the right, so that causal attention needs no mask. It knows no task and no chat format.
"""

import math
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from shutil import which
from typing import Any, Protocol

import torch
from accelerate import PartialState
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.data import Dataset, SequentialSampler
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Trainer,
    TrainingArguments,
)

from deepfast.train.curves import LogCallback
from deepfast.train.documents import Document
from deepfast.train.muon import Muon
from deepfast.train.presets import Preset, Shape, Supervised
from deepfast.train.publish import CostCallback, publish
from deepfast.train.stage import Stage, num_processes
from deepfast.types import UsageError

WIDTHS = (
    32,
    48,
    64,
    80,
    96,
    112,
    128,
    160,
    192,
    224,
    256,
    320,
    384,
    448,
    512,
    640,
    768,
    1024,
    1536,
    2048,
    4096,
)
CHUNK = 384  # micro-batches made at once; a new chunk has a new seed
UNLEARNED = -100
SAVE_EVERY = 100  # steps
LOG_EVERY = 20


class Source(Protocol):
    """Endless documents from a seed."""

    def __call__(self, seed: int) -> Iterator[Document]: ...


class MicroBatches(Dataset):  # type: ignore[misc]
    """Micro-batches by number; equal numbers give equal micro-batches, whoever asked for which before.

    A micro-batch holds documents of one width class, about `tokens` with padding. Those longer than `longest`
    are left out; so is what does not fill a micro-batch at the end of a chunk (about one in a hundred).
    Numbers that are equal modulo `streams` share chunks, so that each of as many processes and workers, which
    take numbers in turn, makes only its own.
    """

    def __init__(
        self, source: Source, count: int, tokens: int, longest: int, seed: int, streams: int = 1
    ) -> None:
        self.source, self.count, self.tokens = source, count, tokens
        self.longest, self.seed, self.streams = longest, seed, streams
        self._chunk, self._batches = -1, list[list[Document]]()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> list[Document]:
        """The documents of one micro-batch."""
        turn, stream = divmod(number, self.streams)
        chunk = turn // CHUNK * self.streams + stream
        if chunk != self._chunk:
            self._chunk, self._batches = chunk, self._make(chunk)
        return self._batches[turn % CHUNK]

    def _make(self, chunk: int) -> list[list[Document]]:
        seed = self.seed * 1_000_003 + chunk
        classes: dict[int, list[Document]] = {}
        made: list[list[Document]] = []
        for document in self.source(seed):
            size = len(document.tokens)
            if size > self.longest:
                continue
            width = next((width for width in WIDTHS if width >= size), size)
            held = classes.setdefault(width, [])
            held.append(document)
            if len(held) >= max(1, self.tokens // width):
                made.append(classes.pop(width))
                if len(made) == CHUNK:
                    break
        random.Random(seed).shuffle(made)
        return made


def collate(batches: Sequence[list[Document]]) -> dict[str, Tensor]:
    """Ids and labels of the documents of all micro-batches, padded on the right. [B, S]"""
    documents = [document for batch in batches for document in batch]
    width = max(len(document.tokens) for document in documents)
    ids, labels = [], []
    for tokens, mask in documents:
        room = width - len(tokens)
        ids.append([*tokens, *[0] * room])
        learned = [token if wanted else UNLEARNED for token, wanted in zip(tokens, mask, strict=True)]
        labels.append([*learned, *[UNLEARNED] * room])
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)}


class _InOrder(Trainer):  # type: ignore[misc]
    """Takes micro-batches in the order of their numbers: they are random already."""

    settings: Supervised  # set after it was made
    optimizer: Any

    def create_optimizer(self, *_: Any) -> Any:
        """Ours, made here because FSDP takes none that was made before it spread the weights."""
        if self.optimizer is None:
            self.optimizer = optimiser(self.model, self.settings, self.args.bf16)
        return self.optimizer

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


def new_model(shape: Shape, pad: int, end: int) -> PreTrainedModel:
    """Random weights: normal with 0.02, and less for what is added to the residual stream (GPT-2). The same
    in every process and run."""
    torch.manual_seed(0)
    config = Qwen3Config(
        **asdict(shape), tie_word_embeddings=True, pad_token_id=pad, eos_token_id=end, bos_token_id=None
    )
    model = Qwen3ForCausalLM(config)
    deep = 0.02 / math.sqrt(2 * shape.num_hidden_layers)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.normal_(std=deep)
    return model


def train(
    model: PreTrainedModel, source: Source, settings: Supervised, stage: Stage, preset: Preset, text: Path
) -> None:
    """Trains `model` and writes it to the stage's directory, with the text files of `text`.

    Goes on from the newest state in the stage's run directory.
    """
    stage.begin(text, preset.name)
    processes = PartialState(cpu=not torch.cuda.is_available()).num_processes
    accumulated = micro_batches(settings, processes)
    steps = max(1, settings.tokens // settings.step_tokens)
    needed = steps * accumulated * processes
    streams = processes * max(1, preset.workers)
    batches = MicroBatches(source, needed, settings.micro_tokens, settings.longest, _seed(stage), streams)
    if mixed(preset) and not torch.cuda.is_available():
        model.set_attn_implementation(WIDE_ATTENTION)
    if preset.compile and (torch.cuda.is_available() or which(os.environ.get("CXX", "g++"))):
        model.compile(dynamic=True)
    trainer = _InOrder(
        model=model,
        args=arguments(stage, preset, settings, steps, accumulated),
        train_dataset=batches,
        data_collator=collate,
        callbacks=[LogCallback(stage.run), CostCallback(stage, settings.step_tokens)],
    )
    trainer.settings = settings
    states = stage.states()
    trainer.train(resume_from_checkpoint=str(states[-1]) if states else None)
    publish(trainer, text, stage)


def micro_batches(settings: Supervised, processes: int) -> int:
    """How many each process adds up for a step of `step_tokens`. Raises UsageError where that is no whole
    number.
    """
    together = settings.micro_tokens * processes
    if settings.step_tokens % together:
        raise UsageError(
            f"a step of {settings.step_tokens:,} tokens cannot be shared by {processes} processes "
            f"in micro-batches of {settings.micro_tokens:,}. Start another number of processes."
        )
    return settings.step_tokens // together


def arguments(
    stage: Stage, preset: Preset, settings: Supervised, steps: int, accumulated: int
) -> TrainingArguments:
    """What the Trainer is told: warm-up, a flat rate, a long fall; states, logs, precision."""
    falling = round(settings.decay * steps)
    return TrainingArguments(
        output_dir=str(stage.run),
        max_steps=steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=accumulated,
        learning_rate=settings.rate,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={
            "num_decay_steps": falling,
            "min_lr_ratio": settings.final,
            "decay_type": "linear",
        },
        warmup_steps=max(1, round(settings.warmup * steps)),
        max_grad_norm=1.0,
        logging_steps=LOG_EVERY,
        save_steps=SAVE_EVERY,
        save_total_limit=2,
        report_to=["tensorboard"],
        bf16=mixed(preset),
        use_cpu=not torch.cuda.is_available(),
        ddp_backend="gloo" if num_processes() > 1 and not torch.cuda.is_available() else None,
        ddp_find_unused_parameters=False,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        dataloader_num_workers=preset.workers,
        disable_tqdm=True,
        seed=0,
    )


def mixed(preset: Preset) -> bool:
    """Whether products are computed in bfloat16: as the preset says, but not on a processor that lacks it."""
    able = torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()
    return preset.precision == "bfloat16" and bool(able)


def wide_attention(
    module: torch.nn.Module, queries: Tensor, keys: Tensor, values: Tensor, mask: None, **settings: Any
) -> tuple[Tensor, None]:
    """Causal attention in float32 inside a model in bfloat16: three times as fast on a CPU, whose backward
    pass in bfloat16 takes longer than all else. Queries [B, Hq, S, D], keys and values [B, Hkv, S, D] ->
    [B, S, Hq, D]
    """
    shared = queries.shape[1] // keys.shape[1]
    with torch.autocast("cpu", enabled=False):
        keys, values = (x.float().repeat_interleave(shared, dim=1) for x in (keys, values))
        mixture = scaled_dot_product_attention(
            queries.float(), keys, values, is_causal=True, scale=settings["scaling"]
        )
    return mixture.transpose(1, 2).contiguous(), None


WIDE_ATTENTION = "wide"
AttentionInterface.register(WIDE_ATTENTION, wide_attention)
AttentionMaskInterface.register(WIDE_ATTENTION, lambda *_, **__: None)  # padding is on the right


def optimiser(model: PreTrainedModel, settings: Supervised, bf16: bool = False) -> torch.optim.Optimizer:
    """Muon for the matrices inside the layers and AdamW for the rest, or AdamW for all."""
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    if settings.optimiser == "adamw":
        decayed = [weight for _, weight in named if weight.dim() >= 2]
        others = [weight for _, weight in named if weight.dim() < 2]
        groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=settings.rate, betas=(0.9, 0.95))
    inside = [weight for name, weight in named if weight.dim() == 2 and ".layers." in name]
    rest = [weight for name, weight in named if weight.dim() != 2 or ".layers." not in name]
    products = torch.bfloat16 if bf16 else torch.float32
    return Muon(inside, rest, lr=settings.rate, products=products)


def start_from(checkpoint: Path | str) -> PreTrainedModel:
    """A checkpoint in float32: the optimiser needs the small bits."""
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)


def _seed(stage: Stage) -> int:
    """Each stage has its own."""
    total = 0
    for place, letter in enumerate(stage.name):
        total += ord(letter) * 31**place
    return 1 + total % 997
