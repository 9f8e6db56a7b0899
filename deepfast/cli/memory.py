"""What models will take of the memory, known before a weight is read.

In: names of models, engine settings, free bytes. Out: a Need for each, with settings in which nothing is left
open; or a refusal with the numbers and a way out. Does not know: how weights are loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from ..backend.machine import available_cpus
from ..config import EngineConfig, ModelConfig, WeightFormat, kv_bytes_per_token
from ..model.shapes import weight_bytes
from ..model.weights import Checkpoint
from ..types import UsageError
from .fetching import locate
from .show import size


class Need(NamedTuple):
    """What one model will use. Sizes in bytes; `settings` has context, KV positions and threads filled."""

    name: str
    format: WeightFormat
    weights: int
    kv: int
    settings: EngineConfig

    @property
    def text(self) -> str:
        """One line for people."""
        s = self.settings
        return (
            f"{self.name}: weights {size(self.weights)} ({self.format}), KV cache {size(self.kv)} "
            f"({s.max_kv_tokens:,} positions in {s.kv}), context {s.max_context:,}, {s.threads} threads"
        )


def plan(
    models: Mapping[str, str | None], format: Literal["q8", "q4"] | None, settings: EngineConfig, free: int
) -> list[Need]:
    """What these models (name -> path) need together. Raises ModelError for files that are missing,
    UsageError when they need more than `free` bytes."""
    configs = dict[str, tuple[ModelConfig, WeightFormat, int]]()
    for name, model in models.items():
        found = locate(model)
        checkpoint, wanted = Checkpoint.open(found.path), found.packing(format)
        chosen = checkpoint.stored if checkpoint.config.packed or wanted is None else wanted
        configs[name] = checkpoint.config, chosen, weight_bytes(checkpoint.config, chosen)
    left = free - sum(weights for _, _, weights in configs.values())
    needs = []
    for name, (config, chosen, weights) in configs.items():
        resolved = settings.resolve(config, max(left, 0), available_cpus())
        assert resolved.max_kv_tokens is not None
        kv = resolved.max_kv_tokens * kv_bytes_per_token(config, resolved.kv)
        needs.append(Need(name, chosen, weights, kv, resolved))
        left -= kv
    if left < 0:
        _refuse(needs, [config for config, _, _ in configs.values()], free)
    return needs


def _refuse(needs: list[Need], configs: list[ModelConfig], free: int) -> None:
    weights, kv = sum(need.weights for need in needs), sum(need.kv for need in needs)
    formats = "/".join(sorted({need.format for need in needs}))
    ways = []
    for smaller in ("q8", "q4"):
        total = sum(weight_bytes(config, smaller) for config in configs)
        if total < min(weights, free) and not any(config.packed for config in configs):
            ways.append(f"--quantize {smaller} ({size(total)} of weights)")
    if weights < free:
        per_token = sum(kv_bytes_per_token(c, n.settings.kv) for c, n in zip(configs, needs, strict=True))
        ways.append(f"--context {max((free - weights) // per_token, 1)}")
    who = " and ".join(need.name for need in needs)
    raise UsageError(
        f"{who}: {size(weights)} of weights ({formats}) and {size(kv)} of KV cache need "
        f"{size(weights + kv)}, but {size(free)} of memory are free. "
        f"Try {' or '.join(ways) or 'a smaller model'}."
    )
