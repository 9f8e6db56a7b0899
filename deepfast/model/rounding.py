"""What it costs to keep a matrix in a format that is only the nearest.

In: matrices of a checkpoint. Out: the relative error of a sample of their rows, and a line for people.
Does not know: file formats, what the error does to answers (`compare` measures that).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..backend.quant import rounded
from ..config import WeightFormat
from .load import keeps, stack_format, stack_matrices
from .shapes import stacks
from .tensors import Matrix
from .weights import Checkpoint

RUNS, ROWS = 8, 8  # a sample of a matrix: so many runs of so many rows
MATRICES = 12  # and of a model


def conversion_error(matrices: Sequence[Matrix], format: WeightFormat | None = None) -> float:
    """|w - kept| / |w| (Frobenius) over a sample of rows; format None: the one that each is kept in, which
    costs nothing where it is lossless. Raises ModelError when a number is none."""
    lost = total = 0.0
    for matrix in matrices:
        kept = format or matrix.stored
        exact = matrix.lossless and kept == matrix.stored
        for first in np.linspace(0, max(matrix.shape[0] - ROWS, 0), RUNS).astype(int).tolist():
            rows = matrix.rows(first, min(first + ROWS, matrix.shape[0]))
            total += float(np.square(rows, dtype=np.float64).sum())
            lost += 0.0 if exact else float(np.square(rows - rounded(rows, kept), dtype=np.float64).sum())
    return math.sqrt(lost / total) if total else 0.0


def conversion_notes(checkpoint: Checkpoint) -> tuple[str, ...]:
    """A line on the matrices that no format holds without loss, if there are any, with the error of keeping
    them in the nearest one."""
    whole = {} if checkpoint.config.packed else stacks(checkpoint.config)
    matrices, lossy = 0, list[Matrix]()
    for name, stack in whole.items():
        parts = stack_matrices(checkpoint, stack) if len(stack.shape) == 2 else []
        matrices += sum(map(len, parts))
        if parts and not keeps(parts, stack_format(name, parts, None)):
            lossy += [matrix for expert in parts for matrix in expert if not matrix.lossless]
    if not lossy:
        return ()
    quantised = checkpoint.config.quantised
    step = -(-len(lossy) // MATRICES)
    error = conversion_error(lossy[::step])
    formats = "/".join(sorted({matrix.stored for matrix in lossy}))
    what = f" ({quantised.name})" if quantised else ""
    return (
        f"{len(lossy)} of {matrices} matrices{what} are converted to {formats}, "
        f"relative error {100 * error:.2g} %",
    )
