"""Random tiny models as GGUF files, written with the `gguf` package as llama.cpp's converter writes them.

In: an architecture, changes to config.json, types. Out: a .gguf file (or bytes), the tensors that went in.
Names come from the package's own table; q and k of a Llama are permuted, experts stacked.
Does not know: our reader.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from checkpoints import MODEL_TYPES, hf_config, random_tensors
from gguf.constants import GGML_QUANT_SIZES
from text_fixtures import SIZE

from deepfast.config import ModelConfig
from deepfast.model.hub import BUNDLED
from deepfast.text.files import TextFiles

Kind = gguf.GGMLQuantizationType
ARCHITECTURES = {name: kind.replace("_", "") for name, kind in MODEL_TYPES.items()}
# K-quants need rows of 256 weights; here q is wider than the hidden size, and its heads are grouped.
WIDE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": SIZE,
}


def wide(architecture: str, **changes: Any) -> dict[str, Any]:
    """config.json of a model that llama.cpp can quantise in every way."""
    more: dict[str, Any] = dict(WIDE)
    if architecture.startswith("Qwen3"):
        more["head_dim"] = 128
    if architecture == "Qwen3MoeForCausalLM":
        more["moe_intermediate_size"] = 256
    return hf_config(architecture, more | changes)


def permuted(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k as llama.cpp's converter puts them for architecture `llama`."""
    rows = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return rows.swapaxes(1, 2).reshape(values.shape)


def encoded(values: np.ndarray, kind: Kind) -> np.ndarray:
    """Values in a type that the package can write."""
    return gguf.quants.quantize(values, kind)


def random_blocks(kind: Kind, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Valid blocks of any type, uint8 [rows, bytes]: random codes, scales of a sane size."""
    random = np.random.RandomState(seed)
    weights, nbytes = GGML_QUANT_SIZES[kind]
    if kind in (Kind.F32, Kind.F16, Kind.BF16):
        return encoded(random.standard_normal((rows, columns)).astype(np.float32), kind).view(np.uint8)
    blocks = random.randint(0, 256, (rows, columns // weights, nbytes)).astype(np.uint8)
    scales = {Kind.Q2_K: (80, 82), Kind.Q3_K: (108,), Kind.Q6_K: (208,)}  # elsewhere first in the block
    two = (Kind.Q4_1, Kind.Q5_1, Kind.Q4_K, Kind.Q5_K)
    for at in scales.get(kind, (0, 2) if kind in two else (0,)):
        values = (0.1 * random.standard_normal(blocks.shape[:2])).astype(np.float16)
        blocks[:, :, at : at + 2] = values[..., None].view(np.uint8)
    return blocks.reshape(rows, -1)


def write_keys(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    """What llama.cpp builds a model from."""
    writer.add_context_length(config.max_positions)
    writer.add_block_count(config.num_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.head_dim)
    if config.num_experts:
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_token)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if config.yarn is not None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(config.yarn.factor)
        writer.add_rope_scaling_orig_ctx_len(config.yarn.original_max_position)


def write_tokenizer(writer: gguf.GGUFWriter, folder: Path, size: int, *, pre: str = "qwen2") -> None:
    """The byte-level BPE of a model directory; ids without a token become unused ones."""
    raw = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokens, kinds = [f"[PAD{i}]" for i in range(size)], [int(gguf.TokenType.UNUSED)] * size
    for token, i in raw["model"]["vocab"].items():
        tokens[i], kinds[i] = token, int(gguf.TokenType.NORMAL)
    for added in raw["added_tokens"]:
        kind = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        tokens[added["id"]], kinds[added["id"]] = added["content"], int(kind)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in raw["model"]["merges"]])
    writer.add_eos_token_id(tokens.index(settings["eos_token"]))
    writer.add_add_bos_token(False)
    if template := TextFiles.from_dir(folder).templates.get("default"):
        writer.add_chat_template(template)


def write_model(
    path: Path,
    architecture: str = "Qwen3ForCausalLM",
    *,
    kind: Kind | Callable[[str], Kind] = Kind.F32,
    seed: int = 0,
    rope_factors: np.ndarray | None = None,
    more: Callable[[gguf.GGUFWriter], None] | None = None,
    shard_tensors: int = 0,
    tokenizer: Path | None = BUNDLED,
    **config: Any,
) -> dict[str, np.ndarray]:
    """Write a random model; returns its tensors under Hugging Face names. kind: of matrices, the same for all
    or by name. more: writes further keys. shard_tensors: at most so many in a file (0: one file)."""
    raw = wide(architecture, **config)
    shapes = ModelConfig.from_hf(raw)
    tensors = dict(random_tensors(shapes, seed))
    writer = gguf.GGUFWriter(path, ARCHITECTURES[architecture], split_max_tensors=shard_tensors)
    write_keys(writer, shapes)
    if tokenizer is not None:
        write_tokenizer(writer, tokenizer, shapes.vocab_size)
    if more is not None:
        more(writer)
    model = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == ARCHITECTURES[architecture])
    names = gguf.get_tensor_name_map(model, shapes.num_layers)
    stacks: dict[str, list[np.ndarray]] = {}
    for name, values in tensors.items():
        if architecture == "LlamaForCausalLM" and re.search(r"\.[qk]_proj\.", name):
            heads = shapes.num_heads if ".q_proj." in name else shapes.num_kv_heads
            values = permuted(values, heads)
        stacked = re.sub(r"\.experts\.\d+\.", ".experts.", name)
        stacks.setdefault(stacked, []).append(values)
    if rope_factors is not None:
        writer.add_tensor("rope_freqs.weight", rope_factors.astype(np.float32))
    for name, parts in stacks.items():
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert target is not None, name
        values = np.stack(parts) if ".experts." in name else parts[0]
        chosen = kind if isinstance(kind, Kind) else kind(name)
        if values.ndim == 1 or name.endswith(".mlp.gate.weight"):
            chosen = Kind.F32
        writer.add_tensor(target, encoded(values, chosen), raw_dtype=chosen)
    finish(writer)
    return tensors


def finish(writer: gguf.GGUFWriter) -> None:
    """Write what was added."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
