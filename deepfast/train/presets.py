"""The numbers of each recipe: two presets for CPU cores, one for a GPU, one for many.

In: a name. Out: a `Preset` with one settings object per stage. It knows no trainer; what a number does is
said where the stage is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Literal, get_args

from deepfast.train import problems
from deepfast.train.documents import Mixture
from deepfast.types import UsageError

Sampler = Literal["deepfast", "transformers", "vllm"]
SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)


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
    """Next-token training. Tokens count prompts and padding; the rate warms up, stays, and falls at the end.

    A step is the same for any number of processes: each adds up as many micro-batches as are left to it.
    """

    tokens: int
    mixture: Mixture
    rate: float
    step_tokens: int  # in one step, over all processes
    micro_tokens: int  # in one forward pass of one process
    longest: int  # longer documents are left out
    optimiser: Literal["muon", "adamw"] = "muon"
    warmup: float = 0.01  # share of the steps
    decay: float = 0.3  # share of the steps
    final: float = 0.02  # of the peak rate
    samples: int = 0  # problems per task that the model answers itself, to learn from what was right (fusion)


@dataclass(frozen=True)
class Reinforced:
    """Group-relative policy optimisation. Each generation, `prompts` x `group` completions, is learned from
    in `updates` of the `steps`."""

    steps: int
    prompts: int
    group: int
    rate: float
    max_tokens: int
    tasks: Mapping[str, float]
    temperature: float = 1.0
    rollouts: Sampler = "deepfast"
    pool: int = 0  # prompts that are asked again and again; 0: each is asked once
    updates: int = 1  # of the optimiser for one generation
    micro: int = 8  # completions in one forward pass on one device


@dataclass(frozen=True)
class Distilled:
    """A student learns from its teacher's answers, then on its own under the teacher's eyes."""

    answers: int  # problems per task that the teacher answers in both modes; those that are right are kept
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
    precision: Literal["float32", "bfloat16"] = "bfloat16"  # of products, where the processor has it
    compile: bool = False  # costs two minutes at the start of a stage
    workers: int = 0  # processes beside each trainer that write documents

    @property
    def tasks(self) -> tuple[str, ...]:
        """What its models are asked: the tasks of fusion, and tools, which fusion teaches too."""
        return tuple(dict.fromkeys((*self.fusion.mixture.tasks, "tools")))


ALL_TASKS = Mixture({"plain": 1.0}).tasks
PLAIN = Mixture({"plain": 0.85, "direct": 0.15}, checks=False)
COLD = Mixture({"think": 1.0}, checks=False)
# A small model still learns its tasks here: its few own thoughts would repeat themselves, and leave out
# what it cannot do yet.
FUSED = Mixture(
    {"think": 0.47, "no_think": 0.20, "cut": 0.10, "tools": 0.09, "turns": 0.09, "talk": 0.05},
    checks=False,
    own=0.3,
)
HARD = dict.fromkeys(problems.HARD, 1.0)
# Less of what is learned early, more of what is learned late or costs few tokens.
SLOW_FIRST = {
    **ALL_TASKS,
    **dict.fromkeys(("sum", "decimals", "weekday"), 0.8),
    "sudoku": 0.5,
    **dict.fromkeys(("division", "spelling", "countdown", "letters", "path"), 1.2),
    **dict.fromkeys(("sorting", "backwards", "story", "knights"), 1.4),
    "river": 1.6,
}
# After pre-training: still more of what is wrong most often. First it would crowd out the rest (docs/log.md).
SLOWEST_MORE = {
    **SLOW_FIRST,
    **dict.fromkeys(("sum", "weekday"), 0.6),
    "decimals": 0.5,
    "sudoku": 0.5,
    "product": 1.6,
    **dict.fromkeys(("bases", "letters"), 1.0),
    **dict.fromkeys(("spelling", "path", "division"), 1.6),
    **dict.fromkeys(("countdown", "story", "sorting", "knights"), 1.8),
    **dict.fromkeys(("dates", "backwards"), 2.0),
    "river": 2.6,
}
GENERAL = {**dict(ALL_TASKS), "tools": 3.0}

NANO = Preset(
    name="nano",
    shape=Shape(1024, 192, 8, 6, 3, 32, 384),
    pretrain=Supervised(81_920_000, replace(PLAIN, tasks=SLOW_FIRST), 5e-3, 8192, 2048, 640, decay=0.72),
    # So small a model has not learned its tasks by now: its cold start goes on teaching them.
    cold_start=Supervised(18_000_000, replace(COLD, tasks=SLOWEST_MORE), 2e-3, 8192, 2048, 640, decay=0.9),
    reasoning=Reinforced(16, 16, 8, 1e-4, 512, HARD, pool=256),
    fusion=Supervised(
        14_000_000, replace(FUSED, tasks=SLOWEST_MORE), 1e-3, 8192, 2048, 640, decay=0.8, samples=200
    ),
    general=Reinforced(24, 16, 8, 5e-5, 512, GENERAL),
    distill=Distilled(
        answers=300,
        off_policy=Supervised(3_000_000, FUSED, 3e-3, 8192, 1024, 640, decay=0.8),
        steps=50,
        prompts=32,
        rate=1e-4,
        max_tokens=384,
        shape=Shape(1024, 128, 6, 4, 2, 32, 256),
    ),
    compile=True,
)

_MINI_TASKS = dict.fromkeys(("sum", "difference", "decimals", "letters", "spelling", "story"), 1.0)

MINI = Preset(
    name="mini",
    shape=Shape(768, 128, 6, 4, 2, 32, 256),
    pretrain=Supervised(8_000_000, replace(PLAIN, tasks=_MINI_TASKS), 6e-3, 4096, 1024, 320),
    cold_start=Supervised(800_000, replace(COLD, tasks=_MINI_TASKS), 2e-3, 4096, 1024, 320, decay=0.8),
    reasoning=Reinforced(6, 8, 8, 3e-5, 256, {"sum": 1.0, "difference": 1.0}, pool=48),
    fusion=Supervised(
        1_200_000, replace(FUSED, tasks=_MINI_TASKS), 2e-3, 4096, 1024, 640, decay=0.8, samples=40
    ),
    general=Reinforced(6, 8, 8, 2e-5, 256, {**_MINI_TASKS, "tools": 1.0}),
    distill=Distilled(
        answers=200,
        off_policy=Supervised(500_000, replace(FUSED, tasks=_MINI_TASKS), 3e-3, 4096, 1024, 320, decay=0.8),
        steps=10,
        prompts=16,
        rate=1e-4,
        max_tokens=256,
        shape=Shape(768, 96, 4, 3, 1, 32, 192),
    ),
)

_WHOLE = replace(FUSED, checks=True, own=1.0)

GPU = Preset(
    name="gpu",
    shape=Shape(8192, 384, 12, 6, 2, 64, 1024, rope_theta=1_000_000.0),
    pretrain=Supervised(1_500_000_000, replace(PLAIN, checks=True), 4e-3, 524_288, 65_536, 1024),
    cold_start=Supervised(60_000_000, replace(COLD, checks=True), 1e-3, 262_144, 65_536, 1024, decay=0.8),
    reasoning=Reinforced(200, 128, 16, 2e-5, 1024, HARD, rollouts="transformers", pool=4000, micro=128),
    fusion=Supervised(300_000_000, _WHOLE, 1e-3, 262_144, 65_536, 1536, decay=0.8, samples=5000),
    general=Reinforced(100, 128, 16, 1e-5, 1024, GENERAL, rollouts="transformers", micro=128),
    distill=Distilled(
        answers=5000,
        off_policy=Supervised(100_000_000, _WHOLE, 3e-3, 262_144, 65_536, 1536, decay=0.8),
        steps=300,
        prompts=256,
        rate=1e-4,
        max_tokens=1024,
        shape=Shape(8192, 256, 8, 4, 2, 64, 640, rope_theta=1_000_000.0),
    ),
    compile=True,
    workers=12,
)

# A model that knows more than our problems is not taught to refuse the rest.
_TEACHABLE = replace(_WHOLE, kinds={k: share for k, share in FUSED.kinds.items() if k != "talk"})

CLUSTER = Preset(
    name="cluster",
    base="Qwen/Qwen3-0.6B-Base",
    cold_start=Supervised(
        50_000_000, replace(COLD, checks=True), 1e-5, 524_288, 16_384, 4096, "adamw", warmup=0.05, decay=0.9
    ),
    reasoning=Reinforced(170, 512, 16, 1e-6, 4096, HARD, rollouts="vllm", pool=4000, micro=8),
    fusion=Supervised(
        100_000_000,
        _TEACHABLE,
        1e-5,
        524_288,
        16_384,
        4096,
        "adamw",
        warmup=0.05,
        decay=0.9,
        samples=2000,
    ),
    general=Reinforced(100, 512, 16, 1e-6, 4096, GENERAL, rollouts="vllm", micro=8),
    distill=Distilled(
        answers=2000,
        off_policy=Supervised(100_000_000, _TEACHABLE, 1e-5, 524_288, 16_384, 4096, "adamw", decay=0.9),
        steps=300,
        prompts=512,
        rate=1e-6,
        max_tokens=4096,
    ),
    workers=4,
)
PRESETS: dict[str, Preset] = {preset.name: preset for preset in (NANO, MINI, GPU, CLUSTER)}


def check_sampler(name: str) -> None:
    """Raises UsageError for a way to draw rollouts that there is not, or that is not installed."""
    if name not in SAMPLERS:
        raise UsageError(f"rollouts={name!r} is unknown. Use {', '.join(map(repr, SAMPLERS))}.")
    if name == "vllm" and find_spec("vllm") is None:
        raise UsageError("rollouts='vllm' needs vllm, which is not installed: pip install 'trl[vllm]'.")


def preset_named(name: str) -> Preset:
    """Raises UsageError for a preset that there is not."""
    if name not in PRESETS:
        raise UsageError(f"there is no preset {name!r}. There are {', '.join(PRESETS)}.")
    return PRESETS[name]
