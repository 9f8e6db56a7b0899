"""The ops that a model is made of, as a protocol, and the batch that they run on.

In: a Batch (which tokens of which sequences, where their KV blocks are). Out: token ids.
Arrays, weights and caches are opaque above this line: only a backend looks inside.
Does not know: requests, text, phases, files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..config import KVFormat, WeightFormat

Array = Any  # [N, D] activations of a backend, float32 in the two CPU backends; no op changes its inputs
Weight = Any  # a packed matrix [M, K] (or experts [E, M, K]) of a backend
KVCache = Any  # the paged keys and values of all layers of a backend
IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Batch:
    """One forward pass: the new tokens of S sequences, laid end to end (N in all), any number for each.

    Sequence s owns rows starts[s]:starts[s+1]; after the pass its context is context_lens[s] positions, so
    its first new row has position context_lens[s] - (starts[s+1] - starts[s]). Position p of s lives in block
    block_tables[s, p // block_size] at offset p % block_size.
    """

    token_ids: IntArray  # [N]
    positions: IntArray  # [N]
    starts: IntArray  # [S + 1]
    context_lens: IntArray  # [S]
    block_tables: IntArray  # [S, B]
    output_rows: IntArray  # [L] rows whose logits are wanted

    @classmethod
    def build(
        cls, chunks: Sequence[tuple[Sequence[int], int, Sequence[int]]], outputs: Sequence[int]
    ) -> Batch:
        """From plain lists: per sequence (new token ids, positions computed before, block ids), and of how
        many of its last rows the logits are wanted."""
        ids, positions, starts, lens, rows = list[int](), list[int](), [0], list[int](), list[int]()
        for (new, computed, _), wanted in zip(chunks, outputs, strict=True):
            assert 0 <= wanted <= len(new)
            ids += new
            positions += range(computed, computed + len(new))
            starts.append(len(ids))
            lens.append(computed + len(new))
            rows += range(len(ids) - wanted, len(ids))
        width = max([len(blocks) for _, _, blocks in chunks])
        tables = [[*blocks, *[0] * (width - len(blocks))] for _, _, blocks in chunks]
        arrays = [np.array(numbers, np.int32) for numbers in (ids, positions, starts, lens, tables, rows)]
        return cls(*arrays)


@dataclass(frozen=True, slots=True)
class SampleArgs:
    """How one row of logits becomes one token. Order of work: logit_bias, bans and mask, penalties,
    temperature, top_k, top_p, min_p, then the inverse of the cumulative distribution at `uniform`.

    temperature 0: the largest logit (lowest id on a tie), after bias and penalties. `uniform` is in [0, 1).
    top_k 0, top_p 1 and min_p 0 are off. Kept tokens are laid out by descending probability, ties by id:
    the token is the first whose cumulative probability exceeds `uniform`. mask: one bit per id in
    little-endian words of 32 (id t: bit t % 32 of word t / 32), set where t may be drawn; it covers all ids.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    uniform: float
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    banned_ids: Sequence[int] = ()
    prompt_ids: Sequence[int] = ()  # counted by repetition_penalty only
    output_ids: Sequence[int] = ()  # counted by all three penalties
    mask: bytes | None = None  # None: every id may be drawn


class Backend(Protocol):
    """A dozen ops. N rows of tokens, D hidden, H query heads, G KV heads, C head_dim, M x K a matrix.

    `linear` weights have M rows of K inputs, as in a checkpoint. All activations in and out are float32 in
    meaning. No op keeps state but the KV cache that it is handed.
    """

    def vector(self, values: FloatArray) -> Array:
        """A norm weight or a bias, [D]."""
        ...

    def pack(self, parts: Sequence[Any], format: WeightFormat) -> Weight:
        """Stack matrices [M_i, K] along M and pack them in `format`.

        Each part is a `model.tensors.Matrix`: `.shape`; `.rows(first, last) -> float32 [last - first, K]`;
        and `.layout`, not None when it is quantised already: then `.grouped(first, last)` is read where
        `grouped.kept_layout` says that the format keeps it without loss; otherwise rows are rounded.
        """
        ...

    def pack_experts(self, experts: Sequence[Sequence[Any]], format: WeightFormat) -> Weight:
        """E matrices of equal shape, each the stack of its parts: [E, M, K]."""
        ...

    def mapped(self, matrix: Any) -> Weight:
        """A `model.directory.PackedMatrix`, used where it lies in its file. Raises ModelError when its bytes
        cannot be what it says."""
        ...

    def new_cache(self, layers: int, blocks: int, kv_heads: int, head_dim: int, format: KVFormat) -> KVCache:
        """An empty paged KV cache of `blocks` blocks of config.BLOCK_SIZE positions for each layer."""
        ...

    def touch(self, cache: KVCache, layer: int, blocks: Sequence[int]) -> None:
        """Have memory behind these blocks of a layer; what they hold stays. New memory comes zeroed from the
        system when it is first written to, which an op would wait for."""
        ...

    def embed(self, token_ids: IntArray, table: Weight) -> Array:
        """[N], [V, D] -> [N, D]"""
        ...

    def rms_norm(self, x: Array, weight: Array, eps: float) -> Array:
        """[N, D], [D] -> [N, D]; x / sqrt(mean(x^2) + eps) * weight."""
        ...

    def add_rms_norm(self, x: Array, y: Array, weight: Array, eps: float) -> tuple[Array, Array]:
        """[N, D], [N, D], [D] -> x + y and its rms_norm, [N, D] each."""
        ...

    def linear(self, x: Array, w: Weight, bias: Array | None = None) -> Array:
        """[N, K], [M, K], [M] -> [N, M]"""
        ...

    def store_kv(
        self,
        qkv: Array,
        norms: tuple[Array, Array] | None,
        rope: Array,
        eps: float,
        cache: KVCache,
        layer: int,
        batch: Batch,
    ) -> Array:
        """Split qkv [N, (H + 2G) C] into heads, RMS-normalise each q and k head (when `norms` = (q, k)
        weights [C]
        are given), rotate q and k by position (`rope` from rope_table), write k and v to the cache, and
        return the queries [N, H C] (not yet scaled by C^-0.5)."""
        ...

    def rope_table(self, inverse_frequencies: Sequence[float], scale: float, positions: int) -> Array:
        """cos and sin times `scale` of every position, float32 [positions, 2, C / 2], angles in float32."""
        ...

    def attention(self, q: Array, cache: KVCache, layer: int, batch: Batch) -> Array:
        """Causal attention of the new rows over their sequence's whole context, [N, H C] -> [N, H C]."""
        ...

    def mlp(
        self, x: Array, gate_up: Weight, gate_up_bias: Array | None, down: Weight, down_bias: Array | None
    ) -> Array:
        """[N, D], [2F, D] (gate first), [2F], [D, F], [D] -> down(silu(gate x) * up x) [N, D]"""
        ...

    def moe(
        self, x: Array, router: Array, gate_up: Weight, down: Weight, top_k: int, normalise: bool
    ) -> Array:
        """[N, D], router logits [N, E], [E, 2F, D], [E, D, F] -> [N, D]; softmax over all E, then top_k,
        as in Qwen3-MoE."""
        ...

    def take(self, x: Array, rows: IntArray | Sequence[int]) -> Array:
        """Rows of x: [N, D], [L] -> [L, D]"""
        ...

    def sample(self, logits: Array, args: Sequence[SampleArgs], num_valid: int) -> list[int]:
        """[L, V] -> L token ids below num_valid. Raises EngineError when a row holds NaN or no token is left,
        ValueError when a mask is too short."""
        ...

    def log_probs(
        self, logits: Array, tokens: Sequence[int], top: int, num_valid: int
    ) -> list[tuple[float, list[tuple[int, float]]]]:
        """[L, V], L token ids -> for each row the natural log-probability of its token, and the `top` most
        likely (id, log-probability), best first, ties by id: of the logits as they are, over ids below
        num_valid. Only for rows that `sample` accepted."""
        ...

    def to_numpy(self, x: Array) -> FloatArray:
        """For tests and inspection: [N, D] float32."""
        ...
