"""What models will take of the memory, told to people before a weight is read.

In: names of models, engine settings, free bytes. Out: a Need for each, with settings in which nothing is left
open; a line of text. Raises what model/fit.py raises. Does not know: the arithmetic, how weights are loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from ..backend.machine import available_cpus
from ..config import EngineConfig, WeightFormat
from ..model.fit import Fit, settle
from ..model.weights import Checkpoint
from ..types import as_size
from .fetching import locate


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
    models: Mapping[str, str | None], format: Literal["q8", "q4"] | None, settings: EngineConfig, free: int
) -> list[Need]:
    """What these models (name -> path) need together. Raises ModelError for files that are missing,
    UsageError when they need more than `free` bytes, or a name says another format."""
    asked = dict[str, tuple[Checkpoint, WeightFormat | None]]()
    for name, model in models.items():
        found = locate(model, quantize=format)
        asked[name] = Checkpoint.open(found.path), found.quantize
    needs = []
    for name, (settled, fit) in settle(asked, settings, free, available_cpus()).items():
        checkpoint, wanted = asked[name]
        needs.append(Need(name, checkpoint.kept_as(wanted), settled, fit))
    return needs
