"""The checkpoint reader: what it reads is what was written, and every damage is one clear line.

In: tiny checkpoints written here. Out: equal values; ModelError that names the file and the tensor.
Does not know: what the tensors are for.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from checkpoints import encode, make_checkpoint

from deepfast.backend.grouped import Grouped, Layout
from deepfast.backend.quant import (
    ArrayMatrix,
    dequantise_q4,
    dequantise_q8,
    quantise_q4,
    quantise_q8,
    round_bf16,
    rounded,
)
from deepfast.backend.reference import ReferenceBackend
from deepfast.model.decoder import Decoder
from deepfast.model.safetensors import SafetensorsFile, write_safetensors
from deepfast.model.weights import Checkpoint
from deepfast.types import ModelError

UP = "model.layers.1.mlp.up_proj.weight"


def load(path: Path) -> Decoder:
    return Decoder.load(Checkpoint.open(path), ReferenceBackend())


def fails(path: Path) -> str:
    """The message of the error, which must be one line."""
    with pytest.raises(ModelError) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rewrite_header(path: Path, change) -> None:
    """Let `change` edit the header of a safetensors file; its data stays."""
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:end])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[end:])


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "Q8"])
def test_a_tensor_comes_back_as_its_dtype_keeps_it(tmp_path: Path, dtype: str):
    values = np.random.RandomState(0).standard_normal((24, 40)).astype(np.float32)
    config = {"vocab_size": 24, "hidden_size": 40, "head_dim": 8, "dtype": dtype}
    path = make_checkpoint(tmp_path, **config, extra={"model.embed_tokens.weight": values})
    matrix = Checkpoint.open(path).matrix("model.embed_tokens.weight", (24, 40))
    kept = {
        "F32": values,
        "F16": values.astype(np.float16).astype(np.float32),
        "BF16": round_bf16(values),
        "Q8": dequantise_q8(*quantise_q8(values), 40),
    }[dtype]
    np.testing.assert_array_equal(matrix.rows(0, 24), kept)
    np.testing.assert_array_equal(matrix.rows(7, 9), kept[7:9])
    assert (matrix.layout is not None) == (dtype == "Q8")


def test_shards_equal_one_file(tmp_path: Path):
    whole = Checkpoint.open(make_checkpoint(tmp_path / "one"))
    parts = Checkpoint.open(make_checkpoint(tmp_path / "three", shards=3))
    assert whole.names == parts.names
    shape = (96, 64)
    np.testing.assert_array_equal(parts.matrix(UP, shape).rows(0, 96), whole.matrix(UP, shape).rows(0, 96))


def test_ends_of_a_turn_come_from_both_configs(tmp_path: Path):
    path = make_checkpoint(tmp_path, eos_token_id=7)
    assert Checkpoint.open(path).eos_ids == (7,)
    (path / "generation_config.json").write_text('{"eos_token_id": [9, 7]}')
    assert Checkpoint.open(path).eos_ids == (7, 9)
    (path / "generation_config.json").write_text(f'{{"eos_token_id": [-1, 160, {10**30}]}}')
    assert Checkpoint.open(path).eos_ids == (7,)  # what no token has is never drawn
    (path / "generation_config.json").write_text("{]")
    assert "generation_config.json" in fails(path)


def test_every_tensor_is_used_or_named(tmp_path: Path):
    stray = {"model.layers.0.mlp.shared.weight": np.zeros((2, 2), np.float32)}
    assert "model.layers.0.mlp.shared.weight" in fails(make_checkpoint(tmp_path / "stray", extra=stray))
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(16, np.float32)}
    load(make_checkpoint(tmp_path / "buffer", extra=buffer))
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path / "whole", dtype="Q8"))
    assert UP in checkpoint.unused()
    fractions: list[float] = []
    Decoder.load(checkpoint, ReferenceBackend(), progress=fractions.append)
    assert not checkpoint.unused() and fractions == sorted(fractions) and fractions[-1] == 1.0


def test_a_missing_or_misshapen_tensor_is_named(tmp_path: Path):
    path = make_checkpoint(tmp_path / "missing")
    raw = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(raw | {"num_hidden_layers": 3}))
    assert "model.layers.2.input_layernorm.weight is missing" in fails(path)
    (path / "config.json").write_text(json.dumps(raw | {"num_hidden_layers": 4000}))
    assert "its configuration says 4000 layers; the files hold" in fails(path)  # at once, not name by name
    text = fails(make_checkpoint(tmp_path / "shape", extra={UP: np.zeros((96, 32), np.float32)}))
    assert UP in text and "[96, 32]" in text and "[96, 64]" in text


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "Q8"])
@pytest.mark.parametrize("name", [UP, "model.norm.weight"])
@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_a_weight_that_is_not_finite_is_named(tmp_path: Path, dtype: str, name: str, bad: float):
    path = make_checkpoint(tmp_path, dtype=dtype)
    file = SafetensorsFile(path / "model.safetensors")
    key = f"{name}.scales" if f"{name}.scales" in file.entries else name
    kind, tensors = file.entries[key].dtype, {n: (e.dtype, file.array(n)) for n, e in file.entries.items()}
    values = np.ones(file.entries[key].shape, np.float32)
    values.flat[-1] = bad
    tensors[key] = encode(key, values, kind)[key]
    write_safetensors(path / "new.safetensors", tensors)
    (path / "new.safetensors").replace(path / "model.safetensors")
    assert name in fails(path)


def _set(name: str, key: str, value: object):
    return lambda header: header[name].__setitem__(key, value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_set(UP, "dtype", "F16"), "needs 12288 bytes"),
        (_set(UP, "dtype", "F8_E4M3"), "F8_E4M3"),
        (_set(UP, "dtype", None), "None"),
        (_set(UP, "shape", [96, 63]), "needs 24192 bytes"),
        (_set(UP, "shape", [96, -64]), "-64"),
        (_set(UP, "shape", "wide"), "wide"),
        (_set(UP, "data_offsets", [0, 24576]), "overlaps"),
        (_set(UP, "data_offsets", [10**12, 10**12 + 24576]), "gap"),
        (_set(UP, "data_offsets", [24576, 0]), "its offsets give -24576"),
        (_set(UP, "data_offsets", [0]), "offsets [0]"),
        (lambda header: header.__setitem__(UP, 3), UP),
        (lambda header: header.pop(UP), "gap"),
    ],
)
def test_a_lying_header_is_refused(tmp_path: Path, change, says: str):
    path = make_checkpoint(tmp_path)
    rewrite_header(path / "model.safetensors", change)
    text = fails(path)
    assert says in text and "model.safetensors" in text


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 100, -1, -5000])
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: Path, keep: int):
    file = make_checkpoint(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert "model.safetensors" in fails(tmp_path)


@pytest.mark.parametrize("tail", [b"x", b"\0" * 4096])
def test_a_file_with_a_tail_is_refused(tmp_path: Path, tail: bytes):
    file = make_checkpoint(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes() + tail)
    assert "end at byte" in fails(tmp_path)


@pytest.mark.parametrize(
    "header", [b"[1]", b"{]", b"\xff\xfe{}", b"[" * 100_000], ids=["list", "open", "bytes", "deep"]
)
def test_a_header_that_is_no_object_is_refused(tmp_path: Path, header: bytes):
    file = make_checkpoint(tmp_path) / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    assert "damaged" in fails(tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"architectures": [', "line 1, column 20"),
        ("[]", "found list"),
        ("\xff", "not JSON"),
        ('{"vocab_size": ' + "1" * 5000 + "}", "not JSON"),
        ('{"architectures": ["GptForCausalLM"]}', "Qwen3ForCausalLM"),
        ('{"architectures": ["Qwen3ForCausalLM"]}', "num_attention_heads"),
    ],
)
def test_wrong_json_says_where(tmp_path: Path, text: str, says: str):
    path = make_checkpoint(tmp_path)
    (path / "config.json").write_bytes(text.encode("latin-1"))
    assert says in fails(path)


@pytest.mark.parametrize(
    "change",
    [
        {"rope_scaling": 3},
        {"rope_scaling": {"rope_type": "yarn", "factor": "four"}},
        {"rope_scaling": {"rope_type": "llama3"}},
        {"rope_theta": None},
        {"head_dim": 31},
        {"num_key_value_heads": 3},
        {"hidden_size": "64"},
        {"use_sliding_window": True, "sliding_window": 64},
        {"quantization_config": "awq"},
        {"quantization_config": {"quant_method": "awq", "bits": 4}},
    ],
    ids=str,
)
def test_a_config_that_we_cannot_run_is_refused_by_key(tmp_path: Path, change: dict):
    path = make_checkpoint(tmp_path)
    raw = json.loads((path / "config.json").read_text()) | change
    (path / "config.json").write_text(json.dumps(raw))
    assert "config.json" in fails(path)


def test_missing_files_say_what_was_expected(tmp_path: Path):
    assert "config.json is missing" in fails(tmp_path)
    path = make_checkpoint(tmp_path, shards=2)
    (path / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors is missing" in fails(path)
    (path / "model.safetensors.index.json").unlink()
    (path / "pytorch_model.bin").touch()
    text = fails(path)
    assert "expected model.safetensors" in text and "pytorch_model.bin, a pickle" in text
    assert "may run code" in text and "fetch the safetensors files" in text
    (path / "pytorch_model.bin").rename(path / "model.gguf")
    assert "found model.gguf: give that file itself" in fails(path)


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ("{}", "weight_map"),
        ('{"weight_map": {}}', "names no tensor"),
        ('{"weight_map": {"a": "../model-00001-of-00002.safetensors"}}', "not a plain file name"),
        ('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}', "tensor 'a' is missing"),
    ],
)
def test_a_wrong_index_is_refused(tmp_path: Path, index: str, says: str):
    path = make_checkpoint(tmp_path, shards=2)
    (path / "model.safetensors.index.json").write_text(index)
    assert says in fails(path)


@pytest.mark.parametrize("width", [1, 31, 32, 33, 96])
def test_quantisation_stays_within_half_a_step(width: int):
    w = np.random.RandomState(width).standard_normal((9, width)).astype(np.float32)
    w[0] = 0.0
    padding = -width % 32
    for codes, scales, back, step in (
        (*quantise_q8(w), dequantise_q8(*quantise_q8(w), width), 1 / 127),
        (*quantise_q4(w), dequantise_q4(*quantise_q4(w), width), 1 / 8),
    ):
        assert codes.shape == (9, width + padding) and scales.shape == (9, (width + padding) // 32)
        full = np.pad(np.abs(w), ((0, 0), (0, padding))).reshape(9, -1, 32).max(axis=2, keepdims=True)
        error = np.pad(np.abs(back - w), ((0, 0), (0, padding))).reshape(9, -1, 32)
        # q4 has no code for +8 steps: the extreme with its sign turned is off by a whole step.
        assert (error <= full * step * (0.51 if step < 0.1 else 1.01)).all()
        assert not back[0].any()


def test_q8_codes_pass_through_the_reference_without_loss():
    w = np.random.RandomState(3).standard_normal((5, 40)).astype(np.float32)
    codes, scales = quantise_q8(w)
    kept = dequantise_q8(codes, scales, 40)
    stored = ArrayMatrix(np.full((5, 40), np.nan, np.float32), Grouped(Layout("q8"), codes[:, :40], scales))
    np.testing.assert_array_equal(ReferenceBackend().pack([stored], "q8").values, kept)
    np.testing.assert_array_equal(rounded(w, "q8"), kept)
