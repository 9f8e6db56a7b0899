"""config.json: RoPE in both spellings, YaRN by file and by flag, windows, layer types, quantisation.

In: configs as models have them, and damaged ones. Out: what is computed, or a line that names the key.
Does not know: weights. (tests/parity compares the same numbers with transformers.)
"""

import math
import time
from typing import Any

import pytest
from checkpoints import hf_config
from hypothesis import given
from hypothesis import strategies as st

from deepfast.config import EngineConfig, Llama3Rope, ModelConfig, Quantisation, Yarn, with_yarn
from deepfast.types import ModelError, UsageError

QWEN3 = {"head_dim": 128, "max_position_embeddings": 40960, "rope_theta": 1e6}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128], "fmt": "e4m3"}
WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}
PACKED = {"quant_method": "compressed-tensors", "format": "pack-quantized", "kv_cache_scheme": None}


def packed(weights: dict[str, Any], **scheme: Any) -> dict[str, Any]:
    """A config of compressed-tensors."""
    group = {"input_activations": None, "targets": ["Linear"], "weights": {**WEIGHTS, **weights}, **scheme}
    return {**PACKED, "config_groups": {"group_0": group}}


def config(architecture: str = "Qwen3ForCausalLM", **changes: Any) -> ModelConfig:
    return ModelConfig.from_hf(hf_config(architecture, {**QWEN3, **changes}))


def refusal(architecture: str = "Qwen3ForCausalLM", **changes: Any) -> str:
    with pytest.raises(ModelError) as caught:
        config(architecture, **changes)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 400
    return text


def test_the_numbers_of_yarn_for_qwen3():
    """low 23, high 40 and the attention factors, for theta 1e6 over 32,768 positions."""
    for factor, scale in ((4.0, 1.138629), (2.0, 1.069315)):
        model = with_yarn(config(), factor)
        assert model.yarn is not None
        assert model.yarn.ramp(1e6, 128) == (23, 40)
        assert model.rope_scale == pytest.approx(scale, abs=1e-6)
        plain, scaled = config().inverse_frequencies(), model.inverse_frequencies()
        assert scaled[:24] == plain[:24]
        assert scaled[40:] == pytest.approx([f / factor for f in plain[40:]], rel=1e-12)
        assert all(plain[j] / factor < scaled[j] < plain[j] for j in range(24, 40))
        assert model.max_positions == 32768 * factor


@pytest.mark.parametrize(
    ("changes", "positions", "factor"),
    [
        ({"rope_scaling": YARN, "max_position_embeddings": 131072}, 131072, 4),
        ({"rope_scaling": YARN}, 131072, 4),  # max_position_embeddings was left at 40960
        ({"rope_scaling": {**YARN, "factor": 2.0, "type": "yarn"}}, 65536, 2),
        ({"rope_parameters": {**YARN, "rope_theta": 1e6}, "rope_theta": None}, 131072, 4),
        ({"rope_parameters": {"full_attention": {**YARN, "rope_theta": 1e6}}}, 131072, 4),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}, "max_position_embeddings": 131072}, 131072, 4),
        ({"rope_scaling": YARN, "max_position_embeddings": 262144}, 131072, 4),
    ],
)
def test_yarn_in_the_file_is_honoured(changes: dict[str, Any], positions: int, factor: float):
    """The context is what the factor gives, whatever max_position_embeddings says, and that is told."""
    model = config(**changes)
    assert model.yarn is not None
    assert (model.max_positions, model.yarn.factor, model.rope_theta) == (positions, factor, 1e6)
    assert "may hurt short texts" in model.notes[-1]
    said = changes.get("max_position_embeddings", 40960)
    assert (len(model.notes) == 2) == (said != positions)
    assert said == positions or f"{said:,}" in model.notes[0] and f"{positions:,}" in model.notes[0]


