"""Checkpoints that others quantised: the weights that they meant, without loss where a layout holds them.

In: small checkpoints packed from first principles, and their plain twins. Out: equal matrices, equal tokens;
for everything damaged one line that names it. Does not know: what the weights are for.
"""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from checkpoints import make_checkpoint
from decoding import BACKENDS, greedy, make_backend, prompt_logits, row_errors
from quantised_checkpoints import AWQ, Form, bytes_as_floats, in_order, make_pair, words

from deepfast.backend.quant import rounded
from deepfast.backend.reference import ReferenceBackend
from deepfast.model import unpack
from deepfast.model.decoder import Decoder
from deepfast.model.directory import PlainMatrix
from deepfast.model.rounding import conversion_error, conversion_notes
from deepfast.model.safetensors import SafetensorsFile, write_safetensors
from deepfast.model.weights import Checkpoint
from deepfast.types import ModelError

FORMS = {
    "awq": Form("awq"),
    "awq-64": Form("awq", group=64),
    "awq-128": Form("awq", group=128),
    "awq-whole-rows": Form("awq", group=-1),
    "awq-symmetric": Form("awq", zero="middle"),
    "awq-bf16": Form("awq", scales="BF16"),
    "gptq-4": Form("gptq", zero="middle"),
    "gptq-4-128": Form("gptq", zero="middle", group=128),
    "gptq-4-asymmetric": Form("gptq", group=64),
    "gptq-4-whole-rows": Form("gptq", group=-1),
    "gptq-4-v2": Form("gptq", version="gptq_v2"),
    "gptq-8": Form("gptq", bits=8, zero="middle", group=128),
    "gptq-8-asymmetric": Form("gptq", bits=8, group=64),
    "gptq-8-v2": Form("gptq", bits=8, version="gptq_v2"),
    "packed": Form("packed", zero="middle", scales="BF16", group=128),
    "packed-8": Form("packed", bits=8, zero="middle", scales="BF16", group=-1),
}
LOSSY = {
    "packed-order": Form("packed", zero="middle", act_order=True),
    "gptq-act-order": Form("gptq", act_order=True),
    "gptq-8-act-order": Form("gptq", bits=8, zero="middle", act_order=True),
    "gptq-f32": Form("gptq", scales="F32"),
    "fp8": Form("fp8", scales="F32"),
    "fp8-bf16": Form("fp8", scales="BF16"),
    "fp8-odd-blocks": Form("fp8", scales="F32", block=(48, 80)),
    "fp8-per-tensor": Form("fp8", scales="F32", block=None),
}
ARCHITECTURES = ["Qwen3ForCausalLM", "Qwen3MoeForCausalLM", "Qwen2ForCausalLM"]
UP, BASE = "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.up_proj"
PROMPT = [3, 14, 15, 92, 65]


def matrices(path: Path) -> dict[str, object]:
    """Every matrix of a checkpoint."""
    checkpoint = Checkpoint.open(path)
    shapes = {name: checkpoint.source.shape(name) for name in checkpoint.names}
    return {name: checkpoint.matrix(name, shape) for name, shape in shapes.items() if len(shape) == 2}


def fails(path: Path) -> str:
    """The message of the error, which must be one line of a readable length."""
    with pytest.raises(ModelError) as caught:
        Decoder.load(Checkpoint.open(path), ReferenceBackend(), "f32")
    text = str(caught.value)
    assert "\n" not in text and len(text) - len(str(path)) < 400
    return text


@pytest.mark.parametrize(
    ("name", "architecture"),
    [(name, ARCHITECTURES[0]) for name in FORMS | LOSSY]
    + [(name, other) for name in ("awq", "gptq-act-order", "fp8", "packed") for other in ARCHITECTURES[1:]],
)
def test_every_weight_is_the_one_that_was_meant(tmp_path: Path, name: str, architecture: str):
    """Bit for bit, also where it is asked for in pieces; codes where a layout holds them."""
    form = (FORMS | LOSSY)[name]
    quantised, plain = make_pair(tmp_path, form, architecture)
    ours, theirs = matrices(quantised), matrices(plain)
    assert ours.keys() == theirs.keys()
    packed = 0
    for key, matrix in ours.items():
        m = matrix.shape[0]
        wanted = theirs[key].rows(0, m)
        np.testing.assert_array_equal(matrix.rows(0, m + 100), wanted, err_msg=key)
        np.testing.assert_array_equal(matrix.rows(3, m - 6), wanted[3 : m - 6], err_msg=key)
        rows = matrix.grouped(5, 30)
        assert (rows is None) == (matrix.layout is None)
        if rows is not None:
            packed += 1
            assert rows.layout == matrix.layout and matrix.lossless
            np.testing.assert_array_equal(rows.floats(), wanted[5:30])
    assert bool(packed) == (name in FORMS)


