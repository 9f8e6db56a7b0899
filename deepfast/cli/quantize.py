"""`deepfast quantize`: pack a model's weights once, so that it loads at once ever after.

In: a model, q4 or q8. Out: a directory that `-m` opens by memory map; its path on stdout, its size on stderr.
Does not know: how weights are rounded, what lies in the files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from ..config import BUNDLED_NAME
from .fetching import locate
from .options import LoadBar, positive
from .show import size
from .terminal import note


@click.command()
@click.option(
    "--to", "format", type=click.Choice(["q4", "q8"]), default="q4", show_default=True, help="Format."
)
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Default: MODEL-q4, beside it.")
@click.option("--threads", type=positive, metavar="N", help="Worker threads. Default: one per core.")
@click.argument("model", required=False)
def quantize(model: str | None, format: Literal["q4", "q8"], out: Path | None, threads: int | None) -> None:
    """Write MODEL's weights in the form in which they are computed with.

    \b
    deepfast quantize ~/models/Qwen3-4B --to q4
    deepfast run -m ~/models/Qwen3-4B-q4 "How many primes are there below 100?"

    The result is mapped into memory instead of read: it loads in a fraction of a second, and several
    programs share one copy of it. It is a packed form for Deepfast alone; keep the original.
    """
    from ..backend.cpu import CpuBackend
    from ..model.packed import write_packed
    from ..model.weights import Checkpoint

    found = locate(model)
    path = found.path.resolve()  # for its name; a cache's links are opened as they are named
    name = BUNDLED_NAME if model is None else found.repo.rpartition("/")[2]  # no place to write beside it
    target = out or (Path(f"{name}-{format}") if name else path.with_name(f"{path.name}-{format}"))
    with LoadBar("packing the weights") as bar:
        count = write_packed(Checkpoint.open(found.path), CpuBackend(threads), format, target, bar)
    click.echo(str(target))
    note(f"{size(count)} of weights in {format}")
