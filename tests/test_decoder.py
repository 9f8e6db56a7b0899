"""The decoder against golden logits of `transformers`, and against itself: chunked = whole, batched = alone.

In: random tiny checkpoints of all layouts, tests/golden/models.npz (made by make_models.py beside it).
Out: logits within 1e-4 of the largest, equal greedy tokens, on every backend. Does not know: PyTorch.
"""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from checkpoints import GOLDEN, PROMPT, hf_config, make_checkpoint, make_golden, random_tensors
from decoding import BACKENDS, blocks_for, greedy, make_backend, prompt_logits, relative_error, row_errors

from deepfast.backend.base import Batch
from deepfast.backend.quant import rounded
from deepfast.backend.reference import ReferenceBackend
from deepfast.config import ModelConfig
from deepfast.model.decoder import Decoder
from deepfast.model.shapes import EMBEDDING, HEAD, parameter_count, weight_bytes
from deepfast.model.weights import Checkpoint
from deepfast.types import ModelError

if "cpu" in BACKENDS:
    from deepfast._C import supported_isas
    from deepfast.backend.cpu import CpuBackend

TOLERANCE = 1e-4
# What the native backend's int8 activations may change in a row of logits, relative to its length: the median
# row, and the worst row of a dense model (an expert chosen otherwise on a near tie changes a whole row).
ACTIVATION_MEDIAN, ACTIVATION_WORST = 0.02, 0.03

QWEN3_06B = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
}
QWEN3_4B = QWEN3_06B | {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
}
QWEN3_8B = QWEN3_4B | {"hidden_size": 4096, "intermediate_size": 12288, "tie_word_embeddings": False}
QWEN3_32B = QWEN3_8B | {
    "hidden_size": 5120,
    "intermediate_size": 25600,
    "num_hidden_layers": 64,
    "num_attention_heads": 64,
}
QWEN3_30B_A3B = QWEN3_8B | {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
}
QWQ_32B = QWEN3_32B | {"intermediate_size": 27648, "num_attention_heads": 40, "vocab_size": 152064}
QWEN25_05B = QWEN3_06B | {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "head_dim": 64,
}


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest):
    return make_backend(request.param)


@cache
def golden() -> dict[str, np.ndarray]:
    """name.logits [N, V] and name.greedy [32] of every golden model."""
    with np.load(Path(__file__).parent / "golden" / "models.npz") as file:
        return dict(file)


def load(path: Path, backend, format=None) -> Decoder:
    return Decoder.load(Checkpoint.open(path), backend, format)


@pytest.mark.parametrize("name", GOLDEN)
def test_logits_and_greedy_tokens_equal_transformers(tmp_path: Path, backend, name: str):
    decoder = load(make_golden(tmp_path, name), backend)
    assert relative_error(prompt_logits(decoder, PROMPT), golden()[f"{name}.logits"]) < TOLERANCE
    assert greedy(decoder, PROMPT, 32) == golden()[f"{name}.greedy"].tolist()


@pytest.mark.parametrize("name", ["qwen3-yarn", "moe-mixed"])
@pytest.mark.parametrize("chunks", [[1] * 40, [17, 23], [16, 16, 8]], ids=str)
def test_chunked_equals_whole(tmp_path: Path, backend, name: str, chunks: list[int]):
    decoder = load(make_golden(tmp_path, name), backend)
    whole = prompt_logits(decoder, PROMPT)
    assert relative_error(prompt_logits(decoder, PROMPT, chunks), whole) < 1e-5


@pytest.mark.parametrize("name", ["qwen3-tied", "moe-normalised", "qwq"])
def test_a_mixed_batch_equals_each_alone(tmp_path: Path, backend, name: str):
    decoder = load(make_golden(tmp_path, name), backend)
    prompts = [PROMPT[:1], PROMPT[3:36], PROMPT[:17], PROMPT[5:21]]
    computed = [0, 20, 16, 0]
    tables = [blocks_for(len(ids), first=4 * i) for i, ids in enumerate(prompts)]
    cache = decoder.new_cache(16, "f32")
    ahead = [(ids[:n], 0, t) for ids, n, t in zip(prompts, computed, tables, strict=True) if n]
    nothing = decoder.forward(Batch.build(ahead, [False] * len(ahead)), cache)
    assert len(backend.to_numpy(nothing)) == 0
    rest = [(ids[n:], n, t) for ids, n, t in zip(prompts, computed, tables, strict=True)]
    logits = backend.to_numpy(decoder.forward(Batch.build(rest, [True, True, False, True]), cache))
    alone = [prompt_logits(decoder, prompts[i])[-1] for i in (0, 1, 3)]
    assert relative_error(logits, np.stack(alone)) < 1e-5


