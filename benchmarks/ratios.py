"""What the samples of vs_llama_cpp.py say: medians, the better setting of each engine, ratios, fractions.

In: measure -> setting -> samples (each with "tok_s"), one for each round, in order; settings are named
"engine, options". Out: plain dictionaries for JSON. The ratio of two settings is the median over the rounds
they share of ours / theirs, so that a slow minute of the machine hits both. Does not know: how samples are
taken.
"""

import statistics
from typing import Any

OURS, THEIRS = "deepfast", "llama.cpp"
MEASURES = (
    "generate_0",
    "generate_4096",
    "generate_16384",
    "prompt_512",
    "prompt_4096",
    "batch_4",
    "batch_16",
    "noisy_generate_0",
)
Samples = dict[str, list[dict[str, Any]]]  # of one measure: setting -> rounds


def engine_of(setting: str) -> str:
    """The engine of a setting: "deepfast, q8" -> "deepfast"."""
    return setting.split(",")[0]


def medians(samples: Samples) -> dict[str, float]:
    """Setting -> median tokens per second."""
    return {name: statistics.median(s["tok_s"] for s in rounds) for name, rounds in samples.items() if rounds}


def best(samples: Samples, engine: str) -> str | None:
    """The setting of an engine with the highest median, of those that were not given up; None without any."""
    rounds = {name: found for name, found in samples.items() if engine_of(name) == engine and found}
    most = max(map(len, rounds.values()), default=0)
    middle = medians({name: found for name, found in rounds.items() if len(found) == most})
    return max(middle, key=lambda name: middle[name], default=None)


def ratio(samples: Samples, ours: str | None, theirs: str | None) -> float | None:
    """The median over shared rounds of ours / theirs, None where either was not measured."""
    if ours is None or theirs is None:
        return None
    pairs = zip(samples[ours], samples[theirs], strict=False)
    return round(statistics.median(a["tok_s"] / b["tok_s"] for a, b in pairs), 3)


def summary(measures: dict[str, Samples]) -> dict[str, Any]:
    """`ratios`, `ratios_by_kv`, `best` and `medians` of everything that was measured."""
    result: dict[str, Any] = {"ratios": {}, "ratios_by_kv": {}, "best": {}, "medians": {}}
    for measure in MEASURES:
        samples = measures.get(measure, {})
        theirs = best(samples, THEIRS)
        ours = best(samples, OURS) if theirs else None
        result["ratios"][measure] = ratio(samples, ours, theirs)
        if not samples:
            continue
        mine = [name for name, found in samples.items() if engine_of(name) == OURS and found]
        result["ratios_by_kv"][measure] = {n.split(", ")[1]: ratio(samples, n, theirs) for n in mine}
        result["best"][measure] = {OURS: ours, THEIRS: theirs}
        result["medians"][measure] = {name: round(m, 3) for name, m in medians(samples).items()}
    return result


def fractions(
    tok_s: float, token_bytes: float, products: float, machine: dict[str, float]
) -> dict[str, float]:
    """A speed beside the machine: of the bytes it reads and of the int8 products it does per second.

    token_bytes, products: what one token reads from memory and multiplies.
    """
    return {
        "memory": round(tok_s * token_bytes / machine["bandwidth"], 3),
        "int8": round(tok_s * products / machine["int8_peak"], 3),
    }
