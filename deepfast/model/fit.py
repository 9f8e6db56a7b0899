"""Does a model fit into the memory, and with which context: arithmetic, before a weight is read.

In: a ModelConfig or an open Checkpoint, engine settings, free bytes. Out: a Fit; settings in which context
and KV cache are numbers; or a refusal with the numbers and the ways out. Sizes are bytes.
Does not know: what the machine has (the caller asks), how weights are loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ..backend.cpu import CpuBackend
from ..backend.grouped import Layout, kept_layout
from ..config import (
    BLOCK_SIZE,
    MAX_DRAFT,
    EngineConfig,
    KVFormat,
    ModelConfig,
    WeightFormat,
    kv_bytes_per_token,
    with_yarn,
)
from ..types import UsageError, as_size
from .catalog import CATALOG
from .load import stack_format
from .shapes import Stack, stacks, weight_bytes
from .weights import Checkpoint

PER_TOKEN = 1150  # bytes for each token of a vocabulary: tokenizer.json as objects, and tables made of it
MARGIN = 16  # one part in so many of the free memory stays free
SHARED = 4  # full contexts that the cache holds at most, for several conversations
SMALLEST = 1024  # positions; with fewer a context that nobody asked for is of no use
ENOUGH = 4096  # positions that a model should have that is named instead
FORMATS: tuple[WeightFormat, ...] = ("q8", "q4")  # that a plain checkpoint may be packed in while loading


Asked = tuple[Checkpoint, WeightFormat | None]  # a model, and the format that it shall be loaded in


@dataclass(frozen=True, slots=True)
class Fit:
    """What a model takes. `mapped`, a part of the weights, is read from the file again when memory is short.

    kv: of `kv_tokens` positions, the whole cache; it is taken only as it is used. activations: of one step.
    text: the tokenizer. context: positions of one conversation, of `native` that the model has. free: what it
    is held against.
    """

    weights: int
    mapped: int
    kv: int
    activations: int
    text: int
    context: int
    native: int
    kv_tokens: int
    free: int

    @property
    def total(self) -> int:
        """Everything, with the weights that are mapped."""
        return self.weights + self.kv + self.activations + self.text

    @property
    def fits(self) -> bool:
        """Is there memory for all that cannot be read again?"""
        return self.total - self.mapped <= self.free

    @property
    def tight(self) -> bool:
        """It runs, but not all mapped weights stay in memory: they are read from the disk again and again."""
        return self.fits and self.total > self.free

    def remarks(self, asked: int | None) -> Iterator[str]:
        """What somebody should know who asked for `asked` positions: too few of them, a slow disk."""
        if asked is None and self.context < self.native:
            yield (
                f"context {self.context:,} of the model's {self.native:,}: {as_size(self.free)} of memory "
                "were free. --context N insists; --kv q8 and smaller weights make room"
            )
        if self.tight:
            yield (
                f"{as_size(self.total)} are needed, {as_size(self.free)} of memory were free: weights will "
                "be read from the disk again and again, slowly"
            )


def fit(
    config: ModelConfig,
    format: WeightFormat,
    kv: KVFormat,
    context: int | None,
    free: int,
    *,
    weights: int | None = None,
    mapped: int = 0,
    settings: EngineConfig | None = None,
) -> Fit:
    """How a model lies in `free` bytes; context None picks the largest that fits, up to the model's own.

    weights: their bytes where they are known better than by `format`; mapped: those of them that are mapped.
    settings: batch sizes, and a size of the KV cache that somebody asked for.
    """
    engine = settings or EngineConfig()
    per_token = kv_bytes_per_token(config, kv)
    size = weight_bytes(config, format) if weights is None else weights
    text = PER_TOKEN * config.vocab_size
    wanted = min(context or config.max_positions, config.max_positions)
    step = step_bytes(config, engine, wanted)
    room = free - free // MARGIN - size - text - step
    if mapped and room < min(wanted, SMALLEST) * per_token:  # not all of them can stay in memory anyway
        room = (free - free // MARGIN - (size - mapped) - text - step) // 2
    affordable = max(room, 0) // per_token // BLOCK_SIZE * BLOCK_SIZE
    tokens = engine.max_kv_tokens
    if context is None:
        wanted = min(wanted, tokens or max(affordable, min(SMALLEST, wanted)))
    if tokens is None:
        tokens = max(wanted, min(SHARED * wanted, affordable // 2))
    step = step_bytes(config, engine, wanted)  # a shorter context has a smaller table
    return Fit(size, mapped, tokens * per_token, step, text, wanted, config.max_positions, tokens, free)


def step_bytes(config: ModelConfig, engine: EngineConfig, context: int) -> int:
    """Activations, scratch memory, logits and the rotary table of the largest step, float32 mostly."""
    rows = min(engine.max_batch_tokens, max(context, 1) * engine.max_running)
    heads, hidden = config.num_heads * config.head_dim, config.hidden_size
    qkv = heads + 2 * config.num_kv_heads * config.head_dim
    inner = config.intermediate_size if len(config.sparse_layers) < config.num_layers else 0
    widest = 4 * 3 * inner + (inner * 5 >> 2)  # gate, up, their product; its codes and scales
    if config.sparse_layers:
        each = 4 * (3 * config.moe_intermediate_size + hidden) + (config.moe_intermediate_size * 5 >> 2)
        widest = max(widest, config.num_experts_per_token * each + 4 * config.num_experts)
    logits = min(rows, engine.max_running + MAX_DRAFT) * config.vocab_size * 4
    sampling = (engine.threads or 1) * config.vocab_size * 13  # a double, an id, a flag for each worker
    table = min(1 << max(context - 1, 1).bit_length(), config.max_positions) * config.head_dim * 4
    return rows * (4 * (4 * hidden + qkv + 2 * heads) + widest) + logits + sampling + table


def loaded_bytes(checkpoint: Checkpoint, format: WeightFormat | None) -> int:
    """Bytes of the weights of a checkpoint when it is loaded in `format` (None: as stored)."""
    if checkpoint.config.packed:
        return checkpoint.source.size
    total = 0
    for name, stack in stacks(checkpoint.config).items():
        if len(stack.shape) == 1:
            total += 4 * stack.shape[0]
            continue
        layout = stack_layout(checkpoint, name, stack, format)
        total += CpuBackend.packed_bytes(layout, len(stack.experts), stack.shape[0], stack.shape[1])
    return total


def stack_layout(checkpoint: Checkpoint, name: str, stack: Stack, wanted: WeightFormat | None) -> Layout:
    """How a stack will lie in memory, by its first expert. What is missing is told of when it is loaded."""
    parts = [checkpoint.source.matrix(part) for part, _ in stack.experts[0] if part in checkpoint]
    format = stack_format(name, [parts], wanted)
    return kept_layout((part.layout for part in parts), format) or Layout(format)


def settle(
    models: Mapping[str, Asked], settings: EngineConfig, free: int, cpus: int
) -> dict[str, tuple[EngineConfig, Fit]]:
    """For models that are loaded together, each in a format (None: as stored): settings in which nothing is
    open, and what they take.

    What the weights leave is shared among the models to come. Raises UsageError when it is not enough.
    """
    sizes = [_size(model, settings, format) for model, format in models.values()]
    found = dict[str, tuple[EngineConfig, Fit]]()
    left = free
    for number, (name, (model, _)) in enumerate(models.items()):
        config = with_yarn(model.config, settings.yarn)
        chosen = settings.resolve(config, cpus)
        room = max(left - sum(sizes[number:]), 0) // (len(sizes) - number)
        one = fit(
            config,
            "f32",
            chosen.kv,
            chosen.max_context,
            min(sizes[number] + room, left),
            weights=sizes[number],
            mapped=sizes[number] if model.config.packed else 0,
            settings=chosen,
        )
        left = max(left - one.total, 0)
        found[name] = replace(chosen, max_context=one.context, max_kv_tokens=one.kv_tokens), one
    fits = [one for _, one in found.values()]
    if sum(one.total - one.mapped for one in fits) > free:
        raise UsageError(_refusal(models, fits, settings, free))
    return found


def _size(model: Checkpoint, settings: EngineConfig, format: WeightFormat | None) -> int:
    """The reference backend holds every format as float32."""
    if settings.backend == "reference":
        return weight_bytes(model.config, "f32")
    return loaded_bytes(model, format)


def _refusal(models: Mapping[str, Asked], fits: Sequence[Fit], settings: EngineConfig, free: int) -> str:
    weights, kv = sum(one.weights for one in fits), sum(one.kv for one in fits)
    rest = sum(one.activations + one.text for one in fits)
    return (
        f"{' and '.join(models)}: {as_size(weights)} of weights, {as_size(kv)} of KV cache "
        f"({sum(one.kv_tokens for one in fits):,} positions in {settings.kv}) and {as_size(rest)} to work in "
        f"need {as_size(weights + kv + rest)}, but {as_size(free)} of memory are free. "
        f"Try {' or '.join(_ways(models, fits, settings, free))}."
    )


def _ways(
    models: Mapping[str, Asked], fits: Sequence[Fit], settings: EngineConfig, free: int
) -> Iterator[str]:
    """What would make it fit, alone or with less context."""
    kv, fixed = sum(one.kv for one in fits), sum(one.total - one.mapped - one.kv for one in fits)
    weights = sum(one.weights for one in fits)
    positions = sum(one.kv_tokens for one in fits)
    plain = settings.backend == "cpu" and not any(model.config.packed for model, _ in models.values())
    for smaller in FORMATS if plain else ():
        size = sum(loaded_bytes(model, smaller) for model, _ in models.values())
        if size < weights and fixed - weights + size < free:
            yield f"--quantize {smaller} ({as_size(size)} of weights)"
    if fixed < free:
        per_token = kv // positions
        most = (free - fixed) // per_token // len(fits) // BLOCK_SIZE * BLOCK_SIZE
        if most:
            yield f"--context {most}"
        heads = [kv_bytes_per_token(model.config, "q8") for model, _ in models.values()]
        small = sum(one.kv_tokens * each for one, each in zip(fits, heads, strict=True))
        if small < kv and fixed + small <= free:
            yield f"--kv q8 ({as_size(small)} of KV cache)"
    lighter = (entry for entry in CATALOG if entry.weight_bytes("q4") < min(weights, free))
    fitting = [e for e in lighter if fit(e.config, "q4", settings.kv, ENOUGH, free).fits]
    named = max(fitting, key=lambda entry: entry.parameters, default=None)
    yield f"a smaller model, {named.name}-q4" if named else "a smaller model (deepfast list --available)"
