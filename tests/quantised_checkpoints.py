"""Small checkpoints as tools for AWQ, GPTQ, FP8 and compressed-tensors write them, each with a plain twin.

The packing is written here from the descriptions of the formats, without the package's own code.
In: a form, an architecture. Out: two directories. Does not know: how the package reads them.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import hf_config, random_tensors

from deepfast.config import ModelConfig
from deepfast.model.safetensors import write_safetensors

SIZES = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "moe_intermediate_size": 128,
    "num_experts": 4,
}
Stored = dict[str, tuple[str, np.ndarray]]


@dataclass(frozen=True)
class Form:
    """method: awq, gptq, fp8, packed (of compressed-tensors). group: inputs per scale, -1 for all. zero:
    "middle", or "any". act_order: the inputs of a group lie anywhere. version: gptq's checkpoint_format.
    scales: their dtype. block: fp8's, None for the whole tensor."""

    method: str
    bits: int = 4
    group: int = 32
    zero: str = "any"
    act_order: bool = False
    version: str = "gptq"
    scales: str = "F16"
    block: tuple[int, int] | None = (128, 128)

    @property
    def config(self) -> dict[str, Any]:
        """quantization_config as the tools write it."""
        if self.method == "awq":
            middle = self.zero == "middle"
            return {
                "quant_method": "awq", "bits": 4, "group_size": self.group, "version": "gemm",
                "zero_point": not middle, "modules_to_not_convert": None,
            }  # fmt: skip
        if self.method == "gptq":
            return {
                "quant_method": "gptq", "bits": self.bits, "group_size": self.group, "damp_percent": 0.01,
                "desc_act": self.act_order, "sym": self.zero == "middle", "true_sequential": True,
                "checkpoint_format": self.version, "pack_dtype": "int32", "lm_head": False,
                "meta": {"quantizer": ["gptqmodel:2.2.0"]},
            }  # fmt: skip
        if self.method == "packed":
            strategy = {"strategy": "channel"} if self.group == -1 else {"strategy": "group"}
            order = {"actorder": "group" if self.act_order else None}
            weights = {"num_bits": self.bits, "type": "int", "symmetric": True, **strategy, **order}
            group = {"weights": weights | {"group_size": None if self.group == -1 else self.group}}
            return {
                "quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
                "config_groups": {"group_0": group | {"input_activations": None, "targets": ["Linear"]}},
                "kv_cache_scheme": None, "quantization_status": "compressed",
            }  # fmt: skip
        block = None if self.block is None else list(self.block)
        return {
            "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": block,
            "modules_to_not_convert": ["lm_head"],
        }  # fmt: skip


