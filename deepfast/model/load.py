"""The tensors of a model one after another, stacked and packed; of a packed checkpoint, as they lie there.

In: a Checkpoint, a backend, the weight format wanted. Out: (name as in `stacks`, tensor of the backend).
Raises ModelError when a tensor is missing, unknown, of another shape, or holds a NaN.
Does not know: what is done with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ..backend.base import Array, Backend, Weight
from ..backend.grouped import kept_layout
from ..config import WeightFormat
from ..types import ModelError, UsageError
from .shapes import EMBEDDING, HEAD, Stack, stacks
from .tensors import Matrix
from .weights import Checkpoint

DERIVED = (
    "rotary_emb.inv_freq"  # buffers of old checkpoints that follow from config.json; the only ones ignored
)
ROUTER = ".mlp.gate.weight"  # small, and it decides: its precision is kept

Progress = Callable[[float], None]
Prepare = Callable[
    [str, Matrix], Matrix
]  # by name; gives a matrix of the same shape, at once: work is for its rows


def load_tensors(
    checkpoint: Checkpoint,
    backend: Backend,
    format: WeightFormat | None = None,
    progress: Progress | None = None,
    prepare: Prepare | None = None,
) -> Iterator[tuple[str, Weight | Array]]:
    """Every tensor of `model_stacks`, in that order; format None keeps each matrix as stored. `progress` gets
    fractions up to 1. Each matrix passes through `prepare` on its way into a stack."""
    if checkpoint.config.packed and format not in (None, checkpoint.stored):
        raise UsageError(
            f"{checkpoint.path} is packed as {checkpoint.stored} and cannot become {format}. "
            "Leave the format out, or quantise the original."
        )
    for name, stack in model_stacks(checkpoint).items():
        yield name, _tensor(checkpoint, backend, format, name, stack, prepare)
        checkpoint.release()
        if progress:
            progress(min(checkpoint.fraction_used, 1.0))
    unknown = [name for name in checkpoint.unused() if not name.endswith(DERIVED)]
    if unknown:
        shown = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
        count = f"{len(unknown)} tensors are" if len(unknown) > 1 else "a tensor is"
        what = f"with {checkpoint.config.num_layers} layers of {checkpoint.config.architecture}"
        raise ModelError(f"{checkpoint.path}: {count} unknown {what}: {shown}.")
    if progress:
        progress(1.0)


def model_stacks(checkpoint: Checkpoint) -> dict[str, Stack]:
    """The stacks of this checkpoint: a tied head is none of them, unless it is stored and differs."""
    config = checkpoint.config
    found = stacks(config)
    if config.tie_word_embeddings and HEAD in checkpoint:
        shape = config.vocab_size, config.hidden_size
        if not config.packed and _equal(checkpoint.matrix(EMBEDDING, shape), checkpoint.matrix(HEAD, shape)):
            checkpoint.note_used(HEAD)
        else:
            found[HEAD] = Stack(shape, [[(HEAD, shape)]])
    return found


def stack_format(name: str, parts: list[list[Matrix]], wanted: WeightFormat | None) -> WeightFormat:
    """The format that a stack of matrices is packed in. Kept as stored, a mixture of 4 and 8 bits is q8."""
    matrices = [part for expert in parts for part in expert]
    stored = {part.stored for part in matrices}
    kept: WeightFormat = stored.pop() if len(stored) == 1 else "f32"
    if len(stored) > 1 and kept_layout((part.layout for part in matrices), "q8") is not None:
        kept = "q8"
    if name.endswith(ROUTER):
        return "bf16" if kept == "bf16" else "f32"
    return wanted or kept


def keeps(parts: list[list[Matrix]], format: WeightFormat) -> bool:
    """Does packing a stack in its format keep every value as the files have it?"""
    matrices = [part for expert in parts for part in expert]
    if format == "f32" or kept_layout((part.layout for part in matrices), format) is not None:
        return True
    return format == "bf16" and all(part.stored == "bf16" for part in matrices)


def stack_matrices(
    checkpoint: Checkpoint, stack: Stack, prepare: Prepare | None = None
) -> list[list[Matrix]]:
    """The matrices of each expert, prepared; nothing is read yet."""
    found = [[checkpoint.matrix(name, (m, k)) for name, (m, k) in parts] for parts in stack.experts]
    if prepare is None:
        return found
    return [[prepare(part.name, part) for part in parts] for parts in found]


def _tensor(
    checkpoint: Checkpoint,
    backend: Backend,
    format: WeightFormat | None,
    name: str,
    stack: Stack,
    prepare: Prepare | None,
) -> Weight | Array:
    if len(stack.shape) == 1:
        named = [(name, stack.shape)] if checkpoint.config.packed else stack.experts[0]
        return backend.vector(np.concatenate([checkpoint.vector(part, *shape) for part, shape in named]))
    if checkpoint.config.packed:
        return backend.mapped(checkpoint.packed(name, len(stack.experts), *stack.shape))
    parts = stack_matrices(checkpoint, stack, prepare)
    chosen = stack_format(name, parts, format)
    return backend.pack_experts(parts, chosen) if stack.sparse else backend.pack(parts[0], chosen)


def _equal(a: Matrix, b: Matrix, step: int = 4096) -> bool:
    """Do two matrices of one shape hold the same values?"""
    return all(np.array_equal(a.rows(i, i + step), b.rows(i, i + step)) for i in range(0, a.shape[0], step))
