"""What quantising cost: two models over the same text, and their matrices beside each other.

In: an original and another checkpoint of the same shapes, token ids. Out: KL divergence (nats per token),
perplexity of both, how often the likeliest token is the same; the relative error of every matrix.
One model after the other is in memory, a layer at a time. Does not know: tokenizers, files' formats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..backend.base import Backend, FloatArray, Weight
from ..backend.cpu import CpuBackend
from ..config import WeightFormat
from ..types import ModelError, UsageError
from .load import Progress, load_tensors, model_stacks
from .stream import Streamed, stream
from .tensors import Matrix
from .weights import Checkpoint

WINDOW, STRIDE = 1024, 512  # tokens; every position but the first 512 has at least 512 before it
BLOCK = 1 << 22  # logits that are in memory at once
ROWS = 1024  # of a matrix that are compared at once


class Window(NamedTuple):
    """A piece of the text. Rows `skip` and later are counted: they have the most context of all windows."""

    ids: Sequence[int]
    targets: Sequence[int]  # the token after each of ids
    skip: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """The second model beside the first, over `positions` tokens. KL(original || other) in nats per token."""

    positions: int
    window: int
    stride: int
    kl_mean: float
    kl_median: float
    kl_p99: float
    kl_max: float
    perplexity_original: float
    perplexity: float
    same_top: float  # the share of positions where both find the same token likeliest


class MatrixError(NamedTuple):
    """One matrix, or several as one: sums over its weights, and the root of their ratio."""

    name: str
    difference: float  # sum (w - w')^2
    weight: float  # sum w^2

    @property
    def relative(self) -> float:
        """sqrt(sum (w - w')^2 / sum w^2); 0 for a matrix of zeros that stayed zeros."""
        if self.weight == 0:
            return math.inf if self.difference else 0.0
        return math.sqrt(self.difference / self.weight)


def windows(ids: Sequence[int], size: int = WINDOW, stride: int = STRIDE) -> list[Window]:
    """Cut a text so that each token but the first is predicted, and counted, exactly once.

    Raises UsageError when there is nothing to predict, or numbers make no sense.
    """
    if not 1 <= stride <= size:
        raise UsageError(f"stride={stride} is not between 1 and the window of {size}. Choose another.")
    if len(ids) < 2:
        raise UsageError(f"the text has {len(ids)} tokens; two are the least. Give a longer text.")
    found, counted = [], 0  # targets before this one are counted
    for start in range(0, len(ids), stride):
        last = min(start + size, len(ids) - 1)
        found.append(Window(ids[start:last], ids[start + 1 : last + 1], counted - start))
        counted = last
        if last == len(ids) - 1:
            break
    return found


def compare(
    original: Checkpoint,
    other: Checkpoint,
    backend: Backend,
    ids: Sequence[int],
    *,
    size: int = WINDOW,
    stride: int = STRIDE,
    format: WeightFormat | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Run both over the same windows of `ids`, the original in `format` (None: as stored), keys and values in
    float32. Raises UsageError for a text too short or a token that a model has not, ModelError for models of
    different vocabularies."""
    vocabularies = original.config.vocab_size, other.config.vocab_size
    if vocabularies[0] != vocabularies[1]:
        raise ModelError(
            f"{original.path} has {vocabularies[0]:,} tokens and {other.path} {vocabularies[1]:,}: "
            "they cannot be compared."
        )
    check_ids(ids, vocabularies[0])
    size = min(size, original.config.max_positions, other.config.max_positions)
    pieces = windows(ids, size, min(stride, size))
    said = progress or _silent
    texts = [piece.ids for piece in pieces]
    first = stream(original, backend, texts, format, lambda part: said(part * 0.45))
    second = stream(other, backend, texts, None, lambda part: said(0.45 + part * 0.35))
    divergence, surprise, same = _measured(
        backend,
        pieces,
        (first, second),
        max(BLOCK // vocabularies[0], 1),
        lambda part: said(0.8 + part * 0.2),
    )
    return Comparison(
        positions=len(divergence),
        window=size,
        stride=min(stride, size),
        kl_mean=float(divergence.mean()),
        kl_median=float(np.median(divergence)),
        kl_p99=float(np.percentile(divergence, 99)),
        kl_max=float(divergence.max()),
        perplexity_original=_perplexity(surprise[0]),
        perplexity=_perplexity(surprise[1]),
        same_top=float(same.mean()),
    )


def exact_format(checkpoint: Checkpoint) -> WeightFormat | None:
    """The format in which a checkpoint computes what its files say: float32 where they hold values that no
    packed format keeps (FP8), otherwise as stored."""
    names = (name for name in checkpoint.names if len(checkpoint.source.shape(name)) == 2)
    packed = checkpoint.config.packed
    return None if packed or all(checkpoint.source.matrix(name).lossless for name in names) else "f32"


def check_ids(ids: Sequence[int], vocab_size: int) -> None:
    """Raise UsageError where a token has no row in the embedding: text and model do not belong together."""
    if ids and max(ids) >= vocab_size:
        raise UsageError(
            f"the text has token {max(ids)}, but the model knows {vocab_size} tokens. "
            "Use the tokenizer that belongs to the model."
        )


def _silent(fraction: float) -> None:
    """Nobody asked how far it is."""


def _perplexity(surprise: npt.NDArray[np.float64]) -> float:
    """e to the mean of -log p, infinite rather than an error."""
    mean = float(surprise.mean())
    return math.exp(mean) if mean < 700 else math.inf


def _measured(
    backend: Backend,
    pieces: Sequence[Window],
    models: tuple[Streamed, Streamed],
    step: int,
    progress: Progress,
) -> tuple[npt.NDArray[np.float64], list[npt.NDArray[np.float64]], npt.NDArray[np.bool_]]:
    """For each counted position: KL, -log p of the token that came in each model, is the likeliest the same.

    step: rows whose logits are in memory at once."""
    divergence, surprise, same = list[Any](), (list[Any](), list[Any]()), list[Any]()
    for done, piece in enumerate(pieces):
        rows = [model.rows[done][piece.skip :] for model in models]
        targets = np.asarray(piece.targets[piece.skip :])
        for first in range(0, len(targets), step):
            block = slice(first, first + step)
            logits = [
                backend.to_numpy(backend.linear(np.ascontiguousarray(x[block]), m.head)).astype(np.float64)
                for x, m in zip(rows, models, strict=True)
            ]
            same.append(logits[0].argmax(axis=1) == logits[1].argmax(axis=1))
            kl, lost = divergences(logits[0], logits[1], targets[block])
            divergence.append(kl)
            for kept, values in zip(surprise, lost, strict=True):
                kept.append(values)
        progress((done + 1) / len(pieces))
    return np.concatenate(divergence), [np.concatenate(s) for s in surprise], np.concatenate(same)


def divergences(
    original: npt.NDArray[np.float64], other: npt.NDArray[np.float64], targets: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.float64], tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
    """Logits [n, V] of two models, tokens [n] -> KL(original || other) [n], -log p of the tokens in each [n].

    KL = sum p (a - b) + lse(b) - lse(a). Overwrites `other`. Raises ModelError on NaN.
    """
    totals, lost = [], []
    for logits in (original, other):
        peak = logits.max(axis=1, keepdims=True)
        total = (peak + np.log(np.exp(logits - peak).sum(axis=1, keepdims=True)))[:, 0]  # [n]
        totals.append(total)
        lost.append(total - logits[np.arange(len(logits)), targets])
    if not all(np.isfinite(total).all() for total in totals):
        raise ModelError("the logits hold NaN or infinity: the weights are damaged or the values overflowed.")
    np.subtract(original, other, out=other)
    other *= np.exp(original - totals[0][:, None])
    return np.maximum(other.sum(axis=1) + totals[1] - totals[0], 0.0), (lost[0], lost[1])


def matrix_errors(
    original: Checkpoint, other: Checkpoint, backend: CpuBackend, progress: Progress | None = None
) -> list[MatrixError]:
    """The error of each matrix of `other`, as it is packed, beside the original's, in the order of layers."""
    stacks = model_stacks(original)
    found = list[MatrixError]()
    for done, (name, weight) in enumerate(load_tensors(other, backend)):
        stack = stacks[name]
        for expert, parts in enumerate(stack.experts) if len(stack.shape) == 2 else ():
            first = 0
            for part, shape in parts:
                matrix = original.matrix(part, (shape[0], shape[1]))
                found.append(_error(matrix, backend, weight, expert, first))
                first += shape[0]
        original.release()
        if progress:
            progress((done + 1) / len(stacks))
    return found


def _error(matrix: Matrix, backend: CpuBackend, weight: Weight, expert: int, offset: int) -> MatrixError:
    """A matrix beside the rows from `offset` on of a packed one."""
    difference = total = 0.0
    for first in range(0, matrix.shape[0], ROWS):
        last = min(first + ROWS, matrix.shape[0])
        values = matrix.rows(first, last)
        total += _squares(values)
        values -= backend.unpack(weight, expert, offset + first, offset + last)
        difference += _squares(values)
    return MatrixError(matrix.name, difference, total)


def _squares(values: FloatArray) -> float:
    """The sum of squares, float32 products summed row by row in float64."""
    return float(np.einsum("mk,mk->m", values, values).sum(dtype=np.float64))


def together(errors: Iterable[MatrixError], group: Callable[[str], str]) -> dict[str, MatrixError]:
    """Errors of all matrices that `group` gives one name, as of one matrix; in the order of their first."""
    sums = dict[str, MatrixError]()
    for name, difference, weight in errors:
        key = group(name)
        before = sums.get(key, MatrixError(key, 0.0, 0.0))
        sums[key] = MatrixError(key, before.difference + difference, before.weight + weight)
    return sums


def layer_of(name: str) -> str:
    """ "layer 3", or what lies outside of the layers: "embed_tokens", "lm_head"."""
    parts = name.split(".")
    return f"layer {parts[parts.index('layers') + 1]}" if "layers" in parts else parts[-2]


def kind_of(name: str) -> str:
    """ "q_proj", "down_proj", "gate" (a router), "embed_tokens": what it is in every layer."""
    return name.split(".")[-2]
