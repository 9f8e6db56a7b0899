"""`deepfast show`: what a model is and what it will cost, read from its files without loading a weight.

In: a model. Out: architecture, shapes, parameters, modes, context, memory per weight format and per context
length, files, sampling defaults; as text or, with --json, one object. Does not know: engines, backends.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, get_args

import click

from ..config import (
    BUNDLED_NAME,
    NO_THINK_DEFAULTS,
    THINK_DEFAULTS,
    KVFormat,
    ModelConfig,
    WeightFormat,
    kv_bytes_per_token,
)
from ..types import ModelError, as_dict, as_size
from .options import model_option
from .terminal import note

if TYPE_CHECKING:
    from ..text.files import TextFiles

CONTEXTS = (1024, 4096, 16384, 32768, 131072)
SHAPES = {  # the field of ModelConfig -> what people call it
    "num_layers": "layers",
    "hidden_size": "hidden size",
    "intermediate_size": "MLP size",
    "num_heads": "heads",
    "num_kv_heads": "KV heads",
    "head_dim": "head size",
    "vocab_size": "vocabulary",
    "num_experts": "experts",
    "num_experts_per_token": "experts per token",
    "moe_intermediate_size": "expert MLP size",
    "rope_theta": "RoPE theta",
    "tie_word_embeddings": "tied embeddings",
}


@click.command()
@model_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def show(model: str | None, as_json: bool) -> None:
    """Say what a model is and what memory it takes."""
    facts = describe(model)
    click.echo(json.dumps(facts, indent=2) if as_json else _text(facts))


def describe(model: str | None) -> dict[str, Any]:
    """Every fact, by name; sizes in bytes. Raises ModelError when the files are missing or damaged."""
    from ..model import hub
    from ..model.shapes import parameter_count, weight_bytes
    from ..model.weights import Checkpoint

    path = hub.resolve(model)
    checkpoint = Checkpoint.open(path)
    config = checkpoint.config
    total = parameter_count(config)
    lengths = sorted({n for n in CONTEXTS if n < config.max_positions} | {config.max_positions})
    files = [entry for entry in sorted(path.iterdir()) if entry.is_file()]
    return {
        "model": model or BUNDLED_NAME,
        "path": str(path),
        "architecture": config.architecture,
        "shapes": {field: getattr(config, field) for field in SHAPES if getattr(config, field)},
        "parameters": {"total": total, "active": total - idle_expert_parameters(config, 1)},
        "modes": _modes(checkpoint.text),
        "context": config.max_positions,
        "yarn_factor": config.yarn.factor if config.yarn else None,
        "stored": checkpoint.stored,
        "weight_bytes": {name: weight_bytes(config, name) for name in get_args(WeightFormat)},
        "kv_bytes": {
            kv: {str(n): n * kv_bytes_per_token(config, kv) for n in lengths} for kv in get_args(KVFormat)
        },
        "files": {entry.name: entry.stat().st_size for entry in files},
        "sampling": {"think": as_dict(THINK_DEFAULTS), "no_think": as_dict(NO_THINK_DEFAULTS)},
    }


def idle_expert_parameters(config: ModelConfig, batch: int) -> int:
    """Parameters of the experts that a step of `batch` tokens cannot touch; 0 for a dense model."""
    idle = max(config.num_experts - batch * config.num_experts_per_token, 0)
    return len(config.sparse_layers) * idle * 3 * config.hidden_size * config.moe_intermediate_size


def _modes(text: TextFiles) -> list[str]:
    from ..text.template import ChatTemplate
    from ..text.tokenizer import Tokenizer

    try:
        kind = ChatTemplate.of(text, Tokenizer.of(text)).modes.kind
    except ModelError as error:
        note(str(error))
        return []
    return {"hybrid": ["think", "no_think"], "think": ["think"], "no_think": ["no_think"]}[kind]


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"


def _text(facts: dict[str, Any]) -> str:
    parameters, lines = facts["parameters"], list[tuple[str, str]]()
    lines += [("model", facts["model"]), ("path", facts["path"]), ("architecture", facts["architecture"])]
    active = f" ({_count(parameters['active'])} active)" if parameters["active"] < parameters["total"] else ""
    lines.append(("parameters", f"{_count(parameters['total'])}{active}"))
    for field, value in facts["shapes"].items():
        lines.append((SHAPES[field], "yes" if value is True else f"{value:,}"))
    lines.append(("modes", ", ".join(facts["modes"]) or "no chat template: only ids in, ids out"))
    yarn = f", YaRN factor {facts['yarn_factor']:g}" if facts["yarn_factor"] else ""
    lines.append(("context", f"{facts['context']:,} positions{yarn}"))
    lines.append(("weights", f"{_join(facts['weight_bytes'])}   (stored as {facts['stored']})"))
    lines += [
        (f"KV cache {kv}", _join({f"{int(n):,}": value for n, value in sizes.items()}))
        for kv, sizes in facts["kv_bytes"].items()
    ]
    for mode, values in facts["sampling"].items():
        lines.append((f"sampling {mode}", ", ".join(f"{k} {v:g}" for k, v in values.items() if v)))
    for number, (name, count) in enumerate(facts["files"].items()):
        lines.append(("" if number else "files", f"{as_size(count):>9}  {name}"))
    return "\n".join(f"{name:18} {value}" for name, value in lines)


def _join(sizes: dict[str, int]) -> str:
    return "   ".join(f"{name} {as_size(count)}" for name, count in sizes.items())
