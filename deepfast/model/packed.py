"""A packed checkpoint: the weights as the kernels read them, written once and memory-mapped ever after.

In: an open Checkpoint, the CPU backend, q4 or q8, a directory that is not there yet. Out: that directory:
config.json that says so, the small files as they were, and one safetensors file with a byte tensor for each
weight of `stacks`, described in its metadata ("q4 1 x 4096 x 1024", or "q4_k/8 1 x 4096 x 1024" with the span
of its scales), and a float32 tensor for each vector.
The bytes are little-endian and the same for every instruction set. Does not know: how a panel looks.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from ..backend.cpu import CpuBackend, Weight
from ..config import GROUP_SIZE, PACKED_LAYOUT
from ..types import UsageError
from .directory import SINGLE, describe_packed
from .load import Prepare, Progress, load_tensors, model_stacks, stack_format, stack_matrices
from .safetensors import write_header
from .small_files import write_small_files
from .weights import Checkpoint


class _Plan(NamedTuple):
    """What the file will hold: weights first, so that each begins on 64 bytes, then vectors."""

    weights: list[tuple[str, str, tuple[int, ...]]]
    vectors: list[tuple[str, str, tuple[int, ...]]]
    metadata: dict[str, str]

    @property
    def bytes(self) -> int:
        """Of the tensors."""
        return sum(size for _, _, (size,) in self.weights) + sum(
            4 * length for _, _, (length,) in self.vectors
        )


def write_packed(
    checkpoint: Checkpoint,
    backend: CpuBackend,
    format: Literal["q4", "q8"],
    out: Path,
    progress: Progress | None = None,
    prepare: Prepare | None = None,
) -> int:
    """Write the directory `out`, complete or not at all; returns the bytes of its weights. Each matrix passes
    through `prepare` twice: to plan the file, and to be packed."""
    check_target(checkpoint, out)
    plan = _plan(checkpoint, backend, format, prepare)
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        free = shutil.disk_usage(part).free
        if free < plan.bytes:
            raise UsageError(
                f"{out} needs {plan.bytes / 1e6:,.0f} MB; its disk has {free / 1e6:,.0f} MB free. "
                "Make room, or name another directory."
            )
        quant = {"quant_method": "deepfast", "bits": int(format[1:]), "group_size": GROUP_SIZE}
        write_small_files(checkpoint, part, {**quant, "layout": PACKED_LAYOUT})
        _write_weights(part / SINGLE, plan, checkpoint, backend, format, progress, prepare)
        part.rename(out)  # over an empty directory, if there is one
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return plan.bytes


def check_target(checkpoint: Checkpoint, out: Path) -> None:
    """Raise UsageError when it is packed already, or there is something where the result shall go."""
    if checkpoint.config.packed:
        raise UsageError(
            f"{checkpoint.path} is packed already, as {checkpoint.stored}. Name the original instead."
        )
    if out.is_dir() and any(out.iterdir()) or out.exists() and not out.is_dir():
        raise UsageError(f"{out} is there already. Remove it, or name another directory.")


def _plan(
    checkpoint: Checkpoint, backend: CpuBackend, format: Literal["q4", "q8"], prepare: Prepare | None
) -> _Plan:
    plan = _Plan([], [], {})
    for name, stack in model_stacks(checkpoint).items():
        if len(stack.shape) == 1:
            plan.vectors.append((name, "F32", stack.shape))
            continue
        rows, columns = stack.shape
        parts, experts = stack_matrices(checkpoint, stack, prepare), len(stack.experts)
        layout = backend.layout_of(parts, stack_format(name, parts, format))
        size = backend.packed_bytes(layout, experts, rows, columns)
        plan.weights.append((name, "U8", (size,)))
        plan.metadata[name] = describe_packed(layout, experts, rows, columns)
    return plan


def _write_weights(
    path: Path,
    plan: _Plan,
    checkpoint: Checkpoint,
    backend: CpuBackend,
    format: Literal["q4", "q8"],
    progress: Progress | None,
    prepare: Prepare | None,
) -> None:
    """Header, weights as they are packed, vectors."""
    vectors, written = [], 0
    with path.open("wb") as file:
        write_header(file, [*plan.weights, *plan.vectors], plan.metadata)
        for _, tensor in load_tensors(checkpoint, backend, format, prepare=prepare):
            if not isinstance(tensor, Weight):
                vectors.append(np.asarray(tensor))
                continue
            file.write(tensor.buffer.data)
            written += tensor.buffer.size
            if progress:
                progress(written / plan.bytes)
        for vector in vectors:
            file.write(vector.astype("<f4").tobytes())
        file.flush()
        os.fsync(file.fileno())
