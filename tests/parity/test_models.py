"""Whole models against `transformers` in float32: logits, greedy tokens, and quantised weights.

In: random checkpoints of all four layouts: tiny ones, and slices as wide as Qwen3-0.6B and 30B-A3B.
Out: logits within 1e-4 of the largest and 32 equal greedy tokens. Does not know: text, the engine.
"""

from pathlib import Path

import numpy as np
import pytest
from checkpoints import GOLDEN, PROMPT, YARN, hf_config, make_checkpoint, random_tensors
from decoding import BACKENDS, greedy, make_backend, prompt_logits, relative_error, row_errors

from deepfast.backend.quant import rounded
from deepfast.model.decoder import Decoder
from deepfast.model.weights import Checkpoint

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4
# Error of a row of logits beside the model's own dequantised weights, relative to its length: of the median
# row, and of the worst row of a dense model. The reference backend keeps float activations; the native one
# rounds them to int8 per group of 32, and an expert chosen otherwise on a near tie then changes a whole row.
MEDIAN_BOUND = {"reference": TOLERANCE, "cpu": 0.02}
WORST_BOUND = {"reference": TOLERANCE, "cpu": 0.03}
NEW_TOKENS = 32

TINY = {name: (architecture, config) for name, (architecture, config) in GOLDEN.items()} | {
    "moe-128": (
        "Qwen3MoeForCausalLM",
        {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 16},
    ),
    "moe-sparse-step": ("Qwen3MoeForCausalLM", {"num_hidden_layers": 3, "decoder_sparse_step": 2}),
    "moe-yarn-tied": ("Qwen3MoeForCausalLM", {"rope_scaling": YARN, "tie_word_embeddings": True}),
    "qwen2-tied": ("Qwen2ForCausalLM", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "qwen3-bias": ("Qwen3ForCausalLM", {"attention_bias": True, "num_key_value_heads": 1, "rope_theta": 5e6}),
    "llama-plain": ("LlamaForCausalLM", {"head_dim": 8, "tie_word_embeddings": True}),
}
TRUE_WIDTHS = {
    "qwen3-0.6b": (
        "Qwen3ForCausalLM",
        {
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 2048,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3-30b-a3b": (
        "Qwen3MoeForCausalLM",
        {
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "vocab_size": 2048,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
        },
    ),
}


@pytest.fixture(params=BACKENDS)
def backend_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def theirs(path: Path, ids: tuple[int, ...], new_tokens: int) -> tuple[np.ndarray, list[int]]:
    """Logits of the prompt [N, V] and greedy tokens, by transformers."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.inference_mode():
        out = model(torch.tensor([ids]), use_cache=True)
        logits, tokens = out.logits[0].numpy(), []
        for _ in range(new_tokens):
            tokens.append(int(out.logits[0, -1].argmax()))
            out = model(torch.tensor([tokens[-1:]]), past_key_values=out.past_key_values, use_cache=True)
    return logits, tokens


def assert_equal_models(path: Path, backend_name: str, ids: tuple[int, ...] = PROMPT) -> None:
    decoder = Decoder.load(Checkpoint.open(path), make_backend(backend_name))
    logits, tokens = theirs(path, ids, NEW_TOKENS)
    assert relative_error(prompt_logits(decoder, ids), logits) < TOLERANCE
    assert greedy(decoder, ids, NEW_TOKENS) == tokens


@pytest.mark.parametrize("name", TINY)
def test_tiny_models_equal_transformers(tmp_path: Path, backend_name: str, name: str):
    architecture, config = TINY[name]
    assert_equal_models(make_checkpoint(tmp_path, architecture, seed=11, **config), backend_name)


@pytest.mark.parametrize("architecture", sorted({architecture for architecture, _ in TINY.values()}))
def test_what_transformers_saves_is_read(tmp_path: Path, backend_name: str, architecture: str):
    """Its own config.json keys, tensor names and shards."""
    raw = hf_config(architecture, {"initializer_range": 0.1})
    config = transformers.AutoConfig.for_model(**raw)
    torch.manual_seed(3)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path, max_shard_size="100KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    assert_equal_models(tmp_path, backend_name)


def write_true_widths(path: Path, name: str, changes: dict) -> Path:
    """Two layers in bfloat16 (half the file; both sides compute in float32)."""
    architecture, config = TRUE_WIDTHS[name]
    return make_checkpoint(path, architecture, seed=12, dtype="BF16", **config | changes)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the native module is not built")
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("qwen3-0.6b", {}),
        ("qwen3-30b-a3b", {"num_experts": 16}),
        pytest.param("qwen3-30b-a3b", {}, marks=pytest.mark.slow),  # all 128 experts: 10 GB and minutes
    ],
)
def test_slices_with_true_widths_equal_transformers(tmp_path: Path, name: str, changes: dict):
    assert_equal_models(write_true_widths(tmp_path, name, changes), "cpu", PROMPT[:24])


@pytest.mark.parametrize("format", ["q8", "q4"])
@pytest.mark.parametrize("name", ["qwen3-tied", "moe-normalised", "qwq", "llama"])
def test_quantised_models_equal_their_dequantised_weights(
    tmp_path: Path, backend_name: str, name: str, format: str
):
    architecture, config = TINY[name]
    original = make_checkpoint(tmp_path / "original", architecture, seed=13, **config)
    checkpoint = Checkpoint.open(original)
    tensors = dict(random_tensors(checkpoint.config, 13))
    matrices = {
        n: rounded(w, format) for n, w in tensors.items() if w.ndim == 2 and "mlp.gate.weight" not in n
    }
    dequantised = make_checkpoint(tmp_path / "dequantised", architecture, seed=13, **config, extra=matrices)
    wanted, _ = theirs(dequantised, PROMPT, 0)
    got = prompt_logits(Decoder.load(checkpoint, make_backend(backend_name), format), PROMPT)
    errors = row_errors(got, wanted)
    assert np.median(errors) < MEDIAN_BOUND[backend_name]
    assert errors.max() < WORST_BOUND[backend_name] or (backend_name == "cpu" and name.startswith("moe"))
