"""Damaged safetensors checkpoints, plain and quantised: each is read, or refused in one line.

In: small sound checkpoints and the ways in which files lie. Out: never a crash, a hang, a large allocation.
Does not know: what the weights mean.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from checkpoints import make_checkpoint
from fuzzing import harmless, junk, many, numbers
from hypothesis import given
from hypothesis import strategies as st
from quantised_checkpoints import Form, make_pair

from deepfast.backend.reference import ReferenceBackend
from deepfast.model.decoder import Decoder
from deepfast.model.safetensors import STORAGE, SafetensorsFile, write_safetensors
from deepfast.model.weights import Checkpoint

TINY = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
TINY |= {"num_hidden_layers": 1, "vocab_size": 32, "moe_intermediate_size": 32, "num_experts": 2}
FORMS = {
    "awq": Form("awq"),
    "gptq": Form("gptq", bits=8, group=64),
    "gptq-order": Form("gptq", act_order=True),
    "fp8": Form("fp8", scales="BF16", block=(32, 32)),
    "packed": Form("packed", zero="middle", act_order=True),
}
KINDS = ["plain", "fused", "q8", *FORMS]


class Files:
    """config.json, a header and data, ready to be damaged."""

    def __init__(self, config: dict[str, Any], header: dict[str, Any], data: bytes) -> None:
        self.config, self.header, self.data = config, header, data

    def write(self, path: Path, change: Callable[[bytes], bytes] = lambda raw: raw) -> Path:
        text = json.dumps(self.header).encode()
        path.mkdir(exist_ok=True)
        (path / "config.json").write_text(json.dumps(self.config))
        raw = change(len(text).to_bytes(8, "little") + text + self.data)
        (path / "model.safetensors").write_bytes(raw)
        return path


@cache
def _sound(kind: str) -> tuple[str, str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        if kind in FORMS:
            path = make_pair(path, FORMS[kind], "Qwen3ForCausalLM", **TINY)[0]
        elif kind == "fused":
            path = _fused(path)
        else:
            make_checkpoint(path, **TINY, dtype="Q8" if kind == "q8" else "BF16")
        raw = (path / "model.safetensors").read_bytes()
        end = 8 + int.from_bytes(raw[:8], "little")
        return (path / "config.json").read_text(), raw[8:end].decode(), raw[end:]


def _fused(path: Path) -> Path:
    import numpy as np

    make_checkpoint(path, "Qwen3MoeForCausalLM", **TINY, num_experts_per_tok=1)
    file = SafetensorsFile(path / "model.safetensors")
    tensors = {name: (e.dtype, np.array(file.array(name))) for name, e in file.entries.items()}
    prefix = "model.layers.0.mlp.experts"
    take = lambda part: np.stack([tensors.pop(f"{prefix}.{e}.{part}_proj.weight")[1] for e in range(2)])  # noqa: E731
    tensors[f"{prefix}.gate_up_proj"] = ("F32", np.concatenate([take("gate"), take("up")], axis=1))
    tensors[f"{prefix}.down_proj"] = ("F32", take("down"))
    write_safetensors(path / "model.safetensors", tensors)
    return path


def sound(kind: str) -> Files:
    """A fresh copy of a checkpoint that loads."""
    config, header, data = _sound(kind)
    return Files(json.loads(config), json.loads(header), data)


def load(path: Path) -> Callable[[], object]:
    """Reads all of it: every weight, as it is stored and as numbers."""

    def read() -> None:
        checkpoint = Checkpoint.open(path)
        Decoder.load(checkpoint, ReferenceBackend(), "f32")
        Decoder.load(Checkpoint.open(path), ReferenceBackend())
        for name in checkpoint.names:
            shape = checkpoint.source.shape(name)
            if len(shape) == 2:
                checkpoint.matrix(name, shape).grouped(0, shape[0])

    return read


def check(files: Files, change: Callable[[bytes], bytes] = lambda raw: raw) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        return harmless(load(files.write(Path(folder) / "model", change)))


def test_the_sound_ones_load():
    """Else all that follows would prove nothing."""
    for kind in KINDS:
        assert check(sound(kind)), kind


@many
@given(st.data())
def test_headers_that_lie(data: st.DataObject):
    """Other types, shapes and places, tensors that are gone, renamed or there twice."""
    files = sound(data.draw(st.sampled_from(KINDS)))
    names = sorted(set(files.header) - {"__metadata__"})
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(names))
        entry = files.header.get(name)
        if not isinstance(entry, dict) or "data_offsets" not in entry:
            continue
        match data.draw(st.integers(0, 7)):
            case 0:
                entry["dtype"] = data.draw(st.sampled_from([*STORAGE, "F8_E5M2", "F4"]) | junk)
            case 1:
                entry["shape"] = data.draw(st.lists(numbers, max_size=40) | junk)
            case 2 if isinstance(entry.get("shape"), list):
                entry["shape"] = data.draw(st.permutations([*entry["shape"], 1]))
            case 3:
                entry["data_offsets"] = data.draw(st.lists(numbers, max_size=3) | junk)
            case 4:
                files.header[name] = data.draw(junk)
            case 5:
                del files.header[name]
            case 6:
                other = data.draw(st.sampled_from(names) | st.text(max_size=8))
                files.header[other] = files.header.pop(name)
            case _:  # other types of the same size keep the rest of the file sound
                sizes = [
                    {"F32", "I32", "U32"},
                    {"F16", "BF16", "I16", "U16"},
                    {"I8", "U8", "F8_E4M3", "BOOL"},
                ]
                same = next((names for names in sizes if str(entry["dtype"]) in names), {"F64"})
                entry["dtype"] = data.draw(st.sampled_from(sorted(same)))
    check(files)


@many
@given(st.data())
def test_shapes_that_fit_their_bytes_and_nothing_else(data: st.DataObject):
    """A tensor cut or refolded, everything behind it moved: only meaning is wrong."""
    files = sound(data.draw(st.sampled_from(KINDS)))
    name = data.draw(st.sampled_from(sorted(set(files.header) - {"__metadata__"})))
    entry = files.header[name]
    begin, end = entry["data_offsets"]
    size = STORAGE[entry["dtype"]].itemsize
    shape = data.draw(st.lists(st.integers(0, 70), max_size=4))
    count = 1
    for n in shape:
        count *= n
    shape, count = (shape, count) if count < 20_000 else ([count % 97, 1], count % 97)
    wide = count * size
    files.data = files.data[:begin] + bytes(wide) + files.data[end:]
    entry |= {"shape": shape, "data_offsets": [begin, begin + wide]}
    for other in files.header.values():
        if other is not entry and "data_offsets" in other and other["data_offsets"][0] >= end:
            other["data_offsets"] = [n + wide - (end - begin) for n in other["data_offsets"]]
    check(files)


@many
@given(st.data())
def test_bytes_that_were_changed(data: st.DataObject):
    """In the header, in the weights, at the end; a length that lies."""
    kind = data.draw(st.sampled_from(KINDS))

    def change(raw: bytes) -> bytes:
        changed = bytearray(raw)
        for _ in range(data.draw(st.integers(1, 4))):
            header = 8 + int.from_bytes(raw[:8], "little")
            top = data.draw(st.sampled_from([8, header, len(raw)]))
            at = data.draw(st.integers(0, min(top, max(len(changed) - 1, 0))))
            match data.draw(st.integers(0, 3)):
                case 0:
                    changed[at : at + 1] = data.draw(st.binary(max_size=8))
                case 1:
                    del changed[at:]
                case 2:
                    changed[at:at] = data.draw(st.binary(max_size=70))
                case _:
                    changed[at : at + 16] = b"\xff" * len(changed[at : at + 16])
        return bytes(changed)

    check(sound(kind), change)


@many
@given(st.data())
def test_configs_that_do_not_fit(data: st.DataObject):
    """Other sizes and other quantisation than the tensors have."""
    files = sound(data.draw(st.sampled_from(KINDS)))
    quant = files.config.get("quantization_config", {})
    for _ in range(data.draw(st.integers(1, 2))):
        table = data.draw(st.sampled_from([files.config, quant])) if quant else files.config
        table[data.draw(st.sampled_from(sorted(table)))] = data.draw(numbers | junk)
    check(files)


@many
@given(st.data())
def test_an_index_that_lies(data: st.DataObject):
    """Shards that are missing, named twice, elsewhere; tensors in the wrong one."""
    with tempfile.TemporaryDirectory() as folder:
        path = make_checkpoint(Path(folder) / "model", **TINY, shards=2)
        file = path / "model.safetensors.index.json"
        index = json.loads(file.read_text())
        wild = junk | st.sampled_from(
            ["..", ".", "", "/etc/passwd", "a\0b", "x" * 5000, "\ud800", "config.json"]
        )
        match data.draw(st.integers(0, 4)):
            case 0:
                index["weight_map"][data.draw(st.sampled_from(sorted(index["weight_map"])))] = data.draw(wild)
            case 1:
                index["weight_map"] = data.draw(wild)
            case 2:
                index["weight_map"][data.draw(st.text(max_size=9))] = "model-00001-of-00002.safetensors"
            case 3:
                index = data.draw(junk)
            case _:
                one, two = sorted(path.glob("model-*.safetensors"))
                one.write_bytes(data.draw(st.sampled_from([two.read_bytes(), b"", b"\0" * 100])))
        file.write_text(json.dumps(index))
        harmless(load(path))