@pytest.mark.parametrize(
    ("name", "kept", "layout"),
    [
        ("awq-128", "q4", ("q4_k", 4)),
        ("awq-symmetric", "q4", ("q4", 1)),
        ("awq-bf16", "q4", ("q4_k", 1)),
        ("gptq-4-128", "q4", ("q4", 1)),
        ("gptq-4-asymmetric", "q4", ("q4_k", 2)),
        ("gptq-8", "q8", ("q8", 1)),
        ("gptq-8-asymmetric", "q8", ("q8_k", 2)),
        ("gptq-act-order", "q8", None),
        ("gptq-f32", "q8", None),
        ("fp8", "q8", None),
    ],
)
def test_what_keeps_a_matrix(tmp_path: Path, name: str, kept: str, layout: tuple[str, int] | None):
    """The narrowest layout; where there is none, eight bits are near."""
    matrix = matrices(make_pair(tmp_path, (FORMS | LOSSY)[name])[0])[UP]
    assert (matrix.stored, matrix.lossless, matrix.layout) == (kept, layout is not None, layout)
    error = conversion_error([matrix])
    values = matrix.rows(0, 256)
    whole = np.linalg.norm(values - rounded(values, "q8")) / np.linalg.norm(values)
    assert error == 0 if layout else error == pytest.approx(whole, rel=0.2) and 0 < error < 0.02


def test_what_a_conversion_costs_is_told(tmp_path: Path):
    """Where there is one: with the format, and the error. q and v of layer 0 lie beside plain keys."""
    path, plain = make_pair(tmp_path, LOSSY["fp8"])
    (note,) = conversion_notes(Checkpoint.open(path))
    assert note.startswith(
        "11 of 16 matrices (FP8 in blocks of 128 x 128) are converted to q8, relative error 0."
    )
    told, matrix = float(note.split()[-2]), matrices(path)[UP]
    assert told / 100 == pytest.approx(conversion_error([matrix]), rel=0.2)
    assert not conversion_notes(Checkpoint.open(plain))
    assert not conversion_notes(Checkpoint.open(make_pair(tmp_path / "awq", FORMS["awq"])[0]))


