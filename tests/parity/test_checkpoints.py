"""What files say about long contexts, FP8 and fused experts, against transformers and torch.

In: tiny models. Out: rotary angles far beyond the native length, logits past it, equal weights.
Does not know: the engine.
"""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import hf_config, make_checkpoint
from decoding import BACKENDS, greedy, make_backend, prompt_logits, relative_error
from test_models import TOLERANCE, assert_equal_models, theirs

from deepfast.config import ModelConfig, with_yarn
from deepfast.model.decoder import Decoder
from deepfast.model.unpack import E4M3, fp8_floats
from deepfast.model.weights import Checkpoint

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
FAR = [0, 1, 32767, 32768, 40959, 65535, 100000, 131071]
LONG = tuple((37 * i * i + 11 * i + 5) % 160 for i in range(200))


def their_rotary(architecture: str, raw: dict[str, Any], positions: list[int]) -> tuple[np.ndarray, ...]:
    """Frequencies [C / 2], cos and sin [N, C / 2] of transformers."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

    kind = LlamaRotaryEmbedding if architecture == "LlamaForCausalLM" else Qwen3RotaryEmbedding
    rotary = kind(transformers.AutoConfig.for_model(**copy.deepcopy(raw)))  # it writes into its argument
    cos, sin = rotary(torch.zeros(1, 1, dtype=torch.float32), torch.tensor([positions]))
    half = cos.shape[-1] // 2
    return rotary.inv_freq.numpy(), cos[0, :, :half].numpy(), sin[0, :, :half].numpy()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("architecture", "scaling", "theta"),
    [
        ("Qwen3ForCausalLM", YARN, 1e6),
        ("Qwen3ForCausalLM", {**YARN, "factor": 2.0}, 1e6),
        ("Qwen3ForCausalLM", {**YARN, "beta_fast": 24.0, "beta_slow": 2.0}, 5e6),
        ("LlamaForCausalLM", LLAMA3, 5e5),
    ],
)
def test_rotary_angles_far_beyond_the_native_length(
    backend: str, architecture: str, scaling: dict[str, Any], theta: float
):
    """Both sides keep frequencies in float32, and so know an angle at position 131,071 to a hundredth."""
    raw = hf_config(
        architecture,
        {"head_dim": 128, "rope_theta": theta, "rope_scaling": scaling, "max_position_embeddings": 131072},
    )
    model = ModelConfig.from_hf(raw)
    frequencies, cos, sin = their_rotary(architecture, raw, FAR)
    np.testing.assert_allclose(model.inverse_frequencies(), frequencies, rtol=2e-6)
    ours = make_backend(backend)
    table = np.asarray(
        ours.to_numpy(ours.rope_table(model.inverse_frequencies(), model.rope_scale, FAR[-1] + 1))
    )
    assert table.shape == (131072, 2, 64)
    bound = 1e-6 + 2.0**-21 * np.array(FAR)[:, None] * frequencies  # of a frequency's last bits
    assert (np.abs(table[FAR, 0] - cos) <= bound).all() and (np.abs(table[FAR, 1] - sin) <= bound).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_positions_beyond_the_native_length_equal_transformers(tmp_path: Path, backend: str):
    """200 tokens on a model of 64, extended four times by its file or by the flag: one answer, theirs."""
    scaling = {**YARN, "original_max_position_embeddings": 64}
    sizes = {"max_position_embeddings": 256, "rope_theta": 1e4}
    in_file = make_checkpoint(tmp_path / "file", **sizes, rope_scaling=scaling)
    by_flag = make_checkpoint(tmp_path / "flag", **{**sizes, "max_position_embeddings": 64})
    logits, tokens = theirs(in_file, LONG, 16)
    for path, factor in ((in_file, None), (by_flag, 4.0)):
        checkpoint = Checkpoint.open(path)
        checkpoint.config = with_yarn(checkpoint.config, factor)
        assert checkpoint.config.max_positions == 256
        decoder = Decoder.load(checkpoint, make_backend(backend))
        assert relative_error(prompt_logits(decoder, LONG), logits) < TOLERANCE
        assert greedy(decoder, LONG, 16) == tokens
    plain = Decoder.load(Checkpoint.open(by_flag), make_backend(backend))
    assert relative_error(prompt_logits(plain, LONG), logits) > 100 * TOLERANCE


@pytest.mark.parametrize("backend", BACKENDS)
def test_llama_3_equals_transformers(tmp_path: Path, backend: str):
    scaling = {**LLAMA3, "original_max_position_embeddings": 32}
    path = make_checkpoint(tmp_path, "LlamaForCausalLM", rope_scaling=scaling, rope_theta=1e4)
    assert_equal_models(path, backend, LONG[:100])


def test_every_byte_of_fp8_is_torch_s():
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).to(torch.float32)
    np.testing.assert_array_equal(E4M3, codes.numpy())


@pytest.mark.parametrize("scales", [torch.float32, torch.bfloat16])
def test_fp8_in_blocks_is_what_transformers_dequantises(scales: torch.dtype):
    """transformers runs FP8 on a CPU by this conversion."""
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    random = np.random.RandomState(0)
    codes = random.randint(0, 256, (256, 384)).astype(np.uint8)
    codes[codes & 127 == 127] = 0
    grid = torch.tensor(random.uniform(1e-4, 1e-2, (2, 3))).to(scales)
    weight = torch.from_numpy(codes).view(torch.float8_e4m3fn)
    wanted = Fp8Dequantize(None)._dequantize_one(weight, grid, output_dtype=torch.float32)
    ours = fp8_floats(codes, grid.to(torch.float32).numpy(), 0, 256, (128, 128))
    np.testing.assert_array_equal(ours, wanted.numpy())


@pytest.mark.parametrize("backend", BACKENDS)
def test_experts_that_transformers_saves_in_one_tensor(tmp_path: Path, backend: str):
    """save_pretrained in its own names instead of the released ones."""
    from safetensors.numpy import load_file

    raw = hf_config("Qwen3MoeForCausalLM", {"initializer_range": 0.1})
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**raw))
    model.save_pretrained(tmp_path, save_original_format=False)
    assert "model.layers.0.mlp.experts.gate_up_proj" in load_file(tmp_path / "model.safetensors")
    assert_equal_models(tmp_path, backend)
