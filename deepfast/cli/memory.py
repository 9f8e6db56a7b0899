"""What models will take of the memory, told to people before a weight is read.

In: names of models, engine settings, free bytes. Out: a Need for each, with settings in which nothing is left
open; a line of text. Raises what model/fit.py raises. Does not know: the arithmetic, how weights are loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ..backend.machine import available_cpus
from ..config import EngineConfig, WeightFormat
from ..model import hub
from ..model.fit import Fit, settle
from ..model.weights import Checkpoint
from ..types import as_size


class Need(NamedTuple):
    """What one model will use."""

    name: str
    format: WeightFormat
    settings: EngineConfig
    fit: Fit

    @property
    def text(self) -> str:
        """One line for people."""
        s, fit = self.settings, self.fit
        return (
            f"{self.name}: weights {as_size(fit.weights)} ({self.format}), KV cache {as_size(fit.kv)} "
            f"({fit.kv_tokens:,} positions in {s.kv}), {as_size(fit.activations + fit.text)} to work in, "
            f"context {fit.context:,}, {s.threads} threads"
        )


def plan(
    models: Mapping[str, str | None], format: WeightFormat | None, settings: EngineConfig, free: int
) -> list[Need]:
    """What these models (name -> path) need together. Raises ModelError for files that are missing,
    UsageError when they need more than `free` bytes."""
    opened = {name: Checkpoint.open(hub.resolve(model)) for name, model in models.items()}
    needs = []
    for name, (settled, fit) in settle(opened, settings, format, free, available_cpus()).items():
        checkpoint = opened[name]
        chosen = checkpoint.stored if checkpoint.config.packed or format is None else format
        needs.append(Need(name, chosen, settled, fit))
    return needs
