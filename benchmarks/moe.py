"""Qwen3-30B-A3B in its true shapes, with random weights in q4: does it load, generate and stay in memory?
`python benchmarks/moe.py --tokenizer DIR --work DIR`.

In: a directory with tokenizer.json, room for 17 GB. Out: a packed checkpoint, written once without the 61 GB
of bfloat16 that it stands for; then, from a process of its own, seconds to load, resident memory, tokens per
second of a prompt and of generation, and what part of the memory's bandwidth that is: of all weights a token
reads those of its 8 of 128 experts. Does not know: quality.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deepfast.backend.cpu import CpuBackend, Weight, aligned_empty
from deepfast.backend.grouped import Layout
from deepfast.config import ModelConfig
from deepfast.model.packed import write_packed
from deepfast.model.shapes import EMBEDDING, parameter_count, stacks
from deepfast.model.weights import Checkpoint
from deepfast.text.files import TextFiles

CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_position_embeddings": 40960,
    "vocab_size": 151936,
    "tie_word_embeddings": False,
    "eos_token_id": 151645,
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
DISTINCT = 4  # experts of a layer that differ; the others are copies, in bytes of their own
PROMPT, NEW, RUNS = 512, 48, 5


class RandomMatrix:
    """A matrix of a bfloat16 checkpoint that is nowhere: rows cut from one pool of random numbers."""

    stored, layout = "bf16", None

    def __init__(self, shape: tuple[int, int], pool: np.ndarray) -> None:
        self.shape, self.pool = shape, pool

    def rows(self, first: int, last: int) -> np.ndarray:
        """float32 [last - first, K]"""
        count, start = (last - first) * self.shape[1], 7919 * (first + self.shape[0]) % 65521
        return self.pool[start : start + count].reshape(last - first, self.shape[1])


class NoFiles:
    """The source of a checkpoint that is nowhere."""

    size = 0

    def names(self) -> list[str]:
        """None."""
        return []

    def release(self) -> None:
        """Nothing was read."""


class RandomCheckpoint(Checkpoint):
    """Has every tensor of its config, and no file."""

    def __init__(self, path: Path) -> None:
        source: Any = NoFiles()
        super().__init__(path, ModelConfig.from_hf(CONFIG), source, (), TextFiles(path))
        self.pool = np.random.default_rng(0).standard_normal(1 << 23, np.float32) * np.float32(0.03)

    def matrix(self, name: str, shape: tuple[int, int]) -> Any:
        """Random."""
        return RandomMatrix(shape, self.pool)

    def vector(self, name: str, length: int) -> np.ndarray:
        """Norms of 1."""
        return np.ones(length, np.float32)

    def unused(self) -> list[str]:
        """None."""
        return []


class RepeatingBackend(CpuBackend):
    """Packs a few experts and repeats them: as many bytes on the disk, in a fraction of the time."""

    def pack_experts(self, experts: Sequence[Sequence[Any]], format: Any) -> Weight:
        """[E, M, K], of which DISTINCT differ."""
        few = super().pack_experts(experts[:DISTINCT], format)
        if few.experts == len(experts):
            return few
        one = few.buffer.size // few.experts
        buffer = aligned_empty(one * len(experts))
        buffer.reshape(len(experts), one)[:] = np.resize(
            few.buffer.reshape(few.experts, one), (len(experts), one)
        )
        return Weight(few.layout, len(experts), few.rows, few.columns, buffer, few.native)


def write_model(path: Path, tokenizer: Path) -> None:
    """The packed checkpoint, through the writer of `deepfast quantize`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    source = path.with_name(path.name + "-source")
    source.mkdir(exist_ok=True)
    for name in TOKENIZER_FILES:
        if (tokenizer / name).exists():
            (source / name).write_bytes((tokenizer / name).read_bytes())
    (source / "config.json").write_text(json.dumps(CONFIG))
    write_packed(RandomCheckpoint(source), RepeatingBackend(), "q4", path)
    shutil.rmtree(source)


def active_bytes(config: ModelConfig, backend: CpuBackend) -> int:
    """Bytes of weights that one token reads."""
    total = 0
    for name, stack in stacks(config).items():
        if len(stack.shape) == 2 and name != EMBEDDING:
            experts = config.num_experts_per_token if stack.sparse else 1
            router = name.endswith(".mlp.gate.weight")
            total += backend.packed_bytes(Layout("bf16" if router else "q4"), experts, *stack.shape)
    return total


def resident() -> str:
    """Memory of this process: its own, and mapped files."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    own, file = (int(lines[key].split()[0]) / 1024 for key in ("RssAnon", "RssFile"))
    return f"{own:,.0f} MiB of its own, {file:,.0f} MiB mapped from the file"


def measure(path: Path, threads: int | None) -> None:
    """Runs in a process of its own."""
    from deepfast import LLM, EngineConfig, SamplingParams
    from deepfast.backend.probe import read_bandwidth

    config = EngineConfig(
        max_context=4096, max_kv_tokens=4096, speculation=False, prefix_cache=False, threads=threads
    )
    began = time.perf_counter()
    with LLM(path, config=config) as llm:
        print(f"load          {time.perf_counter() - began:8.2f} s", flush=True)
        draw = np.random.default_rng(1)

        def run(length: int, new: int) -> Any:
            prompt = draw.integers(0, llm.tokenizer.num_ids, length).tolist()
            params = SamplingParams(max_tokens=new, seed=int(draw.integers(1 << 30)), ignore_eos=True)
            return llm.generate([prompt], params)[0].timing

        def speed(timing: Any) -> float:
            return (NEW - 1) / (timing.total_s - timing.first_token_s)

        first = run(16, NEW)
        print(
            f"first run     {speed(first):8.2f} tokens/s, first token after {first.first_token_s:.2f} s",
            flush=True,
        )
        prompts = [PROMPT / run(PROMPT, 1).first_token_s for _ in range(3)]
        print(
            f"prompt of {PROMPT} {statistics.median(prompts):8.1f} tokens/s   {_samples(prompts)}", flush=True
        )
        speeds = [speed(run(16, NEW)) for _ in range(RUNS)]
        print(f"generation    {statistics.median(speeds):8.2f} tokens/s   {_samples(speeds)}")
        backend = CpuBackend(threads)
        size, bandwidth = active_bytes(llm.config, backend), read_bandwidth(backend)
        share = statistics.median(speeds) * size / bandwidth
        print(f"bytes a token {size / 1e9:8.2f} GB of weights; {share:.0%} of {bandwidth / 1e9:.1f} GB/s")
        print(f"memory        {resident()}")


def _samples(values: list[float]) -> str:
    return " ".join(f"{value:.1f}" for value in values)


def main() -> None:
    """Write the model if need be, then measure in a child."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="directory with the genuine tokenizer.json"
    )
    parser.add_argument("--work", type=Path, required=True, help="where the checkpoint is kept")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    path = args.work / "random-qwen3-30b-a3b-q4"
    if args.child:
        measure(path, args.threads)
        return
    if not path.exists():
        write_model(path, args.tokenizer)
    size = (path / "model.safetensors").stat().st_size
    count = parameter_count(ModelConfig.from_hf(CONFIG))
    print(
        f"Qwen3-30B-A3B shapes, {count / 1e9:.1f} billion random parameters, {size / 1e9:.1f} GB", flush=True
    )
    subprocess.run([sys.executable, __file__, *sys.argv[1:], "--child"], check=True)


if __name__ == "__main__":
    main()
