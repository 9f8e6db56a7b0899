"""What it costs to keep a matrix in a format that is only the nearest.

In: matrices of a checkpoint. Out: the relative error of a sample of their rows, and a line for people.
Does not know: file formats, what the error does to answers (`compare` measures that).
"""

from __future__ import annotations

import math

import numpy as np

from ..backend.quant import rounded
from ..config import WeightFormat
from .tensors import Matrix

RUNS, ROWS = 8, 8  # a sample: so many runs of so many rows


def conversion_error(matrix: Matrix, format: WeightFormat | None = None) -> float:
    """|w - kept| / |w| (Frobenius) over a sample of rows; format None: the one that the matrix is kept in.
    Raises ModelError when a number is none."""
    format = format or matrix.stored
    if matrix.lossless and format == matrix.stored:
        return 0.0
    lost = total = 0.0
    for first in np.linspace(0, max(matrix.shape[0] - ROWS, 0), RUNS).astype(int).tolist():
        rows = matrix.rows(first, min(first + ROWS, matrix.shape[0]))
        lost += float(np.square(rows - rounded(rows, format), dtype=np.float64).sum())
        total += float(np.square(rows, dtype=np.float64).sum())
    return math.sqrt(lost / total) if total else 0.0
