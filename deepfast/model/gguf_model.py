"""A GGUF model as a checkpoint: its metadata as ModelConfig, its tensors under their Hugging Face names.

In: a .gguf file (or any file of a split model). Out: ModelConfig, a Source, the ids that end an answer, the
texts. Stacked experts are given one by one; the rows of q and k that converters reorder for architecture
`llama` are put back in order, block by block and without loss.
Names and keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and gguf-py's constants.py.
Does not know: the bytes of the format, the bits of a block, how tokens are read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..backend.grouped import Grouped
from ..config import ModelConfig, WeightFormat
from ..text.files import TextFiles
from ..types import ModelError
from . import gguf_blocks
from .gguf import GgufFile, TensorInfo, open_shards, scalar, shown
from .gguf_text import end_ids, text_files
from .tensors import FloatArray, Matrix, check_count, finite

ARCHITECTURES = {
    "qwen3": "Qwen3ForCausalLM",
    "qwen3moe": "Qwen3MoeForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "llama": "LlamaForCausalLM",
}
EMBEDDING, HEAD, ROPE_FACTORS = "token_embd.weight", "output.weight", "rope_freqs.weight"
_OUTER = {
    EMBEDDING: "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    HEAD: "lm_head.weight",
}
_INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
}
_STACKED = {"ffn_gate_exps": "gate_proj", "ffn_up_exps": "up_proj", "ffn_down_exps": "down_proj"}
_BLOCK = re.compile(r"blk\.(\d{1,6})\.([a-z_]+)\.(weight|bias)")
_PLAIN: dict[str, WeightFormat] = {"F32": "f32", "F16": "f32", "BF16": "bf16"}
# What other models of these architectures may ask for, and the values that mean nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("attention.sliding_window", "attention.max_alibi_bias", "attention.clamp_kqv"), (0,)),
    **dict.fromkeys(("attention.scale", "attn_logit_softcapping", "final_logit_softcapping"), (0,)),
    **dict.fromkeys(("expert_shared_count", "leading_dense_block_count", "nextn_predict_layers"), (0,)),
    **dict.fromkeys(("logit_scale", "residual_scale", "embedding_scale", "expert_weights_scale"), (0, 1)),
    **dict.fromkeys(("expert_gating_func", "expert_group_count", "interleave_moe_layer_step"), (0, 1)),
    **dict.fromkeys(("rope.scaling.yarn_log_multiplier", "pooling_type"), (0,)),
    **dict.fromkeys(("attention.causal",), (True,)),
    **dict.fromkeys(("use_parallel_residual", "swin_norm"), (False,)),
}


def open_gguf(path: Path) -> tuple[ModelConfig, GgufSource, tuple[int, ...], TextFiles]:
    """Everything a Checkpoint is made of. Raises ModelError when the file is damaged or of no known kind."""
    files = open_shards(path)
    metadata = files[0].metadata
    infos = {name: info for file in files for name, info in file.tensors.items()}
    _check_types(path, infos)
    config = _config(path, metadata, infos)
    config = _with_rope_factors(config, files)
    config = replace(config, eos_ids=end_ids(path, metadata))
    return config, GgufSource(files, config), config.eos_ids, text_files(path, metadata, config.vocab_size)


def _check_types(path: Path, infos: Mapping[str, TensorInfo]) -> None:
    for name, info in infos.items():
        if info.kind not in gguf_blocks.READ:
            raise ModelError(
                f"{path}: tensor {shown(name)} is {info.kind}, which is not read. Get the model as one of "
                f"{', '.join(gguf_blocks.READ)} (Q4_K_M and the like mix these)."
            )


class _Keys:
    """The metadata of one architecture, with the types that it must have."""

    def __init__(self, path: Path, metadata: Mapping[str, Any], architecture: str) -> None:
        self.path, self._metadata, self._architecture = path, metadata, architecture

    def get(self, name: str) -> Any:
        """A value; an array of equal numbers (one for each layer) counts as that number."""
        value = self._metadata.get(f"{self._architecture}.{name}")
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            return value[0].item()
        return scalar(self._metadata, f"{self._architecture}.{name}")

    def number(self, name: str, missing: float | None = None) -> Any:
        """A number, whole or not; `missing` where there is none."""
        value = self.get(name)
        if value is None and missing is not None:
            return missing
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.bad(name, "expected one number")
        # Floats are stored in single precision: 1e-06, not 9.999999974752427e-07.
        return float(str(np.float32(value))) if isinstance(value, float) and abs(value) < 3e38 else value

    def bad(self, name: str, expected: str) -> ModelError:
        """What is wrong with a key."""
        found = shown(self.get(name))
        return ModelError(f"{self.path}: metadata {self._architecture}.{name} is {found}; {expected}.")


def _config(path: Path, metadata: Mapping[str, Any], infos: Mapping[str, TensorInfo]) -> ModelConfig:
    """The metadata as config.json would say it, checked by ModelConfig.from_hf."""
    kind = scalar(metadata, "general.type")
    if kind not in ("model", None):
        raise ModelError(f"{path} holds {shown(kind)}, not a model. Name the model's own file.")
    architecture = scalar(metadata, "general.architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ModelError(f"{path}: architecture {shown(architecture)} is unknown; expected one of {known}.")
    keys = _Keys(path, metadata, architecture)
    for name, neutral in _NEUTRAL.items():
        if (value := keys.get(name)) is not None and not any(value is n or value == n for n in neutral):
            raise keys.bad(name, f"only {' or '.join(map(repr, neutral))} is supported")
    embedding = infos.get(EMBEDDING)
    if embedding is None or len(embedding.shape) != 2:
        raise ModelError(f"{path}: tensor {EMBEDDING} is missing or no matrix. Download the file again.")
    heads, hidden = keys.number("attention.head_count"), keys.number("embedding_length")
    head_dim = keys.number("attention.key_length", hidden // heads if isinstance(heads, int) and heads else 0)
    for name in ("attention.value_length", "rope.dimension_count"):
        if keys.number(name, head_dim) != head_dim:
            raise keys.bad(name, f"only the head's {head_dim} dimensions are supported")
    raw = {
        "architectures": [ARCHITECTURES[architecture]],
        "num_hidden_layers": keys.number("block_count"),
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.number("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": keys.number("context_length"),
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": HEAD not in infos,
        **_rope(keys),
        **_experts(keys, architecture),
    }
    try:
        config = ModelConfig.from_hf(raw)
    except ModelError as error:
        raise ModelError(f"{path}: {str(error).removeprefix('config.json: ')}") from None
    return replace(
        config,
        qkv_bias="blk.0.attn_q.bias" in infos,
        output_bias="blk.0.attn_output.bias" in infos,
        mlp_bias="blk.0.ffn_down.bias" in infos,
    )


def _rope(keys: _Keys) -> dict[str, Any]:
    """rope_theta and rope_scaling; only YaRN is honoured."""
    theta = {"rope_theta": keys.number("rope.freq_base", 10000.0)}
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 0.0))
    kind = keys.get("rope.scaling.type")
    if kind in ("linear", None, "none") and (kind == "none" or factor in (0, 1)):
        return theta
    if kind != "yarn":
        raise keys.bad("rope.scaling.type", f"with factor {factor} it is not supported, only 'yarn' is")
    if keys.number("rope.scaling.yarn_ext_factor", 1.0) not in (1, -1):
        raise keys.bad("rope.scaling.yarn_ext_factor", "only 1 is supported")
    yarn = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": keys.number("rope.scaling.original_context_length"),
        "beta_fast": keys.number("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": keys.number("rope.scaling.yarn_beta_slow", 1.0),
    }
    # One is what config.json calls attention_factor, the other a multiplier of llama.cpp.
    usual = 0.1 * math.log(max(factor, 1.0)) + 1.0
    scale = keys.number("rope.scaling.yarn_attn_factor", usual) * keys.number("rope.scaling.attn_factor", 1.0)
    if scale != usual:
        yarn["attention_factor"] = scale
    return {**theta, "rope_scaling": yarn}


def _experts(keys: _Keys, architecture: str) -> dict[str, Any]:
    """Widths of the MLPs, and the experts where there are some."""
    count = keys.number("expert_count", 0)
    if architecture != "qwen3moe":
        if count:
            raise keys.bad("expert_count", "experts are supported with architecture qwen3moe only")
        return {"intermediate_size": keys.number("feed_forward_length")}
    width = keys.number("expert_feed_forward_length")
    normalised = keys.get("expert_weights_norm")
    return {
        "intermediate_size": keys.number("feed_forward_length", width),
        "moe_intermediate_size": width,
        "num_experts": count,
        "num_experts_per_tok": keys.number("expert_used_count"),
        "norm_topk_prob": True if normalised is None else bool(normalised),  # llama.cpp: always
    }


def _with_rope_factors(config: ModelConfig, files: list[GgufFile]) -> ModelConfig:
    """Llama 3.1 and later: a factor for each pair of dimensions, stored as a tensor."""
    file = next((file for file in files if ROPE_FACTORS in file.tensors), None)
    if file is None or config.architecture != "LlamaForCausalLM":
        return config
    kind, half = file.tensors[ROPE_FACTORS].kind, config.head_dim // 2
    values = gguf_blocks.floats(kind, file.raw(ROPE_FACTORS)).reshape(-1)
    if values.size != half or not np.isfinite(values).all() or (values <= 0).any():
        raise ModelError(f"{file.path}: {ROPE_FACTORS} holds {values.size} numbers; expected {half} above 0.")
    return replace(config, rope_factors=tuple(values.tolist()))


class _Place(NamedTuple):
    """Where a tensor lies: file, name there, which expert of a stack, heads whose rows are reordered."""

    file: GgufFile
    name: str
    expert: int | None = None
    heads: int = 0


class GgufMatrix(Matrix):
    """Rows of blocks; `order` gives the stored row of each."""

    def __init__(self, name: str, place: _Place, shape: tuple[int, int], raw: npt.NDArray[np.uint8]) -> None:
        self._kind, self._path = place.file.tensors[place.name].kind, place.file.path
        self._heads, self._raw = place.heads, raw
        self.name, self.shape, self.nbytes = name, shape, raw.nbytes
        self.layout = gguf_blocks.layout_of(self._kind)
        quantised: WeightFormat = "q4" if self.layout is not None and self.layout.bits == 4 else "q8"
        self.stored = _PLAIN.get(self._kind, quantised)

    def rows(self, first: int, last: int) -> FloatArray:
        """float32 [last - first, K]"""
        return finite(gguf_blocks.floats(self._kind, self._take(first, last)), self.name, self._path)

    def grouped(self, first: int, last: int) -> Grouped | None:
        """The blocks as they are, in `layout`."""
        if self.layout is None:
            return None
        rows = gguf_blocks.grouped(self._kind, self._take(first, last))
        for scales in (rows.scales, rows.minimums):
            if scales is not None and not np.isfinite(scales).all():
                finite(scales.astype(np.float32), self.name, self._path)
        return rows

    def _take(self, first: int, last: int) -> npt.NDArray[np.uint8]:
        if not self._heads:
            return self._raw[first:last]
        return self._raw[stored_rows(self.shape[0], self._heads)[first:last]]


def stored_rows(rows: int, heads: int) -> npt.NDArray[np.intp]:
    """Where the rows of q or k lie in a file of architecture `llama`: there the two halves of a head, which
    are rotated together, take turns."""
    half = rows // heads // 2
    return np.arange(rows).reshape(heads, half, 2).transpose(0, 2, 1).reshape(-1)


class GgufSource:
    """The tensors of one model. What no name is known for keeps the name it has."""

    def __init__(self, files: Sequence[GgufFile], config: ModelConfig) -> None:
        self._files = files
        self.size = sum(file.size for file in files)
        self._places: dict[str, _Place] = {}
        for file in files:
            for name in file.tensors:
                if not (config.rope_factors and name == ROPE_FACTORS):
                    self._add(file, name, config)

    def _add(self, file: GgufFile, name: str, config: ModelConfig) -> None:
        """Note one stored tensor under the names of what it holds."""
        match = _BLOCK.fullmatch(name)
        layer, stem, kind = match.groups() if match else ("", "", "")
        shape = file.tensors[name].shape
        if stem in _STACKED and len(shape) == 3:
            if shape[0] != config.num_experts:
                says = f"its metadata says {config.num_experts}"
                raise ModelError(f"{file.path}: tensor {shown(name)} holds {shape[0]} experts; {says}.")
            check_count(len(self._places) + shape[0], file.path)
            for expert in range(shape[0]):
                full = f"model.layers.{layer}.mlp.experts.{expert}.{_STACKED[stem]}.{kind}"
                self._places[full] = _Place(file, name, expert)
            return
        heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}.get(stem, 0)
        rows = shape[0]  # of a matrix, or the length of a bias
        if config.architecture != "LlamaForCausalLM" or not heads or rows % (2 * heads):
            heads = 0
        known = f"model.layers.{layer}.{_INNER[stem]}.{kind}" if stem in _INNER else _OUTER.get(name, name)
        self._places[known] = _Place(file, name, heads=heads)

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the file says of itself."""
        return self._files[0].metadata

    def names(self) -> Collection[str]:
        """Every tensor, each expert by itself."""
        return self._places.keys()

    def where(self, name: str) -> Path:
        """The file that holds it."""
        return self._places[name].file.path

    def shape(self, name: str) -> tuple[int, ...]:
        """[M, K] or [n]"""
        place = self._places[name]
        shape = place.file.tensors[place.name].shape
        return shape if place.expert is None else shape[1:]

    def nbytes(self, name: str) -> int:
        """In the file, of this expert alone."""
        place = self._places[name]
        info = place.file.tensors[place.name]
        return info.nbytes if place.expert is None else info.nbytes // info.shape[0]

    def kind(self, name: str) -> str:
        """The type of its blocks, "Q4_K"."""
        place = self._places[name]
        return place.file.tensors[place.name].kind

    def matrix(self, name: str) -> Matrix:
        """A matrix. Nothing is read yet."""
        place, shape = self._places[name], self.shape(name)
        if len(shape) != 2:
            raise ModelError(f"{self.where(name)}: tensor {shown(name)} has shape {list(shape)}, no matrix.")
        raw = place.file.raw(place.name)
        if place.expert is not None:
            raw = raw[place.expert * shape[0] : (place.expert + 1) * shape[0]]
        return GgufMatrix(name, place, (shape[0], shape[1]), raw)

    def vector(self, name: str) -> FloatArray:
        """float32 [n]"""
        place = self._places[name]
        values = gguf_blocks.floats(self.kind(name), place.file.raw(place.name)).reshape(-1)
        if place.heads:
            values = values[stored_rows(values.size, place.heads)]
        return finite(values, name, self.where(name))

    def release(self) -> None:
        """Let the system drop the file pages that were read."""
        for file in self._files:
            file.release()
