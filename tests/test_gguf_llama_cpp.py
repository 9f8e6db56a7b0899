"""GGUF models beside llama.cpp: random models of all four architectures give the same greedy tokens and,
within a bound, the same logits.

In: files written by the `gguf` package, quantised by llama.cpp itself. Out: errors of rows of logits.
llama.cpp rounds activations to 8 bits where weights are quantised, to 16 where they are float16; our side
computes with the exact values of the weights. The prompts are ones without near ties in what follows.
Runs where llama-cpp-python is installed (extra `bench`). Does not know: how weights
are packed.
"""

import ctypes
from pathlib import Path

import numpy as np
import pytest
from decoding import BACKENDS, greedy, make_backend, prompt_logits, row_errors
from gguf_files import ARCHITECTURES, Kind, write_model

from deepfast.backend.reference import ReferenceBackend
from deepfast.model.decoder import Decoder
from deepfast.model.gguf_model import open_gguf
from deepfast.model.weights import Checkpoint

llama_cpp = pytest.importorskip("llama_cpp")

COUNT, LENGTH = 16, 20
# Length of the difference over that of the row of logits, at most: of the worst row. In mixtures of experts
# a near tie may choose another expert, which changes that row: there the median counts.
BOUNDS = {"F32": 2e-6, "F16": 2e-3, "BF16": 8e-3}
QUANTISED, MIXTURE = 0.03, 0.02
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


def prompt(seed: int) -> list[int]:
    """Some ids."""
    return np.random.RandomState(seed).randint(0, 600, LENGTH).tolist()


def theirs(path: Path, ids: list[int]) -> tuple[np.ndarray, list[int]]:
    """llama.cpp's logits of every position of the prompt, and the greedy tokens behind it."""
    model = llama_cpp.Llama(
        str(path),
        n_ctx=64,
        logits_all=True,
        n_threads=1,
        n_threads_batch=1,
        verbose=False,
        type_k=0,
        type_v=0,
        flash_attn=False,
    )
    try:
        model.eval(ids)
        logits = np.array(model.scores[: len(ids)])
        tokens = [int(logits[-1].argmax())]
        while len(tokens) < COUNT:
            model.eval(tokens[-1:])
            tokens.append(int(model.scores[model.n_tokens - 1].argmax()))
    finally:
        model.close()
    return logits, tokens


def decoder_of(path: Path) -> Decoder:
    """The model with its exact weights, in numpy."""
    return Decoder.load(Checkpoint(path, *open_gguf(path)), ReferenceBackend(), "f32")


def quantised(source: Path, kind: str) -> Path:
    """The file as llama.cpp quantises it."""
    path = source.with_name(f"{kind}.gguf")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}"), 1
    failed = llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), ctypes.byref(params))
    assert failed == 0
    return path


def compare(path: Path, seed: int, bound: float, *, median: bool = False) -> None:
    """Same tokens, logits within `bound`."""
    ids, decoder = prompt(seed), decoder_of(path)
    logits, tokens = theirs(path, ids)
    errors = row_errors(prompt_logits(decoder, ids), logits)
    error = np.median(errors) if median else errors.max()
    assert error < bound, errors
    assert greedy(decoder, ids, COUNT) == tokens


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_as_it_was_written(tmp_path, architecture):
    path = tmp_path / "m.gguf"
    write_model(path, architecture, seed=7)
    compare(path, 0, BOUNDS["F32"])


# (architecture, type) -> the prompt
MIXED = {
    ("Qwen3ForCausalLM", "Q4_K_M"): 11,
    ("Qwen3MoeForCausalLM", "Q4_K_M"): 37,
    ("Qwen2ForCausalLM", "Q4_K_M"): 24,
    ("LlamaForCausalLM", "Q4_K_M"): 35,
    ("LlamaForCausalLM", "Q8_0"): 38,
    ("LlamaForCausalLM", "IQ4_XS"): 4,
    ("Qwen3ForCausalLM", "Q2_K"): 38,
    ("Qwen3ForCausalLM", "Q3_K_M"): 11,
    ("Qwen3ForCausalLM", "Q5_K_M"): 11,
    ("Qwen3ForCausalLM", "Q4_0"): 11,
    ("Qwen2ForCausalLM", "Q4_1"): 36,
    ("Qwen2ForCausalLM", "Q5_0"): 19,
    ("Qwen2ForCausalLM", "Q5_1"): 38,
    ("LlamaForCausalLM", "IQ4_NL"): 32,
    ("LlamaForCausalLM", "BF16"): 38,
}


# The other types take as long again, and are compared bit for bit elsewhere.
ALWAYS = ("Q4_K_M", "Q8_0", "IQ4_XS")


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [pytest.param(*case, marks=[] if case[1] in ALWAYS else pytest.mark.slow) for case in MIXED],
)
def test_what_llama_cpp_quantised(tmp_path, architecture, kind):
    """Q4_K_M and the like are mixtures: some matrices are Q5_K or Q6_K. The native backend packs the blocks
    as they are, and comes to the same tokens."""
    write_model(tmp_path / "m.gguf", architecture, kind=Kind.F16, seed=7)
    path = quantised(tmp_path / "m.gguf", kind)
    sparse = "Moe" in architecture
    if BACKENDS[-1] == "cpu":
        packed = Decoder.load(Checkpoint(path, *open_gguf(path)), make_backend("cpu"))
        ids = prompt(MIXED[architecture, kind])
        assert greedy(packed, ids, COUNT) == theirs(path, ids)[1]
    compare(
        path, MIXED[architecture, kind], BOUNDS.get(kind, MIXTURE if sparse else QUANTISED), median=sparse
    )


def test_float16(tmp_path):
    path = tmp_path / "m.gguf"
    write_model(path, "LlamaForCausalLM", kind=Kind.F16, seed=7)
    compare(path, 1, BOUNDS["F16"])


def test_yarn(tmp_path):
    """Positions far beyond the original length, and a multiplier of the attention factor."""
    path = tmp_path / "m.gguf"
    config = {"rope_scaling": YARN, "max_position_embeddings": 64, "rope_theta": 1e4}
    write_model(path, seed=7, more=lambda w: w.add_rope_scaling_attn_factors(0.9), **config)
    compare(path, 0, BOUNDS["F32"])


def test_factors_of_llama_3(tmp_path):
    path = tmp_path / "m.gguf"
    write_model(path, "LlamaForCausalLM", seed=7, rope_factors=np.linspace(1, 8, 32))
    compare(path, 0, BOUNDS["F32"])


def test_split_files_and_a_tied_head(tmp_path):
    write_model(tmp_path / "m.gguf", "Qwen2ForCausalLM", seed=7, tie_word_embeddings=True, shard_tensors=9)
    compare(sorted(tmp_path.glob("m-00001-of-*.gguf"))[0], 0, BOUNDS["F32"])
