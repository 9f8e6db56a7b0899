"""`deepfast show`: everything known about a checkpoint, read from its files without loading a weight.

In: a model. Out: what kind of files, architecture, shapes, parameters, how tensors are stored and will be
kept, modes, tokens, context, sampling defaults, memory per format and whether it fits here; as text or, with
--json, one object. Does not know: engines, kernels.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from ..config import (
    BUNDLED_NAME,
    NO_THINK_DEFAULTS,
    THINK_DEFAULTS,
    EngineConfig,
    KVFormat,
    ModelConfig,
    WeightFormat,
    kv_bytes_per_token,
    native_positions,
)
from ..types import ModelError, as_dict, as_size
from .fetching import locate
from .options import model_option

if TYPE_CHECKING:
    from ..model.weights import Checkpoint
    from ..text.tokenizer import Tokenizer

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
MODES = {"hybrid": ["think", "no_think"], "think": ["think"], "no_think": ["no_think"]}
TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty")
TECHNICAL = (  # said elsewhere, or of no use to people
    *("general.architecture", "general.alignment", "general.quantization_version", "general.file_type"),
)
LONGEST = 100  # characters of a value from a file that are printed


@click.command()
@model_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def show(model: str | None, as_json: bool) -> None:
    """Say what a model is and what memory it takes."""
    facts = describe(model)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    for name, value in _lines(facts):
        click.echo(f"{name:18} {value}")


def describe(model: str | None) -> dict[str, Any]:
    """Every fact, by name; sizes in bytes. Raises ModelError when the files are missing or damaged."""
    from ..model.shapes import parameter_count, weight_bytes
    from ..model.weights import Checkpoint

    path, packing = locate(model)[:2]
    checkpoint = Checkpoint.open(path)
    config = checkpoint.config
    total = parameter_count(config)
    lengths = sorted({n for n in CONTEXTS if n < config.max_positions} | {config.max_positions})
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return {
        "model": model or BUNDLED_NAME,
        "path": str(path),
        "source": _source(checkpoint),
        "architecture": config.architecture,
        "shapes": {field: getattr(config, field) for field in SHAPES if getattr(config, field)},
        "parameters": {"total": total, "active": total - idle_expert_parameters(config, 1)},
        **_text_facts(checkpoint),
        "context": config.max_positions,
        "yarn_factor": config.yarn.factor if config.yarn else None,
        "trained_context": native_positions(config),
        "stored": checkpoint.stored,
        "loaded_as": packing or checkpoint.stored,
        "tensors": _stored_tensors(checkpoint),
        "kept": _kept_tensors(checkpoint),
        "weight_bytes": {name: weight_bytes(config, name) for name in get_args(WeightFormat)},
        "kv_bytes": {
            kv: {str(n): n * kv_bytes_per_token(config, kv) for n in lengths} for kv in get_args(KVFormat)
        },
        "fit": _fits(checkpoint),
        "files": {entry.name: entry.stat().st_size for entry in files if entry.is_file()},
        "sampling": {
            "think": as_dict(THINK_DEFAULTS),
            "no_think": as_dict(NO_THINK_DEFAULTS),
            "of_the_model": _own_sampling(path),
        },
        "metadata": _metadata(checkpoint),
    }


def idle_expert_parameters(config: ModelConfig, batch: int) -> int:
    """Parameters of the experts that a step of `batch` tokens cannot touch; 0 for a dense model."""
    idle = max(config.num_experts - batch * config.num_experts_per_token, 0)
    return len(config.sparse_layers) * idle * 3 * config.hidden_size * config.moe_intermediate_size


def _source(checkpoint: Checkpoint) -> str:
    """What kind of files it is, for people."""
    config = checkpoint.config
    if config.packed:
        return f"packed by deepfast quantize, {config.weight_bits} bits"
    if checkpoint.path.is_file():
        return checkpoint.path.suffix.removeprefix(".").upper()
    if config.quantised is not None:
        return f"safetensors, {config.quantised.name}"
    return "safetensors, q8 of Deepfast" if config.weight_bits else "safetensors"


def _text_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """Modes, tokens, template; what is missing or damaged stands among the notes."""
    from ..text.template import ChatTemplate
    from ..text.tokenizer import Tokenizer

    text, notes = checkpoint.text, [*checkpoint.config.notes, *checkpoint.text.notes]
    facts: dict[str, Any] = {"modes": [], "opens_thought": False, "tags": {}, "tokenizer": None, "eos": []}
    try:
        tokenizer = Tokenizer.of(text)
        facts["tags"] = {tag: tokenizer.control_id(tag) for tag in TAGS}
        facts["tokenizer"] = {"ids": tokenizer.num_ids, "control": len(tokenizer.control_ids)}
        facts["eos"] = [{"id": i, "text": _token(tokenizer, i)} for i in checkpoint.eos_ids]
        modes = ChatTemplate.of(text, tokenizer).modes
        facts["modes"], facts["opens_thought"] = MODES[modes.kind], modes.opens
    except ModelError as error:
        notes.append(str(error))
    origin = "chat_template.jinja" if (checkpoint.path / "chat_template.jinja").is_file() else None
    if origin is None and text.templates:
        origin = checkpoint.path.name if checkpoint.path.is_file() else "tokenizer_config.json"
    return facts | {"template": {"origin": origin, "names": sorted(text.templates)}, "notes": notes}


def _token(tokenizer: Tokenizer, token_id: int) -> str | None:
    return tokenizer.decode([token_id]) if token_id < tokenizer.num_ids else None


def _stored_tensors(checkpoint: Checkpoint) -> dict[str, dict[str, int]]:
    """Type in the files -> how many tensors, and their bytes."""
    counts, sizes = Counter[str](), Counter[str]()
    for name in checkpoint.names:
        kind = checkpoint.source.kind(name)
        counts[kind] += 1
        sizes[kind] += checkpoint.source.nbytes(name)
    return {kind: {"count": counts[kind], "bytes": sizes[kind]} for kind, _ in sizes.most_common()}


def _kept_tensors(checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    """Format in memory -> how many matrices lie in it, their bytes, and whether that is without loss."""
    from ..backend.cpu import CpuBackend
    from ..model.fit import stack_layout
    from ..model.load import keeps, stack_format
    from ..model.shapes import stacks

    found: dict[str, dict[str, Any]] = {}
    for name, stack in stacks(checkpoint.config).items():
        if len(stack.shape) == 1:
            continue
        parts = [part for expert in stack.experts for part, _ in expert]
        if checkpoint.config.packed:
            kind, lossless = checkpoint.source.kind(name), True
            size = checkpoint.source.nbytes(name)
        else:
            layout = stack_layout(checkpoint, name, stack, None)
            kind = f"{layout.format}/{layout.span}" if layout.two_level else layout.format
            size = CpuBackend.packed_bytes(layout, len(stack.experts), stack.shape[0], stack.shape[1])
            matrices = [
                [checkpoint.source.matrix(part) for part, _ in expert if part in checkpoint]
                for expert in stack.experts
            ]
            lossless = keeps(matrices, stack_format(name, matrices, None))
        row = found.setdefault(kind, {"count": 0, "bytes": 0, "lossless": True})
        row["count"] += len(parts)
        row["bytes"] += size
        row["lossless"] = row["lossless"] and lossless
    return found


def _fits(checkpoint: Checkpoint) -> dict[str, Any]:
    """Free memory, and for the stored format and smaller ones: the context, bytes in all with a cache of just
    that, does it fit."""
    from ..backend.machine import available_cpus, free_memory
    from ..model.fit import fit, loaded_bytes

    free, engine = free_memory(), EngineConfig(threads=available_cpus())
    formats: list[WeightFormat | None] = [None]
    if not checkpoint.config.packed:
        formats += [name for name in ("q8", "q4") if name != checkpoint.stored]
    found = dict[str, dict[str, Any]]()
    for name in formats:
        weights = loaded_bytes(checkpoint, name)
        if found and weights >= min(row["weights"] for row in found.values()):
            continue  # nothing is gained
        mapped = weights if checkpoint.config.packed else 0
        one = fit(
            checkpoint.config, "f32", engine.kv, None, free, weights=weights, mapped=mapped, settings=engine
        )
        found[name or "as stored"] = {
            "weights": weights,
            "total": one.total - one.kv + one.context * kv_bytes_per_token(checkpoint.config, engine.kv),
            "context": one.context,
            "fits": one.fits,
            "tight": one.tight,
        }
    return {"free": free, "kv": engine.kv, "formats": found}


def _own_sampling(path: Path) -> dict[str, Any]:
    """What generation_config.json says; Deepfast's own defaults stand in for it where it says nothing."""
    from ..model.directory import read_json

    file = path / "generation_config.json"
    raw = read_json(file, "") if file.is_file() else {}
    return {key: raw[key] for key in SAMPLING if isinstance(raw.get(key), int | float)}


