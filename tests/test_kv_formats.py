"""The number formats of the KV cache: what each costs in bytes, and the error it causes beside float32.

In: keys and values as models have them (random, sharp, some channels far beyond the others), the bundled
model. Out: errors within the bounds stated here. That kernels hold what the formats say: test_kernels.py.
Does not know: weight formats, speed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from decoding import BACKENDS, greedy, make_backend, prompt_logits, row_errors
from kernel_support import numbers

from deepfast.backend.base import Batch, FloatArray
from deepfast.config import BLOCK_SIZE, EngineConfig, kv_head_bytes
from deepfast.model.decoder import Decoder
from deepfast.model.hub import BUNDLED
from deepfast.model.weights import Checkpoint
from deepfast.text.tokenizer import Tokenizer
from deepfast.types import UsageError

HEADS, GROUPS, DIM = 8, 4, 128
# |y - y of f32| / |y of f32| of the attention of all positions
ATTENTION_ERROR = {
    ("random", "f16"): 0.0005,
    ("random", "q8"): 0.01,
    ("sharp", "f16"): 0.001,
    ("sharp", "q8"): 0.02,
    ("outliers", "f16"): 0.002,
    ("outliers", "q8"): 0.06,
}
# of the logits of the bundled model: the median row, the worst row
LOGITS_ERROR = {"f16": (0.0005, 0.002), "q8": (0.006, 0.03)}


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Any:
    return make_backend(request.param)


def projections(kind: str, positions: int) -> FloatArray:
    """Queries, keys and values [N, (H + 2 G) C]; with outliers two channels of every key are far off."""
    x = numbers(positions, HEADS + 2 * GROUPS, DIM)
    if kind == "sharp":
        x[:, :HEADS] *= 4
    if kind == "outliers":
        x[:, HEADS : HEADS + GROUPS, [3, DIM // 2 + 7]] += 20
    return x.reshape(positions, -1)


def attend(backend: Any, qkv: FloatArray, kv: str) -> FloatArray:
    count = -(-len(qkv) // BLOCK_SIZE)
    cache = backend.new_cache(1, count, GROUPS, DIM, kv)
    rope = backend.rope_table(list(1e6 ** -(np.arange(0, DIM, 2) / DIM)), 1.0, len(qkv))
    batch = Batch.build([([1] * len(qkv), 0, list(range(count)))], [True])
    q = backend.store_kv(qkv, None, rope, 1e-6, cache, 0, batch)
    return np.asarray(backend.attention(q, cache, 0, batch))


@pytest.mark.parametrize("kind", ["random", "sharp", "outliers"])
def test_error_of_attention(backend: Any, kind: str) -> None:
    qkv = projections(kind, 600)
    exact = attend(backend, qkv, "f32")
    for kv in ("f16", "q8"):
        error = np.linalg.norm(attend(backend, qkv, kv) - exact) / np.linalg.norm(exact)
        assert error < ATTENTION_ERROR[kind, kv]


def test_error_of_logits(backend: Any) -> None:
    """The bundled model thinks about a product: the logits of its whole thought, and its tokens."""
    decoder = Decoder.load(Checkpoint.open(BUNDLED), backend, "f32")
    text = "<|im_start|>user\nWhat is 37 * 24?<|im_end|>\n<|im_start|>assistant\n<think>\n"
    ids = Tokenizer.from_dir(BUNDLED).encode(text, control=True)
    thought = greedy(decoder, ids, 90)
    exact = prompt_logits(decoder, ids + thought)
    for kv, (median, worst) in LOGITS_ERROR.items():
        errors = row_errors(prompt_logits(decoder, ids + thought, kv=kv), exact)
        assert np.median(errors) < median and errors.max() < worst
        assert greedy(decoder, ids, 90, kv=kv) == thought


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the native module has not been built")
@pytest.mark.parametrize("dim", [2, 36, 38, 128])
def test_bytes_are_those_that_are_taken(dim: int) -> None:
    for kv, expected in (("f32", 8 * dim), ("f16", 4 * dim), ("q8", 2 * (dim + -dim % 4 + 2))):
        assert kv_head_bytes(dim, kv) == expected
        cache = make_backend("cpu").new_cache(3, 5, 2, dim, kv)
        assert cache.bytes == 3 * 5 * 2 * BLOCK_SIZE * expected


def test_an_unknown_format_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="kv='q4' is unknown. Use f32 or f16 or q8"):
        EngineConfig(kv="q4")._check()
