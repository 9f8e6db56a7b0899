"""`deepfast list`: which models are on this machine, and with --available which ones have a name.

In: the caches of the hubs, the catalog, the free memory. Out: a table, or one JSON object with --json.
Does not know: networks; what a model needs is model/fit.py's to say.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args

import click

from ..config import WeightFormat, kv_bytes_per_token
from ..types import as_dict, as_size
from .terminal import note

if TYPE_CHECKING:
    from ..model.catalog import Entry

FORMATS: tuple[WeightFormat, ...] = ("bf16", "q8", "q4")
ENOUGH = 4096  # positions: with less, a model that thinks is of no use
ROUND = 1024
MODES = {"hybrid": "think, no_think", "think": "think", "no_think": "no_think"}


@click.command()
@click.option("--available", is_flag=True, help="The catalog, and what of it fits this machine.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def list(available: bool, as_json: bool) -> None:
    """Show the models that are here, or those that have a name.

    A NAME is what -m takes. What lies in a directory of yours is not looked for.
    """
    if available:
        _available(as_json)
    else:
        _kept(as_json)


def _kept(as_json: bool) -> None:
    from ..model import hub

    models = hub.kept()
    if as_json:
        facts = [{**m._asdict(), "path": str(m.path)} for m in models]
        click.echo(json.dumps({"models": facts, "unfinished_bytes": hub.unfinished()}, indent=2))
        return
    for name, count in hub.unfinished().items():
        note(f"{name} is not whole, {as_size(count)} of it lie here: deepfast pull goes on with it")
    if not models:
        note("no models in the caches of Hugging Face and ModelScope. Fetch one: deepfast pull qwen3:0.6b")
        return
    _table(
        ("NAME", "SIZE", "FORMAT", "PATH"), [(m.name, as_size(m.size), m.format, str(m.path)) for m in models]
    )


def _available(as_json: bool) -> None:
    from ..backend.machine import free_memory
    from ..model.catalog import CATALOG

    free = free_memory()
    if as_json:
        models = [_facts(entry, free) for entry in CATALOG]
        click.echo(json.dumps({"free_bytes": free, "models": models}, indent=2))
        return
    rows = []
    for entry in CATALOG:
        sizes = [as_size(entry.weight_bytes(format)) for format in FORMATS]
        context = f"{entry.native:,}" + (f" ({entry.yarn:,})" if entry.yarn else "")
        row = (entry.name, f"{entry.parameters / 1e9:.2f} B", *sizes, context, MODES[entry.kind])
        rows.append((*row, _fit_text(entry, free)))
    _table(("NAME", "PARAMETERS", *map(str.upper, FORMATS), "CONTEXT (YARN)", "MODES", "FITS HERE"), rows)
    note(
        f"\n{as_size(free)} of memory are free. FITS HERE: the largest format, and the context that fits."
        "\nA name alone is about four bits (below 2 B: eight); more: qwen3:4b-q8, qwen3:4b-bf16."
        "\nqwen3 is qwen3:4b. All variants, repositories and licences: --json."
    )


def largest_context(entry: Entry, format: WeightFormat, free: int) -> int:
    """Positions that fit beside the weights, at most the native ones; 0 when fewer than ENOUGH do."""
    from ..model.fit import fit

    one = fit(entry.config, format, "f16", None, free, weights=entry.weight_bytes(format))
    positions = min(one.context, entry.native) // ROUND * ROUND
    return positions if one.fits and positions >= ENOUGH else 0


def _fit_text(entry: Entry, free: int) -> str:
    contexts = {format: largest_context(entry, format, free) for format in FORMATS}
    for format, context in contexts.items():
        if context == entry.native:
            return f"{format}, all of it"
    format = max(contexts, key=lambda name: contexts[name])
    return f"{format}, {contexts[format]:,}" if contexts[format] else "no"


def _facts(entry: Entry, free: int) -> dict[str, Any]:
    """Everything known about one model; sizes in bytes."""
    kv = kv_bytes_per_token(entry.config, "f16")
    return {
        "name": entry.name,
        "repo": entry.repo,
        "parameters": entry.parameters,
        "weight_bytes": {format: entry.weight_bytes(format) for format in get_args(WeightFormat)},
        "kv_bytes_per_position": kv,
        "context": {"native": entry.native, "yarn": entry.yarn or None},
        "modes": MODES[entry.kind].split(", "),
        "sampling": {mode: as_dict(values) for mode, values in entry.sampling.items()},
        "max_output": entry.max_output,
        "licence": entry.licence,
        "variants": {
            f"{entry.name}-{suffix}" if suffix else entry.name: {
                "repo": variant.repo,
                "file": variant.pick,
                "quantize": variant.quantize,
            }
            for suffix, variant in entry.variants.items()
        },
        "largest_context_here": {format: largest_context(entry, format, free) for format in FORMATS},
    }


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell; numbers and their units end at the right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    right = [all(row[i][:1].isdigit() and row[i][-1:] in "B" for row in rows) for i in range(len(head))]
    for row in (head, *rows):
        cells = [
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(row, widths, right, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())