def test_yarn_by_flag():
    """Off unless asked; over what was trained, not over what the file allows; 1 is off."""
    plain = config()
    assert plain.yarn is None and not plain.notes and with_yarn(plain, None) is plain
    assert with_yarn(plain, 1) is plain
    assert with_yarn(plain, 2.0).yarn == Yarn(2.0, 32768)
    assert with_yarn(config(max_position_embeddings=262144), 2.0).max_positions == 524288
    in_file = config(rope_scaling={**YARN, "beta_fast": 16.0})
    assert with_yarn(in_file, 4.0) is in_file
    assert with_yarn(in_file, 2.0).yarn == Yarn(2.0, 32768, 16.0)
    off = with_yarn(in_file, 1)
    assert (off.yarn, off.max_positions, off.notes) == (None, 32768, ())
    twice = with_yarn(with_yarn(plain, 4.0), 4.0)
    assert twice == with_yarn(plain, 4.0) and "factor 4" in twice.notes[0]


@pytest.mark.parametrize(
    ("model", "factor", "says"),
    [
        ({}, 1.1, "gives this model 36044 positions, fewer than its own 40960"),
        ({}, 0.5, "yarn=0.5 is no factor"),
        ({}, math.nan, "no factor"),
        ({}, math.inf, "no factor"),
        ({}, 65, "from 1 (off) to 64"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                              "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}},
            2,
            "Llama 3",
        ),
        ({"use_sliding_window": True, "sliding_window": 40960}, 2, "its window is 40960"),
    ],
)  # fmt: skip
def test_a_factor_that_makes_no_sense(model: dict[str, Any], factor: float, says: str):
    with pytest.raises(UsageError) as caught:
        with_yarn(config(**model), factor)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("context", "factor"), [(40961, "1.5"), (65536, "2"), (65537, "2.5"), (131072, "4"), (2**40, None)]
)
def test_a_context_beyond_the_model_says_which_factor_suffices(context: int, factor: str | None):
    with pytest.raises(UsageError) as caught:
        EngineConfig(max_context=context).resolve(config(), 2)
    assert str(caught.value).split("--yarn ")[1:] == ([f"{factor}."] if factor else [])
    assert f"max_context={context}" in str(caught.value) and "40960 positions" in str(caught.value)
    if factor:
        settings = EngineConfig(max_context=context, yarn=float(factor))
        assert settings.resolve(config(), 2).max_context == context


def test_the_extension_of_llama_3():
    """Short waves are kept, long ones divided; between them they fall."""
    raw = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    raw |= {"original_max_position_embeddings": 8192}
    model = config("LlamaForCausalLM", rope_scaling=raw, rope_theta=5e5, max_position_embeddings=131072)
    assert model.llama3 == Llama3Rope(8.0, 1.0, 4.0, 8192) and model.max_positions == 131072
    plain = config("LlamaForCausalLM", rope_theta=5e5).inverse_frequencies()
    scaled = model.inverse_frequencies()
    ratios = [a / b for a, b in zip(plain, scaled, strict=True)]
    assert ratios[0] == 1 and ratios[-1] == pytest.approx(8) and ratios == sorted(ratios)
    assert model.rope_scale == 1
    assert "low_freq_factor" in refusal("LlamaForCausalLM", rope_scaling={**raw, "high_freq_factor": 1.0})


