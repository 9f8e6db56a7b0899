"""Which inputs of every matrix matter: the mean square of each column's input over a calibration text.

In: a Checkpoint, a backend, token ids; or a file that was written here. Out: for every matrix a number for
each of its columns (for every expert of its own), and of how many tokens. The error that a rounded weight
causes is, in the mean, its square times this number.
Does not know: how weights are rounded, tokenizers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..backend.base import Array, Backend, Batch, FloatArray, IntArray, KVCache, SampleArgs, Weight
from ..config import KVFormat, WeightFormat
from ..types import ModelError, UsageError
from .load import ROUTER, Progress
from .safetensors import SafetensorsFile, write_safetensors
from .shapes import EMBEDDING, HEAD, stacked_name, tensor_shapes
from .stream import CHUNK, stream
from .weights import Checkpoint

WideArray = npt.NDArray[np.float64]
KIND = "deepfast-imatrix-1"  # in the metadata of the file
LEAST = 1e-6  # of the mean: inputs that were never seen still matter that much


class Watched(NamedTuple):
    """A weight of the backend underneath, and the matrices that lie in it."""

    weight: Weight
    names: tuple[str, ...]


class Importance:
    """Mean squares [K] and counts by name of the matrix; those that share their inputs share the array."""

    def __init__(self, means: dict[str, FloatArray], counts: dict[str, int], tokens: int) -> None:
        self.means, self.counts, self.tokens = means, counts, tokens

    def of(self, name: str, columns: int) -> FloatArray | None:
        """What each column of a matrix counts, float32 [K], its mean 1; None where nothing ever came in.

        Raises UsageError when the matrix has other columns than the one that was calibrated."""
        means = self.means.get(name)
        if means is None or not self.counts[name] or not means.any():
            return None
        if len(means) != columns:
            raise UsageError(
                f"the importance matrix has {len(means)} columns for {name}, the model {columns}: "
                "it belongs to another model."
            )
        wide = means.astype(np.float64)
        return np.asarray(np.maximum(wide / wide.mean(), LEAST), np.float32)

    def check(self, checkpoint: Checkpoint) -> None:
        """Raise UsageError unless this belongs to the model: it knows every matrix that reads activations."""
        config = checkpoint.config
        for name, shape in tensor_shapes(config):
            if len(shape) == 2 and name != EMBEDDING and not name.endswith(ROUTER):
                if name not in self.means:
                    raise UsageError(f"the importance matrix knows no {name}: it belongs to another model.")
                self.of(name, shape[1])

    def save(self, path: Path) -> None:
        """Write a safetensors file: for every stack NAME the mean squares [E, K] and NAME.count [E]."""
        rows: dict[str, list[str]] = {}
        for name in self.means:
            stack, expert = stacked_name(name)
            if len(rows.setdefault(stack, [])) == (expert or 0):
                rows[stack].append(name)
        stored: dict[str, tuple[str, npt.NDArray[Any]]] = {}
        for stack, names in rows.items():
            stored[stack] = "F32", np.stack([self.means[name] for name in names])
            stored[f"{stack}.count"] = "I64", np.array([self.counts[name] for name in names], np.int64)
        write_safetensors(path, stored, {"kind": KIND, "tokens": str(self.tokens)})

    @classmethod
    def load(cls, path: Path, checkpoint: Checkpoint) -> Importance:
        """Read what `save` wrote. Raises UsageError for what is no such file, or of another model."""
        stored = _open(path)
        means, counts = dict[str, FloatArray](), dict[str, int]()
        config = checkpoint.config
        head = HEAD, (config.vocab_size, config.hidden_size)  # a tied model may have one of its own
        for name, shape in [*tensor_shapes(config), head]:
            stack, expert = stacked_name(name)
            if len(shape) != 2 or stack not in stored.entries:
                continue
            values, seen = _pair(stored, stack)
            row = expert or 0
            if row < len(values):
                means[name], counts[name] = values[row], int(seen[row])
        tokens = stored.metadata.get("tokens", "")
        found = cls(means, counts, int(tokens) if tokens.isdecimal() and len(tokens) < 19 else 0)
        found.check(checkpoint)
        return found


def calibrate(
    checkpoint: Checkpoint,
    backend: Backend,
    ids: Sequence[int],
    format: WeightFormat | None = None,
    progress: Progress | None = None,
) -> Importance:
    """Run a text through the model, CHUNK tokens at a time, and see what comes into every matrix.

    Raises UsageError for a text without tokens, ModelError when the activations are not finite."""
    if not ids:
        raise UsageError("the calibration text has no tokens. Give a longer text.")
    watcher = Watcher(backend)
    pieces = [ids[first : first + CHUNK] for first in range(0, len(ids), CHUNK)]
    rows, head = stream(checkpoint, watcher, pieces, format, progress)
    for x in rows:
        watcher.see(head.names, x)
    means, counts = dict[str, FloatArray](), dict[str, int]()
    for names, (total, count) in watcher.seen.items():
        if not np.isfinite(total).all():
            raise ModelError(f"{names[0]}: its inputs overflow: the weights are damaged.")
        values = np.asarray(total / max(count, 1), np.float32)
        means |= dict.fromkeys(names, values)
        counts |= dict.fromkeys(names, count)
    return Importance(means, counts, len(ids))


class Watcher:
    """Implements `Backend` by handing every op to another one, and notes what comes into each matrix.

    An MLP is done in pieces, so that the inputs of its second matrix are seen; experts lie apart.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.seen: dict[tuple[str, ...], tuple[WideArray, int]] = {}  # names -> sum of squares [K], rows

    def see(self, names: tuple[str, ...], x: Array) -> None:
        """Rows [N, K] go into these matrices."""
        values = self.backend.to_numpy(x)
        total, count = self.seen.get(names, (0.0, 0))
        self.seen[names] = total + np.square(values, dtype=np.float64).sum(axis=0), count + len(values)

    def vector(self, values: FloatArray) -> Array:
        """[D]"""
        return self.backend.vector(values)

    def pack(self, parts: Sequence[Any], format: WeightFormat) -> Watched:
        """The weight, with the names of its parts."""
        return Watched(self.backend.pack(parts, format), tuple(part.name for part in parts))

    def pack_experts(self, experts: Sequence[Sequence[Any]], format: WeightFormat) -> list[Watched]:
        """A weight for each expert."""
        packed = [self.pack(parts, format) for parts in experts]
        for one in packed:  # known, though perhaps nothing ever comes in
            self.seen[one.names] = np.zeros(experts[0][0].shape[1]), 0
        return packed

    def mapped(self, matrix: Any) -> Weight:
        """Refused: what is packed is not quantised again."""
        raise UsageError(f"{matrix.name} is packed already. Calibrate with the original.")

    def new_cache(self, layers: int, blocks: int, kv_heads: int, head_dim: int, format: KVFormat) -> KVCache:
        """As underneath."""
        return self.backend.new_cache(layers, blocks, kv_heads, head_dim, format)

    def touch(self, cache: KVCache, layer: int, blocks: Sequence[int]) -> None:
        """As underneath."""
        self.backend.touch(cache, layer, blocks)

    def embed(self, token_ids: IntArray, table: Watched) -> Array:
        """[N], [V, D] -> [N, D]; rows are looked up, nothing goes into the matrix."""
        return self.backend.embed(token_ids, table.weight)

    def rms_norm(self, x: Array, weight: Array, eps: float) -> Array:
        """[N, D], [D] -> [N, D]"""
        return self.backend.rms_norm(x, weight, eps)

    def add_rms_norm(self, x: Array, y: Array, weight: Array, eps: float) -> tuple[Array, Array]:
        """[N, D], [N, D], [D] -> [N, D] each"""
        return self.backend.add_rms_norm(x, y, weight, eps)

    def linear(self, x: Array, w: Watched, bias: Array | None = None) -> Array:
        """[N, K], [M, K], [M] -> [N, M]"""
        self.see(w.names, x)
        return self.backend.linear(x, w.weight, bias)

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
        """[N, (H + 2G) C] -> [N, H C]"""
        return self.backend.store_kv(qkv, norms, rope, eps, cache, layer, batch)

    def rope_table(self, inverse_frequencies: Sequence[float], scale: float, positions: int) -> Array:
        """[positions, 2, C / 2]"""
        return self.backend.rope_table(inverse_frequencies, scale, positions)

    def attention(self, q: Array, cache: KVCache, layer: int, batch: Batch) -> Array:
        """[N, H C] -> [N, H C]"""
        return self.backend.attention(q, cache, layer, batch)

    def mlp(
        self, x: Array, gate_up: Watched, gate_up_bias: Array | None, down: Watched, down_bias: Array | None
    ) -> Array:
        """[N, D] -> [N, D]"""
        inner = _swiglu(self.backend.to_numpy(self.linear(x, gate_up, gate_up_bias)))
        return self.linear(inner, down, down_bias)

    def moe(
        self,
        x: Array,
        router: Array,
        gate_up: Sequence[Watched],
        down: Sequence[Watched],
        top_k: int,
        normalise: bool,
    ) -> FloatArray:
        """[N, D], router logits [N, E] -> [N, D], expert by expert"""
        rows_in = self.backend.to_numpy(x)
        chosen, weights = _route(self.backend.to_numpy(router), top_k, normalise)
        out = np.zeros(rows_in.shape, np.float64)
        for expert in np.unique(chosen):
            rows, slots = np.nonzero(chosen == expert)
            y = self.mlp(np.ascontiguousarray(rows_in[rows]), gate_up[expert], None, down[expert], None)
            out[rows] += weights[rows, slots, None] * self.backend.to_numpy(y)
        return out.astype(np.float32)

    def take(self, x: Array, rows: IntArray | Sequence[int]) -> Array:
        """[N, D], [L] -> [L, D]"""
        return self.backend.take(x, rows)

    def sample(self, logits: Array, args: Sequence[SampleArgs], num_valid: int) -> list[int]:
        """[L, V] -> L token ids"""
        return self.backend.sample(logits, args, num_valid)

    def log_probs(
        self, logits: Array, tokens: Sequence[int], top: int, num_valid: int
    ) -> list[tuple[float, list[tuple[int, float]]]]:
        """As underneath."""
        return self.backend.log_probs(logits, tokens, top, num_valid)

    def to_numpy(self, x: Array) -> FloatArray:
        """[N, D] float32"""
        return self.backend.to_numpy(x)


