"""The decoder: Qwen3, Qwen3-MoE, Qwen2.5 / QwQ and the Llama layout in one forward pass over Backend ops.

In: a Checkpoint to load from; then Batches and a KV cache. Out: logits of the rows that a batch wants.
The layouts differ in which tensors exist (biases, q/k norms, experts): `tensor_shapes` lists them.
Does not know: requests, sampling, kernels, files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ..backend.base import Array, Backend, Batch, KVCache, Weight
from ..config import GROUP_SIZE, KVFormat, ModelConfig, WeightFormat
from ..types import ModelError
from .weights import Checkpoint, Matrix

EMBEDDING, FINAL_NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
DERIVED = (
    "rotary_emb.inv_freq"  # buffers of old checkpoints that follow from config.json; the only ones ignored
)
FIRST_POSITIONS = 4096  # the rotary table starts with so many and grows by doubling

Progress = Callable[[float], None]


def tensor_shapes(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor of a checkpoint, as (name, shape); a tied head is not among them."""
    hidden, dim = config.hidden_size, config.head_dim
    heads = {"q": config.num_heads, "k": config.num_kv_heads, "v": config.num_kv_heads}
    yield EMBEDDING, (config.vocab_size, hidden)
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (hidden,)
        for name, count in heads.items():
            yield f"{prefix}.self_attn.{name}_proj.weight", (count * dim, hidden)
            if config.qkv_bias:
                yield f"{prefix}.self_attn.{name}_proj.bias", (count * dim,)
            if config.qk_norm and name != "v":
                yield f"{prefix}.self_attn.{name}_norm.weight", (dim,)
        yield f"{prefix}.self_attn.o_proj.weight", (hidden, config.num_heads * dim)
        if config.output_bias:
            yield f"{prefix}.self_attn.o_proj.bias", (hidden,)
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
        if layer in config.sparse_layers:
            yield f"{prefix}.mlp.gate.weight", (config.num_experts, hidden)
            for expert in range(config.num_experts):
                yield from _mlp_shapes(
                    f"{prefix}.mlp.experts.{expert}", hidden, config.moe_intermediate_size, False
                )
        else:
            yield from _mlp_shapes(f"{prefix}.mlp", hidden, config.intermediate_size, config.mlp_bias)
    yield FINAL_NORM, (hidden,)
    if not config.tie_word_embeddings:
        yield HEAD, (config.vocab_size, hidden)


def _mlp_shapes(prefix: str, hidden: int, inner: int, bias: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, shape in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):
        yield f"{prefix}.{name}_proj.weight", shape
        if bias:
            yield f"{prefix}.{name}_proj.bias", shape[:1]


def parameter_count(config: ModelConfig) -> int:
    """Parameters of the whole model; a tied head counts once."""
    return sum(math.prod(shape) for _, shape in tensor_shapes(config))


