"""The native module's face, as csrc/bind.cpp makes it; shapes are in csrc/ops.h and backend/base.py."""

import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float32]
_Doubles = npt.NDArray[np.float64]
_Ints = npt.NDArray[np.int32]
_Bytes = npt.NDArray[np.uint8]

def supported_isas() -> list[str]: ...
def packed_bytes(format: str, experts: int, rows: int, columns: int) -> int: ...

class Matrix:
    def __init__(self, buffer: _Bytes, format: str, experts: int, rows: int, columns: int) -> None: ...

class KVCache:
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
    def pack(self, w: Matrix, buffer: _Bytes, expert: int, first: int, values: _Floats) -> None: ...
    def pack_codes(
        self,
        w: Matrix,
        buffer: _Bytes,
        expert: int,
        first: int,
        codes: npt.NDArray[np.int8],
        scales: npt.NDArray[np.uint16],
        minimums: npt.NDArray[np.uint16] | None,
    ) -> None: ...
    def embed(self, ids: _Ints, table: Matrix, expert: int, y: _Floats) -> None: ...
    def linear(self, x: _Floats, w: Matrix, bias: _Floats | None, y: _Floats) -> None: ...
    def moe(
        self,
        x: _Floats,
        router: _Floats,
        gate_up: Matrix,
        down: Matrix,
        top_k: int,
        normalise: bool,
        y: _Floats,
    ) -> None: ...
    def rms_norm(self, x: _Floats, weight: _Floats, eps: float, y: _Floats) -> None: ...
    def swiglu(self, gate_up: _Floats, y: _Floats) -> None: ...
    def store_kv(
        self,
        qkv: _Floats,
        q_norm: _Floats | None,
        k_norm: _Floats | None,
        rope: _Floats,
        eps: float,
        cache: KVCache,
        layer: int,
        batch: Batch,
        q: _Floats,
    ) -> None: ...
    def attention(self, q: _Floats, cache: KVCache, layer: int, batch: Batch, y: _Floats) -> None: ...
    def sample(
        self,
        logits: _Floats,
        num_valid: int,
        numbers: _Doubles,
        bias_values: _Doubles,
        bias_ids: _Ints,
        bias_starts: _Ints,
        banned: _Ints,
        banned_starts: _Ints,
        prompt: _Ints,
        prompt_starts: _Ints,
        output: _Ints,
        output_starts: _Ints,
        masks: list[bytes | None],
        tokens: _Ints,
    ) -> None: ...