def _swiglu(gate_up: FloatArray) -> FloatArray:
    """[N, 2F] -> silu(gate) * up [N, F]"""
    gate, up = np.split(gate_up, 2, axis=1)
    return np.ascontiguousarray(gate * (0.5 + 0.5 * np.tanh(0.5 * gate)) * up, np.float32)


def _route(logits: FloatArray, top_k: int, normalise: bool) -> tuple[npt.NDArray[np.intp], WideArray]:
    """Router logits [N, E] -> the experts of each row [N, top_k] and what they weigh."""
    wide = logits.astype(np.float64)
    shares = np.exp(wide - wide.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    chosen = np.argsort(-shares, axis=1, kind="stable")[:, :top_k]
    weights = np.take_along_axis(shares, chosen, axis=1)
    return chosen, weights / weights.sum(axis=1, keepdims=True) if normalise else weights


def _open(path: Path) -> SafetensorsFile:
    """A file of `save`, by its metadata."""
    if path.suffix in (".gguf", ".dat", ".imatrix"):
        raise UsageError(
            f"{path}: importance matrices of llama.cpp are not read. "
            "Make one here: deepfast quantize --calibrate TEXT --imatrix NEW_FILE."
        )
    try:
        stored = SafetensorsFile(path)
    except ModelError as error:
        raise UsageError(f"no importance matrix: {error}") from error
    if stored.metadata.get("kind") != KIND:
        raise UsageError(f"{path} is no importance matrix: its metadata does not say kind {KIND!r}.")
    return stored


def _pair(stored: SafetensorsFile, stack: str) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """Mean squares [E, K] and counts [E] of one stack."""
    known = {name: stored.entries.get(name) for name in (stack, f"{stack}.count")}
    values, seen = known.values()
    good = values is not None and values.dtype == "F32" and len(values.shape) == 2
    if not good or values is None or seen is None or (seen.dtype, seen.shape) != ("I64", values.shape[:1]):
        raise UsageError(f"{stored.path} is damaged: {stack} has no means [E, K] with counts [E].")
    means, counts = stored.array(stack), stored.array(f"{stack}.count")
    if not np.isfinite(means).all() or (means < 0).any() or (counts < 0).any():
        raise UsageError(f"{stored.path} is damaged: {stack} holds a negative number, a NaN or an infinity.")
    return means, counts
