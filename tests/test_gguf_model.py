"""GGUF models as checkpoints: the tensors and the config that went into a file come out, under their names.

In: random models of all four architectures, written by the `gguf` package. Out: the same values, the same
ModelConfig as from config.json, errors that name the key. Does not know: llama.cpp.
"""

import gguf
import numpy as np
import pytest
from checkpoints import YARN
from gguf_files import ARCHITECTURES, Kind, wide, write_model

from deepfast.backend.reference import ReferenceBackend
from deepfast.config import ModelConfig, with_yarn
from deepfast.model.decoder import Decoder
from deepfast.model.fit import loaded_bytes
from deepfast.model.gguf_model import open_gguf, stored_rows
from deepfast.model.weights import Checkpoint
from deepfast.types import ModelError, UsageError

SMALL = {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2, "moe_intermediate_size": 32}
SMALL |= {"head_dim": 32, "num_attention_heads": 4, "num_key_value_heads": 2}


def opened(path):
    """The checkpoint of a file."""
    return Checkpoint(path, *open_gguf(path))


def config_of(architecture, **changes):
    """As config.json of the same model gives it."""
    return ModelConfig.from_hf(wide(architecture, **SMALL | changes))


def values_of(source, name):
    """All of a tensor, whatever it is."""
    shape = source.shape(name)
    return source.vector(name) if len(shape) == 1 else source.matrix(name).rows(0, shape[0])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tied", [False, True])
def test_what_went_in_comes_out(tmp_path, architecture, tied):
    """Names, values, shapes and config; rows of q and k in their own order, experts one by one."""
    path = tmp_path / "m.gguf"
    wanted = write_model(path, architecture, **SMALL, tie_word_embeddings=tied)
    checkpoint = opened(path)
    assert checkpoint.names == sorted(wanted)
    for name, values in wanted.items():
        assert checkpoint.source.shape(name) == values.shape and checkpoint.source.where(name) == path
        assert checkpoint.source.nbytes(name) == values.nbytes
        np.testing.assert_array_equal(values_of(checkpoint.source, name), values)
    expected = config_of(architecture, tie_word_embeddings=tied)
    assert checkpoint.config == ModelConfig(**{**fields_of(expected), "eos_ids": checkpoint.eos_ids})


def fields_of(config):
    """A config as a dict."""
    return {name: getattr(config, name) for name in ModelConfig.__slots__}


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "BF16", "F16"])
def test_rows_come_in_any_pieces(tmp_path, kind):
    """Quantised rows of q are reordered as blocks: exactly the rows that were stored elsewhere."""
    path = tmp_path / "m.gguf"
    write_model(path, "LlamaForCausalLM", kind=Kind[kind], **SMALL)
    for name in ("model.layers.0.self_attn.k_proj.weight", "model.layers.1.mlp.down_proj.weight"):
        matrix = opened(path).source.matrix(name)
        whole = matrix.rows(0, matrix.shape[0])
        pieces = [matrix.rows(i, min(i + 7, len(whole))) for i in range(0, len(whole), 7)]
        np.testing.assert_array_equal(np.concatenate(pieces), whole)
        groups = matrix.grouped(3, 9)
        assert (groups is None) == (kind in ("BF16", "F16")) == (matrix.layout is None)
        if groups is not None:
            assert groups.layout == matrix.layout
            np.testing.assert_array_equal(groups.floats(), whole[3:9])
    assert matrix.stored == {"Q8_0": "q8", "Q4_0": "q4", "BF16": "bf16", "F16": "f32"}[kind]
    assert matrix.lossless


def test_rows_of_a_head_take_turns():
    """A converter permutes [2, half] to [half, 2]; two heads of 6."""
    assert stored_rows(12, 2).tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]


def test_experts_are_views_of_their_stack(tmp_path):
    path = tmp_path / "m.gguf"
    wanted = write_model(path, "Qwen3MoeForCausalLM", kind=Kind.Q8_0, **SMALL)
    source = opened(path).source
    name = "model.layers.1.mlp.experts.5.down_proj.weight"
    assert source.shape(name) == wanted[name].shape == (64, 32)
    assert source.nbytes(name) == 64 * 34
    assert np.abs(values_of(source, name) - wanted[name]).max() < 0.01


def test_rope_settings(tmp_path):
    path = tmp_path / "m.gguf"
    write_model(path, rope_scaling=YARN, max_position_embeddings=128, rope_theta=1e4, **SMALL)
    config = opened(path).config
    assert config.yarn == config_of("Qwen3ForCausalLM", rope_scaling=YARN).yarn
    assert config.rope_theta == 1e4 and config.max_positions == 128 and config.rms_norm_eps == 1e-6

    def told(writer):
        writer.add_rope_scaling_attn_factors(0.5)
        writer.add_rope_scaling_yarn_attn_factor(1.25)
        writer.add_rope_scaling_yarn_beta_fast(16.0)

    write_model(path, rope_scaling=YARN, more=told, **SMALL)
    yarn = opened(path).config.yarn
    assert (yarn.attention_factor, yarn.beta_fast, yarn.beta_slow) == (0.625, 16.0, 1.0)