@pytest.mark.parametrize("kind", ["linear", "dynamic", "longrope", "su", "mrope", 3, "x" * 10000])
def test_other_kinds_of_rope_are_refused_by_name(kind: Any):
    assert str(kind)[:20] in refusal(rope_scaling={"rope_type": kind, "factor": 2.0})


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        (
            "Qwen2ForCausalLM",
            {"use_sliding_window": False, "sliding_window": 131072, "max_window_layers": 70},
        ),
        ("Qwen3ForCausalLM", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 2}),
        ("Qwen3MoeForCausalLM", {"use_sliding_window": True, "sliding_window": 40960}),
        ("Qwen3ForCausalLM", {"sliding_window": 64}),
        ("Qwen3ForCausalLM", {"use_sliding_window": True, "sliding_window": None}),
        ("Qwen3ForCausalLM", {"layer_types": ["full_attention"] * 2, "sliding_window": None}),
        ("Qwen2ForCausalLM", {"layer_types": ["sliding_attention"] * 2, "sliding_window": 65536}),
        ("LlamaForCausalLM", {"sliding_window": None}),
    ],
)
def test_windows_without_effect_are_honoured(architecture: str, changes: dict[str, Any]):
    """Off, on no layer, or as long as the context."""
    assert config(architecture, **changes).max_positions == 40960


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("Qwen2ForCausalLM", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}),
        ("Qwen3ForCausalLM", {"use_sliding_window": True}),
        ("Qwen3MoeForCausalLM", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 99}),
        ("Qwen3ForCausalLM", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": "x"}),
        (
            "Qwen3ForCausalLM",
            {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 64},
        ),
        ("LlamaForCausalLM", {"sliding_window": 64}),
    ],
)
def test_windows_with_effect_are_refused(architecture: str, changes: dict[str, Any]):
    assert "sliding-window attention" in refusal(architecture, **changes)


def test_layers_of_other_kinds_are_refused_by_name():
    """linear_attention and whatever comes."""
    assert "'linear_attention'" in refusal(layer_types=["full_attention", "linear_attention"])
    assert "expected a list of 2" in refusal(layer_types=["full_attention"] * 3)
    assert "layer_types" in refusal(layer_types="full_attention")


def test_dual_chunk_attention_stops_where_it_begins():
    """The 1M configs: ordinary attention within the first chunk, and that is the context."""
    dual = {"chunk_size": 262144, "local_size": 8192, "original_max_position_embeddings": 262144}
    model = config(max_position_embeddings=1010000, dual_chunk_attention_config=dual)
    assert model.max_positions == 262144 and "dual chunk attention" in model.notes[0]
    assert not config(dual_chunk_attention_config=dual).notes
    assert "chunk_size" in refusal(dual_chunk_attention_config={"local_size": 3})


@pytest.mark.parametrize(
    ("quant", "wanted"),
    [
        (AWQ, Quantisation("awq", 4, 128)),
        ({**AWQ, "version": "GEMM", "group_size": -1}, Quantisation("awq", 4, 0)),
        ({**AWQ, "zero_point": False}, Quantisation("awq", 4, 128, symmetric=True)),
        (GPTQ, Quantisation("gptq", 4, 128, symmetric=True, less_one=True)),
        (
            {**GPTQ, "bits": 8, "checkpoint_format": "gptq_v2", "desc_act": True, "sym": False},
            Quantisation("gptq", 8, 128, ordered=True),
        ),
        (
            {**GPTQ, "dynamic": {"-:.*lm_head": {}}},
            Quantisation("gptq", 4, 128, symmetric=True, less_one=True),
        ),
        (FP8, Quantisation("fp8", block=(128, 128))),
        ({**FP8, "weight_block_size": None}, Quantisation("fp8")),
        (packed({}), Quantisation("compressed-tensors", 4, 128, symmetric=True)),
        (
            packed({"num_bits": 8, "strategy": "channel", "group_size": None, "actorder": "weight"}),
            Quantisation("compressed-tensors", 8, 0, symmetric=True),
        ),
        (
            packed({"actorder": "group"}),
            Quantisation("compressed-tensors", 4, 128, symmetric=True, ordered=True),
        ),
    ],
)
def test_quantisation_as_tools_write_it(quant: dict[str, Any], wanted: Quantisation):
    assert config(quantization_config=quant).quantised == wanted
    assert wanted.name