def weight_bytes(config: ModelConfig, format: WeightFormat) -> int:
    """Bytes in memory with matrices in `format`; norms and biases are float32, routers at least bf16."""
    total = 0
    for name, shape in tensor_shapes(config):
        router = name.endswith(".mlp.gate.weight")
        kind: WeightFormat = "f32" if len(shape) == 1 else "bf16" if router and format != "f32" else format
        if kind in ("q8", "q4"):
            groups = shape[0] * -(-shape[1] // GROUP_SIZE)
            total += groups * (GROUP_SIZE * {"q8": 8, "q4": 4}[kind] // 8 + 2)
        else:
            total += math.prod(shape) * {"f32": 4, "bf16": 2}[kind]
    return total


@dataclass(frozen=True, slots=True)
class Dense:
    """gate and up stacked [2F, D], down [D, F]."""

    gate_up: Weight
    gate_up_bias: Array | None
    down: Weight
    down_bias: Array | None


@dataclass(frozen=True, slots=True)
class Experts:
    """The router [E, D]; gate and up stacked [E, 2F, D], down [E, D, F]."""

    router: Weight
    gate_up: Weight
    down: Weight


@dataclass(frozen=True, slots=True)
class Layer:
    """One block: attention and a dense or sparse MLP, each behind its norm [D]."""

    attention_norm: Array
    qkv: Weight  # [(H + 2G) C, D]
    qkv_bias: Array | None
    qk_norms: tuple[Array, Array] | None  # [C], [C]
    output: Weight  # [D, H C]
    output_bias: Array | None
    mlp_norm: Array
    mlp: Dense | Experts


@dataclass(slots=True)
class Decoder:
    """A loaded model. `embedding` and `head` are one object when they are tied."""

    config: ModelConfig
    backend: Backend
    embedding: Weight  # [V, D]
    layers: list[Layer]
    final_norm: Array  # [D]
    head: Weight  # [V, D]
    _rope: Array | None = None  # [positions, 2, C / 2]
    _positions: int = 0

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        backend: Backend,
        format: WeightFormat | None = None,
        progress: Progress | None = None,
    ) -> Decoder:
        """Read and pack every tensor; None keeps each matrix as stored. `progress` gets fractions up to 1.

        Raises ModelError when a tensor is missing, unknown, of another shape, or holds a NaN.
        """
        return _Loader(checkpoint, backend, format, progress or (lambda fraction: None)).decoder()

    def new_cache(self, num_blocks: int, kv: KVFormat) -> KVCache:
        """An empty KV cache of `num_blocks` blocks."""
        c = self.config
        return self.backend.new_cache(c.num_layers, num_blocks, c.num_kv_heads, c.head_dim, kv)

    def forward(self, batch: Batch, cache: KVCache) -> Array:
        """Compute the batch's tokens into the cache and return the logits of its output rows, [L, V]."""
        b, eps = self.backend, self.config.rms_norm_eps
        rope = self._rope_for(int(batch.context_lens.max()))
        next_norms = [*(layer.attention_norm for layer in self.layers[1:]), self.final_norm]
        h = b.embed(batch.token_ids, self.embedding)  # [N, D]
        x = b.rms_norm(h, self.layers[0].attention_norm, eps)  # [N, D]
        for index, (layer, next_norm) in enumerate(zip(self.layers, next_norms, strict=True)):
            qkv = b.linear(x, layer.qkv, layer.qkv_bias)  # [N, (H + 2G) C]
            q = b.store_kv(qkv, layer.qk_norms, rope, eps, cache, index, batch)  # [N, H C]
            x = b.linear(b.attention(q, cache, index, batch), layer.output, layer.output_bias)  # [N, D]
            h, x = b.add_rms_norm(h, x, layer.mlp_norm, eps)
            h, x = b.add_rms_norm(h, self._mlp(x, layer.mlp), next_norm, eps)
        x = b.take(x, batch.output_rows)  # [L, D]
        return b.linear(x, self.head)  # [L, V]

    def _mlp(self, x: Array, mlp: Dense | Experts) -> Array:
        """[N, D] -> [N, D]"""
        b, c = self.backend, self.config
        if isinstance(mlp, Experts):
            router = b.linear(x, mlp.router)  # [N, E]
            return b.moe(x, router, mlp.gate_up, mlp.down, c.num_experts_per_token, c.norm_topk_prob)
        inner = b.swiglu(b.linear(x, mlp.gate_up, mlp.gate_up_bias))  # [N, F]
        return b.linear(inner, mlp.down, mlp.down_bias)

    def _rope_for(self, positions: int) -> Array:
        """The rotary table, grown to hold at least `positions`."""
        if positions > self._positions:
            size = max(FIRST_POSITIONS, 1 << (positions - 1).bit_length())
            self._positions = max(positions, min(size, self.config.max_positions))
            frequencies = self.config.inverse_frequencies()
            self._rope = self.backend.rope_table(frequencies, self.config.rope_scale, self._positions)
        return self._rope


class _Loader:
    """Walks over the tensors in the order of the model, packs them and reports how far it is."""

    def __init__(
        self, checkpoint: Checkpoint, backend: Backend, format: WeightFormat | None, progress: Progress
    ) -> None:
        self.checkpoint, self.backend, self.format, self.progress = checkpoint, backend, format, progress
        self.config = checkpoint.config
        self.shapes = dict(tensor_shapes(self.config))

    def decoder(self) -> Decoder:
        tied = self._tied()
        embedding = self._pack(EMBEDDING)
        head = embedding if tied else self._pack(HEAD)
        self.checkpoint.release()
        self.progress(self.checkpoint.fraction_used)
        layers = [self._layer(f"model.layers.{i}", i) for i in range(self.config.num_layers)]
        final_norm = self._vector(FINAL_NORM)
        unknown = [name for name in self.checkpoint.unused() if not name.endswith(DERIVED)]
        if unknown:
            shown = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
            count = f"{len(unknown)} tensors are" if len(unknown) > 1 else "a tensor is"
            what = f"with {self.config.num_layers} layers of {self.config.architecture}"
            raise ModelError(f"{self.checkpoint.path}: {count} unknown {what}: {shown}.")
        self.progress(1.0)
        return Decoder(self.config, self.backend, embedding, layers, final_norm, head)

    def _tied(self) -> bool:
        """Is the head the embedding? A stored copy counts as used; one that differs is the head itself."""
        if not self.config.tie_word_embeddings:
            return False
        if HEAD not in self.checkpoint:
            return True
        self.shapes[HEAD] = self.shapes[EMBEDDING]
        if _equal(self._matrix(EMBEDDING), self._matrix(HEAD)):
            self.checkpoint.note_used(HEAD)
            return True
        return False

    def _layer(self, prefix: str, index: int) -> Layer:
        attention = f"{prefix}.self_attn"
        norms = None
        if self.config.qk_norm:
            norms = (self._vector(f"{attention}.q_norm.weight"), self._vector(f"{attention}.k_norm.weight"))
        qkv = [f"{attention}.{name}_proj" for name in "qkv"]
        layer = Layer(
            attention_norm=self._vector(f"{prefix}.input_layernorm.weight"),
            qkv=self._pack(*(f"{name}.weight" for name in qkv)),
            qkv_bias=self._vector(*(f"{name}.bias" for name in qkv)) if self.config.qkv_bias else None,
            qk_norms=norms,
            output=self._pack(f"{attention}.o_proj.weight"),
            output_bias=self._vector(f"{attention}.o_proj.bias") if self.config.output_bias else None,
            mlp_norm=self._vector(f"{prefix}.post_attention_layernorm.weight"),
            mlp=(self._experts if index in self.config.sparse_layers else self._dense)(f"{prefix}.mlp"),
        )
        self.checkpoint.release()
        self.progress(min(self.checkpoint.fraction_used, 1.0))
        return layer

    def _dense(self, prefix: str) -> Dense:
        bias = self.config.mlp_bias
        return Dense(
            gate_up=self._pack(f"{prefix}.gate_proj.weight", f"{prefix}.up_proj.weight"),
            gate_up_bias=self._vector(f"{prefix}.gate_proj.bias", f"{prefix}.up_proj.bias") if bias else None,
            down=self._pack(f"{prefix}.down_proj.weight"),
            down_bias=self._vector(f"{prefix}.down_proj.bias") if bias else None,
        )

    def _experts(self, prefix: str) -> Experts:
        experts = [f"{prefix}.experts.{e}" for e in range(self.config.num_experts)]
        gate_up = [
            [self._matrix(f"{e}.gate_proj.weight"), self._matrix(f"{e}.up_proj.weight")] for e in experts
        ]
        down = [[self._matrix(f"{e}.down_proj.weight")] for e in experts]
        router = self._matrix(f"{prefix}.gate.weight")
        return Experts(
            router=self.backend.pack([router], "bf16" if router.stored == "bf16" else "f32"),
            gate_up=self.backend.pack_experts(gate_up, self._format(gate_up[0])),
            down=self.backend.pack_experts(down, self._format(down[0])),
        )

    def _matrix(self, name: str) -> Matrix:
        rows, columns = self.shapes[name]
        return self.checkpoint.matrix(name, (rows, columns))

    def _format(self, parts: list[Matrix]) -> WeightFormat:
        """The format asked for, or the one that keeps all parts without loss."""
        stored = {part.stored for part in parts}
        return self.format or (stored.pop() if len(stored) == 1 else "f32")

    def _pack(self, *names: str) -> Weight:
        """Matrices stacked along their rows."""
        parts = [self._matrix(name) for name in names]
        return self.backend.pack(parts, self._format(parts))

    def _vector(self, *names: str) -> Array:
        """Vectors end to end."""
        parts = [self.checkpoint.vector(name, self.shapes[name][0]) for name in names]
        return self.backend.vector(np.concatenate(parts))


def _equal(a: Matrix, b: Matrix, step: int = 4096) -> bool:
    """Do two matrices of one shape hold the same values?"""
    return all(np.array_equal(a.rows(i, i + step), b.rows(i, i + step)) for i in range(0, a.shape[0], step))
