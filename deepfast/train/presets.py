"""The numbers of each recipe: one preset for two CPU cores, one for a GPU, one for many.

In: a name. Out: a `Preset` with one settings object per stage. It knows no trainer; what a number does is said
where the stage is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from deepfast.train.documents import Mixture
from deepfast.types import UsageError

Rollouts = Literal["deepfast", "transformers", "vllm"]
SEARCHES = ("countdown", "sudoku", "path", "knights", "river")


@dataclass(frozen=True)
class Shape:
    """A Qwen3 decoder that starts from random weights. Widths in units, heads of `head_dim`."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    max_position_embeddings: int = 2048
    rope_theta: float = 10_000.0


@dataclass(frozen=True)
class Supervised:
    """Next-token training. Tokens count prompts and padding; the rate warms up, stays, and falls at the end."""

    tokens: int
    mixture: Mixture
    rate: float
    micro_tokens: int  # in one forward pass on one device
    micro_batches: int  # in one step
    longest: int  # longer documents are left out
    optimiser: Literal["muon", "adamw"] = "muon"
    warmup: float = 0.01  # share of the steps
    decay: float = 0.3  # share of the steps
    final: float = 0.02  # of the peak rate
    samples: int = 0  # right answers of the model itself to learn from (fusion), per task


@dataclass(frozen=True)
class Reinforced:
    """Group-relative policy optimisation. Each generation, `prompts` x `group` completions, is learned from in
    `updates` of the `steps`."""

    steps: int
    prompts: int
    group: int
    rate: float
    max_tokens: int
    tasks: Mapping[str, float]
    temperature: float = 1.0
    rollouts: Rollouts = "deepfast"
    pool: int = 0  # prompts that are asked again and again; 0: each is asked once
    updates: int = 1  # of the optimiser for one generation
    micro: int = 8  # completions in one forward pass on one device


@dataclass(frozen=True)
class Distilled:
    """A student learns from its teacher's answers, then on its own under the teacher's eyes."""

    answers: int  # of the teacher, per task and mode
    off_policy: Supervised
    steps: int
    prompts: int
    rate: float
    max_tokens: int
    temperature: float = 1.0
    shape: Shape | None = None  # of a student that starts from random weights


@dataclass(frozen=True)
class Preset:
    """All stages. Either a shape to train from nothing, or a base checkpoint that replaces pre-training."""

    name: str
    reasoning: Reinforced
    cold_start: Supervised
    fusion: Supervised
    general: Reinforced
    distill: Distilled
    shape: Shape | None = None
    base: str | None = None
    pretrain: Supervised | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    threads: int | None = None  # CPU threads; None: all
    extra: Mapping[str, str] = field(default_factory=dict)


ALL_TASKS = Mixture({"plain": 1.0}).tasks
PLAIN = Mixture({"plain": 0.85, "direct": 0.15}, checks=False)
COLD = Mixture({"think": 1.0}, checks=False)
FUSED = Mixture(
    {"think": 0.44, "no_think": 0.26, "cut": 0.10, "tools": 0.08, "turns": 0.07, "talk": 0.05}, checks=False
)
NANO_SHAPE = Shape(1024, 192, 8, 6, 3, 32, 384)

NANO = Preset(
    name="nano",
    threads=1,
    shape=NANO_SHAPE,
    pretrain=Supervised(30_000_000, PLAIN, 5e-3, 1024, 4, 640, decay=0.3),
    cold_start=Supervised(2_000_000, COLD, 1e-3, 1024, 4, 640, decay=0.8),
    reasoning=Reinforced(40, 16, 8, 3e-5, 512, dict.fromkeys((*SEARCHES, "product", "division", "bases"), 1.0), pool=256),
    fusion=Supervised(6_000_000, FUSED, 2e-3, 1024, 4, 640, decay=0.8, samples=300),
    general=Reinforced(20, 16, 8, 2e-5, 512, {**dict(ALL_TASKS), "tools": 3.0}),
    distill=Distilled(
        answers=300,
        off_policy=Supervised(3_000_000, FUSED, 3e-3, 1024, 4, 640, decay=0.8),
        steps=50,
        prompts=32,
        rate=1e-4,
        max_tokens=384,
        shape=Shape(1024, 128, 6, 4, 2, 32, 256),
    ),
)
PRESETS: dict[str, Preset] = {preset.name: preset for preset in (NANO,)}


def preset_named(name: str) -> Preset:
    """Raises UsageError for a preset that there is not."""
    if name not in PRESETS:
        raise UsageError(f"there is no preset {name!r}. There are {', '.join(PRESETS)}.")
    return PRESETS[name]