def words(columns: np.ndarray, bits: int, order: tuple[int, ...]) -> np.ndarray:
    """[R, C] small numbers -> int32 [R, C bits / 32]: number order[p] of each run stands at bits p * bits."""
    each = 32 // bits
    result = np.zeros((columns.shape[0], columns.shape[1] // each), np.int64)
    for place, number in enumerate(order):
        result |= columns[:, number::each].astype(np.int64) << (place * bits)
    return result.astype(np.uint32).view(np.int32)


def in_order(bits: int) -> tuple[int, ...]:
    """GPTQ's order."""
    return tuple(range(32 // bits))


AWQ = (0, 2, 4, 6, 1, 3, 5, 7)


def bytes_as_floats(codes: np.ndarray) -> np.ndarray:
    """E4M3 by its definition, number by number."""
    table = []
    for byte in range(256):
        sign, exponent, mantissa = byte >> 7, (byte >> 3) & 15, byte & 7
        value = mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10)
        table.append(math.nan if byte & 127 == 127 else -value if sign else value)
    return np.array(table, np.float32)[codes]


def quantise(
    name: str, values: np.ndarray, form: Form, random: np.random.RandomState
) -> tuple[Stored, np.ndarray]:
    """The tensors of a quantised matrix, and what they stand for; `values` only give the size."""
    base, (m, k) = name.removesuffix(".weight"), values.shape
    size = float(np.abs(values).max())
    if form.method == "fp8":
        return _fp8(name, (m, k), size, form, random)
    group = k if form.group == -1 else form.group
    groups, top = math.ceil(k / group), 2**form.bits
    codes = random.randint(0, top, (m, k))
    zeros = np.full((m, groups), top // 2)
    if form.zero == "any":
        zeros = random.randint(1 if form.version == "gptq" else 0, top, (m, groups))
    scales = (size / top * (1 + random.uniform(size=(m, groups)))).astype(np.float16)
    if form.scales == "BF16":
        scales = np.float16(1 / 64) * (1 + random.randint(0, 100, (m, groups)) / 128).astype(np.float16)
    wide = scales.astype(np.float32)
    if form.scales == "F32":
        wide = wide * np.float32(1.0001)
    index = np.arange(k) // group
    if form.act_order:
        index = random.permutation(index)
    kept = wide[:, index] * (codes - zeros[:, index]).astype(np.float32)
    if form.method == "packed":
        stored = {
            f"{base}.weight_packed": ("I32", words(codes, form.bits, in_order(form.bits))),
            f"{base}.weight_scale": _floats(wide, form.scales),
            f"{base}.weight_shape": ("I64", np.array([m, k], np.int64)),
        }
        return stored | (
            {f"{base}.weight_g_idx": ("I32", index.astype(np.int32))} if form.act_order else {}
        ), kept
    stored: Stored = {f"{base}.scales": _floats(wide.T, form.scales)}
    if form.method == "awq":
        stored[f"{base}.qweight"] = ("I32", words(codes.T, 4, AWQ))
        stored[f"{base}.qzeros"] = ("I32", words(zeros.T, 4, AWQ))
        return stored, kept
    stored[f"{base}.qweight"] = ("I32", words(codes, form.bits, in_order(form.bits)).T)
    less = 1 if form.version == "gptq" else 0
    stored[f"{base}.qzeros"] = ("I32", words(zeros.T - less, form.bits, in_order(form.bits)))
    stored[f"{base}.g_idx"] = ("I32", index.astype(np.int32))
    stored[f"{base}.bias"] = ("F16", np.zeros(m, np.float16))
    return stored, kept


def _fp8(
    name: str, shape: tuple[int, int], size: float, form: Form, random: np.random.RandomState
) -> tuple[Stored, np.ndarray]:
    codes = random.randint(0, 256, shape).astype(np.uint8)
    codes[codes & 127 >= 120] = 56  # no NaN, and nothing far larger than the rest
    block = form.block or shape
    grid = (math.ceil(shape[0] / block[0]), math.ceil(shape[1] / block[1]))
    scales = (size / 240 * (1 + random.uniform(size=grid))).astype(np.float32)
    if form.scales == "BF16":
        scales = (scales.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    wide = np.repeat(np.repeat(scales, block[0], axis=0), block[1], axis=1)[: shape[0], : shape[1]]
    kind, raw = _floats(scales, form.scales)
    suffix = "scale_inv" if form.block else "scale"
    stored = {
        name: ("F8_E4M3", codes),
        f"{name}_{suffix}": (kind, raw if form.block else raw.reshape(())),
    }
    return stored, bytes_as_floats(codes) * wide


def _floats(values: np.ndarray, dtype: str) -> tuple[str, np.ndarray]:
    values = np.ascontiguousarray(values, np.float32)
    if dtype == "BF16":
        return dtype, (values.view(np.uint32) >> 16).astype(np.uint16)
    return dtype, values.astype(np.float16 if dtype == "F16" else np.float32)


def make_pair(
    path: Path, form: Form, architecture: str = "Qwen3ForCausalLM", **changes: Any
) -> tuple[Path, Path]:
    """(quantised, plain) directories under `path`. Embedding, head, router and norms stay plain in both, and
    so do the matrices of layer 0's keys."""
    raw = hf_config(architecture, {**SIZES, **changes})
    random = np.random.RandomState(5)
    if form.method == "fp8" and form.scales == "F16":
        form = replace(form, scales="F32")
    quantised: Stored = {}
    plain: Stored = {}
    for name, values in random_tensors(ModelConfig.from_hf(raw), 3):
        plain[name] = ("F32", values)
        if not name.endswith("_proj.weight") or "layers.0.self_attn.k_proj" in name:
            quantised[name] = ("F32", values)
            continue
        stored, kept = quantise(name, values, form, random)
        quantised = {**stored, **quantised}  # a bias of the model's own goes before the zeros of the tools
        plain[name] = ("F32", kept)
    for folder, config, tensors in (
        ("quantised", raw | {"quantization_config": form.config}, quantised),
        ("plain", raw, plain),
    ):
        (path / folder).mkdir(parents=True)
        (path / folder / "config.json").write_text(json.dumps(config))
        write_safetensors(path / folder / "model.safetensors", tensors)
    return path / "quantised", path / "plain"
