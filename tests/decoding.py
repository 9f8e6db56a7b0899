"""Runs a decoder without the engine: whole prompts, chunks of them, greedy tokens.

In: a Decoder and token ids. Out: logits and ids. Does not know: scheduling, sampling.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from deepfast.backend.base import Backend, Batch
from deepfast.backend.reference import ReferenceBackend
from deepfast.config import BLOCK_SIZE, KVFormat
from deepfast.model.decoder import Decoder

try:
    from deepfast.backend.cpu import CpuBackend
except ImportError:  # the native module has not been built
    BACKENDS = ["reference"]
else:
    BACKENDS = ["reference", "cpu"]


def make_backend(name: str) -> Backend:
    """The backend of that name, with two threads where it has threads."""
    return ReferenceBackend() if name == "reference" else CpuBackend(2)


def blocks_for(positions: int, first: int = 0) -> list[int]:
    """Block ids for so many positions, in falling order: tables must be looked up, not assumed."""
    count = -(-positions // BLOCK_SIZE)
    return list(range(first + count - 1, first - 1, -1))


def prompt_logits(
    decoder: Decoder, ids: Sequence[int], chunks: Sequence[int] | None = None, kv: KVFormat = "f32"
) -> npt.NDArray[np.float32]:
    """Logits of every position, [N, V], computed in chunks of these sizes (None: at once)."""
    blocks = blocks_for(len(ids))
    cache = decoder.new_cache(len(blocks), kv)
    out, done = [], 0
    for count in chunks or [len(ids)]:
        batch = Batch.build([(ids[done : done + count], done, blocks)], [count])
        out.append(np.array(decoder.backend.to_numpy(decoder.forward(batch, cache))))
        done += count
    return np.concatenate(out)


def greedy(decoder: Decoder, ids: Sequence[int], count: int, kv: KVFormat = "f32") -> list[int]:
    """`count` tokens after the prompt, each the largest logit."""
    blocks = blocks_for(len(ids) + count)
    cache = decoder.new_cache(len(blocks), kv)
    pending, done, out = list(ids), 0, []
    for _ in range(count):
        logits = decoder.forward(Batch.build([(pending, done, blocks)], [True]), cache)
        done += len(pending)
        pending = [int(decoder.backend.to_numpy(logits)[0].argmax())]
        out += pending
    return out


def row_errors(got: npt.NDArray[np.float32], wanted: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """For each row of logits the length of the difference over the length of the row, [N]."""
    return np.asarray(np.linalg.norm(got - wanted, axis=1) / np.linalg.norm(wanted, axis=1))


def relative_error(got: npt.NDArray[np.float32], wanted: npt.NDArray[np.float32]) -> float:
    """The largest difference over the largest value."""
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())
