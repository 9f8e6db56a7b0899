"""Which tensors a model has: as they are in a checkpoint, and as they are computed with.

In: a ModelConfig. Out: names and shapes, and what follows from them: parameters, bytes, which tensors of a
checkpoint are stacked in one matrix. Does not know: files, values, backends.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from ..config import GROUP_SIZE, ModelConfig, WeightFormat

EMBEDDING, FINAL_NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
FIRST_OUTPUT = "model.layers.0.self_attn.o_proj.weight"

Named = tuple[str, tuple[int, ...]]  # a tensor's name and shape


class Stack(NamedTuple):
    """A tensor of the loaded model: the tensors of a checkpoint that lie in it, one above the other."""

    shape: tuple[int, ...]  # [rows, columns] or [length] of the whole stack, of one expert
    experts: list[list[Named]]  # one list for each expert; a single one of what every token uses
    sparse: bool = False  # are they experts?


_EXPERT = re.compile(r"(?<=\.experts)\.\d+")
_TOGETHER = (("q", "qkv"), ("k", "qkv"), ("v", "qkv"), ("gate", "gate_up"), ("up", "gate_up"))


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


def stacks(config: ModelConfig) -> dict[str, Stack]:
    """Name -> Stack: q, k and v are one matrix, so are gate and up, and each of them for all experts."""
    found: dict[str, dict[int | None, list[Named]]] = {}
    for name, shape in tensor_shapes(config):
        stacked, expert = stacked_name(name)
        found.setdefault(stacked, {}).setdefault(expert, []).append((name, shape))
    result = {}
    for name, experts in found.items():
        shapes = [shape for _, shape in next(iter(experts.values()))]
        whole = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        result[name] = Stack(whole, list(experts.values()), None not in experts)
    return result


def stacked_name(name: str) -> tuple[str, int | None]:
    """The stack that a tensor of a checkpoint lies in, and the number of its expert, if it is one's."""
    expert = _EXPERT.search(name)
    stacked = _EXPERT.sub("", name)
    for one, together in _TOGETHER:
        stacked = stacked.replace(f".{one}_proj.", f".{together}_proj.")
    return stacked, int(expert[0][1:]) if expert else None
