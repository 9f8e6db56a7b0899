"""Writes a trained model as the directory that the engine (and, dequantised, transformers) loads.

In: a `Nano`, its tokenizer, a directory. Out: q8 safetensors, config.json, generation_config.json and
tokenizer files; the chat template in the directory is read, not written. It knows no data and no training.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nano_model import Nano
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer

GROUP = 32


def quantise(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """int8 values and one float16 scale per group of 32. [M, K] -> [M, K], [M, K/32]"""
    rows, columns = weight.shape
    groups = weight.reshape(rows, columns // GROUP, GROUP)
    scales = (np.abs(groups).max(axis=2) / 127).astype(np.float16)  # [M, K/32]
    divisor = np.where(scales > 0, scales, 1).astype(np.float32)[:, :, None]
    values = np.clip(np.rint(groups / divisor), -127, 127).astype(np.int8)
    return values.reshape(rows, columns), scales


def dequantise(values: NDArray[np.int8], scales: NDArray[np.float16]) -> NDArray[np.float32]:
    rows, columns = values.shape
    groups = values.reshape(rows, columns // GROUP, GROUP).astype(np.float32)
    out: NDArray[np.float32] = (groups * scales.astype(np.float32)[:, :, None]).reshape(rows, columns)
    return out


def quantised_tensors(state: dict[str, torch.Tensor]) -> dict[str, NDArray[Any]]:
    """Every matrix NAME becomes NAME.q8 and NAME.scales; norms stay float32."""
    tensors: dict[str, NDArray[Any]] = {}
    for name, tensor in state.items():
        array = tensor.detach().float().numpy()
        if array.ndim == 2:
            tensors[f"{name}.q8"], tensors[f"{name}.scales"] = quantise(array)
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
        "quantization_config": {"quant_method": "deepfast", "bits": 8, "group_size": GROUP},
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def export(model: Nano, tokenizer: Tokenizer, out: Path) -> None:
    end, pad = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")
    save_file(quantised_tensors(model.state_dict()), out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)
    export_tokenizer(tokenizer, out)
    _write_json(out / "config.json", _config(model, end))
    _write_json(
        out / "generation_config.json",
        {
            "do_sample": True,
            "eos_token_id": [end, pad],
            "pad_token_id": pad,
            "temperature": 0.6,
            "top_k": 20,
            "top_p": 0.95,
        },
    )


def export_tokenizer(tokenizer: Tokenizer, out: Path) -> None:
    tokenizer.save(str(out / "tokenizer.json"))
    template = (out / "chat_template.jinja").read_text(encoding="utf-8")
    added = {
        str(index): {
            "content": token.content,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": token.special,
        }
        for index, token in sorted(tokenizer.get_added_tokens_decoder().items())
    }
    _write_json(
        out / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": added,
            "bos_token": None,
            "chat_template": template,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "model_max_length": 2048,
            "pad_token": "<|endoftext|>",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )
