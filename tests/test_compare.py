"""Two models over one text, and their matrices side by side, against direct computations.

In: tiny random models. Out: equal logits, divergences, perplexities, errors. Does not know: how anything is
rounded, `transformers` (tests/parity/test_perplexity.py does).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from checkpoints import make_checkpoint, random_tensors
from compared import ARCHITECTURES, IDS, packed, source_of
from decoding import make_backend, prompt_logits
from hypothesis import given
from hypothesis import strategies as st

from deepfast.backend.cpu import CpuBackend
from deepfast.backend.quant import dequantise_q4, quantise_q4
from deepfast.model.compare import (
    compare,
    divergences,
    exact_format,
    kind_of,
    layer_of,
    matrix_errors,
    together,
    windows,
)
from deepfast.model.decoder import Decoder
from deepfast.model.directory import PlainMatrix
from deepfast.model.shapes import EMBEDDING
from deepfast.model.stream import CHUNK, stream
from deepfast.model.weights import Checkpoint
from deepfast.types import ModelError, UsageError


@pytest.fixture(params=ARCHITECTURES)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return source_of(request.param, tmp_path / "model")


def test_a_stream_is_the_decoder_bit_for_bit(source: Path) -> None:
    cpu, texts = CpuBackend(2), [IDS[: CHUNK + 100], IDS[7:20]]
    fractions: list[float] = []
    found = stream(Checkpoint.open(source), cpu, texts, None, fractions.append)
    decoder = Decoder.load(Checkpoint.open(source), cpu)
    for ids, rows in zip(texts, found.rows, strict=True):
        chunks = [len(ids[i : i + CHUNK]) for i in range(0, len(ids), CHUNK)]
        logits = cpu.to_numpy(cpu.linear(rows, found.head))
        np.testing.assert_array_equal(logits, prompt_logits(decoder, ids, chunks))
    assert fractions == sorted(fractions) and fractions[-1] == 1


@given(length=st.integers(2, 300), size=st.integers(1, 90), stride=st.integers(1, 90))
def test_every_token_but_the_first_is_counted_once(length: int, size: int, stride: int) -> None:
    ids = list(range(length))
    if stride > size:
        with pytest.raises(UsageError, match=f"stride={stride}"):
            windows(ids, size, stride)
        return
    counted = []
    for window in windows(ids, size, stride):
        assert list(window.ids) == list(range(window.ids[0], window.ids[0] + len(window.ids)))
        assert [i + 1 for i in window.ids] == list(window.targets) and len(window.ids) <= size
        counted += window.targets[window.skip :]
        assert window.ids[0] == 0 or window.skip >= min(size - stride, len(window.ids) - 1)
    assert counted == ids[1:]


def softmax(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    wide = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(wide / wide.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_the_comparison_is_that_of_whole_distributions(source: Path, backend: str, tmp_path: Path) -> None:
    if backend == "reference" and not source.joinpath("config.json").read_text().count("Moe"):
        pytest.skip("slow, and one architecture says it")
    ids, size, stride = IDS[:150], 64, 40
    other = make_checkpoint(
        tmp_path / "other",
        Checkpoint.open(source).config.architecture,
        seed=0,
        extra={
            EMBEDDING: dict(random_tensors(Checkpoint.open(source).config, 0))[EMBEDDING] * np.float32(1.1)
        },
        **ARCHITECTURES[Checkpoint.open(source).config.architecture],
    )
    ops = make_backend(backend)
    found = compare(Checkpoint.open(source), Checkpoint.open(other), ops, ids, size=size, stride=stride)
    kl, lost, same = list[float](), (list[float](), list[float]()), list[bool]()
    decoders = [Decoder.load(Checkpoint.open(path), make_backend(backend)) for path in (source, other)]
    for window in windows(ids, size, stride):
        shares = [softmax(prompt_logits(decoder, window.ids))[window.skip :] for decoder in decoders]
        kl += (shares[0] * np.log(shares[0] / shares[1])).sum(axis=1).tolist()
        same += (shares[0].argmax(axis=1) == shares[1].argmax(axis=1)).tolist()
        for kept, p in zip(lost, shares, strict=True):
            kept += (-np.log(p[np.arange(len(p)), window.targets[window.skip :]])).tolist()
    assert found.positions == len(kl) == len(ids) - 1
    said = (found.kl_mean, found.kl_median, found.kl_p99, found.kl_max)
    assert said == pytest.approx((np.mean(kl), np.median(kl), np.percentile(kl, 99), np.max(kl)), rel=1e-4)
    assert found.perplexity_original == pytest.approx(np.exp(np.mean(lost[0])), rel=1e-5)
    assert found.perplexity == pytest.approx(np.exp(np.mean(lost[1])), rel=1e-5)
    assert found.same_top == pytest.approx(np.mean(same)) and 0 < found.same_top < 1


def test_a_model_beside_itself_has_no_divergence(source: Path) -> None:
    one = compare(Checkpoint.open(source), Checkpoint.open(source), CpuBackend(2), IDS[:90])
    assert one.kl_max < 1e-12 and one.same_top == 1 and one.perplexity == one.perplexity_original


def test_divergences_survive_large_logits_and_refuse_nan() -> None:
    logits = np.array([[1e4, 0, -1e4], [5e3, 5e3, -5e3]])
    kl, (first, second) = divergences(logits, logits[::-1].copy(), np.array([0, 2]))
    assert kl == pytest.approx([np.log(2), 5e3 - np.log(2)], rel=1e-9)
    assert first == pytest.approx([0, 1e4 + np.log(2)]) and second == pytest.approx([np.log(2), 2e4])
    with pytest.raises(ModelError, match="NaN"):
        divergences(np.array([[np.nan, 0.0]]), np.zeros((1, 2)), np.array([0]))


def test_what_cannot_be_compared_is_refused(source: Path, tmp_path: Path) -> None:
    original, cpu = Checkpoint.open(source), CpuBackend(1)
    wider = Checkpoint.open(make_checkpoint(tmp_path / "wider", vocab_size=161))
    with pytest.raises(ModelError, match="160 tokens and .* 161"):
        compare(original, wider, cpu, IDS[:9])
    with pytest.raises(UsageError, match="token 160"):
        compare(original, original, cpu, [1, 160])
    with pytest.raises(UsageError, match="1 tokens; two"):
        compare(original, original, cpu, [1])


def test_errors_are_those_of_the_values(source: Path) -> None:
    original = Checkpoint.open(source)
    errors = matrix_errors(original, packed(source), CpuBackend(2))
    tensors = {n: w for n, w in random_tensors(original.config, 0) if w.ndim == 2}
    assert sorted(error.name for error in errors) == sorted(tensors)
    for error in errors:
        w = tensors[error.name]
        left = w - dequantise_q4(*quantise_q4(w), w.shape[1])
        wanted = 0.0 if error.name.endswith("mlp.gate.weight") else np.sqrt((left**2).sum() / (w**2).sum())
        assert error.relative == pytest.approx(wanted, rel=1e-4)
    layers = together(errors, layer_of)
    assert list(layers)[:3] == ["embed_tokens", "layer 0", "layer 1"]
    assert {"q_proj", "down_proj"} < together(errors, kind_of).keys()
    everything = together(errors, lambda _: "all")["all"]
    assert everything.weight == pytest.approx(sum(float((w**2).sum()) for w in tensors.values()), rel=1e-5)


def test_an_original_that_no_format_keeps_is_measured_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path / "m"))
    assert exact_format(checkpoint) is None
    monkeypatch.setattr(PlainMatrix, "lossless", False)
    assert exact_format(checkpoint) == "f32"