def _metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a GGUF file says of its origin: name, author, licence, who quantised it."""
    known: Mapping[str, Any] = getattr(checkpoint.source, "metadata", {})
    return {
        key.removeprefix("general."): value
        for key, value in known.items()
        if key.startswith("general.") and key not in TECHNICAL and isinstance(value, str | int | float)
    }


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"


def _lines(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and value of each line of text."""
    for key in ("model", "path", "source", "architecture"):
        yield key, facts[key]
    for key, value in facts["metadata"].items():
        yield key.replace("_", " "), _short(value)
    total, active = facts["parameters"]["total"], facts["parameters"]["active"]
    yield "parameters", _count(total) + (f" ({_count(active)} active)" if active < total else "")
    for field, value in facts["shapes"].items():
        yield SHAPES[field], "yes" if value is True else f"{value:,.12g}"
    yield from _text_lines(facts)
    factor, trained = facts["yarn_factor"], facts["trained_context"]
    yarn = f", YaRN factor {factor:g} over {trained:,}" if factor else f", trained on {trained:,}"
    yield "context", f"{facts['context']:,} positions{yarn}"
    yield from _rows("tensors", (f"{name}: {_row(row)}" for name, row in facts["tensors"].items()))
    loss = {True: "", False: ", the nearest to what is stored"}
    kept = facts["kept"].items()
    yield from _rows("kept as", (f"{name}: {_row(row)}{loss[row['lossless']]}" for name, row in kept))
    stored, loaded = facts["stored"], facts["loaded_as"]
    by_name = f"; the model's name means {loaded}" if loaded != stored else ""
    yield "weights", f"{_join(facts['weight_bytes'])}   (stored as {stored}{by_name})"
    for kv, sizes in facts["kv_bytes"].items():
        yield f"KV cache {kv}", _join({f"{int(n):,}": value for n, value in sizes.items()})
    yield from _rows("fits here", _fit_lines(facts["fit"]))
    for mode, values in facts["sampling"].items():
        said = ", ".join(f"{k} {v:g}" for k, v in values.items() if v)
        if said:
            yield f"sampling {mode}".replace("of_the_model", "file"), said
    yield from _rows("files", (f"{as_size(n):>9}  {name}" for name, n in facts["files"].items()))
    yield from _rows("notes", facts["notes"])


