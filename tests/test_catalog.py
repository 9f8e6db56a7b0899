"""The catalog: its shapes give the published numbers, and every name means one thing.

In: the table. Out: exact parameter counts, bytes, contexts; names with and without sizes and suffixes.
Does not know: networks, whether a hub still has a repository.
"""

from __future__ import annotations

import pytest

from deepfast.config import kv_bytes_per_token
from deepfast.model.catalog import CATALOG, Variant, is_name, look_up
from deepfast.types import ModelError

GIB = 2**30
# (parameters, KV bytes per position in 16 bits, GiB of bf16 weights) as the released shapes make
# them; where a model card prints a number, it is one of these, rounded
EXACT = {
    "qwen3:0.6b": (596_049_920, 114_688, 1.11),
    "qwen3:1.7b": (1_720_574_976, 114_688, 3.20),
    "qwen3:4b": (4_022_468_096, 147_456, 7.49),
    "qwen3:8b": (8_190_735_360, 147_456, 15.26),
    "qwen3:14b": (14_768_307_200, 163_840, 27.51),
    "qwen3:32b": (32_762_123_264, 262_144, 61.02),
    "qwen3:30b-a3b": (30_532_122_624, 98_304, 56.87),
    "qwen3:235b-a22b": (235_093_634_560, 192_512, 437.9),
    "qwq:32b": (32_763_876_352, 262_144, 61.03),
    "qwen2.5:0.5b": (494_032_768, 12_288, None),
    "qwen2.5:1.5b": (1_543_714_304, 28_672, None),
    "qwen2.5:3b": (3_085_938_688, 36_864, None),
    "qwen2.5:7b": (7_615_616_512, 57_344, None),
    "qwen2.5:14b": (14_770_033_664, 196_608, None),
    "qwen2.5:32b": (32_763_876_352, 262_144, None),
    "qwen2.5:72b": (72_706_203_648, 327_680, None),
}
EXACT |= {
    f"{name}-{mode}-2507": EXACT[name]
    for name in ("qwen3:4b", "qwen3:30b-a3b", "qwen3:235b-a22b")
    for mode in ("instruct", "thinking")
}


def test_every_model_has_the_published_numbers() -> None:
    assert {entry.name for entry in CATALOG} == set(EXACT)
    for entry in CATALOG:
        parameters, kv, gib = EXACT[entry.name]
        assert entry.parameters == parameters, entry.name
        assert kv_bytes_per_token(entry.config, "f16") == kv, entry.name
        if gib is not None:
            assert entry.weight_bytes("bf16") / GIB == pytest.approx(gib, abs=0.06 if gib > 100 else 0.006)


def test_sizes_of_formats_are_ordered_and_near_their_bits() -> None:
    for entry in CATALOG:
        bf16, q8, q4 = (entry.weight_bytes(format) for format in ("bf16", "q8", "q4"))
        assert 0.53 < q8 / bf16 < 0.54 and 0.28 < q4 / bf16 < 0.29, entry.name


def test_contexts_modes_and_bases_of_the_variants() -> None:
    entries = {entry.name: entry for entry in CATALOG}
    assert (entries["qwen3:0.6b"].native, entries["qwen3:0.6b"].yarn) == (32_768, 0)
    assert (entries["qwen3:8b"].native, entries["qwen3:8b"].yarn) == (32_768, 131_072)
    thinking = entries["qwen3:30b-a3b-thinking-2507"]
    assert (thinking.native, thinking.kind, thinking.config.rope_theta) == (262_144, "think", 1e7)
    assert list(thinking.sampling) == ["think"] and thinking.sampling["think"].temperature == 0.6
    instruct = entries["qwen3:4b-instruct-2507"]
    assert (instruct.kind, instruct.config.rope_theta, instruct.max_output) == ("no_think", 5e6, 16_384)
    assert list(entries["qwen3:4b"].sampling) == ["think", "no_think"]
    assert entries["qwen3:4b"].config.max_positions == 40_960
    assert entries["qwen2.5:72b"].licence == "Qwen" and entries["qwen2.5:7b"].licence == "Apache-2.0"


