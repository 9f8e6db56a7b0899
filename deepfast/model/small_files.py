"""What lies beside the weights of a packed checkpoint: config.json, tokenizer, template, the card.

In: an open Checkpoint of any kind, a directory. Out: small files in Hugging Face format in it, copies where
the checkpoint is a directory, otherwise written from what was read. Does not know: weights.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..config import ModelConfig
from ..types import ModelError
from .directory import INDEX
from .weights import Checkpoint

COPIED = (".json", ".jinja", ".txt", ".md")  # tokenizer, template, card
UNLIKE = ("weight_bits", "packed", "quantised", "notes", "eos_ids")  # fields that packing may change


def write_small_files(checkpoint: Checkpoint, folder: Path, quantisation: Mapping[str, Any]) -> None:
    """Fill `folder`; `quantisation` becomes the quantization_config of its config.json.

    Raises ModelError when config.json cannot say what the model is."""
    if checkpoint.path.is_dir():
        for file in sorted(checkpoint.path.iterdir()):
            if file.is_file() and file.suffix in COPIED and file.name != INDEX:
                shutil.copyfile(file, folder / file.name)
        raw = json.loads((checkpoint.path / "config.json").read_bytes())
    else:
        raw = config_json(checkpoint.config)
        _write_text(checkpoint, folder)
        eos = list(checkpoint.eos_ids)
        _write(folder / "generation_config.json", {"eos_token_id": eos})
    raw["quantization_config"] = dict(quantisation)
    _write(folder / "config.json", raw)


def config_json(config: ModelConfig) -> dict[str, Any]:
    """A config.json that reads as `config`. Raises ModelError where there is none."""
    sparse = config.sparse_layers
    raw: dict[str, Any] = {
        "architectures": [config.architecture],
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "hidden_act": "silu",
        "attention_bias": config.output_bias
        if config.architecture != "Qwen2ForCausalLM"
        else config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "tie_word_embeddings": config.tie_word_embeddings,
        "eos_token_id": list(config.eos_ids),
    }
    if config.num_experts:
        raw |= {
            "num_experts": config.num_experts,
            "num_experts_per_tok": config.num_experts_per_token,
            "moe_intermediate_size": config.moe_intermediate_size,
            "norm_topk_prob": config.norm_topk_prob,
            "mlp_only_layers": [i for i in range(config.num_layers) if i not in sparse],
        }
    if config.yarn is not None:
        yarn = {
            "rope_type": "yarn",
            "factor": config.yarn.factor,
            "original_max_position_embeddings": config.yarn.original_max_position,
            "beta_fast": config.yarn.beta_fast,
            "beta_slow": config.yarn.beta_slow,
            "attention_factor": config.yarn.attention_factor,
        }
        raw["rope_scaling"] = {key: value for key, value in yarn.items() if value is not None}
    if config.llama3 is not None:
        raw["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": config.llama3.factor,
            "low_freq_factor": config.llama3.low_freq_factor,
            "high_freq_factor": config.llama3.high_freq_factor,
            "original_max_position_embeddings": config.llama3.original_max_position,
        }
    _check(config, raw)
    return raw


def _check(config: ModelConfig, raw: Mapping[str, Any]) -> None:
    """Does config.json say all that the model is?"""
    said = ModelConfig.from_hf(raw)
    for field in fields(ModelConfig):
        wanted, found = getattr(config, field.name), getattr(said, field.name)
        if field.name not in UNLIKE and wanted != found:
            raise ModelError(
                f"a config.json cannot say this model's {field.name} {str(wanted)[:60]}. "
                "Run the file as it is, or quantise the original in Hugging Face format."
            )


def _write_text(checkpoint: Checkpoint, folder: Path) -> None:
    """Tokenizer, template and how the model thinks."""
    text = checkpoint.text
    config, templates = dict(text.config), dict(text.templates)
    if templates.keys() == {"default"}:
        (folder / "chat_template.jinja").write_text(templates["default"], "utf-8")
        config.pop("chat_template", None)
    elif templates:
        config["chat_template"] = [{"name": n, "template": t} for n, t in templates.items()]
    _write(folder / "tokenizer_config.json", config)
    for name, value in (("tokenizer.json", text.tokenizer), ("thinking.json", text.thinking)):
        if value is not None:
            _write(folder / name, value)


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
