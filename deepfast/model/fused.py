"""Experts that lie in one tensor, as transformers 5 holds them, under the names of single ones.

In: a Source with `mlp.experts.gate_up_proj` [E, 2F, D] (gates first) and `mlp.experts.down_proj` [E, D, F].
Out: the same with `mlp.experts.7.gate_proj.weight` and its like, each a part of those; nothing is copied.
Does not know: how experts are computed, other ways to stack them (refused by their shape).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from ..config import ModelConfig
from ..types import ModelError
from .directory import STORED_AS, PlainMatrix, SafetensorsSource
from .tensors import FloatArray, Matrix, check_count

_FUSED = re.compile(r"(model\.layers\.(0|[1-9][0-9]{0,5})\.mlp\.experts)\.(gate_up|down)_proj(\.weight)?")


class Slice(NamedTuple):
    """Rows first..last-1 of one expert."""

    fused: str
    expert: int
    first: int
    last: int


class FusedSource:
    """Fused experts as single ones; every other tensor as it is."""

    def __init__(self, plain: SafetensorsSource, config: ModelConfig) -> None:
        self._plain, self.size = plain, plain.size
        self._slices: dict[str, Slice] = {}
        for name in plain.names():
            found = _FUSED.fullmatch(name)
            if found:
                self._split(name, found[1], found[3], config)
        fused = {part.fused for part in self._slices.values()}
        for name in self._slices:
            if plain.has(name):
                raise ModelError(f"{plain.where(name)}: tensor {name} is there twice, alone and among all.")
        self._names = {*self._slices, *(set(plain.names()) - fused)}

    @staticmethod
    def needed(plain: SafetensorsSource) -> bool:
        """Does a checkpoint have fused experts?"""
        return any(_FUSED.fullmatch(name) for name in plain.names())

    def _split(self, name: str, prefix: str, kind: str, config: ModelConfig) -> None:
        experts, hidden, inner = config.num_experts, config.hidden_size, config.moe_intermediate_size
        wanted = (experts, 2 * inner, hidden) if kind == "gate_up" else (experts, hidden, inner)
        entry = self._plain.entry(name)
        if not experts or entry.shape != wanted:
            asks = f"asks for {list(wanted)}" if experts else "has no experts"
            raise ModelError(
                f"{self._plain.where(name)}: tensor {name} has shape {list(entry.shape[:6])}; "
                f"config.json {asks}."
            )
        if entry.dtype not in STORED_AS:
            raise ModelError(
                f"{self._plain.where(name)}: tensor {name} has dtype {entry.dtype}; "
                f"expected {' or '.join(STORED_AS)}."
            )
        check_count(len(self._slices) + 2 * experts, self._plain.where(name))
        parts = {"gate": (0, inner), "up": (inner, 2 * inner)} if kind == "gate_up" else {"down": (0, hidden)}
        for expert in range(experts):
            for part, (first, last) in parts.items():
                self._slices[f"{prefix}.{expert}.{part}_proj.weight"] = Slice(name, expert, first, last)

    def names(self) -> Collection[str]:
        """Every tensor, of fused ones their parts."""
        return self._names

    def where(self, name: str) -> Path:
        """The file that holds it."""
        return self._plain.where(self._slices[name].fused if name in self._slices else name)

    def shape(self, name: str) -> tuple[int, ...]:
        """[M, K] or [n]"""
        if name not in self._slices:
            return self._plain.shape(name)
        fused, _, first, last = self._slices[name]
        return last - first, self._plain.shape(fused)[2]

    def nbytes(self, name: str) -> int:
        """Its share of the file."""
        if name not in self._slices:
            return self._plain.nbytes(name)
        fused, _, first, last = self._slices[name]
        experts, rows, _ = self._plain.shape(fused)
        return self._plain.nbytes(fused) // (experts * rows) * (last - first)

    def kind(self, name: str) -> str:
        """Its dtype."""
        return self._plain.kind(self._slices[name].fused if name in self._slices else name)

    def matrix(self, name: str) -> Matrix:
        """A matrix. Nothing is read yet."""
        if name not in self._slices:
            return self._plain.matrix(name)
        fused, expert, first, last = self._slices[name]
        raw = self._plain.array(fused)[expert, first:last]
        return PlainMatrix(name, raw, STORED_AS[self._plain.entry(fused).dtype], self.where(name))

    def vector(self, name: str) -> FloatArray:
        """float32 [n]"""
        return self._plain.vector(name)

    def release(self) -> None:
        """Let the system drop the file pages that were read."""
        self._plain.release()
