"""What every kind of checkpoint file gives: matrices that are read row by row, and vectors, under the names
that Hugging Face checkpoints use.

In: nothing. Out: the two interfaces that readers of files implement and loading relies on, and the few
conversions that they share. Does not know: any file format, which tensors an architecture needs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..backend.grouped import Grouped, Layout
from ..config import WeightFormat
from ..types import ModelError

FloatArray = npt.NDArray[np.float32]

MAX_TENSORS = 2**17  # of a model, each expert by itself: three times as many as any has


class Matrix(ABC):
    """A matrix [M, K] of a checkpoint, read from its file when its rows are asked for.

    nbytes: in the file. stored: the format that keeps it (q4 and q8 stand for all layouts of 4 and 8 bits).
    lossless: whether that keeps its values as they are, or is only the nearest. layout: how exactly, when it
    is quantised in groups.
    """

    name: str
    shape: tuple[int, int]
    nbytes: int
    stored: WeightFormat
    layout: Layout | None = None
    lossless: bool = True

    @abstractmethod
    def rows(self, first: int, last: int) -> FloatArray:
        """Rows first..last-1 as float32 [last - first, K]. Raises ModelError on a NaN or an infinity."""

    def grouped(self, first: int, last: int) -> Grouped | None:
        """The same rows in `layout`, None when there is none."""
        return None


class Source(Protocol):
    """The stored tensors of a checkpoint under their Hugging Face names, one for each expert also where a
    file holds them stacked. The methods take names that `names` gave, and raise ModelError when the file is
    damaged."""

    size: int  # bytes of all files

    def names(self) -> Collection[str]:
        """Every tensor."""
        ...

    def where(self, name: str) -> Path:
        """The file that holds it, for messages."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """[M, K] or [n]"""
        ...

    def nbytes(self, name: str) -> int:
        """Its bytes in the file."""
        ...

    def kind(self, name: str) -> str:
        """How it is stored, for people."""
        ...

    def matrix(self, name: str) -> Matrix:
        """A matrix. Nothing is read yet."""
        ...

    def vector(self, name: str) -> FloatArray:
        """A norm weight or a bias, [n]."""
        ...

    def release(self) -> None:
        """Let the system drop the file pages that were read."""
        ...


def check_count(tensors: int, path: Path) -> None:
    """Raise ModelError where a file stands for so many tensors that their names alone fill the memory."""
    if tensors > MAX_TENSORS:
        raise ModelError(
            f"{path}: more than {MAX_TENSORS:,} tensors, experts one by one: no model has so many."
        )


def as_float(raw: npt.NDArray[Any]) -> FloatArray:
    """float32, float16 or bfloat16 bits (as uint16) -> float32, in memory of its own."""
    if raw.dtype != np.uint16:
        return np.array(raw, np.float32)
    wide = raw.astype(np.uint32)
    wide <<= np.uint32(16)
    return wide.view(np.float32)


def finite(values: FloatArray, name: str, path: Path) -> FloatArray:
    """The values, unless one of them is none: then the file is damaged."""
    if not np.isfinite(values).all():
        what = "NaN" if np.isnan(values).any() else "an infinity"
        raise ModelError(f"{path}: tensor {name} holds {what}: the file is damaged. Download it again.")
    return values
