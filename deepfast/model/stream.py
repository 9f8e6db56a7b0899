"""A model run over whole texts layer by layer: only one layer of it is ever in memory.

In: a Checkpoint, a backend, windows of token ids. Out: for each window the normalised rows that the head
reads, and the head. What a checkpoint of any size computes can be seen on a machine that could not load it.
Does not know: what the rows are wanted for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..backend.base import Array, Backend, Batch, FloatArray, KVCache, Weight
from ..config import BLOCK_SIZE, KVFormat, WeightFormat
from .decoder import Decoder, make_layer
from .load import Progress, load_tensors
from .shapes import EMBEDDING, FINAL_NORM, HEAD
from .weights import Checkpoint

CHUNK = 512  # tokens that go through a layer at once


class Streamed(NamedTuple):
    """What is behind the last layer."""

    rows: list[FloatArray]  # [n, D] of each window
    head: Weight  # [V, D]


class _Piece(NamedTuple):
    """The tokens of a chunk, and where they are on their way."""

    batch: Batch
    h: Array  # [n, D]
    x: Array  # [n, D]


def stream(
    checkpoint: Checkpoint,
    backend: Backend,
    windows: Sequence[Sequence[int]],
    format: WeightFormat | None = None,
    progress: Progress | None = None,
    kv: KVFormat = "f32",
) -> Streamed:
    """Run every window by itself, from position 0, through all layers; `format` as in `load_tensors`.

    `progress` gets fractions up to 1. Raises ModelError as loading does.
    """
    config = checkpoint.config
    blocks = list(range(-(-max(map(len, windows)) // BLOCK_SIZE)))
    cache = backend.new_cache(1, len(blocks), config.num_kv_heads, config.head_dim, kv)
    batches = [_chunks(window, blocks) for window in windows]
    pieces: list[list[_Piece]] = []
    tensors: dict[str, Any] = {}
    embedding = head = None
    done = 0  # layers
    for name, tensor in load_tensors(checkpoint, backend, format):
        if name == EMBEDDING:
            embedding = head = tensor
        elif name == HEAD:
            head = tensor
        elif name == FINAL_NORM or name.endswith(".input_layernorm.weight"):
            if embedding is not None:
                pieces = [
                    [_first(backend, b, embedding, tensor, config.rms_norm_eps) for b in w] for w in batches
                ]
                embedding = None
                head = head if config.tie_word_embeddings else None
            else:
                layer = make_layer(config, tensors, f"model.layers.{done}")
                one = Decoder(config, backend, None, [layer], tensor, None)
                pieces = [_through(one, window, cache) for window in pieces]
                done += 1
                if progress:
                    progress(done / config.num_layers)
            tensors = {}
        tensors[name] = tensor
    rows = [np.concatenate([backend.to_numpy(piece.x) for piece in window]) for window in pieces]
    return Streamed(rows, head)


def _chunks(window: Sequence[int], blocks: Sequence[int]) -> list[Batch]:
    starts = range(0, len(window), CHUNK)
    return [Batch.build([(list(window[i : i + CHUNK]), i, blocks)], [0]) for i in starts]


def _first(backend: Backend, batch: Batch, embedding: Weight, norm: Array, eps: float) -> _Piece:
    h = backend.embed(batch.token_ids, embedding)
    return _Piece(batch, h, backend.rms_norm(h, norm, eps))


def _through(one: Decoder, window: Sequence[_Piece], cache: KVCache) -> list[_Piece]:
    """A window through the only layer of a decoder, in order: later chunks read the keys of earlier ones."""
    rope = one.rope_for(int(window[-1].batch.context_lens[0]))
    return [
        _Piece(piece.batch, *one.pass_layer(0, piece.h, piece.x, rope, cache, piece.batch))
        for piece in window
    ]
