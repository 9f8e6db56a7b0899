"""What the benchmark against llama.cpp makes of its samples: medians, better settings, ratios, fractions.

In: made-up samples; states of a pretend llama.cpp. Out: numbers worked out by hand. Does not know: engines.
"""

from __future__ import annotations

import importlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of the benchmarks."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def rounds(*speeds: float) -> list[dict[str, float]]:
    return [{"tok_s": speed, "others": 0.0} for speed in speeds]


def test_the_better_setting_of_each_engine_is_compared_round_by_round(load: Any) -> None:
    samples = {
        "deepfast, f16": rounds(20, 22, 60),
        "deepfast, q8": rounds(30, 33, 30),
        "llama.cpp, f16": rounds(10, 11, 20),
        "llama.cpp, f16, flash": rounds(8, 30, 9),
    }
    found = load("ratios").summary({"generate_4096": samples})
    assert found["best"]["generate_4096"] == {"deepfast": "deepfast, q8", "llama.cpp": "llama.cpp, f16"}
    assert found["medians"]["generate_4096"]["llama.cpp, f16, flash"] == 9
    assert found["ratios"]["generate_4096"] == 3.0  # of 3, 3, 1.5
    assert found["ratios_by_kv"]["generate_4096"] == {"f16": 2.0, "q8": 3.0}


def test_what_was_not_measured_is_null_and_the_object_is_json(load: Any) -> None:
    ratios = load("ratios")
    assert ratios.summary({})["ratios"] == dict.fromkeys(ratios.MEASURES)
    half = {"prompt_512": {"deepfast, f16": rounds(5), "llama.cpp, f16": []}}
    found = json.loads(json.dumps(ratios.summary(half)))
    assert set(found["ratios"]) == {
        "generate_0",
        "generate_4096",
        "generate_16384",
        "prompt_512",
        "prompt_4096",
        "batch_4",
        "batch_16",
        "noisy_generate_0",
    }
    assert set(found["ratios"].values()) == {None}


def test_a_setting_that_was_given_up_is_not_the_best(load: Any) -> None:
    samples = {"llama.cpp, f16": rounds(10, 10), "llama.cpp, f16, flash": rounds(12)}
    assert load("ratios").best(samples, "llama.cpp") == "llama.cpp, f16"
    assert load("ratios").best(samples, "deepfast") is None


def test_fractions_of_the_machine(load: Any) -> None:
    machine = {"bandwidth": 20e9, "int8_peak": 200e9}
    assert load("ratios").fractions(40, 400e6, 0.5e9, machine) == {"memory": 0.8, "int8": 0.1}


def test_plans_name_only_known_measures_and_compare_both_engines(load: Any) -> None:
    main, ratios = load("vs_llama_cpp"), load("ratios")
    assert set(main.plan(False, True)) == set(ratios.MEASURES)
    assert set(main.plan(True, False)) == set(ratios.MEASURES) - {
        "generate_16384",
        "prompt_4096",
        "noisy_generate_0",
    }
    for measure in main.plan(False, True).values():
        settings = main.settings_of(measure)
        assert {ratios.engine_of(name) for name in settings} == {"deepfast", "llama.cpp"}
        assert "llama.cpp, f16" in settings and "llama.cpp, f16, flash" in settings
        assert ("llama.cpp, q8_0, flash" in settings) == measure.deep


def state_of(tokens: int, transposed: bool) -> Any:
    """A state of two layers as llama.cpp writes it; keys and values of 4 bytes for each token."""
    head = struct.pack("<4I", 7, 0, 1, tokens)
    cells = b"".join(struct.pack("<3I", i, 1, 0) for i in range(tokens))
    keys = b"".join(struct.pack("<IQ", 1, 4) + bytes(range(4 * tokens)) for _ in range(2))
    if transposed:  # two numbers of two bytes: a row of `tokens` for each
        values = b"".join(struct.pack("<3I", 1, 2, 2) + bytes(range(4 * tokens)) for _ in range(2))
    else:
        values = keys
    return np.frombuffer(head + cells + struct.pack("<2I", transposed, 2) + keys + values, np.uint8)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_state_is_repeated_at_new_positions(load: Any, transposed: bool) -> None:
    repeat = load("llama_state").repeat_state
    state = state_of(3, transposed)
    assert np.array_equal(repeat(state, 3), state)
    deep = repeat(state, 8)
    assert deep.size == state_of(8, transposed).size
    words = np.frombuffer(deep.tobytes()[: 16 + 8 * 12], np.uint32)
    assert words[3] == 8 and words[4::3].tolist() == list(range(8))
    once = bytes(range(12))
    assert deep.tobytes()[16 + 96 + 8 + 12 :].startswith(once + once + once[:8])
    if transposed:  # the last row: tokens 0 1 2 0 1 2 0 1
        row = once[6:]
        assert deep.tobytes().endswith(row + row + row[:4])


def test_a_state_of_another_layout_is_refused(load: Any) -> None:
    repeat = load("llama_state").repeat_state
    state = state_of(3, False)
    for spoiled in (state[:-1], state[:40], np.concatenate([state, state[:1]]), np.zeros(64, np.uint8)):
        assert repeat(spoiled, 8) is None
