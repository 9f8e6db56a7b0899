"""The models that have names: what each is, where it lies on the hubs, what its shapes make of it.

In: a name such as `qwen3:4b` or `qwen3:30b-a3b-q8`. Out: an Entry (shapes, context, modes, licence) and where
a variant of it is fetched from. Plain data: sizes are computed from the shapes.
Does not know: networks, files, what a machine has. What a checkpoint itself says wins over all of this.

Hub ids are those of Qwen's own repositories, the same on Hugging Face and ModelScope. Shapes: their
config.json; context and sampling: their model cards; licence: their LICENSE files.
"""

from __future__ import annotations

import difflib
from dataclasses import replace
from functools import cache
from typing import Literal, NamedTuple

from ..config import (
    NO_THINK_DEFAULTS,
    THINK_DEFAULTS,
    ModelConfig,
    SamplingDefaults,
    WeightFormat,
)
from ..types import ModelError, ModelKind, UsageError
from .shapes import parameter_count, weight_bytes

DEFAULT_TAGS = {"qwen3": "4b", "qwq": "32b", "qwen2.5": "7b"}  # what a family is without a size
# Why 4b: on a CPU every token of thought is paid for in time. Twice the model is half the speed, and the
# models below it answer hard questions far worse. In 4 bits it is 2.5 GB to fetch and leaves a laptop usable.
SHORT = {"30b": "30b-a3b", "235b": "235b-a22b"}  # as Ollama calls them, too

SMALL = 2e9  # parameters: below, four bits cost too much, and eight are little to fetch

Packing = Literal["q4", "q8"]
QWEN3_GGUF = ("Q4_K_M", "Q5_0", "Q5_K_M", "Q6_K", "Q8_0")  # what the repository `...-GGUF` offers
QWEN25_GGUF = ("Q2_K", "Q3_K_M", "Q4_0", *QWEN3_GGUF)
ALIKE: dict[str, Packing] = {"Q4_K_M": "q4", "Q8_0": "q8"}  # a GGUF quantisation that stands for our format


class Entry(NamedTuple):
    """One model of the catalog.

    repo: its original weights, in bf16. native: the positions it was trained for; yarn: with YaRN, or 0.
    max_output: tokens that its makers recommend for an answer with its thought. gguf: quantisations of
    `{repo}-GGUF`, empty when its makers offer none. others: suffix of a name -> repository.
    """

    name: str
    repo: str
    config: ModelConfig
    native: int
    yarn: int
    kind: ModelKind
    max_output: int
    licence: str
    gguf: tuple[str, ...] = ()
    others: tuple[tuple[str, str], ...] = ()

    @property
    def parameters(self) -> int:
        """How many there are; a tied head counts once."""
        return _parameters(_shape(self.config))

    def weight_bytes(self, format: WeightFormat) -> int:
        """Bytes in memory with matrices in `format`."""
        return _bytes(_shape(self.config), format)

    @property
    def sampling(self) -> dict[str, SamplingDefaults]:
        """Mode -> what its makers recommend."""
        modes = {"think": THINK_DEFAULTS, "no_think": NO_THINK_DEFAULTS}
        return {mode: values for mode, values in modes.items() if self.kind in ("hybrid", mode)}

    @property
    def variants(self) -> dict[str, Variant]:
        """Suffix -> what it fetches; "" is the name alone, and stands for one of the others.

        q4 and q8 are Qwen's own GGUF file where there is one: a third or half of the download, and its
        quantisation was made with care. Elsewhere the original is fetched and quantised while it is loaded.
        """
        found = {label.lower(): Variant(f"{self.repo}-GGUF", label, None) for label in self.gguf}
        for label, format in ALIKE.items():
            found[format] = found.get(label.lower(), Variant(self.repo, None, format))
        found |= {"bf16": Variant(self.repo), **{suffix: Variant(repo) for suffix, repo in self.others}}
        small = self.parameters < SMALL
        return {"": found["q8" if small else "q4"], **found}


class Variant(NamedTuple):
    """What to fetch: a repository, the one GGUF file to take of it, and how to pack what is not packed."""

    repo: str
    pick: str | None = None
    quantize: Packing | None = None


@cache
def _parameters(config: ModelConfig) -> int:
    return parameter_count(config)


