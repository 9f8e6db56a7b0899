"""Writes a trained model as the directory that the engine (and, dequantised, transformers) loads.

In: a `Nano`, its tokenizer, a directory. Out: q8 safetensors, config.json, generation_config.json and
the text files. It knows no data and no training.
"""

import json
from pathlib import Path
from typing import Any

import torch
from nano_model import Nano
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from deepfast.backend.quant import GROUP_SIZE, quantise_q8
from deepfast.train.tokenizer import write_tokenizer


def quantised_tensors(state: dict[str, torch.Tensor]) -> dict[str, NDArray[Any]]:
    """Every matrix NAME becomes NAME.q8 and NAME.scales; norms stay float32."""
    tensors: dict[str, NDArray[Any]] = {}
    for name, tensor in state.items():
        array = tensor.detach().float().numpy()
        if array.ndim == 2:
            tensors[f"{name}.q8"], tensors[f"{name}.scales"] = quantise_q8(array)
        else:
            tensors[name] = array.copy()
    return tensors


def _config(model: Nano, end: int) -> dict[str, Any]:
    config = model.config
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "rms_norm_eps": config.rms_norm_eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "initializer_range": 0.02,
        "torch_dtype": "float32",
        "eos_token_id": end,
        "quantization_config": {"quant_method": "deepfast", "bits": 8, "group_size": GROUP_SIZE},
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def export(model: Nano, tokenizer: Tokenizer, out: Path) -> None:
    end = tokenizer.token_to_id("<|im_end|>")
    save_file(quantised_tensors(model.state_dict()), out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)
    write_tokenizer(tokenizer, out, model.config.max_position_embeddings)
    _write_json(out / "config.json", _config(model, end))