def _text_lines(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    opens = "; the prompt opens the thought" if facts["opens_thought"] else ""
    yield "modes", (", ".join(facts["modes"]) or "no chat template: only ids in, ids out") + opens
    template = facts["template"]
    if template["origin"]:
        yield "chat template", f"{', '.join(template['names'])}   (from {template['origin']})"
    if facts["tokenizer"]:
        yield (
            "tokenizer",
            f"{facts['tokenizer']['ids']:,} ids, {facts['tokenizer']['control']} of control tokens",
        )
    tags = [f"{tag} {number}" for tag, number in facts["tags"].items() if number is not None]
    if tags:
        yield "tags", "   ".join(tags)
    if facts["eos"]:
        yield "ends with", "   ".join(f"{end['text'] or '(no token)'} {end['id']}" for end in facts["eos"])


def _fit_lines(fits: Mapping[str, Any]) -> Iterator[str]:
    for name, row in fits["formats"].items():
        said = f"{name}: {as_size(row['total'])} of {as_size(fits['free'])}, "
        if not row["fits"]:
            yield f"{said}no"
        else:
            slow = ", with weights read from the disk again and again" if row["tight"] else ""
            yield f"{said}context {row['context']:,} in {fits['kv']}{slow}"


def _rows(name: str, values: Any) -> Iterator[tuple[str, str]]:
    """The name once, then lines under it."""
    for number, value in enumerate(values):
        yield "" if number else name, value


def _row(row: Mapping[str, Any]) -> str:
    return f"{row['count']:,} of {as_size(row['bytes'])}"


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _join(sizes: dict[str, int]) -> str:
    return "   ".join(f"{name} {as_size(count)}" for name, count in sizes.items())
