"""The decoder: Qwen3, Qwen3-MoE, Qwen2.5 / QwQ and the Llama layout in one forward pass over Backend ops.

In: a Checkpoint to load from; then Batches and a KV cache. Out: logits of the rows that a batch wants.
The layouts differ in which tensors exist (biases, q/k norms, experts): shapes.py lists them.
Does not know: requests, sampling, kernels, files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..backend.base import Array, Backend, Batch, KVCache, Weight
from ..config import KVFormat, ModelConfig, WeightFormat
from .load import Progress, load_tensors
from .shapes import EMBEDDING, FINAL_NORM, HEAD
from .weights import Checkpoint

FIRST_POSITIONS = 4096  # the rotary table starts with so many and grows by doubling


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
    _next_norms: list[Array] = field(init=False)  # of the layer after each, at last the final one

    def __post_init__(self) -> None:
        """The norms in the order in which sums are normalised."""
        self._next_norms = [*(layer.attention_norm for layer in self.layers[1:]), self.final_norm]

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
        tensors = dict(load_tensors(checkpoint, backend, format, progress))
        return _assemble(checkpoint.config, backend, tensors)

    def new_cache(self, num_blocks: int, kv: KVFormat) -> KVCache:
        """An empty KV cache of `num_blocks` blocks."""
        c = self.config
        return self.backend.new_cache(c.num_layers, num_blocks, c.num_kv_heads, c.head_dim, kv)

    def forward(self, batch: Batch, cache: KVCache) -> Array:
        """Compute the batch's tokens into the cache and return the logits of its output rows, [L, V]."""
        b = self.backend
        rope = self.rope_for(max(batch.context_lens.tolist()))
        h = b.embed(batch.token_ids, self.embedding)  # [N, D]
        x = b.rms_norm(h, self.layers[0].attention_norm, self.config.rms_norm_eps)  # [N, D]
        for index in range(len(self.layers)):
            h, x = self.pass_layer(index, h, x, rope, cache, batch)
        x = b.take(x, batch.output_rows)  # [L, D]
        return b.linear(x, self.head)  # [L, V]

    def pass_layer(
        self, index: int, h: Array, x: Array, rope: Array, cache: KVCache, batch: Batch
    ) -> tuple[Array, Array]:
        """The residual stream and its norm, [N, D] each, before a layer -> behind it, with the next norm."""
        b, eps, layer = self.backend, self.config.rms_norm_eps, self.layers[index]
        qkv = b.linear(x, layer.qkv, layer.qkv_bias)  # [N, (H + 2G) C]
        q = b.store_kv(qkv, layer.qk_norms, rope, eps, cache, index, batch)  # [N, H C]
        x = b.linear(b.attention(q, cache, index, batch), layer.output, layer.output_bias)  # [N, D]
        h, x = b.add_rms_norm(h, x, layer.mlp_norm, eps)
        return b.add_rms_norm(h, self._mlp(x, layer.mlp), self._next_norms[index], eps)

    def _mlp(self, x: Array, mlp: Dense | Experts) -> Array:
        """[N, D] -> [N, D]"""
        b, c = self.backend, self.config
        if isinstance(mlp, Experts):
            router = b.linear(x, mlp.router)  # [N, E]
            return b.moe(x, router, mlp.gate_up, mlp.down, c.num_experts_per_token, c.norm_topk_prob)
        return b.mlp(x, mlp.gate_up, mlp.gate_up_bias, mlp.down, mlp.down_bias)

    def rope_for(self, positions: int) -> Array:
        """The rotary table, grown to hold at least `positions`."""
        if positions > self._positions:
            size = max(FIRST_POSITIONS, 1 << (positions - 1).bit_length())
            self._positions = max(positions, min(size, self.config.max_positions))
            frequencies = self.config.inverse_frequencies()
            self._rope = self.backend.rope_table(frequencies, self.config.rope_scale, self._positions)
        return self._rope


def _assemble(config: ModelConfig, backend: Backend, tensors: Mapping[str, Any]) -> Decoder:
    """Each tensor to its place. A tied head is the embedding, unless there is a head of its own."""
    embedding = tensors[EMBEDDING]
    layers = [make_layer(config, tensors, f"model.layers.{i}") for i in range(config.num_layers)]
    return Decoder(config, backend, embedding, layers, tensors[FINAL_NORM], tensors.get(HEAD, embedding))


def make_layer(config: ModelConfig, tensors: Mapping[str, Any], prefix: str) -> Layer:
    """One layer from the tensors that `load_tensors` gave for it."""
    attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    norms = (f"{attention}.q_norm.weight", f"{attention}.k_norm.weight") if config.qk_norm else ()
    router = tensors.get(f"{mlp}.gate.weight")
    return Layer(
        attention_norm=tensors[f"{prefix}.input_layernorm.weight"],
        qkv=tensors[f"{attention}.qkv_proj.weight"],
        qkv_bias=tensors.get(f"{attention}.qkv_proj.bias"),
        qk_norms=(tensors[norms[0]], tensors[norms[1]]) if norms else None,
        output=tensors[f"{attention}.o_proj.weight"],
        output_bias=tensors.get(f"{attention}.o_proj.bias"),
        mlp_norm=tensors[f"{prefix}.post_attention_layernorm.weight"],
        mlp=Dense(
            gate_up=tensors[f"{mlp}.gate_up_proj.weight"],
            gate_up_bias=tensors.get(f"{mlp}.gate_up_proj.bias"),
            down=tensors[f"{mlp}.down_proj.weight"],
            down_bias=tensors.get(f"{mlp}.down_proj.bias"),
        )
        if router is None
        else Experts(
            router=router,
            gate_up=tensors[f"{mlp}.experts.gate_up_proj.weight"],
            down=tensors[f"{mlp}.experts.down_proj.weight"],
        ),
    )
