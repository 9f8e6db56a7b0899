"""A Qwen3 checkpoint as GGUF for llama.cpp, quantised by llama.cpp itself: `gguf_of(directory, "q4_0")`.

In: a directory in Hugging Face format (bfloat16, dense Qwen3), as full_size.py writes it. Out: GGUF files
beside the checkpoint, written once. Needs the packages gguf and llama-cpp-python (extra `bench`). "q4_0"
means every matrix, the embedding too, so that both engines read the same number of bytes for a token.
Does not know: mixtures of experts, timing.
"""

import ctypes
import json
import sys
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

from deepfast.config import ModelConfig
from deepfast.model.safetensors import SafetensorsFile

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from gguf_files import finish, write_keys, write_tokenizer

FILE_TYPES = {
    "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    "q4_k_m": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
    "q5_k_m": llama_cpp.LLAMA_FTYPE_MOSTLY_Q5_K_M,
    "q6_k": llama_cpp.LLAMA_FTYPE_MOSTLY_Q6_K,
    "q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
}


def write_gguf(model: Path, out: Path) -> None:
    """The checkpoint as it is: bfloat16 matrices, float32 norms."""
    raw = json.loads((model / "config.json").read_text(encoding="utf-8"))
    writer, config = gguf.GGUFWriter(out, "qwen3"), ModelConfig.from_hf(raw)
    assert config.architecture == "Qwen3ForCausalLM"
    write_keys(writer, config)
    writer.add_file_type(llama_cpp.LLAMA_FTYPE_MOSTLY_BF16)
    write_tokenizer(writer, model, config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config.num_layers)
    for path in sorted(model.glob("*.safetensors")):
        file = SafetensorsFile(path)
        for name, entry in file.entries.items():
            assert entry.dtype == "BF16", f"{name} is {entry.dtype}; expected BF16"
            bits, target = file.array(name), names.get_name(name, try_suffixes=(".weight",))
            assert target is not None, name
            if bits.ndim == 1:
                writer.add_tensor(target, (bits.astype(np.uint32) << 16).view(np.float32))
            else:
                data = np.ascontiguousarray(bits).view(np.uint8)  # [M, 2 K] bytes
                writer.add_tensor(target, data, raw_dtype=gguf.GGMLQuantizationType.BF16)
    finish(writer)


def quantise(source: Path, out: Path, kind: str) -> None:
    """llama.cpp's own quantisation to `kind`, every matrix alike but in the mixtures ("q4_k_m"). Raises
    RuntimeError when it fails."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.pure, params.nthread = FILE_TYPES[kind], not kind.endswith("_m"), 2
    failed = llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params))
    if failed:
        raise RuntimeError(f"llama.cpp could not quantise {source} to {kind} (code {failed}).")


def gguf_of(model: Path, kind: str = "q4_0") -> Path:
    """The GGUF file of a checkpoint directory, made where it is missing. kind: bf16, or one of FILE_TYPES."""
    plain = model / "model-bf16.gguf"
    if not plain.exists():
        part = plain.with_suffix(".part")
        write_gguf(model, part)
        part.rename(plain)
    if kind == "bf16":
        return plain
    path = model / f"model-{kind}.gguf"
    if not path.exists():
        part = path.with_suffix(".part")
        quantise(plain, part, kind)
        part.rename(path)
    return path