@pytest.mark.parametrize(
    ("quant", "says"),
    [
        ({**AWQ, "version": "gemv"}, "'gemv' is not supported; expected 'gemm'"),
        ({**AWQ, "version": "marlin"}, "marlin"),
        ({**AWQ, "bits": 8}, "bits 8 is not supported; expected 4"),
        ({**AWQ, "group_size": 48}, "group_size 48"),
        ({**AWQ, "group_size": 0}, "group_size 0"),
        ({**AWQ, "group_size": "128"}, "group_size '128'"),
        ({**GPTQ, "bits": 3}, "expected 4 or 8"),
        ({**GPTQ, "bits": True}, "bits True"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "'marlin' is not supported; expected 'gptq' or 'gptq_v2'"),
        ({**GPTQ, "pack_dtype": "int8"}, "int8"),
        ({**GPTQ, "sym": 3}, "sym 3"),
        ({**GPTQ, "dynamic": {"+:.*down.*": {"bits": 8}}}, "'+:.*down.*'"),
        ({**GPTQ, "dynamic": 3}, "dynamic"),
        ({**FP8, "fmt": "e5m2"}, "e5m2"),
        ({**FP8, "activation_scheme": "static"}, "static"),
        ({**FP8, "weight_block_size": [128]}, "weight_block_size"),
        ({**FP8, "weight_block_size": [0, 128]}, "weight_block_size is 0"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "'bitsandbytes', which is not supported"),
        ({"quant_method": "compressed-tensors"}, "format None is not supported; expected 'pack-quantized'"),
        ({**PACKED, "format": "float-quantized"}, "'float-quantized'"),
        (PACKED, "one group"),
        ({**packed({}), "kv_cache_scheme": {"num_bits": 8}}, "weights alone"),
        (packed({}, input_activations={"num_bits": 8}), "weights alone"),
        (packed({"symmetric": False}), "symmetric False"),
        (packed({"num_bits": 2}), "num_bits 2"),
        (packed({"strategy": "block"}), "strategy 'block'"),
        (packed({"group_size": 16}), "group_size 16"),
        ({"quant_method": "bitnet"}, "expected awq, gptq, fp8, compressed-tensors or deepfast"),
        ({"quant_method": ["awq"]}, "['awq']"),
        ({"bits": 4}, "None"),
    ],
)
def test_other_quantisations_are_refused_by_name(quant: dict[str, Any], says: str):
    assert says in refusal(quantization_config=quant)


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = (
    "rope_theta", "rope_scaling", "rope_parameters", "max_position_embeddings", "layer_types",
    "sliding_window", "use_sliding_window", "max_window_layers", "quantization_config",
    "dual_chunk_attention_config", "num_hidden_layers", "eos_token_id", "architectures",
)  # fmt: skip
NESTED = {
    "rope_scaling": YARN | {"beta_fast": 32, "attention_factor": 1.0, "low_freq_factor": 1.0},
    "quantization_config": AWQ | GPTQ | FP8 | {"dynamic": {}, "checkpoint_format": "gptq"},
    "dual_chunk_attention_config": {"chunk_size": 1, "original_max_position_embeddings": 1},
}


def test_many_dense_layers_are_read_at_once():
    """Not list against list: that would take a minute."""
    began = time.monotonic()
    moe = config(
        "Qwen3MoeForCausalLM", num_hidden_layers=4096, mlp_only_layers=[[1], *range(400_000, 2, -1), 1]
    )
    assert moe.sparse_layers == {0, 2} and time.monotonic() - began < 4


@given(st.data())
def test_whatever_a_config_says_it_is_read_or_refused(data: st.DataObject):
    """No other error than a ModelError of one readable line, also from what is computed later."""
    raw = hf_config("Qwen3ForCausalLM", QWEN3)
    key = data.draw(st.sampled_from(KEYS))
    raw[key] = data.draw(junk)
    if key in NESTED and data.draw(st.booleans()):
        inner = data.draw(st.sampled_from(sorted(NESTED[key])))
        raw[key] = NESTED[key] | {inner: data.draw(junk)}
    try:
        model = ModelConfig.from_hf(raw)
    except ModelError as error:
        assert "\n" not in str(error) and len(str(error)) < 600
    else:
        assert all(math.isfinite(f) for f in model.inverse_frequencies())
        assert math.isfinite(model.rope_scale) and model.max_positions > 0
