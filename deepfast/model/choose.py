"""Which files of a repository make a model: as few as it takes, never code, never pickles.

In: names of files, perhaps a wish (`Q4_K_M`, or a file). Out: a Choice. Pure functions: the same for what a
hub lists and for what lies in a cache. Does not know: networks, what is in the files.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ..types import ModelError

CONFIG, TOKENIZER, INDEX = "config.json", "tokenizer.json", "model.safetensors.index.json"
TEXTS = frozenset(  # what is read beside the weights
    {
        *(CONFIG, TOKENIZER, INDEX, "tokenizer_config.json", "generation_config.json", "thinking.json"),
        *("chat_template.jinja", "chat_template.json", "quantize_config.json", "quant_config.json"),
    }
)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
_PART = re.compile(r"-(\d{5})-of-(\d{5})(?=\.(?:gguf|safetensors)$)", re.I)
_QUANT = re.compile(r"(?:^|[-._/])((?:UD-)?(?:I?Q\d\w*|TQ\d\w*|BF16|F16|FP16|F32|FP32))(?=[-._/]|$)", re.I)
_ASIDE = re.compile(r"(?:^|/)(?:mmproj|imatrix)[^/]*$", re.I)  # GGUF files that hold no language model


class Choice(NamedTuple):
    """files: what to fetch. gguf: the file to open, None when the directory is the model."""

    files: tuple[str, ...]
    gguf: str | None


def choose(names: Collection[str], pick: str | None, repo: str) -> Choice:
    """The files of the model in `repo`. Raises ModelError with what there is when none or several fit."""
    if pick is not None:
        return _gguf(names, pick, repo)
    weights = sorted(name for name in names if name.endswith(".safetensors") and "/" not in name)
    usual = [name for name in weights if name.startswith("model")]
    weights = usual or weights  # beside it may lie the same weights once more, under another library's name
    if weights and CONFIG in names:
        return Choice((*sorted(TEXTS & set(names)), *weights), None)
    if any(name.lower().endswith(".gguf") for name in names):
        return _gguf(names, None, repo)
    if any(name.endswith(_PICKLES) for name in names):
        raise ModelError(
            f"{repo} has its weights as pickles (.bin, .pt), which can run code when they are read; they are "
            "never opened. Look for a version in safetensors or GGUF, or convert it: transformers' "
            "save_pretrained writes safetensors."
        )
    what = f"no {CONFIG}" if weights else "neither safetensors nor GGUF files"
    raise ModelError(f"{repo} has {what}, so it holds no model that can be opened. Name another repository.")


def _gguf(names: Iterable[str], pick: str | None, repo: str) -> Choice:
    groups = _grouped(names)
    if not groups:
        raise ModelError(f"{repo} has no GGUF files, so there is no {pick!r} in it. Leave that out.")
    wanted = list(groups) if pick is None else _matching(groups, pick)
    if len(wanted) != 1:
        counts = Counter(map(quantisation, groups))
        labels = sorted(picked(first, counts) for first in groups)
        shown = ", ".join(labels[:20]) + (f" and {len(labels) - 20} more" if len(labels) > 20 else "")
        if pick is None:
            raise ModelError(
                f"{repo} has several GGUF files. Choose one of {shown}, as in {repo}:{labels[0]}."
            )
        several = f"{len(wanted)} files for {pick!r} ({', '.join(wanted)})" if wanted else f"no {pick!r}"
        raise ModelError(f"{repo} has {several}. Choose one of: {shown}.")
    members = groups[wanted[0]]
    whole = [name for name in members if not _PART.search(name)]
    files = whole or members
    if not is_complete(files):
        raise ModelError(f"{repo} lists only some parts of {wanted[0]}. Choose another file.")
    return Choice(tuple(files), files[0])


def _grouped(names: Iterable[str]) -> dict[str, list[str]]:
    """Name without part numbers -> its files."""
    groups = dict[str, list[str]]()
    for name in sorted(names):
        if name.lower().endswith(".gguf") and not _ASIDE.search(name):
            groups.setdefault(_PART.sub("", name), []).append(name)
    return groups


def picked(name: str, counts: Mapping[str | None, int]) -> str:
    """What to write after the colon to mean this file, when so many files have each quantisation."""
    label = quantisation(name)
    return label if label is not None and counts[label] == 1 else name


def gguf_files(names: Iterable[str]) -> dict[str, list[str]]:
    """The file to open -> all of its parts, for each GGUF model that is whole."""
    return {files[0]: files for files in _grouped(names).values() if is_complete(files)}


def _matching(groups: Iterable[str], pick: str) -> list[str]:
    """The groups that a wish means: a path, a file name, or a quantisation, in any case."""
    low = _PART.sub("", pick.lower())
    low = low if low.endswith(".gguf") else f"{low}.gguf"
    for means in (str.lower, lambda name: PurePosixPath(name.lower()).name):
        if found := [name for name in groups if means(name) == low]:
            return found
    return [name for name in groups if (quantisation(name) or "").lower() == pick.lower()]


def quantisation(name: str) -> str | None:
    """The last word of a GGUF file's name that says how it is quantised, as Q4_K_M; None without one."""
    found = _QUANT.findall(re.sub(r"\.gguf$", "", name, flags=re.I))
    return str(found[-1]).upper() if found else None


def is_complete(files: Collection[str]) -> bool:
    """Are all parts here that the names speak of?"""
    counts = {int(part[2]) for name in files if (part := _PART.search(name))}
    parts = {int(part[1]) for name in files if (part := _PART.search(name))}
    return not counts or (len(counts) == 1 and parts == set(range(1, counts.pop() + 1)))


def find_in(folder: Path, pick: str | None, repo: str) -> Path | None:
    """The model in a folder of a cache: the folder, or a GGUF file; None when it is not whole."""
    names = [
        path.relative_to(folder).as_posix()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(".incomplete")
    ]
    try:
        choice = choose(names, pick, repo)
    except ModelError:
        return None
    if choice.gguf is not None:
        return folder / choice.gguf
    weights = [name for name in choice.files if name.endswith(".safetensors")]
    whole = is_complete(weights) and TOKENIZER in names
    return folder if whole else None