@pytest.mark.parametrize("name", ["awq", "gptq-act-order", "fp8"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equal_tokens(tmp_path: Path, name: str, architecture: str):
    """A quantised checkpoint says what its plain twin says."""
    said = []
    for path in make_pair(tmp_path, (FORMS | LOSSY)[name], architecture):
        decoder = Decoder.load(Checkpoint.open(path), ReferenceBackend(), "f32")
        said.append(greedy(decoder, PROMPT, 12))
    assert said[0] == said[1]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["awq-64", "gptq-4", "gptq-4-asymmetric", "gptq-8-asymmetric", "fp8"])
def test_weights_are_computed_with_as_they_are_stored(tmp_path: Path, name: str, backend: str):
    """Without loss in the reference; the native core rounds activations; FP8 is rounded to q8."""
    logits = []
    for path, format in zip(make_pair(tmp_path, (FORMS | LOSSY)[name]), (None, "f32"), strict=True):
        decoder = Decoder.load(Checkpoint.open(path), make_backend(backend), format)
        logits.append(prompt_logits(decoder, PROMPT))
    errors = row_errors(*logits)
    assert errors.max() < (1e-5 if backend == "reference" and name != "fp8" else 0.06)


def test_biases(tmp_path: Path):
    """Qwen2's own are read; zeros that tools write where there is none are not missed, other numbers are."""
    path, _ = make_pair(tmp_path, FORMS["gptq-4"], "Qwen2ForCausalLM")
    checkpoint = Checkpoint.open(path)
    assert checkpoint.vector("model.layers.1.self_attn.q_proj.bias", 128).any()
    assert f"{BASE}.bias" not in checkpoint
    change(path, f"{BASE}.bias", lambda array: np.ones_like(array))
    assert f"{BASE}.bias" in fails(path)


def test_a_zero_of_zero_borrowed_from_its_neighbour():
    """zero - 1 was taken from whole words, so that is how it comes back."""
    zeros = np.array([[0, 5, 0, 0, 15, 1, 0, 7]])
    stored = (words(zeros, 4, in_order(4)).view(np.uint32) - np.uint32(0x11111111)).view(np.int32)
    np.testing.assert_array_equal(unpack.gptq_zeros(stored, 4, True, 0, 8), zeros.T)
    np.testing.assert_array_equal(unpack.gptq_zeros(stored, 4, True, 3, 6), zeros.T[3:6])


def test_every_byte_of_fp8():
    """By the definition of E4M3."""
    np.testing.assert_array_equal(unpack.E4M3, bytes_as_floats(np.arange(256)))
    assert unpack.E4M3[0x7E] == 448 and unpack.E4M3[1] == 2.0**-9 and np.isnan(unpack.E4M3[0xFF])


def test_awq_order():
    """A word that counts 0..7 from its lowest nibble has its outputs at the places of the order."""
    word = np.array([[0x76543210]], np.int32)
    np.testing.assert_array_equal(unpack.awq_codes(word, 0, 8)[list(AWQ), 0], np.arange(8))


def test_experts_in_one_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As transformers 5 holds them: gates, then ups, of all experts."""
    alone = make_checkpoint(tmp_path / "alone", "Qwen3MoeForCausalLM", dtype="BF16")
    file = SafetensorsFile(alone / "model.safetensors")
    tensors = {name: (entry.dtype, file.array(name)) for name, entry in file.entries.items()}
    fused = dict(tensors)
    for layer in range(2):
        prefix = f"model.layers.{layer}.mlp.experts"
        parts = [
            [fused.pop(f"{prefix}.{e}.{part}_proj.weight")[1] for e in range(8)]
            for part in ("gate", "up", "down")
        ]
        fused[f"{prefix}.gate_up_proj"] = (
            "BF16",
            np.concatenate([np.stack(parts[0]), np.stack(parts[1])], axis=1),
        )
        fused[f"{prefix}.down_proj"] = ("BF16", np.stack(parts[2]))
    together = make_checkpoint(tmp_path / "together", "Qwen3MoeForCausalLM")
    write_safetensors(together / "model.safetensors", fused)
    ours, theirs = matrices(together), matrices(alone)
    assert ours.keys() == theirs.keys()
    for name, matrix in ours.items():
        np.testing.assert_array_equal(matrix.rows(2, 9), theirs[name].rows(2, 9))
        assert (matrix.nbytes, matrix.stored) == (theirs[name].nbytes, theirs[name].stored)
    assert not unused(together)
    monkeypatch.setattr("deepfast.model.tensors.MAX_TENSORS", 30)
    assert "more than 30 tensors" in fails(together)
    monkeypatch.undo()
    fused[f"{prefix}.down_proj"] = ("BF16", np.stack(parts[2]).transpose(0, 2, 1))
    write_safetensors(together / "model.safetensors", fused)
    assert "down_proj has shape [8, 40, 64]; config.json asks for [8, 64, 40]" in fails(together)


@pytest.mark.parametrize("name", ["gptq-act-order", "fp8"])
def test_the_parts_of_a_matrix_may_lie_in_different_shards(tmp_path: Path, name: str):
    path, plain = make_pair(tmp_path, LOSSY[name])
    file = SafetensorsFile(path / "model.safetensors")
    tensors = {key: (entry.dtype, np.array(file.array(key))) for key, entry in file.entries.items()}
    (path / "model.safetensors").unlink()
    weight_map = {}
    for shard in range(2):
        part = sorted(tensors)[shard::2]
        write_safetensors(path / f"{shard}.safetensors", {key: tensors[key] for key in part})
        weight_map |= dict.fromkeys(part, f"{shard}.safetensors")
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    theirs = matrices(plain)
    for key, matrix in matrices(path).items():
        np.testing.assert_array_equal(matrix.rows(0, 9), theirs[key].rows(0, 9))
    assert not unused(path)


def unused(path: Path) -> list[str]:
    """What loading leaves over."""
    checkpoint = Checkpoint.open(path)
    Decoder.load(checkpoint, ReferenceBackend())
    return checkpoint.unused()


def change(path: Path, name: str, how) -> None:
    """Rewrite one tensor; `how` gives its new values, or (dtype, values), or None to drop it."""
    file = SafetensorsFile(path / "model.safetensors")
    tensors = {key: (entry.dtype, np.array(file.array(key))) for key, entry in file.entries.items()}
    dtype, array = tensors.pop(name)
    made = how(array)
    if made is not None:
        tensors[name] = made if isinstance(made, tuple) else (dtype, made)
    write_safetensors(path / "new", tensors)
    (path / "new").replace(path / "model.safetensors")


def poisoned(array: np.ndarray) -> np.ndarray:
    array.flat[-1] = 0x7FC0 if array.dtype == np.uint16 else np.nan
    return array


def set_last(value: int):
    def how(array: np.ndarray) -> np.ndarray:
        array.flat[-1] = value
        return array

    return how


@pytest.mark.parametrize(
    ("form", "part", "how", "says"),
    [
        ("awq", "qweight", lambda a: a[:, :-1], "up_proj.weight has shape [248, 128]"),
        ("awq", "qweight", lambda a: a[:64], "shape [256, 64]"),
        ("awq", "qweight", lambda a: a.ravel(), "expected two dimensions"),
        ("awq", "qweight", lambda a: ("F32", a.view(np.float32)), "expected I32"),
        ("awq", "qweight", lambda a: None, "up_proj.weight is missing"),
        ("awq", "qzeros", lambda a: None, "has no qzeros beside it"),
        ("awq", "qzeros", lambda a: a[:1], "has shape [1, 32]; AWQ with 4 bits in groups of 32 asks for"),
        ("awq", "qzeros", lambda a: ("F16", a.view(np.float16)[:, ::2]), "dtype F16; expected I32"),
        ("awq", "scales", lambda a: None, "has no scales beside it"),
        ("awq", "scales", lambda a: ("I16", a.view(np.int16)), "dtype I16"),
        ("awq", "scales", poisoned, "scales) holds NaN"),
        ("awq-bf16", "scales", poisoned, "scales) holds NaN"),
        ("gptq-4", "scales", poisoned, "scales) holds NaN"),
        ("gptq-4", "scales", lambda a: a.T, "has shape [256, 4]"),
        ("gptq-4", "qweight", lambda a: a[:-1], "shape [256, 120]"),
        ("gptq-4", "g_idx", lambda a: a[:-1], "has shape [127]"),
        ("gptq-4", "g_idx", set_last(4), "names groups 0 to 4; there are 4"),
        ("gptq-4", "g_idx", set_last(-1), "names groups -1 to 3"),
        ("gptq-act-order", "g_idx", lambda a: None, "has no g_idx beside it"),
        ("gptq-act-order", "scales", poisoned, "scales) holds NaN"),
        ("packed", "weight_scale", lambda a: None, "weight_packed has no weight_scale beside it"),
        ("packed", "weight_scale", lambda a: a.T, "has shape [1, 256]"),
        ("packed", "weight_scale", poisoned, "scales) holds NaN"),
        ("packed", "weight_shape", lambda a: a[::-1], "is not 256 x 128"),
        ("packed", "weight_shape", lambda a: ("I32", np.zeros(4, np.int32)), "has shape [4]"),
        ("packed", "weight_packed", lambda a: a[:, 1:], "shape [256, 120]"),
        ("packed-order", "weight_g_idx", lambda a: None, "has no weight_g_idx beside it"),
        ("fp8", "weight", set_last(0x7F), "holds NaN"),
        ("fp8", "weight", lambda a: a[:-1], "shape [255, 128]"),
        ("fp8", "weight_scale_inv", lambda a: None, "weight_scale_inv is missing"),
        ("fp8", "weight_scale_inv", lambda a: a[:1], "has shape [1, 1]; FP8 in blocks of 128 x 128 asks for"),
        ("fp8", "weight_scale_inv", poisoned, "weight_scale_inv holds NaN"),
        ("fp8", "weight_scale_inv", lambda a: np.full_like(a, 3e38), "holds an infinity"),
        ("fp8", "weight_scale_inv", lambda a: ("I32", a.view(np.int32)), "dtype I32"),
    ],
)
def test_damage_is_one_line(tmp_path: Path, form: str, part: str, how, says: str):
    path, _ = make_pair(tmp_path, (FORMS | LOSSY)[form])
    change(path, f"{BASE}.{part}", how)
    assert says in fails(path)


def test_an_order_of_zeros_is_none(tmp_path: Path):
    """As old tools write it for groups that follow one another."""
    path, plain = make_pair(tmp_path, FORMS["gptq-4"])
    change(path, f"{BASE}.g_idx", np.zeros_like)
    matrix = matrices(path)[UP]
    assert matrix.layout is not None
    np.testing.assert_array_equal(matrix.rows(0, 9), matrices(plain)[UP].rows(0, 9))


def test_a_group_that_does_not_divide_the_inputs(tmp_path: Path):
    """AWQ has no shorter last group; GPTQ has."""
    path, _ = make_pair(tmp_path, FORMS["awq"])
    raw = json.loads((path / "config.json").read_text())
    raw["quantization_config"]["group_size"] = 96
    (path / "config.json").write_text(json.dumps(raw))
    assert "has 128 inputs, no multiple of group_size 96" in fails(path)
    ours, theirs = make_pair(tmp_path / "gptq", Form("gptq", group=96))
    np.testing.assert_array_equal(matrices(ours)[UP].rows(0, 256), matrices(theirs)[UP].rows(0, 256))


@pytest.mark.parametrize(
    ("form", "key", "value"),
    [
        (Form("gptq", group=-1), "group_size", 2**31 - 32),
        (Form("fp8", block=(256, 256)), "weight_block_size", [2**20, 2**20]),
    ],
)
def test_groups_larger_than_a_matrix_are_all_of_it(tmp_path: Path, form: Form, key: str, value):
    """And take no more memory than that."""
    path, plain = make_pair(tmp_path, form)
    raw = json.loads((path / "config.json").read_text())
    raw["quantization_config"][key] = value
    (path / "config.json").write_text(json.dumps(raw))
    tracemalloc.start()
    try:
        ours, theirs = matrices(path)[UP].rows(0, 9), matrices(plain)[UP].rows(0, 9)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(ours, theirs)


def test_plain_and_quantised_at_once(tmp_path: Path):
    """Which of them would be meant?"""
    path, _ = make_pair(tmp_path, FORMS["awq"])
    change(path, "model.norm.weight", lambda a: None)
    file = SafetensorsFile(path / "model.safetensors")
    tensors = {key: (entry.dtype, file.array(key)) for key, entry in file.entries.items()}
    write_safetensors(path / "new", tensors | {UP: ("F32", np.zeros((256, 128), np.float32))})
    (path / "new").replace(path / "model.safetensors")
    assert "there twice" in fails(path)


def test_fp8_without_its_config_is_no_plain_checkpoint(tmp_path: Path):
    """The numbers alone would be wrong."""
    path, _ = make_pair(tmp_path, LOSSY["fp8"])
    raw = json.loads((path / "config.json").read_text())
    del raw["quantization_config"]
    (path / "config.json").write_text(json.dumps(raw))
    assert "F8_E4M3" in fails(path)


@pytest.mark.parametrize("name", ["awq", "gptq-8"])
def test_quantised_weights_without_their_settings(tmp_path: Path, name: str):
    """Nobody could know what they mean."""
    path, plain = make_pair(tmp_path, FORMS[name])
    assert Checkpoint.open(path).stored == {"awq": "q4", "gptq-8": "q8"}[name]
    (path / "config.json").write_bytes((plain / "config.json").read_bytes())
    assert "config.json has no quantization_config" in fails(path)


def test_a_conversion_is_measured_on_a_sample():
    """Nothing is lost where the format is the stored one; a matrix of zeros has no error."""
    random = np.random.RandomState(0)
    matrix = PlainMatrix("w", random.standard_normal((300, 70)).astype(np.float32), "f32", Path())
    assert 0.003 < conversion_error([matrix], "q8") < 0.008 and 0.05 < conversion_error([matrix], "q4") < 0.12
    assert conversion_error([matrix]) == conversion_error([matrix], "f32") == 0
    assert conversion_error([PlainMatrix("w", np.zeros((3, 40), np.float32), "f32", Path())], "q4") == 0