def test_factors_of_llama_3_divide_the_frequencies(tmp_path):
    path = tmp_path / "m.gguf"
    factors = np.linspace(1, 8, 16)
    write_model(path, "LlamaForCausalLM", rope_factors=factors, **SMALL)
    checkpoint = opened(path)
    plain = config_of("LlamaForCausalLM").inverse_frequencies()
    got = np.array(checkpoint.config.inverse_frequencies())
    np.testing.assert_allclose(got, plain / factors, rtol=1e-6)
    Decoder.load(checkpoint, ReferenceBackend())  # the tensor is used: none is left over
    with pytest.raises(UsageError, match="Llama 3's own extension"):
        with_yarn(checkpoint.config, 2.0)
    for bad in (np.ones(15), np.zeros(16), np.full(16, np.nan)):
        write_model(path, "LlamaForCausalLM", rope_factors=bad, **SMALL)
        with pytest.raises(ModelError, match="rope_freqs.weight holds"):
            open_gguf(path)


def test_biases_are_found_where_they_are(tmp_path):
    path = tmp_path / "m.gguf"
    write_model(path, "LlamaForCausalLM", attention_bias=True, **SMALL)
    config = opened(path).config
    assert (config.qkv_bias, config.output_bias, config.mlp_bias) == (True, True, False)
    write_model(path, "Qwen2ForCausalLM", **SMALL)
    config = opened(path).config
    assert (config.qkv_bias, config.output_bias, config.qk_norm) == (True, False, False)


def linear(writer):
    """Position interpolation by 2."""
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(2.0)