def test_several_output_rows_of_a_sequence():
    """The last rows of each chunk, in the order of the chunks; a plain bool still asks for one."""
    chunks = [([7, 8, 9], 4, [0]), ([5], 0, [1]), ([1, 2, 3, 4], 0, [2])]
    assert Batch.build(chunks, [2, 0, 4]).output_rows.tolist() == [1, 2, 4, 5, 6, 7]
    assert Batch.build(chunks, [True, True, False]).output_rows.tolist() == [2, 3]
    assert Batch.build(chunks, [0, 0, 0]).output_rows.tolist() == []
    with pytest.raises(AssertionError):
        Batch.build(chunks, [4, 0, 0])


class Drafted(NamedTuple):
    """A sequence that is computed in steps of some true tokens followed by some wrong ones."""

    ids: list[int]
    blocks: list[int]
    steps: list[tuple[int, int]]  # (true tokens, wrong tokens after them)


def draft_logits(decoder: Decoder, cache, sequences: list[Drafted], random) -> list[np.ndarray]:
    """Logits [N, V] of the true tokens of each sequence; all sequences share every batch."""
    done, rows = [0] * len(sequences), [[] for _ in sequences]
    for number in range(len(sequences[0].steps)):
        plan = [(s, *s.steps[number]) for s in sequences]
        wrong = [random.integers(0, 160, bad).tolist() for _, _, bad in plan]
        chunks = [
            (s.ids[at : at + good] + w, at, s.blocks)
            for (s, good, _), w, at in zip(plan, wrong, done, strict=True)
        ]
        batch = Batch.build(chunks, [good + bad for _, good, bad in plan])
        logits, first = np.array(decoder.forward(batch, cache)), 0
        for i, (_, good, bad) in enumerate(plan):
            rows[i].append(logits[first : first + good])
            first, done[i] = first + good + bad, done[i] + good
    return [np.concatenate(r) for r in rows]


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the native module has not been built")
@pytest.mark.parametrize("kv", ["f32", "f16", "q8"])
@pytest.mark.parametrize("format", ["f32", "bf16", "q8", "q4"])
@pytest.mark.parametrize("architecture", ["Qwen3ForCausalLM", "Qwen3MoeForCausalLM"])
def test_drafts_leave_no_trace(tmp_path: Path, architecture: str, format: str, kv: str):
    """1 to 9 true tokens at once, then up to 8 wrong ones that are overwritten: the logits of the true tokens
    are, bit for bit, those of one row at a time. Speculation rests on it."""
    path = make_checkpoint(tmp_path, architecture, seed=7, num_attention_heads=8, hidden_size=80)
    random, length = np.random.default_rng(0), 100
    ids = random.integers(0, 160, (2, length)).tolist()
    tables = [blocks_for(length + 8), blocks_for(length + 8, first=7)]
    for isa in supported_isas():
        decoder = load(path, CpuBackend(2, isa), format)
        cache = decoder.new_cache(14, kv)
        alone = [
            draft_logits(decoder, cache, [Drafted(s, t, [(1, 0)] * length)], random)[0]
            for s, t in zip(ids, tables, strict=True)
        ]
        cuts = [[40, *random.integers(1, 10, 6).tolist()] for _ in ids]
        plans = [[(n, int(random.integers(0, 9))) for n in cut] for cut in cuts]
        drafted = [Drafted(*each) for each in zip(ids, tables, plans, strict=True)]
        together = draft_logits(decoder, decoder.new_cache(14, kv), drafted, random)
        for got, wanted in zip(together, alone, strict=True):
            assert len(got) > 46 and np.array_equal(got.view(np.int32), wanted[: len(got)].view(np.int32))


def test_a_copy_of_a_tied_head_changes_nothing_and_a_different_head_is_used(tmp_path: Path, backend):
    tied = {"tie_word_embeddings": True, "seed": 2}
    plain = load(make_checkpoint(tmp_path / "plain", **tied), backend)
    copied = load(make_checkpoint(tmp_path / "copied", **tied, duplicate_head=True), backend)
    assert copied.head is copied.embedding
    np.testing.assert_array_equal(prompt_logits(plain, PROMPT), prompt_logits(copied, PROMPT))
    embedding = dict(random_tensors(plain.config, 2))[EMBEDDING]
    other = load(make_checkpoint(tmp_path / "other", **tied, extra={HEAD: 2 * embedding}), backend)
    assert relative_error(prompt_logits(other, PROMPT), 2 * prompt_logits(plain, PROMPT)) < 1e-5


