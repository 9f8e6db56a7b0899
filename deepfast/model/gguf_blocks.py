"""The block types of GGUF tensors as `Grouped` rows: the same scales and codes, only laid out otherwise.

In: raw rows of a tensor, uint8 [m, bytes]. Out: Grouped rows whose floats() are, bit for bit, what ggml's
own dequantisation gives (a zero may have the other sign), or float32 rows of the plain types. Every code is
touched a few times as a byte, never as a float.
The blocks: https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-common.h
Does not know: files, names, models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..backend.grouped import Grouped, Layout

FloatArray = npt.NDArray[np.float32]
RawArray = npt.NDArray[np.uint8]
Array = npt.NDArray[Any]

# The codes of IQ4_NL and IQ4_XS stand for these (kvalues_iq4nl); below, the same for the halves of a byte.
_NONLINEAR = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_LOW_HALF = bytes(_NONLINEAR[byte & 15] & 255 for byte in range(256))
_HIGH_HALF = bytes(_NONLINEAR[byte >> 4] & 255 for byte in range(256))
_RUN = 2**21  # bytes of codes that are unpacked at once: they stay in the processor's cache


class _Pieces(NamedTuple):
    """n blocks of B weights, taken apart: codes [n, B], scales [n], and what the layout has besides."""

    codes: Array
    scales: Array
    minimums: Array | None = None
    steps: Array | None = None  # [n, B / part]
    lows: Array | None = None


class _Kind(NamedTuple):
    """How a block type is read: a numpy view of its block, the layout that holds it, and the way there."""

    block: Any
    layout: Layout
    unpack: Callable[[Array, Array], _Pieces]  # blocks [n], room for codes [n, B] -> _Pieces


def block_type(fields: str) -> Any:
    """A numpy type from "name type count, ..."."""
    split = [field.split() for field in fields.split(",")]
    return np.dtype([(name, kind, (int(n),)) if int(n) > 1 else (name, kind) for name, kind, n in split])


def layout_of(kind: str) -> Layout | None:
    """The layout that holds a type of `READ` without loss; None for plain numbers."""
    return None if kind in PLAIN else _KINDS[kind].layout


def grouped(kind: str, raw: RawArray) -> Grouped:
    """Rows of a quantised type, uint8 [m, bytes] -> m rows in `layout_of(kind)`."""
    block, layout, unpack = _KINDS[kind]
    raw = np.ascontiguousarray(raw)
    m = raw.shape[0]
    blocks = raw.view(block).reshape(-1)  # [n], n blocks, row after row
    width = WIDTHS[kind]
    codes = np.empty((len(blocks), width), np.uint8 if layout.bits == 4 else np.int8)
    run = max(_RUN // width, 1)
    pieces = [unpack(blocks[i : i + run], codes[i : i + run]) for i in range(0, len(blocks), run)]

    def joined(name: str) -> Any:
        parts = [getattr(piece, name) for piece in pieces]
        return None if parts[0] is None else np.concatenate(parts).reshape(m, -1)

    return Grouped(
        layout,
        codes.reshape(m, -1),
        joined("scales").astype(np.float16, copy=False),
        joined("minimums"),
        _as_int8(joined("steps")),
        _as_int8(joined("lows")),
    )


def floats(kind: str, raw: RawArray) -> FloatArray:
    """Rows of any type that is read as float32 [m, K]."""
    if kind == "F32":
        return np.ascontiguousarray(raw).view("<f4").astype(np.float32)
    if kind == "F16":
        return np.ascontiguousarray(raw).view("<f2").astype(np.float32)
    if kind == "BF16":
        return (np.ascontiguousarray(raw).view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    return grouped(kind, raw).floats()


def _as_int8(values: Array | None) -> Any:
    return None if values is None else values.view(np.int8)


def _nibbles(packed: Array, codes: Array) -> None:
    """Bytes [n, c, w] -> codes [n, 2 c w]: of each run of w bytes the low halves, then the high ones."""
    n, runs, width = packed.shape
    halves = codes.view(np.uint8).reshape(n, runs, 2, width)
    np.bitwise_and(packed, 15, out=halves[:, :, 0])
    np.right_shift(packed, 4, out=halves[:, :, 1])


def _pairs(packed: Array, codes: Array) -> None:
    """Bytes [n, c, w] -> codes [n, 4 c w]: of each run of w bytes the lowest two bits, then the next, ..."""
    n, runs, width = packed.shape
    quarters = codes.view(np.uint8).reshape(n, runs, 4, width)
    for i in range(4):
        np.right_shift(packed, 2 * i, out=quarters[:, :, i])
    codes.view(np.uint8)[...] &= 3


def _fifth_bits(words: Array, codes: Array) -> None:
    """Bit i of each word [n] becomes the fifth bit of code i, [n, 32]."""
    bits = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), bitorder="little")
    bits <<= 4
    codes.view(np.uint8)[...] |= bits.reshape(codes.shape)


def _q4_0(blocks: Array, codes: Array) -> _Pieces:
    _nibbles(blocks["codes"][:, None], codes)
    return _Pieces(codes, blocks["scale"])


def _q4_1(blocks: Array, codes: Array) -> _Pieces:
    _nibbles(blocks["codes"][:, None], codes)
    return _Pieces(codes, blocks["scale"], blocks["minimum"])


def _q5_0(blocks: Array, codes: Array) -> _Pieces:
    _nibbles(blocks["codes"][:, None], codes)
    _fifth_bits(blocks["high"], codes)
    codes -= 16
    return _Pieces(codes, blocks["scale"])


def _q5_1(blocks: Array, codes: Array) -> _Pieces:
    """scale * code + minimum: subtracted -1 times"""
    _nibbles(blocks["codes"][:, None], codes)
    _fifth_bits(blocks["high"], codes)
    n = len(blocks)
    steps, lows = np.ones((n, 1), np.int8), np.full((n, 1), -1, np.int8)
    return _Pieces(codes, blocks["scale"], blocks["minimum"], steps, lows)


def _q8_0(blocks: Array, codes: Array) -> _Pieces:
    codes[...] = blocks["codes"]
    return _Pieces(codes, blocks["scale"])


def _q2_k(blocks: Array, codes: Array) -> _Pieces:
    _pairs(blocks["codes"].reshape(-1, 2, 32), codes)
    both = np.ascontiguousarray(blocks["steps"])  # [n, 16], low half the step, high half the low
    return _Pieces(codes, blocks["scale"], blocks["minimum"], both & 15, both >> 4)


def _q3_k(blocks: Array, codes: Array) -> _Pieces:
    """step * (code - 4): a minimum that is the scale, subtracted 4 * step times; exact in float32"""
    _pairs(blocks["codes"].reshape(-1, 2, 32), codes)
    eighths = codes.reshape(-1, 8, 32)
    for i in range(8):  # a bit that is set stands for the code as it is, one that is not for 4 less
        high = blocks["high"] << (2 - i) if i < 2 else blocks["high"] >> (i - 2)
        eighths[:, i] |= high & 4
    words = np.ascontiguousarray(blocks["steps"])  # uint32 [n, 3]: 16 low halves, then 16 pairs of high bits
    steps = np.empty((len(words), 4), np.uint32)
    for i in range(4):
        four = words[:, i % 2] >> np.uint32(4 * (i // 2)) & np.uint32(0x0F0F0F0F)
        two = words[:, 2] >> np.uint32(2 * i) & np.uint32(0x03030303)
        steps[:, i] = four | two << np.uint32(4)
    signed = np.subtract(steps.view(np.uint8), 32).view(np.int8)  # [n, 16], -32..31
    return _Pieces(codes, blocks["scale"], blocks["scale"], signed, signed << 2)


def _steps_and_lows(packed: Array) -> tuple[Array, Array]:
    """12 bytes as uint32 [n, 3] -> eight numbers of 6 bits each, uint8 [n, 8], twice."""
    low, middle, high = (np.ascontiguousarray(packed[:, i]) for i in range(3))
    steps, lows = (np.empty((len(packed), 2), np.uint32) for _ in range(2))
    six, four, two = np.uint32(0x3F3F3F3F), np.uint32(0x0F0F0F0F), np.uint32(0x30303030)
    steps[:, 0], lows[:, 0] = low & six, middle & six
    steps[:, 1] = high & four | low >> np.uint32(2) & two
    lows[:, 1] = high >> np.uint32(4) & four | middle >> np.uint32(2) & two
    return steps.view(np.uint8), lows.view(np.uint8)


def _q4_k(blocks: Array, codes: Array) -> _Pieces:
    _nibbles(blocks["codes"].reshape(-1, 4, 32), codes)
    return _Pieces(codes, blocks["scale"], blocks["minimum"], *_steps_and_lows(blocks["steps"]))


def _q5_k(blocks: Array, codes: Array) -> _Pieces:
    _nibbles(blocks["codes"].reshape(-1, 4, 32), codes)
    eighths = codes.view(np.uint8).reshape(-1, 8, 32)
    for i in range(8):
        high = blocks["high"] << (4 - i) if i < 5 else blocks["high"] >> (i - 4)
        eighths[:, i] |= high & 16
    return _Pieces(codes, blocks["scale"], blocks["minimum"], *_steps_and_lows(blocks["steps"]))


def _q6_k(blocks: Array, codes: Array) -> _Pieces:
    """Each half of a block: 64 bytes of low halves, 32 of pairs of high bits."""
    _nibbles(blocks["codes"].reshape(-1, 2, 64), codes)
    eighths = codes.view(np.uint8).reshape(-1, 2, 4, 32)
    pairs = blocks["high"].reshape(-1, 2, 32)
    for i in range(4):
        high = pairs << (4 - 2 * i) if i < 3 else pairs >> 2
        eighths[:, :, i] |= high & 48
    codes -= 32
    return _Pieces(codes, blocks["scale"], steps=blocks["steps"])


def _nonlinear(packed: Array, codes: Array) -> None:
    """As `_nibbles`, but of the numbers that the codes stand for."""
    halves, data = codes.view(np.uint8).reshape(*packed.shape[:2], 2, packed.shape[2]), packed.tobytes()
    for i, table in enumerate((_LOW_HALF, _HIGH_HALF)):
        halves[:, :, i] = np.frombuffer(data.translate(table), np.uint8).reshape(packed.shape)


def _iq4_nl(blocks: Array, codes: Array) -> _Pieces:
    _nonlinear(blocks["codes"][:, None], codes)
    return _Pieces(codes, blocks["scale"])


def _iq4_xs(blocks: Array, codes: Array) -> _Pieces:
    """Steps of 6 bits, less 32: four low bits in `steps`, two high ones in `high`; each for 32 weights."""
    _nonlinear(blocks["codes"].reshape(-1, 8, 16), codes)
    steps = np.empty((len(blocks), 8), np.uint8)
    _nibbles_of_each(blocks["steps"], steps)
    high = blocks["high"]  # uint16 [n]
    for i in range(8):
        steps[:, i] |= ((high >> (2 * i) & 3) << 4).astype(np.uint8)
    return _Pieces(codes, blocks["scale"], steps=np.repeat(steps.view(np.int8) - np.int8(32), 2, axis=1))


def _nibbles_of_each(packed: Array, out: Array) -> None:
    """Bytes [n, w] -> [n, 2 w]: the low half of each byte, then its high half."""
    out[:, 0::2], out[:, 1::2] = packed & 15, packed >> 4


PLAIN = ("F32", "F16", "BF16")
_KINDS: dict[str, _Kind] = {
    "Q4_0": _Kind(block_type("scale <f2 1, codes u1 16"), Layout("q4"), _q4_0),
    "Q4_1": _Kind(block_type("scale <f2 1, minimum <f2 1, codes u1 16"), Layout("q4_min"), _q4_1),
    "Q5_0": _Kind(block_type("scale <f2 1, high <u4 1, codes u1 16"), Layout("q8"), _q5_0),
    "Q5_1": _Kind(block_type("scale <f2 1, minimum <f2 1, high <u4 1, codes u1 16"), Layout("q8_k"), _q5_1),
    "Q8_0": _Kind(block_type("scale <f2 1, codes i1 32"), Layout("q8"), _q8_0),
    "Q2_K": _Kind(
        block_type("steps u1 16, codes u1 64, scale <f2 1, minimum <f2 1"), Layout("q4_k16", 8), _q2_k
    ),
    "Q3_K": _Kind(
        block_type("high u1 32, codes u1 64, steps <u4 3, scale <f2 1"), Layout("q4_k16", 8), _q3_k
    ),
    "Q4_K": _Kind(
        block_type("scale <f2 1, minimum <f2 1, steps <u4 3, codes u1 128"), Layout("q4_k", 8), _q4_k
    ),
    "Q5_K": _Kind(
        block_type("scale <f2 1, minimum <f2 1, steps <u4 3, high u1 32, codes u1 128"),
        Layout("q8_k", 8),
        _q5_k,
    ),
    "Q6_K": _Kind(
        block_type("codes u1 128, high u1 64, steps i1 16, scale <f2 1"), Layout("q8_k16", 8), _q6_k
    ),
    "IQ4_NL": _Kind(block_type("scale <f2 1, codes u1 16"), Layout("q8"), _iq4_nl),
    "IQ4_XS": _Kind(
        block_type("scale <f2 1, high <u2 1, steps u1 4, codes u1 128"), Layout("q8_k16", 8), _iq4_xs
    ),
}
WIDTHS = {kind: 256 if "_K" in kind or kind == "IQ4_XS" else 32 for kind in _KINDS}  # weights in a block
READ = (*PLAIN, *_KINDS)  # every type that is read