REFUSED = {
    "general.type adapter": (lambda w: w.add_string("general.type", "adapter"), "not a model"),
    "sliding window": (lambda w: w.add_sliding_window(128), "attention.sliding_window is 128"),
    "no causal attention": (lambda w: w.add_causal_attention(False), "attention.causal is False"),
    "logit scale": (lambda w: w.add_logit_scale(2.0), "logit_scale is 2.0"),
    "linear rope": (linear, "rope.scaling.type is linear; with factor 2"),
    "rope factor alone": (lambda w: w.add_rope_scaling_factor(2.0), "with factor 2"),
    "longrope": (lambda w: w.add_string("qwen3.rope.scaling.type", "longrope"), "longrope"),
    "yarn without factor": (lambda w: w.add_string("qwen3.rope.scaling.type", "yarn"), "original_context"),
    "experts": (lambda w: w.add_expert_count(8), "expert_count is 8"),
    "a list where a number stands": (lambda w: w.add_array("qwen3.logit_scale", [1, 2]), "logit_scale is"),
    "a list of kinds": (lambda w: w.add_array("general.type", ["a", "b"]), "not a model"),
    "rope of a list": (lambda w: w.add_array("qwen3.rope.scaling.type", ["yarn"]), "rope.scaling.type is"),
    "text for a number": (lambda w: w.add_string("qwen3.expert_count", "8"), "expert_count is 8"),
    "embeddings": (lambda w: w.add_pooling_type(gguf.PoolingType.LAST), "pooling_type is 3"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_honoured_is_refused_by_name(tmp_path, what):
    more, said = REFUSED[what]
    path = tmp_path / "m.gguf"
    write_model(path, more=more, **SMALL)
    with pytest.raises(ModelError) as caught:
        open_gguf(path)
    assert said in str(caught.value) and str(path) in str(caught.value), caught.value


def patched(path, old, new):
    """The file with some bytes exchanged."""
    raw = path.read_bytes()
    assert raw.count(old) and len(old) == len(new)
    path.write_bytes(raw.replace(old, new))
    return path


def test_damaged_models_say_what_is_missing(tmp_path):
    path = tmp_path / "m.gguf"
    for key, said in (
        (b"qwen3.block_count", "qwen3.block_count is None"),
        (b"qwen3.context_length", "qwen3.context_length is None"),
        (b"qwen3.embedding_length", "qwen3.embedding_length is None"),
        (b"token_embd.weight", "token_embd.weight is missing"),
        (b"tokenizer.ggml.tokens", "tokenizer.ggml.tokens"),
        (b"tokenizer.ggml.merges", "tokenizer.ggml.merges"),
    ):
        write_model(path, **SMALL)
        with pytest.raises(ModelError) as caught:
            open_gguf(patched(path, key, key[:-1] + b"_"))
        assert said in str(caught.value), caught.value


def test_missing_and_unknown_tensors_are_named_when_loading(tmp_path):
    path = tmp_path / "m.gguf"
    write_model(path, **SMALL)
    with pytest.raises(ModelError, match=r"layers.1.mlp.up_proj.weight is missing"):
        Decoder.load(
            opened(patched(path, b"blk.1.ffn_up.weight", b"blk.1.ffn_uq.weight")), ReferenceBackend()
        )
    write_model(path, more=lambda w: w.add_tensor("blk.0.extra.weight", np.ones(3, np.float32)), **SMALL)
    with pytest.raises(ModelError, match=r"unknown .*blk.0.extra.weight"):
        Decoder.load(opened(path), ReferenceBackend())


def test_numbers_that_are_none_are_found(tmp_path):
    path = tmp_path / "m.gguf"
    write_model(path, kind=Kind.Q8_0, more=lambda w: None, **SMALL)
    matrix = opened(path).source.matrix("lm_head.weight")
    begin = open_gguf(path)[1]._places["lm_head.weight"].file.tensors["output.weight"].begin
    raw = bytearray(path.read_bytes())
    raw[begin : begin + 2] = np.float16(np.nan).tobytes()
    path.write_bytes(raw)
    matrix = opened(path).source.matrix("lm_head.weight")
    for read in (matrix.rows, matrix.grouped):
        with pytest.raises(ModelError, match=r"lm_head.weight holds NaN"):
            read(0, 4)
    raw[begin : begin + 3] = np.float16(1).tobytes() + b"\x80"
    path.write_bytes(raw)
    assert opened(path).source.matrix("lm_head.weight").grouped(0, 4).codes[0, 0] == -128  # as llama.cpp


def test_types_that_are_not_read_are_named_at_once(tmp_path):
    path = tmp_path / "m.gguf"

    def more(writer):
        writer.add_tensor("x", np.zeros((1, 66), np.uint8), raw_dtype=Kind.IQ2_XXS)

    write_model(path, more=more, **SMALL)
    with pytest.raises(ModelError, match=r"tensor x is IQ2_XXS, which is not read.*Q4_K.*IQ4_XS"):
        open_gguf(path)


def test_unknown_architectures_are_named(tmp_path):
    path = tmp_path / "m.gguf"
    write_model(path, **SMALL)
    patched(path, b"\x05\0\0\0\0\0\0\0qwen3", b"\x05\0\0\0\0\0\0\0gemma")
    with pytest.raises(ModelError, match=r"architecture gemma is unknown; expected one of qwen3, qwen3moe"):
        open_gguf(path)


def test_experts_that_no_model_has_are_refused(tmp_path, monkeypatch):
    """Before a name is made for each of them."""
    path = tmp_path / "m.gguf"

    def more(writer):
        writer.add_tensor("blk.2.ffn_up_exps.weight", np.zeros((1000, 1, 1), np.float32))

    write_model(path, "Qwen3MoeForCausalLM", more=more, **SMALL)
    with pytest.raises(ModelError, match=r"blk.2.ffn_up_exps.weight holds 1000 experts; its metadata says 8"):
        open_gguf(path)
    write_model(path, "Qwen3MoeForCausalLM", **SMALL)
    monkeypatch.setattr("deepfast.model.tensors.MAX_TENSORS", 40)
    with pytest.raises(ModelError, match="more than 40 tensors, experts one by one"):
        open_gguf(path)


def test_the_format_that_is_named_is_the_one_in_memory(tmp_path):
    """q8 promises precision: 4 bits stay 4 bits."""
    write_model(tmp_path / "m.gguf", kind=Kind.Q4_0, **SMALL)
    checkpoint = opened(tmp_path / "m.gguf")
    assert [checkpoint.kept_as(wanted) for wanted in (None, "q4", "q8")] == ["q4", "q4", "q4"]
    assert loaded_bytes(checkpoint, "q8") == loaded_bytes(checkpoint, None)
    write_model(tmp_path / "m.gguf", kind=Kind.Q8_0, **SMALL)
    assert [opened(tmp_path / "m.gguf").kept_as(wanted) for wanted in (None, "q4", "q8")] == [
        "q8",
        "q4",
        "q8",
    ]


def test_layers_that_are_alike_may_be_listed(tmp_path):
    path = tmp_path / "m.gguf"
    writer_keys = ("qwen3.feed_forward_length", "qwen3.attention.head_count_kv")

    def more(writer):
        for key in writer_keys:
            value = writer.kv_data[0].pop(key).value
            writer.add_array(key, [value, value])

    write_model(path, more=more, **SMALL)
    assert opened(path).config.intermediate_size == 32


def test_a_file_tells_about_itself(tmp_path):
    path = tmp_path / "m.gguf"
    write_model(path, kind=Kind.Q8_0, more=lambda w: w.add_name("Tiny"), **SMALL)
    source = opened(path).source
    assert source.metadata["general.name"] == "Tiny"
    assert source.kind("lm_head.weight") == "Q8_0" and source.kind("model.norm.weight") == "F32"


def test_split_models_are_one(tmp_path):
    wanted = write_model(tmp_path / "m.gguf", "Qwen3MoeForCausalLM", shard_tensors=9, **SMALL)
    paths = sorted(tmp_path.glob("*.gguf"))
    assert len(paths) > 2
    checkpoint = opened(paths[1])
    assert checkpoint.names == sorted(wanted) and checkpoint.source.size == sum(
        p.stat().st_size for p in paths
    )
    for name, values in wanted.items():
        np.testing.assert_array_equal(values_of(checkpoint.source, name), values)
    checkpoint.release()
