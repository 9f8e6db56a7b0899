"""Codes out of int32 words, float32 out of FP8; and the layouts that keep them.

In: arrays as they lie in a checkpoint: AWQ and GPTQ keep a matrix [M, K] transposed, so that a run of its
rows is a block of columns there, and only that block is read. Out: codes and zeros [m, K], [m, S] as uint8,
Grouped rows, float32. S = groups of a row.
The bits of a word count from its least significant one. Does not know: files, names, shapes that do not fit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..backend.grouped import Grouped, HalfArray, Layout
from ..config import GROUP_SIZE

FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]
WordArray = npt.NDArray[np.int32]

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the output that each nibble of a word belongs to, lowest nibble first
TILE = 128  # rows of words transposed at once: what fits the first cache, three times as fast as all


def transposed(words: npt.NDArray[Any], first: int, last: int) -> npt.NDArray[Any]:
    """Columns first..last-1 as rows: [R, C] -> [last - first, R], contiguous."""
    count = words.shape[0]
    result = np.empty((last - first, count), words.dtype)
    for row in range(0, count, TILE):
        result[:, row : row + TILE] = words[row : row + TILE, first:last].T
    return result


def awq_codes(words: WordArray, first: int, last: int) -> ByteArray:
    """Rows first..last-1 of AWQ's codes: eight outputs in a word, [K, M / 8] -> [last - first, K]. Zeros lie
    alike, with groups in place of inputs."""
    begin, end = first // 8, -(-last // 8)
    word = transposed(words, begin, end)  # [w, K]
    codes = np.empty((end - begin, 8, words.shape[0]), np.uint8)
    part = np.empty_like(word)
    for place, output in enumerate(AWQ_ORDER):
        np.right_shift(word, 4 * place, out=part)
        np.bitwise_and(part, 15, out=codes[:, output], casting="unsafe")
    return codes.reshape(-1, words.shape[0])[first - 8 * begin : last - 8 * begin]


def gptq_codes(words: WordArray, bits: int, first: int, last: int) -> ByteArray:
    """Rows first..last-1 of GPTQ's codes: 32 / bits inputs in a word, in order.

    [K bits / 32, M] -> [last - first, K]
    """
    return row_codes(transposed(words, first, last), bits)


def row_codes(words: WordArray, bits: int) -> ByteArray:
    """Codes that lie in rows, 32 / bits of them in a word, in order: [m, K bits / 32] -> [m, K]"""
    packed = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return packed
    wide = packed.astype(np.uint16)  # high and low nibble of a byte -> two bytes, the low one first
    np.bitwise_or(wide, np.left_shift(wide, 4), out=wide)
    np.bitwise_and(wide, 0x0F0F, out=wide)
    return wide.view(np.uint8)


def gptq_zeros(words: WordArray, bits: int, less_one: bool, first: int, last: int) -> ByteArray:
    """GPTQ's zeros: 32 / bits outputs in a word, in order, [S, M bits / 32] -> [last - first, S].

    less_one: the file holds zero - 1, as the first version of the format does. It was subtracted from whole
    words, so it is added to whole words: a zero of 0 borrowed from its neighbour.
    """
    each = 32 // bits
    begin, end = first // each, -(-last // each)
    word = words[:, begin:end].astype(np.uint32)
    if less_one:
        word += np.uint32(0x11111111 if bits == 4 else 0x01010101)
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    zeros = ((word[:, :, None] >> shifts) & np.uint32(2**bits - 1)).astype(np.uint8)
    flat = zeros.reshape(len(words), -1)[:, first - each * begin : last - each * begin]
    return np.ascontiguousarray(flat.T)


def layout_of(bits: int, middle: bool, span: int) -> Layout:
    """What keeps such codes. middle: every zero is the middle of the codes; span: 32s that share a scale."""
    if middle:
        return Layout("q4" if bits == 4 else "q8")
    return Layout("q4_k" if bits == 4 else "q8_k", span)


def grouped(codes: ByteArray, scales: HalfArray, zeros: ByteArray, layout: Layout, span: int) -> Grouped:
    """w = scale * (code - zero) as rows of `layout_of`. codes [m, K], scales and zeros [m, S]"""
    width = codes.shape[1]
    groups = -(-width // GROUP_SIZE)
    if layout.bits == 8:
        codes = codes ^ np.uint8(128)  # as signed numbers: 128 less
    codes = codes.view(np.int8) if layout.bits == 8 else codes
    if not layout.two_level:
        wide = np.repeat(scales, span, axis=1)[:, :groups]
        return Grouped(layout, codes, np.ascontiguousarray(wide))
    lows = (zeros ^ np.uint8(128)).view(np.int8) if layout.bits == 8 else zeros.view(np.int8)
    lows = np.ascontiguousarray(np.repeat(lows, span, axis=1)[:, :groups])
    return Grouped(layout, codes, scales, scales, np.ones(lows.shape, np.int8), lows)


def floats(codes: ByteArray, scales: FloatArray, zeros: ByteArray, group: npt.NDArray[Any]) -> FloatArray:
    """w = scale * (code - zero), with the group of each input: codes [m, K], scales and zeros [m, S], [K]"""
    values = codes.astype(np.float32)
    values -= np.take(zeros.astype(np.float32), group, axis=1, mode="clip")  # in rows, as `values` lies
    values *= np.take(scales, group, axis=1, mode="clip")
    return values


def _e4m3() -> FloatArray:
    """The number of each byte: sign, 4 bits of exponent with bias 7, 3 of mantissa; no infinity, one NaN
    (OCP 8-bit floating point, 2023)."""
    byte = np.arange(256)
    exponent, mantissa = byte >> 3 & 15, byte & 7
    size = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    size[byte & 127 == 127] = np.nan
    return np.where(byte < 128, size, -size).astype(np.float32)


E4M3 = _e4m3()


def fp8_floats(
    codes: ByteArray, scales: FloatArray, first: int, last: int, block: tuple[int, int]
) -> FloatArray:
    """Rows first..last-1 of code * scale, one scale for each block of rows and columns: [M, K], the blocks'
    [ceil(M / rows), ceil(K / columns)] -> float32 [last - first, K]"""
    values = E4M3[codes[first:last]]
    rows, columns = block
    per_row = scales[np.arange(first, last) // rows]  # [m, blocks]
    with np.errstate(over="ignore", invalid="ignore"):  # a damaged file's infinity shows in the result
        values *= np.repeat(per_row, columns, axis=1)[:, : codes.shape[1]]
    return values
