"""Random tiny checkpoints in Hugging Face format, written with numpy; equal arguments, equal bytes.

In: an architecture and a seed. Out: a directory with config.json and model.safetensors (or shards).
Does not know: PyTorch, tokenizers, what the model says.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from deepfast.backend.quant import quantise_q8, round_bf16
from deepfast.config import ModelConfig
from deepfast.model.hub import BUNDLED
from deepfast.model.safetensors import write_safetensors
from deepfast.model.shapes import EMBEDDING, HEAD, tensor_shapes

FloatArray = npt.NDArray[np.float32]

LARGE, POOL = 2**20, 4_194_301  # numbers; a prime, so that no two rows of a matrix are cut alike

MODEL_TYPES = {
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3_moe",
    "Qwen2ForCausalLM": "qwen2",
    "LlamaForCausalLM": "llama",
}
PROMPT = tuple((37 * i * i + 11 * i + 5) % 160 for i in range(40))  # what the golden models read
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


class Golden(NamedTuple):
    """A checkpoint whose logits are kept beside the tests."""

    architecture: str
    config: dict[str, Any]


# head_dim differs from hidden / heads, groups of 1, 2 and 4 query heads, widths that are not multiples of 32.
GOLDEN: dict[str, Golden] = {
    "qwen3-tied": Golden("Qwen3ForCausalLM", {"tie_word_embeddings": True, "head_dim": 24}),
    "qwen3-yarn": Golden(
        "Qwen3ForCausalLM",
        {"rope_scaling": YARN, "max_position_embeddings": 128, "rope_theta": 1e4, "hidden_size": 56},
    ),
    "moe-normalised": Golden("Qwen3MoeForCausalLM", {"norm_topk_prob": True}),
    "moe-mixed": Golden(
        "Qwen3MoeForCausalLM", {"norm_topk_prob": False, "mlp_only_layers": [0], "num_key_value_heads": 4}
    ),
    "qwq": Golden("Qwen2ForCausalLM", {"rms_norm_eps": 1e-5, "num_key_value_heads": 1}),
    "llama": Golden("LlamaForCausalLM", {"mlp_bias": True, "attention_bias": True, "intermediate_size": 72}),
}


def hf_config(architecture: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """A tiny config.json of this architecture; `changes` win."""
    config: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": MODEL_TYPES[architecture],
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 160,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "float32",
    }
    if architecture.startswith("Qwen3"):
        config["head_dim"] = 32
    if architecture == "Qwen3MoeForCausalLM":
        config |= {
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 40,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
    return config | dict(changes)


def random_tensors(config: ModelConfig, seed: int) -> Iterator[tuple[str, FloatArray]]:
    """Every tensor of the model: norms near 1, biases small, matrices that keep the size of their input."""
    random = np.random.RandomState(seed)  # a stream that numpy promises never to change
    pool = None
    for number, (name, shape) in enumerate(tensor_shapes(config)):
        if math.prod(shape) < LARGE:
            values = random.standard_normal(shape)
        else:  # cut from one pool, each time from elsewhere: drawing a billion numbers would take a minute
            pool = np.tile(random.standard_normal(POOL).astype(np.float32), 2) if pool is None else pool
            first = 7919 * number % POOL
            values = np.resize(pool[first : first + POOL], shape)
        if name.endswith("norm.weight"):
            values = 1.0 + 0.1 * values
        elif len(shape) == 1:
            values = 0.1 * values
        elif name == HEAD or (name == EMBEDDING and config.tie_word_embeddings):
            values = 3.0 * values / math.sqrt(shape[1])
        elif name != EMBEDDING:
            values = values / math.sqrt(shape[1])
        yield name, values.astype(np.float32)


def encode(name: str, values: FloatArray, dtype: str) -> dict[str, tuple[str, npt.NDArray[Any]]]:
    """A tensor as it lies in a file: dtype F32, F16, BF16, or Q8 (our quantised pair; vectors stay F32)."""
    if dtype == "Q8" and values.ndim == 2:
        codes, scales = quantise_q8(values)
        return {f"{name}.q8": ("I8", codes[:, : values.shape[1]]), f"{name}.scales": ("F16", scales)}
    if dtype == "BF16":
        return {name: ("BF16", (round_bf16(values).view(np.uint32) >> np.uint32(16)).astype(np.uint16))}
    return {name: ("F16", values.astype(np.float16)) if dtype == "F16" else ("F32", values)}


def make_checkpoint(
    path: Path,
    architecture: str = "Qwen3ForCausalLM",
    *,
    seed: int = 0,
    dtype: str = "F32",
    shards: int = 1,
    duplicate_head: bool = False,
    extra: Mapping[str, FloatArray] | None = None,
    **config: Any,
) -> Path:
    """Write a checkpoint and return its directory.

    dtype: F32, F16, BF16 or Q8. duplicate_head: store a copy of the embedding as the head of a tied model.
    extra: more tensors, or other values for known ones. Further keywords are keys of config.json.
    """
    path.mkdir(parents=True, exist_ok=True)
    raw = hf_config(architecture, config)
    if dtype == "Q8":
        raw["quantization_config"] = {"quant_method": "deepfast", "bits": 8, "group_size": 32}
    (path / "config.json").write_text(json.dumps(raw, indent=2), encoding="utf-8")
    changed = dict(extra or {})
    stored: dict[str, tuple[str, npt.NDArray[Any]]] = {}
    for name, values in random_tensors(ModelConfig.from_hf(raw), seed):
        stored |= encode(name, changed.pop(name, values), dtype)
        if duplicate_head and name == EMBEDDING:
            stored |= encode(HEAD, values, dtype)
    for name, values in changed.items():
        stored |= encode(name, values, dtype)
    if shards == 1:
        write_safetensors(path / "model.safetensors", stored)
        return path
    names = sorted(stored)
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        write_safetensors(path / file, {name: stored[name] for name in names[i::shards]})
        weight_map |= dict.fromkeys(names[i::shards], file)
    index = {"metadata": {}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return path


def make_golden(path: Path, name: str) -> Path:
    """The checkpoint of a GOLDEN name."""
    architecture, config = GOLDEN[name]
    return make_checkpoint(path, architecture, seed=sorted(GOLDEN).index(name), **config)


def chat_checkpoint(path: Path, seed: int = 1, **changes: Any) -> Path:
    """A random model that speaks the bundled model's vocabulary."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(BUNDLED / name, path)
    bundled = json.loads((BUNDLED / "config.json").read_text())
    same = {key: bundled[key] for key in ("vocab_size", "eos_token_id")}
    return make_checkpoint(path, seed=seed, **same, **changes)