def test_an_untied_head_must_be_there(tmp_path: Path, backend):
    path = make_checkpoint(tmp_path, tie_word_embeddings=True)
    text = (
        (path / "config.json")
        .read_text()
        .replace('"tie_word_embeddings": true', '"tie_word_embeddings": false')
    )
    (path / "config.json").write_text(text)
    with pytest.raises(ModelError, match="lm_head.weight is missing"):
        load(path, backend)


@pytest.mark.parametrize("architecture", ["Qwen3ForCausalLM", "Qwen3MoeForCausalLM"])
@pytest.mark.parametrize("format", ["bf16", "q8", "q4"])
def test_a_format_equals_its_own_rounded_weights(tmp_path: Path, backend, architecture: str, format: str):
    """Exactly so where activations are floats; within a bound where the native backend makes them int8."""
    config = {"hidden_size": 80, "moe_intermediate_size": 48, "seed": 4}  # not whole groups of 32
    original = make_checkpoint(tmp_path / "original", architecture, **config)
    tensors = dict(random_tensors(Checkpoint.open(original).config, 4))
    matrices = {
        n: rounded(w, format) for n, w in tensors.items() if w.ndim == 2 and "mlp.gate.weight" not in n
    }
    expected = load(make_checkpoint(tmp_path / "rounded", architecture, **config, extra=matrices), backend)
    got = prompt_logits(load(original, backend, format), PROMPT)
    errors = row_errors(got, prompt_logits(expected, PROMPT))
    if format == "bf16" or isinstance(backend, ReferenceBackend):
        assert errors.max() < TOLERANCE
    else:
        assert np.median(errors) < ACTIVATION_MEDIAN
        assert errors.max() < ACTIVATION_WORST or architecture == "Qwen3MoeForCausalLM"


def test_stored_formats_are_kept(tmp_path: Path, backend):
    """A q8 checkpoint equals q8 on the fly; a bf16 checkpoint equals the same values in float32."""
    plain = make_checkpoint(tmp_path / "f32", seed=6)
    stored = load(make_checkpoint(tmp_path / "q8", seed=6, dtype="Q8"), backend)
    np.testing.assert_array_equal(
        prompt_logits(stored, PROMPT), prompt_logits(load(plain, backend, "q8"), PROMPT)
    )
    half = make_checkpoint(tmp_path / "bf16", seed=6, dtype="BF16")
    wide = prompt_logits(load(half, backend, "f32"), PROMPT)
    assert relative_error(prompt_logits(load(half, backend), PROMPT), wide) < 1e-5


def test_f16_keys_and_values_stay_close(tmp_path: Path, backend):
    decoder = load(make_golden(tmp_path, "qwen3-yarn"), backend)
    assert relative_error(prompt_logits(decoder, PROMPT, kv="f16"), prompt_logits(decoder, PROMPT)) < 5e-3


def test_the_rotary_table_grows_with_the_context(tmp_path: Path, backend, monkeypatch: pytest.MonkeyPatch):
    path = make_golden(tmp_path, "qwen3-yarn")
    whole = prompt_logits(load(path, backend), PROMPT)
    monkeypatch.setattr("deepfast.model.decoder.FIRST_POSITIONS", 8)
    grown = prompt_logits(load(path, backend), PROMPT, [5, 4, 20, 11])
    assert relative_error(grown, whole) < 1e-5


@pytest.mark.parametrize(
    ("architecture", "shapes", "count"),
    [
        ("Qwen3ForCausalLM", QWEN3_06B, 596_049_920),
        ("Qwen3ForCausalLM", QWEN3_06B | {"tie_word_embeddings": False}, 751_632_384),
        ("Qwen3ForCausalLM", QWEN3_4B, 4_022_468_096),
        ("Qwen3ForCausalLM", QWEN3_8B, 8_190_735_360),
        ("Qwen3ForCausalLM", QWEN3_32B, 32_762_123_264),
        ("Qwen3MoeForCausalLM", QWEN3_30B_A3B, 30_532_122_624),
        ("Qwen2ForCausalLM", QWQ_32B, 32_763_876_352),
        ("Qwen2ForCausalLM", QWEN25_05B, 494_032_768),
    ],
)
def test_parameter_counts_of_the_released_models(architecture: str, shapes: dict, count: int):
    config = ModelConfig.from_hf(hf_config(architecture, shapes))
    assert parameter_count(config) == count
    assert weight_bytes(config, "f32") == 4 * count
    assert 2 * count <= weight_bytes(config, "bf16") < 2.001 * count
    # 8 or 4 bits and an f16 scale for 32 weights; norms, biases and routers are wider but few
    assert 1.0625 * count <= weight_bytes(config, "q8") < 1.065 * count
    assert 0.5625 * count <= weight_bytes(config, "q4") < 0.5675 * count
