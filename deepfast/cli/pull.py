"""`deepfast pull`: fetch a model, or what is new or missing of it, before it is needed.

In: a name of the catalog or an id of a hub. Out: its path on stdout, what was fetched on stderr.
Does not know: hubs, what a model is good for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..types import as_size
from .fetching import FetchBar
from .terminal import note


@click.command()
@click.option("--revision", metavar="REV", help="A branch, tag or commit. Default: the newest.")
@click.option("--endpoint", metavar="URL", help="A mirror, as https://hf-mirror.com. Or set HF_ENDPOINT.")
@click.option("--verify", is_flag=True, help="Compare the hash of every file that is here, too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the path.")
@click.argument("name", metavar="NAME")
def pull(name: str, revision: str | None, endpoint: str | None, verify: bool, as_json: bool) -> None:
    """Fetch the model called NAME, and print where it lies.

    \b
    deepfast pull qwen3:4b                        the catalog: deepfast list --available
    deepfast pull qwen3:30b-a3b-q8
    deepfast pull Qwen/Qwen3-0.6B                 an id on Hugging Face
    deepfast pull modelscope:Qwen/Qwen3-0.6B
    deepfast pull Qwen/Qwen3-8B-GGUF:Q4_K_M       one GGUF file of several

    An interrupted download goes on where it stopped. Every file for which the hub lists a hash is checked
    by it. What is here already is not fetched again, and needs no network later.
    """
    from ..model import hub

    with FetchBar() as bar:
        wish: dict[str, Any] = {"endpoint": endpoint, "revision": revision, "verify": verify}
        found = hub.find(name, report=bar, refresh=True, **wish)
    if found.note:
        note(f"[{found.note}]")
    elif not found.repo:
        note(f"{name} is a path: there is nothing to fetch")
    elif not bar.fetched:
        note("everything is here already" + (", and right" if verify else ""))
    if as_json:
        facts = {"model": name, "path": str(found.path), "quantize": found.quantize}
        click.echo(json.dumps({**facts, "bytes": _bytes(found.path), "note": found.note or None}))
        return
    click.echo(str(found.path))
    if found.quantize:
        note(
            f"[{as_size(_bytes(found.path))}; its weights are packed as {found.quantize} while it is loaded]"
        )


def _bytes(path: Path) -> int:
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