@cache
def _bytes(config: ModelConfig, format: WeightFormat) -> int:
    return weight_bytes(config, format)


def _shape(config: ModelConfig) -> ModelConfig:
    """The same for all models of these shapes, so that each is counted once."""
    return replace(config, rope_theta=1.0, max_positions=1)


def _qwen3(
    layers: int,
    hidden: int,
    inner: int,
    heads: int,
    *,
    kv_heads: int = 8,
    tied: bool = False,
    experts: int = 0,
    expert_inner: int = 0,
) -> ModelConfig:
    return ModelConfig(
        architecture="Qwen3MoeForCausalLM" if experts else "Qwen3ForCausalLM",
        num_layers=layers,
        hidden_size=hidden,
        intermediate_size=inner,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=128,
        vocab_size=151_936,
        max_positions=40_960,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        qk_norm=True,
        tie_word_embeddings=tied,
        num_experts=experts,
        num_experts_per_token=8 if experts else 0,
        moe_intermediate_size=expert_inner,
        norm_topk_prob=bool(experts),
        sparse_layers=frozenset(range(layers) if experts else ()),
    )


def _qwen2(
    layers: int, hidden: int, inner: int, heads: int, kv_heads: int, *, tied: bool = False, eps: float = 1e-6
) -> ModelConfig:
    return ModelConfig(
        architecture="Qwen2ForCausalLM",
        num_layers=layers,
        hidden_size=hidden,
        intermediate_size=inner,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=hidden // heads,
        vocab_size=151_936 if tied else 152_064,
        max_positions=32_768,
        rms_norm_eps=eps,
        rope_theta=1e6,
        qkv_bias=True,
        tie_word_embeddings=tied,
    )


_QWEN3 = {
    "0.6B": _qwen3(28, 1024, 3072, 16, tied=True),
    "1.7B": _qwen3(28, 2048, 6144, 16, tied=True),
    "4B": _qwen3(36, 2560, 9728, 32, tied=True),
    "8B": _qwen3(36, 4096, 12288, 32),
    "14B": _qwen3(40, 5120, 17408, 40),
    "32B": _qwen3(64, 5120, 25600, 64),
    "30B-A3B": _qwen3(48, 2048, 6144, 32, kv_heads=4, experts=128, expert_inner=768),
    "235B-A22B": _qwen3(94, 4096, 12288, 64, kv_heads=4, experts=128, expert_inner=1536),
}
_QWEN3_OTHERS = {  # beside FP8, which all of them have
    "0.6B": ("gptq", "GPTQ-Int8"),
    "1.7B": ("gptq", "GPTQ-Int8"),
    "4B": ("awq", "AWQ"),
    "8B": ("awq", "AWQ"),
    "14B": ("awq", "AWQ"),
    "32B": ("awq", "AWQ"),
    "30B-A3B": ("gptq", "GPTQ-Int4"),
    "235B-A22B": ("gptq", "GPTQ-Int4"),
}
_THETA_2507 = {"4B": 5e6, "30B-A3B": 1e7, "235B-A22B": 5e6}
_QWEN25 = {
    "0.5B": _qwen2(24, 896, 4864, 14, 2, tied=True),
    "1.5B": _qwen2(28, 1536, 8960, 12, 2, tied=True),
    "3B": _qwen2(36, 2048, 11008, 16, 2, tied=True),
    "7B": _qwen2(28, 3584, 18944, 28, 4),
    "14B": _qwen2(48, 5120, 13824, 40, 8),
    "32B": _qwen2(64, 5120, 27648, 40, 8),
    "72B": _qwen2(80, 8192, 29568, 64, 8),
}
_QWEN25_LICENCES = {"3B": "Qwen Research", "72B": "Qwen"}


def _hybrid(size: str) -> Entry:
    repo, small = f"Qwen/Qwen3-{size}", size in ("0.6B", "1.7B")
    suffix, ending = _QWEN3_OTHERS[size]
    return Entry(
        name=f"qwen3:{size.lower()}",
        repo=repo,
        config=_QWEN3[size],
        native=32_768,
        yarn=0 if small else 131_072,
        kind="hybrid",
        max_output=32_768,
        licence="Apache-2.0",
        gguf=("Q8_0",) if small else QWEN3_GGUF,
        others=(("fp8", f"{repo}-FP8"), (suffix, f"{repo}-{ending}")),
    )


