"""Packed checkpoints: what `deepfast quantize` wrote is what packing while loading gives, bit for bit; every
damage is one clear line.

In: tiny checkpoints, packed here. Out: equal logits; errors that name the file. Does not know: the layout.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import chat_checkpoint, make_checkpoint
from click.testing import CliRunner, Result
from kernel_support import random_rows

from deepfast import LLM, EngineConfig, SamplingParams
from deepfast.backend.cpu import CpuBackend, Weight
from deepfast.backend.grouped import Grouped, Layout, take_rows
from deepfast.backend.reference import ReferenceBackend
from deepfast.cli.main import cli
from deepfast.config import PACKED_LAYOUT
from deepfast.model.decoder import Decoder, Dense, Experts, Layer
from deepfast.model.hub import BUNDLED
from deepfast.model.load import load_tensors
from deepfast.model.packed import write_packed
from deepfast.model.safetensors import ALIGNMENT, SafetensorsFile
from deepfast.model.tensors import Matrix
from deepfast.model.weights import Checkpoint
from deepfast.types import DeepfastError, ModelError, UsageError

QKV = "model.layers.1.self_attn.qkv_proj.weight"
KINDS: dict[str, dict[str, Any]] = {
    "tied": {"tie_word_embeddings": True, "hidden_size": 56, "vocab_size": 161},
    "own head": {"tie_word_embeddings": True, "extra": {"lm_head.weight": np.ones((160, 64), np.float32)}},
    "copied head": {"tie_word_embeddings": True, "duplicate_head": True, "dtype": "BF16"},
    "bias": {"architecture": "Qwen2ForCausalLM", "dtype": "F16"},
    "experts": {"architecture": "Qwen3MoeForCausalLM", "mlp_only_layers": [0], "dtype": "BF16", "shards": 3},
    "one expert": {"architecture": "Qwen3MoeForCausalLM", "num_experts": 1, "num_experts_per_tok": 1},
    "llama": {"architecture": "LlamaForCausalLM", "mlp_bias": True, "attention_bias": True},
    "q8": {"dtype": "Q8"},
}


def packed(source: Path, format: str = "q4") -> Path:
    out = source.with_name(f"{source.name}-{format}")
    write_packed(Checkpoint.open(source), CpuBackend(2), format, out)  # type: ignore[arg-type]
    return out


def tensors(decoder: Decoder) -> list[Any]:
    """Every array and weight of a decoder, flat."""
    found: list[Any] = []

    def walk(value: Any) -> None:
        if isinstance(value, tuple):
            for item in value:
                walk(item)
        elif isinstance(value, Layer | Dense | Experts):
            for name in value.__dataclass_fields__:
                walk(getattr(value, name))
        else:
            found.append(value)

    for part in (decoder.embedding, *decoder.layers, decoder.final_norm, decoder.head):
        walk(part)
    return found


@pytest.mark.parametrize("format", ["q4", "q8"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_checkpoint_is_what_packing_while_loading_gives(tmp_path: Path, kind: str, format: Any):
    source = make_checkpoint(tmp_path / "model", **KINDS[kind])
    cpu = CpuBackend(2)
    wanted = Decoder.load(Checkpoint.open(source), cpu, format)
    fractions: list[float] = []
    found = Decoder.load(Checkpoint.open(packed(source, format)), cpu, None, fractions.append)
    assert (found.head is found.embedding) == (wanted.head is wanted.embedding)
    pairs = list(zip(tensors(found), tensors(wanted), strict=True))
    assert len(pairs) > 15
    for ours, theirs in pairs:
        if hasattr(theirs, "buffer"):
            assert ours.buffer.tobytes() == theirs.buffer.tobytes() and ours.format == theirs.format
            assert (ours.experts, ours.rows, ours.columns) == (theirs.experts, theirs.rows, theirs.columns)
            assert not ours.buffer.flags.owndata and not ours.buffer.flags.writeable
        else:
            np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    assert fractions == sorted(fractions) and fractions[-1] == 1.0


class StoredMatrix(Matrix):
    """Random codes in the layout that belongs to a name, as a file of several quantised types has them."""

    def __init__(self, name: str, like: Matrix) -> None:
        kind = next((found for part, found in LAYOUTS.items() if part in name), None)
        self.name, self.shape, self.nbytes, self._like = name, like.shape, like.nbytes, like
        self.layout, self.stored = kind, like.stored if kind is None else "q4" if kind.bits == 4 else "q8"
        self._rows = kind and random_rows(kind, *like.shape, seed=len(name))

    def rows(self, first: int, last: int) -> Any:
        return self._like.rows(first, last) if self._rows is None else self._rows.floats()[first:last]

    def grouped(self, first: int, last: int) -> Grouped | None:
        return None if self._rows is None else take_rows(self._rows, first, last)


LAYOUTS = {
    "q_proj": Layout("q4_k", 2),
    "k_proj": Layout("q4_k", 2),
    "v_proj": Layout("q8_k16", 2),
    "o_proj": Layout("q4_min"),
    "embed": Layout("q8_k", 2),
    "gate_proj": Layout("q4"),
    "up_proj": Layout("q4_k16", 2),
    "0.mlp.down_proj": Layout("q8"),
    "experts.3.down_proj": Layout("q8_k16_min", 1),
    "down_proj": Layout("q4_k", 1),
}


@pytest.mark.parametrize("architecture", ["Qwen3ForCausalLM", "Qwen3MoeForCausalLM"])
@pytest.mark.parametrize("format", ["q4", "q8", None])
def test_all_layouts_come_back_from_a_packed_file(tmp_path: Path, architecture: str, format: Any):
    source, out = make_checkpoint(tmp_path / "model", architecture), tmp_path / "packed"
    cpu = CpuBackend(2)

    def load(backend: Any) -> dict[str, Any]:
        return dict(load_tensors(Checkpoint.open(source), backend, format, prepare=StoredMatrix))

    wanted, reference = load(cpu), load(ReferenceBackend())
    for name, weight in wanted.items():
        if isinstance(weight, Weight):
            values = [cpu.unpack(weight, expert) for expert in range(weight.experts)]
            np.testing.assert_array_equal(np.stack(values).ravel(), reference[name].values.ravel(), name)
    kept = {name.rpartition(".layers.")[2]: w.layout for name, w in wanted.items() if isinstance(w, Weight)}
    gate_up = next(layout for name, layout in kept.items() if name.startswith("1.") and "gate_up" in name)
    assert kept["1.self_attn.qkv_proj.weight"] == (
        Layout("q4") if format == "q4" else Layout("q8_k16_min", 2)
    )
    assert kept["1.self_attn.o_proj.weight"] == Layout("q4_min") and gate_up == Layout("q4_k16", 1)
    if format is None:
        return
    write_packed(Checkpoint.open(source), cpu, format, out, prepare=StoredMatrix)
    said = SafetensorsFile(out / "model.safetensors").metadata[QKV]
    assert said == ("q4 1 x 256 x 64" if format == "q4" else "q8_k16_min/2 1 x 256 x 64")
    for name, found in load_tensors(Checkpoint.open(out), cpu):
        if isinstance(found, Weight):
            assert found.layout == wanted[name].layout
            assert found.buffer.tobytes() == wanted[name].buffer.tobytes()


def test_every_weight_begins_on_a_cache_line(tmp_path: Path):
    file = SafetensorsFile(packed(make_checkpoint(tmp_path / "model")) / "model.safetensors")
    weights = [entry for entry in file.entries.values() if entry.dtype == "U8"]
    assert len(weights) == 10 and all(entry.begin % ALIGNMENT == 0 for entry in weights)


def test_bytes_are_the_same_for_every_instruction_set(tmp_path: Path):
    source = make_checkpoint(tmp_path / "model", "Qwen3MoeForCausalLM", dtype="BF16")
    written = set()
    for isa in ("scalar", CpuBackend(1).isa):
        out = tmp_path / isa
        write_packed(Checkpoint.open(source), CpuBackend(3, isa), "q4", out)
        written.add((out / "model.safetensors").read_bytes())
        shutil.rmtree(out)
    assert len(written) == 1


def call(*args: str) -> Result:
    return CliRunner().invoke(cli, args, env={"DEEPFAST_MODEL": None})


def test_the_command_writes_a_model_that_runs_and_says_equal_things(tmp_path: Path):
    (tmp_path / "small").mkdir()
    source = chat_checkpoint(tmp_path / "small", hidden_size=64)
    done = call("quantize", "--plain", str(source))
    assert done.exit_code == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'small-q4'}\n" and "in q4" in done.stderr
    greedy = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    said = []
    for model, format in ((source, "q4"), (tmp_path / "small-q4", None), (tmp_path / "small-q4", "q4")):
        with LLM(model, quantize=format, config=EngineConfig(max_context=128)) as llm:  # type: ignore[arg-type]
            said.append(llm.generate([[3, 4, 5]], greedy)[0].token_ids)
    assert said[0] == said[1] == said[2]
    facts = json.loads(call("show", "-m", str(tmp_path / "small-q4"), "--json").stdout)
    assert facts["stored"] == "q4" and facts["modes"] == ["think", "no_think"]


def test_the_bundled_model_keeps_its_numbers(tmp_path: Path):
    out = tmp_path / "nano"
    assert call("quantize", "--to", "q8", "--out", str(out)).exit_code == 0
    greedy = SamplingParams(temperature=0, max_tokens=20)
    said = []
    for model in (None, out):
        with LLM(model) as llm:
            said.append(llm.chat("What is 47 * 86?", greedy))
    assert said[0].token_ids == said[1].token_ids
    assert sorted(p.name for p in out.iterdir()) == sorted(
        p.name for p in BUNDLED.iterdir() if p.suffix != ".png"
    )


def test_what_makes_no_sense_is_refused_by_name_and_leaves_nothing(tmp_path: Path):
    source = make_checkpoint(tmp_path / "model")
    out = packed(source)
    again = call("quantize", str(out))
    assert again.exit_code == 2 and "packed already, as q4" in again.stderr
    for target in (out, source / "config.json"):
        done = call("quantize", str(source), "--out", str(target))
        assert done.exit_code == 2 and str(target) in done.stderr and "there already" in done.stderr
    with pytest.raises(UsageError, match="packed as q4 and cannot become q8"):
        Decoder.load(Checkpoint.open(out), CpuBackend(1), "q8")
    with pytest.raises(ModelError, match="reference backend reads plain checkpoints only"):
        Decoder.load(Checkpoint.open(out), ReferenceBackend())
    (source / "model.safetensors").write_bytes(b"")
    assert call("quantize", str(source), "--out", str(tmp_path / "new")).exit_code == 1
    nan = make_checkpoint(tmp_path / "nan", extra={"model.norm.weight": np.full(64, np.nan, np.float32)})
    assert "holds NaN" in call("quantize", str(nan), "--out", str(tmp_path / "new")).stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "model-q4", "nan"]
    (tmp_path / "empty").mkdir()
    fine = make_checkpoint(tmp_path / "fine")
    assert call("quantize", str(fine), "--out", str(tmp_path / "empty")).exit_code == 0


def fails(path: Path) -> str:
    with pytest.raises(DeepfastError) as caught:
        Decoder.load(Checkpoint.open(path), CpuBackend(1))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _header(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Edit the header of the packed file; the data stay, beginning where they begin."""

    def spoil(path: Path) -> None:
        file = path / "model.safetensors"
        raw = file.read_bytes()
        end = 8 + int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8:end])
        change(header)
        text = json.dumps(header).encode()
        text += b" " * (-(8 + len(text)) % ALIGNMENT)
        file.write_bytes(len(text).to_bytes(8, "little") + text + raw[end:])

    return spoil


