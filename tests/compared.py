"""What the tests of quantising and comparing share: one tiny model of each architecture, ids, packed copies.

In: a directory that `source_of` made. Out: the same model, packed. Does not know: what is asked of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from checkpoints import make_checkpoint

from deepfast.backend.cpu import CpuBackend
from deepfast.model.least_error import Rounder
from deepfast.model.packed import write_packed
from deepfast.model.weights import Checkpoint

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Qwen3ForCausalLM": {"tie_word_embeddings": True, "hidden_size": 56},
    "Qwen3MoeForCausalLM": {"mlp_only_layers": [0]},
    "Qwen2ForCausalLM": {},
    "LlamaForCausalLM": {"mlp_bias": True, "attention_bias": True},
}
IDS = [(37 * i * i + 11 * i + 5) % 160 for i in range(700)]


def source_of(architecture: str, path: Path) -> Path:
    """A checkpoint of this architecture, written into `path`."""
    return make_checkpoint(path, architecture, **ARCHITECTURES[architecture])


def packed(
    source: Path, format: Any = "q4", rounder: Rounder | None = None, name: str = "packed"
) -> Checkpoint:
    """The checkpoint, packed beside itself."""
    write_packed(Checkpoint.open(source), CpuBackend(2), format, source.with_name(name), None, rounder)
    return Checkpoint.open(source.with_name(name))