@pytest.mark.parametrize(
    ("name", "entry", "variant"),
    [
        ("qwen3:4b", "qwen3:4b", Variant("Qwen/Qwen3-4B-GGUF", "Q4_K_M")),
        ("qwen3:4b-q4", "qwen3:4b", Variant("Qwen/Qwen3-4B-GGUF", "Q4_K_M")),
        ("QWEN3:4B-Q4_K_M", "qwen3:4b", Variant("Qwen/Qwen3-4B-GGUF", "Q4_K_M")),
        ("qwen3:4b-q6_k", "qwen3:4b", Variant("Qwen/Qwen3-4B-GGUF", "Q6_K")),
        ("qwen3:4b-q8", "qwen3:4b", Variant("Qwen/Qwen3-4B-GGUF", "Q8_0")),
        ("qwen3:4b-bf16", "qwen3:4b", Variant("Qwen/Qwen3-4B")),
        ("qwen3:4b-awq", "qwen3:4b", Variant("Qwen/Qwen3-4B-AWQ")),
        ("qwen3:8b-fp8", "qwen3:8b", Variant("Qwen/Qwen3-8B-FP8")),
        ("qwen3", "qwen3:4b", Variant("Qwen/Qwen3-4B-GGUF", "Q4_K_M")),
        ("qwen3:latest", "qwen3:4b", Variant("Qwen/Qwen3-4B-GGUF", "Q4_K_M")),
        ("qwen3:0.6b", "qwen3:0.6b", Variant("Qwen/Qwen3-0.6B-GGUF", "Q8_0")),
        ("qwen3:0.6b-q4", "qwen3:0.6b", Variant("Qwen/Qwen3-0.6B", None, "q4")),
        ("qwen3:0.6b-gptq", "qwen3:0.6b", Variant("Qwen/Qwen3-0.6B-GPTQ-Int8")),
        ("Qwen3:30B-A3B", "qwen3:30b-a3b", Variant("Qwen/Qwen3-30B-A3B-GGUF", "Q4_K_M")),
        (
            "qwen3:4b-thinking-2507",
            "qwen3:4b-thinking-2507",
            Variant("Qwen/Qwen3-4B-Thinking-2507", None, "q4"),
        ),
        (
            "qwen3:30b-a3b-instruct-2507-q8",
            "qwen3:30b-a3b-instruct-2507",
            Variant("Qwen/Qwen3-30B-A3B-Instruct-2507", None, "q8"),
        ),
        ("qwen2.5:1.5b", "qwen2.5:1.5b", Variant("Qwen/Qwen2.5-1.5B-Instruct-GGUF", "Q8_0")),
        ("qwen3:30b-q8_0", "qwen3:30b-a3b", Variant("Qwen/Qwen3-30B-A3B-GGUF", "Q8_0")),
        ("qwen2.5:7b-instruct-q4_K_M", "qwen2.5:7b", Variant("Qwen/Qwen2.5-7B-Instruct-GGUF", "Q4_K_M")),
        ("qwq", "qwq:32b", Variant("Qwen/QwQ-32B-GGUF", "Q4_K_M")),
        ("qwen2.5:7b", "qwen2.5:7b", Variant("Qwen/Qwen2.5-7B-Instruct-GGUF", "Q4_K_M")),
    ],
)
def test_a_name_means_one_thing(name: str, entry: str, variant: Variant) -> None:
    found, what = look_up(name)
    assert (found.name, what) == (entry, variant)


def test_every_variant_of_every_entry_can_be_named() -> None:
    for entry in CATALOG:
        for suffix, variant in entry.variants.items():
            name = f"{entry.name}-{suffix}" if suffix else entry.name
            assert look_up(name) == (entry, variant)
            assert is_name(name)
            assert not (variant.quantize and variant.pick), "a GGUF file is quantised already"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("qwen3:5b", "qwen3:4b"),
        ("qwen3:4b-q5", "it has q4_k_m"),
        ("qwen:4b", "not in the catalog"),
        ("qwen3:4b-instruct-2508", "no variant"),
        ("gpt4:8b", "deepfast list --available"),
    ],
)
def test_a_name_that_is_none_is_told_what_is_near(name: str, says: str) -> None:
    with pytest.raises(ModelError) as caught:
        look_up(name)
    assert repr(name) in str(caught.value) and says in str(caught.value)


def test_paths_and_hub_ids_are_no_names() -> None:
    assert not any(is_name(text) for text in ("Qwen/Qwen3-4B", "./qwen3", "models/qwen3:4b", "mymodel"))