def _shift(path: Path) -> None:
    """Insert one byte of header: everything lies one byte further."""
    file = path / "model.safetensors"
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    file.write_bytes((length + 1).to_bytes(8, "little") + raw[8 : 8 + length] + b" " + raw[8 + length :])


def _quant(**keys: Any) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        raw = json.loads((path / "config.json").read_text())
        raw["quantization_config"] |= keys
        (path / "config.json").write_text(json.dumps(raw))

    return spoil


def _config(**keys: Any) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        (path / "config.json").write_text(json.dumps(json.loads((path / "config.json").read_text()) | keys))

    return spoil


def _cut(count: int) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        file = path / "model.safetensors"
        file.write_bytes(file.read_bytes()[:count])

    return spoil


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_cut(0), "not a safetensors file"),
        (_cut(300), "truncated"),
        (_cut(-1), "truncated"),
        (_shift, "must start on 64 bytes"),
        (
            _header(lambda h: h["__metadata__"].__setitem__(QKV, "q8 1 x 256 x 64")),
            "bytes of a packed matrix",
        ),
        (_header(lambda h: h["__metadata__"].__setitem__(QKV, "q4 1 x 256 x 96")), "q4 1 x 256 x 96"),
        (_header(lambda h: h["__metadata__"].__setitem__(QKV, "q2 1 x 256 x 64")), "described as 'q2"),
        (
            _header(lambda h: h["__metadata__"].__setitem__(QKV, "q4_k/2 1 x 256 x 64")),
            "bytes of a packed matrix",
        ),
        (
            _header(lambda h: h["__metadata__"].__setitem__(QKV, "q4_k/0 1 x 256 x 64")),
            "described as 'q4_k/0",
        ),
        (_header(lambda h: h["__metadata__"].__setitem__(QKV, "q4/2 1 x 256 x 64")), "span=2; expected 1"),
        (_header(lambda h: h["__metadata__"].pop(QKV)), "described as ''"),
        (_header(lambda h: h.pop("__metadata__")), "described as ''"),
        (_header(lambda h: h.__setitem__("__metadata__", {QKV: 3})), "no object of strings"),
        (_header(lambda h: h[QKV].__setitem__("dtype", "I8")), "expected U8"),
        (_header(lambda h: h[QKV]["data_offsets"].__setitem__(0, 0)), QKV),
        (_header(lambda h: h[QKV]["data_offsets"].__setitem__(1, 10**15)), QKV),
        (_header(lambda h: h.__setitem__("other", h.pop(QKV))), f"{QKV} is missing"),
        (_quant(layout=PACKED_LAYOUT + 1), "Run deepfast quantize"),
        (_quant(layout="x"), "layout 'x'"),
        (_quant(bits=3), "3 bits"),
        (_quant(quant_method="awq"), "AWQ"),
        (_config(quantization_config=None), "has shape [5760]"),
        (_config(num_hidden_layers=3), "model.layers.2.input_layernorm.weight is missing"),
        (_config(num_hidden_layers=1), "unknown"),
        (_config(hidden_size=96), "asks for"),
        (lambda path: (path / "model.safetensors").unlink(), "no weights"),
    ],
)
def test_a_damaged_packed_checkpoint_is_one_clear_line(
    tmp_path: Path, spoil: Callable[[Path], None], says: str
):
    path = packed(make_checkpoint(tmp_path / "model"))
    spoil(path)
    assert says in fails(path)


def test_packed_experts_that_cannot_be_there_are_refused_before_they_are_named(tmp_path: Path):
    path = packed(make_checkpoint(tmp_path / "m", "Qwen3MoeForCausalLM"))
    _config(num_experts=4096)(path)
    assert "its configuration says 2 layers with 4096 experts" in fails(path)


def test_memory_that_is_mapped_is_not_given_to_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "model").mkdir()
    source = chat_checkpoint(tmp_path / "model", max_position_embeddings=32768)
    out = packed(source)
    mapped = (out / "model.safetensors").stat().st_size
    with LLM(source) as llm:
        assert llm.fit.mapped == 0
    free = mapped + 10**7
    monkeypatch.setattr("deepfast.engine.llm.free_memory", lambda: free)
    with LLM(out) as llm:
        assert llm.fit.mapped == mapped and llm.max_context < 32768 // 4
        assert llm.fit.total <= free and not llm.fit.tight