def _split_modes(size: str, mode: Literal["Instruct", "Thinking"]) -> Entry:
    """The models of July and August 2025, of which each has one mode."""
    repo = f"Qwen/Qwen3-{size}-{mode}-2507"
    return Entry(
        name=f"qwen3:{size}-{mode}-2507".lower(),
        repo=repo,
        config=replace(_QWEN3[size], rope_theta=_THETA_2507[size], max_positions=262_144),
        native=262_144,
        yarn=0,
        kind="think" if mode == "Thinking" else "no_think",
        max_output=32_768 if mode == "Thinking" else 16_384,
        licence="Apache-2.0",
        others=(("fp8", f"{repo}-FP8"),),
    )


def _instruct(size: str) -> Entry:
    repo = f"Qwen/Qwen2.5-{size}-Instruct"
    return Entry(
        name=f"qwen2.5:{size.lower()}",
        repo=repo,
        config=_QWEN25[size],
        native=32_768,
        yarn=0 if size in ("0.5B", "1.5B", "3B") else 131_072,
        kind="no_think",
        max_output=8_192,
        licence=_QWEN25_LICENCES.get(size, "Apache-2.0"),
        gguf=QWEN25_GGUF,
        others=(("awq", f"{repo}-AWQ"), ("gptq", f"{repo}-GPTQ-Int4"), ("gptq-int8", f"{repo}-GPTQ-Int8")),
    )


_QWQ = Entry(
    name="qwq:32b",
    repo="Qwen/QwQ-32B",
    config=replace(_qwen2(64, 5120, 27648, 40, 8, eps=1e-5), max_positions=40_960),
    native=32_768,
    yarn=131_072,
    kind="think",
    max_output=32_768,
    licence="Apache-2.0",
    gguf=QWEN3_GGUF,
    others=(("awq", "Qwen/QwQ-32B-AWQ"),),
)

CATALOG: tuple[Entry, ...] = (
    *map(_hybrid, _QWEN3),
    *(_split_modes(size, mode) for size in _THETA_2507 for mode in ("Instruct", "Thinking")),
    _QWQ,
    *map(_instruct, _QWEN25),
)


def is_name(text: str) -> bool:
    """Does this look like a name of the catalog? A family alone, or anything with a family before a colon."""
    family = text.lower().partition(":")[0]
    return "/" not in text and (family in DEFAULT_TAGS or ":" in text)


def look_up(text: str, quantize: Packing | None = None) -> tuple[Entry, Variant]:
    """The entry and the variant of a name, in any case. quantize: the format that a name without one means.

    Raises ModelError that says what is near it, UsageError when the name says another format.
    """
    family, _, tag = text.lower().strip().partition(":")
    tag = DEFAULT_TAGS.get(family, "") if tag in ("", "latest") else tag
    size, dash, rest = tag.partition("-")
    if size in SHORT and not rest.startswith("a"):
        tag = f"{SHORT[size]}{dash}{rest}"
    if family == "qwen2.5":
        tag = tag.replace("-instruct", "")  # all of them are
    wanted, best = f"{family}:{tag}", None
    for entry in CATALOG:
        if wanted == entry.name or wanted.startswith(f"{entry.name}-"):
            best = entry if best is None or len(entry.name) > len(best.name) else best
    if best is None:
        raise ModelError(
            f"model {text!r} is not in the catalog.{_near(wanted)} See: deepfast list --available."
        )
    suffix = wanted[len(best.name) + 1 :]
    if suffix not in best.variants:
        raise ModelError(
            f"model {text!r}: {best.name} has no variant {suffix!r}; it has "
            f"{', '.join(filter(None, best.variants))}."
        )
    if quantize is not None and suffix in ALIKE.values() and suffix != quantize:
        raise UsageError(f"the model's name says {suffix}, --quantize says {quantize}. Drop one of them.")
    return best, best.variants[suffix or quantize or ""]


def _near(wanted: str) -> str:
    names = [entry.name for entry in CATALOG]
    close = difflib.get_close_matches(wanted, names, n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(close)}?" if close else ""
