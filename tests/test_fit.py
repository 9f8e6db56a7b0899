"""What a model takes of the memory, and the context that is left: pure arithmetic, and what loading obeys.

In: shapes, free bytes. Out: contexts, refusals with numbers. Does not know: whether a machine keeps to it
(benchmarks/start.py and people measure that).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import chat_checkpoint, hf_config, make_checkpoint
from hypothesis import given
from hypothesis import strategies as st

from deepfast import LLM, EngineConfig
from deepfast.backend.cpu import CpuBackend
from deepfast.backend.machine import free_memory
from deepfast.config import BLOCK_SIZE, ModelConfig, kv_bytes_per_token
from deepfast.model.fit import (
    SHARED,
    SMALLEST,
    Asked,
    Fit,
    fit,
    loaded_bytes,
    settle,
    step_bytes,
)
from deepfast.model.load import load_tensors
from deepfast.model.packed import write_packed
from deepfast.model.shapes import weight_bytes
from deepfast.model.weights import Checkpoint
from deepfast.types import UsageError

QWEN3_8B = ModelConfig.from_hf(
    hf_config(
        "Qwen3ForCausalLM",
        {
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "max_position_embeddings": 40960,
        },
    )
)
GB = 10**9
GREATEST = 2**47


def test_a_machine_with_room_gets_the_whole_context_and_more_for_several() -> None:
    found = fit(QWEN3_8B, "q4", "f16", None, 64 * GB)
    assert (found.context, found.kv_tokens, found.fits) == (40960, SHARED * 40960, True)
    assert found.weights == weight_bytes(QWEN3_8B, "q4")
    assert found.kv == found.kv_tokens * 147_456  # 144 KiB for each position, as the model's card says


def test_a_small_machine_gets_the_context_that_fits() -> None:
    found = fit(QWEN3_8B, "q4", "f16", None, 8 * GB)
    assert found.fits and 10_000 < found.context < 40960 and found.context % BLOCK_SIZE == 0
    assert found.kv_tokens == found.context and 0.9 * 8 * GB < found.total <= 8 * GB
    assert list(found.remarks(None)) and not list(found.remarks(found.context))
    assert "40,960" in next(found.remarks(None)) and "8.00 GB" in next(found.remarks(None))
    smaller = fit(QWEN3_8B, "q4", "q8", None, 8 * GB)
    assert smaller.context > 1.7 * found.context


def test_what_cannot_fit_does_not() -> None:
    assert not fit(QWEN3_8B, "bf16", "f16", None, 12 * GB).fits
    assert not fit(QWEN3_8B, "q4", "f16", 40960, 8 * GB).fits
    none = fit(QWEN3_8B, "q4", "f16", None, 4 * GB)
    assert not none.fits and none.context == SMALLEST


def test_mapped_weights_may_exceed_the_memory_and_that_is_said() -> None:
    size = 17 * GB
    roomy = fit(QWEN3_8B, "q4", "f16", None, 24 * GB, weights=size, mapped=size)
    assert roomy.fits and not roomy.tight and roomy.total <= 24 * GB
    tight = fit(QWEN3_8B, "q4", "f16", None, 12 * GB, weights=size, mapped=size)
    assert tight.fits and tight.tight and tight.context >= SMALLEST
    assert any("disk" in line for line in tight.remarks(tight.context))
    assert tight.kv + tight.activations + tight.text <= 12 * GB // 2  # the rest stays for the weights
    assert not fit(QWEN3_8B, "q4", "f16", None, 3 * 10**8, weights=size, mapped=size).fits


@given(
    free=st.integers(0, GREATEST),
    context=st.none() | st.integers(1, 40960),
    kv=st.sampled_from(["f16", "q8"]),
)
def test_more_memory_never_gives_less(free: int, context: int | None, kv: Any) -> None:
    one, more = (fit(QWEN3_8B, "q4", kv, context, bytes) for bytes in (free, free + free // 8))
    assert one.context <= more.context and one.kv_tokens <= more.kv_tokens and one.fits <= more.fits
    assert one.kv_tokens >= one.context and one.kv == one.kv_tokens * kv_bytes_per_token(QWEN3_8B, kv)
    assert one.total == one.weights + one.kv + one.activations + one.text
    if context is None and one.context > SMALLEST:
        assert one.fits and one.total <= free


def test_a_step_takes_what_its_widths_say() -> None:
    small = step_bytes(QWEN3_8B, EngineConfig(max_batch_tokens=64), 4096)
    large = step_bytes(QWEN3_8B, EngineConfig(max_batch_tokens=512), 4096)
    logits = EngineConfig().max_running * QWEN3_8B.vocab_size * 4
    assert logits < small < large < 8 * small
    assert large - small > 448 * 4 * 3 * QWEN3_8B.intermediate_size


@pytest.mark.parametrize("architecture", ["Qwen3ForCausalLM", "Qwen3MoeForCausalLM", "Qwen2ForCausalLM"])
@pytest.mark.parametrize("format", [None, "q8", "q4"])
def test_the_weights_take_what_was_said(tmp_path: Path, architecture: str, format: Any) -> None:
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path, architecture, dtype="BF16"))
    taken = 0
    for _, tensor in load_tensors(checkpoint, CpuBackend(1), format):
        taken += tensor.buffer.nbytes if hasattr(tensor, "buffer") else np.asarray(tensor).nbytes
    assert loaded_bytes(checkpoint, format) == pytest.approx(taken, rel=0.01)


def test_loading_obeys_and_refuses_before_it_reads_a_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = chat_checkpoint(tmp_path, max_position_embeddings=32768)
    whole = settle({"m": (Checkpoint.open(path), None)}, EngineConfig(), GB, 1)["m"][1]
    free = whole.total - 3 * whole.kv // 4 - whole.kv // 8  # half of the context
    monkeypatch.setattr("deepfast.engine.llm.free_memory", lambda: free)
    with LLM(path) as llm:
        assert SMALLEST < llm.max_context == llm.fit.context < 32768
        assert llm.fit.total <= free and llm.fit.free == free
    monkeypatch.setattr("deepfast.engine.llm.free_memory", lambda: whole.weights)
    monkeypatch.setattr("deepfast.model.decoder.load_tensors", None)
    with pytest.raises(UsageError, match="of memory are free. Try .*a smaller model") as caught:
        LLM(path)
    assert "\n" not in str(caught.value)


def test_every_way_out_that_is_named_leads_out(tmp_path: Path) -> None:
    path = chat_checkpoint(tmp_path, max_position_embeddings=32768, hidden_size=256, num_hidden_layers=6)
    checkpoint: dict[str, Asked] = {"m": (Checkpoint.open(path), None)}
    asked = EngineConfig(max_context=32768)
    whole = settle(checkpoint, asked, GB, 1)["m"][1]
    one = whole.kv * 32768 // whole.kv_tokens
    free = whole.total - whole.kv + one * 2 // 3
    with pytest.raises(UsageError) as caught:
        settle(checkpoint, asked, free, 1)
    said = str(caught.value)
    assert "--kv q8" in said and "--context " in said and "--quantize" in said
    context = int(said.split("--context ")[1].split()[0])
    settle(checkpoint, dataclasses.replace(asked, max_context=context), free, 1)
    settle(checkpoint, dataclasses.replace(asked, kv="q8"), free, 1)
    with pytest.raises(UsageError):
        settle(checkpoint, dataclasses.replace(asked, max_context=context + 64), free, 1)


def test_models_loaded_together_share_what_is_left(tmp_path: Path) -> None:
    path = chat_checkpoint(tmp_path, max_position_embeddings=32768)
    one = settle({"a": (Checkpoint.open(path), None)}, EngineConfig(), GB, 1)["a"][1]
    least = one.total - one.kv
    both = settle(
        {n: (Checkpoint.open(path), None) for n in "ab"}, EngineConfig(), 2 * least + one.kv // 4, 1
    )
    fits: list[Fit] = [found for _, found in both.values()]
    assert fits[0].context == pytest.approx(fits[1].context, rel=0.5)
    assert sum(found.total for found in fits) <= 2 * least + one.kv // 4


def test_a_packed_checkpoint_is_mapped(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "m")
    write_packed(Checkpoint.open(source), CpuBackend(1), "q4", tmp_path / "q")
    packed = settle({"q": (Checkpoint.open(tmp_path / "q"), None)}, EngineConfig(), GB, 1)["q"][1]
    assert packed.mapped == packed.weights == (tmp_path / "q" / "model.safetensors").stat().st_size


MB = 2**20
STAT = "anon 1000\ninactive_file {cached}\nactive_file 0\nnr oops here\n"


@pytest.mark.parametrize(
    ("version", "limit", "left"),
    [(2, str(64 * MB), 34 * MB), (2, "max", None), (1, str(64 * MB), 34 * MB), (1, str(8 * MB), 0)],
)
def test_a_control_group_limits_and_its_cached_files_are_free(
    tmp_path: Path, version: int, limit: str, left: int | None
) -> None:
    names = {1: ("limit_in_bytes", "usage_in_bytes"), 2: ("max", "current")}[version]
    group = tmp_path / "groups" / ("box" if version == 2 else "memory/box")
    group.mkdir(parents=True)
    for name, text in zip(names, (limit, str(50 * MB)), strict=True):
        (group / f"memory.{name}").write_text(f"{text}\n")
    (group / "memory.stat").write_text(STAT.format(cached=20 * MB))
    (tmp_path / "membership").write_text("0::/box\n" if version == 2 else "9:memory:/box\n")
    found = free_memory(tmp_path / "groups", tmp_path / "membership")
    assert found == left if left is not None else found > 64 * MB
    assert free_memory(tmp_path / "nowhere", tmp_path / "membership") > 64 * MB
