"""The native module's face, as csrc/bind.cpp makes it; shapes are in csrc/ops.h and backend/base.py."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float32]
_Ints = npt.NDArray[np.int32]
_Bytes = npt.NDArray[np.uint8]

def supported_isas() -> list[str]: ...
def packed_bytes(format: str, experts: int, rows: int, columns: int, span: int = 1) -> int: ...
def take(x: _Values, rows: _Ints) -> Array: ...

RowArgs = tuple[
    Sequence[float],  # temperature, top_k, top_p, min_p, uniform; presence, frequency, repetition penalty
    Sequence[tuple[int, float]],  # logit_bias
    Sequence[int],  # banned_ids
    Sequence[int],  # prompt_ids
    Sequence[int],  # output_ids
    bytes | None,  # mask
]

class Array:
    def __init__(self, values: _Floats) -> None: ...
    @property
    def __array_interface__(self) -> dict[str, Any]: ...

_Values = Array | _Floats  # a numpy array is copied

class Matrix:
    def __init__(
        self, buffer: _Bytes, format: str, experts: int, rows: int, columns: int, span: int = 1
    ) -> None: ...

class KVCache:
    def touch(self, layer: int, blocks: Sequence[int]) -> None: ...
    def __init__(self, layers: int, blocks: int, kv_heads: int, head_dim: int, format: str) -> None: ...
    @property
    def bytes(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...

class Batch:
    def __init__(self, positions: _Ints, starts: _Ints, context_lens: _Ints, block_tables: _Ints) -> None: ...

class Core:
    def __init__(self, threads: int, isa: str = "") -> None: ...
    @property
    def isa(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def busy(self) -> float: ...  # seconds inside ops so far
    def pack(self, w: Matrix, buffer: _Bytes, expert: int, first: int, values: _Floats) -> None: ...
    def pack_codes(
        self,
        w: Matrix,
        buffer: _Bytes,
        expert: int,
        first: int,
        codes: npt.NDArray[np.int8],
        scales: npt.NDArray[np.uint16],
        minimums: npt.NDArray[np.uint16] | None = None,
        steps: npt.NDArray[np.int8] | None = None,
        lows: npt.NDArray[np.int8] | None = None,
    ) -> None: ...
    def embed(self, ids: _Ints, table: Matrix, expert: int) -> Array: ...
    def linear(self, x: _Values, w: Matrix, bias: _Values | None) -> Array: ...
    def mlp(
        self,
        x: _Values,
        gate_up: Matrix,
        gate_up_bias: _Values | None,
        down: Matrix,
        down_bias: _Values | None,
    ) -> Array: ...
    def moe(
        self, x: _Values, router: _Values, gate_up: Matrix, down: Matrix, top_k: int, normalise: bool
    ) -> Array: ...
    def rms_norm(self, x: _Values, weight: _Values, eps: float) -> Array: ...
    def add_rms_norm(self, x: _Values, y: _Values, weight: _Values, eps: float) -> tuple[Array, Array]: ...
    def store_kv(
        self,
        qkv: _Values,
        q_norm: _Values | None,
        k_norm: _Values | None,
        rope: _Values,
        eps: float,
        cache: KVCache,
        layer: int,
        batch: Batch,
    ) -> Array: ...
    def attention(self, q: _Values, cache: KVCache, layer: int, batch: Batch) -> Array: ...
    def probe_dots(self, chunks: int) -> int: ...
    def probe_read(self, x: _Values) -> None: ...
    def sample(self, logits: _Values, num_valid: int, rows: Sequence[RowArgs]) -> list[int]: ...
