"""From what a user calls a model to the directory or file it lies in; what is not here is fetched.

In: nothing (the bundled model), a directory, a .gguf file, a name of the catalog, an id of a hub. Out: Found.
What lies whole in a cache is used without a request; only `refresh` asks whether the hub has something newer.
Raises ModelError that names what is accepted. Does not know: file formats, how bytes travel.

    qwen3:4b   qwen3:4b-q8                     the catalog, see `deepfast list --available`
    Qwen/Qwen3-0.6B   hf:Qwen/Qwen3-0.6B       Hugging Face, or the mirror in HF_ENDPOINT
    modelscope:Qwen/Qwen3-0.6B                 ModelScope; before a name of the catalog, too
    Qwen/Qwen3-0.6B@main                       a revision: branch, tag or commit
    Qwen/Qwen3-8B-GGUF:Q4_K_M                  one file of several: by quantisation or by name
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..config import ENV_HUB
from ..types import ModelError, UsageError
from . import catalog, choose

if TYPE_CHECKING:
    from .download import Report, Store
    from .shelf import Listing, Shelf

BUNDLED = Path(__file__).resolve().parent.parent / "bundled"
PREFIXES = {"hf": "hf", "huggingface": "hf", "modelscope": "modelscope", "ms": "modelscope"}
_ACCEPTED = (
    "Give a directory, a .gguf file, a name as qwen3:4b (deepfast list --available), an id as "
    "Qwen/Qwen3-4B or modelscope:Qwen/Qwen3-4B, or no model for the bundled one"
)
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_REPO = re.compile(f"{_PART}/{_PART}")
_ADDRESS = re.compile(r"https?://(?:www\.)?|(?=(?:hf|huggingface)\.co/|modelscope\.cn/)", re.I)
_PAGE = re.compile(r"(?:(hf|huggingface)\.co|modelscope\.cn/models)/(.+?)/?", re.I)
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]{0,199}")

Packing = Literal["q4", "q8"]


class Found(NamedTuple):
    """Where a model lies. quantize: how its weights are packed while they are loaded, by its name or because
    it was asked for. repo: its repository when it came from a hub. note: what a person should know."""

    path: Path
    quantize: Packing | None = None
    repo: str = ""
    note: str = ""


class Wanted(NamedTuple):
    """A model on a hub. prefix: "hf" or "modelscope". pick: one GGUF file of several. plain: the id might
    also have been meant as a path."""

    prefix: str
    repo: str
    revision: str | None = None
    pick: str | None = None
    quantize: Packing | None = None
    plain: bool = False


def resolve(model: str | None) -> Path:
    """The directory or file of `model`; None is the bundled model. Fetches what is not here."""
    return find(model).path


def find(
    model: str | Path | None,
    *,
    quantize: Packing | None = None,
    report: Report | None = None,
    endpoint: str | None = None,
    revision: str | None = None,
    refresh: bool = False,
    verify: bool = False,
) -> Found:
    """Where `model` lies, fetched when it is on a hub and not here; None is the bundled model.

    A Path is only ever a path. quantize: the format to load in; a name of the catalog without one means the
    variant of that. report: called in this thread while files come. endpoint: a mirror of the hub.
    revision: as if it stood behind an @ in the name. refresh: ask the hub for news even when it is here.
    verify: ask, and compare the hash of every file that is here.
    Raises ModelError, UsageError for an endpoint that is no address, a revision that makes no sense, a name
    that says another format.
    """
    if model is None:
        if not (BUNDLED / "config.json").exists():
            raise ModelError(
                f"the bundled model is not in {BUNDLED}. Install again, or name a model directory."
            )
        return Found(BUNDLED, quantize)
    only_here, model = isinstance(model, Path), str(model)
    if (path := _local(model)) is not None:
        _refuse_of_a_path(model, revision, verify, endpoint)
        return Found(path, quantize)
    if only_here:
        raise ModelError(f"model {model!r} was not found. {_ACCEPTED}.")
    want = _at(wanted(model, quantize), revision)
    from .shelf import shelf_named

    shelf = shelf_named(want.prefix, endpoint)
    here = _here(shelf, want)
    if here is not None and not verify and (shelf.offline or not refresh):
        return Found(here, want.quantize, want.repo)
    if shelf.offline and here is not None:
        raise ModelError(f"model {model!r}: HF_HUB_OFFLINE forbids to ask for hashes. Unset it to verify.")
    if shelf.offline:
        raise ModelError(
            f"model {model!r} is not in the cache ({shelf.store(want.repo).folder}), and "
            f"HF_HUB_OFFLINE forbids to fetch it. Unset that, or copy the cache from where it was fetched."
        )
    try:
        listing = shelf.list(want.repo, want.revision or shelf.default_revision)
    except ModelError as error:
        if here is not None and not verify:
            note = f"the copy in the cache is used: {error}"
            return Found(here, want.quantize, want.repo, note)
        none = "there is no such directory here, and " if want.plain else ""
        raise ModelError(f"model {model!r}: {none}{error}") from error
    try:
        path = _fetch(listing, shelf.store(want.repo), want, report, verify)
    except ModelError as error:
        raise ModelError(f"model {model!r}: {error}") from error
    return Found(path, want.quantize, want.repo)


def _refuse_of_a_path(model: str, revision: str | None, verify: bool, endpoint: str | None) -> None:
    """Raises UsageError for what only a model of a hub has."""
    wishes = {
        "revision": revision is not None,
        "hash to be compared with": verify,
        "endpoint": endpoint is not None,
    }
    for wish, given in wishes.items():
        if given:
            raise UsageError(f"{model} is a path, not a model of a hub: it has no {wish}. Leave that out.")


def _local(model: str) -> Path | None:
    """The directory or .gguf file at this path; None when there is none and it may be a name."""
    path = Path(model).expanduser()
    head = re.split("[:@]", model, maxsplit=1)[0]
    try:
        if model and path.is_dir():
            return path
        if path.is_file():
            if path.suffix.lower() == ".gguf":
                return path
            raise ModelError(f"model {model!r} is a file, but not a .gguf file. {_ACCEPTED}.")
    except (OSError, ValueError):  # a name that no file can have
        pass
    if _ADDRESS.match(model):
        return None
    if not model or head.startswith((".", "/", "~")) or "\\" in model or head.count("/") > 1:
        raise ModelError(f"model {model!r} was not found. {_ACCEPTED}.")
    if head.lower().endswith(".gguf"):
        raise ModelError(f"model {model!r}: there is no such file here. {_ACCEPTED}.")
    if ":" not in model and "/" in head and Path(head).parent.is_dir():
        raise ModelError(
            f"model {model!r} was not found: the directory {head.split('/')[0]} is here and does not "
            f"hold it. For the hub, write hf:{model}."
        )
    return None


def wanted(model: str, quantize: Packing | None = None) -> Wanted:
    """What a name or an id asks of a hub. Raises ModelError when it is neither, UsageError when it is a name
    that says another format than `quantize`."""
    prefix, colon, rest = _of_a_page(model).partition(":")
    named = PREFIXES.get(prefix.lower()) if colon else None
    text = rest if named else prefix + colon + rest
    shelf = named or _usual_hub()
    if "/" not in text:
        if not catalog.is_name(text):
            raise ModelError(f"model {model!r} was not found. {_ACCEPTED}.")
        _, variant = catalog.look_up(text, quantize)
        same = variant.pick is not None and catalog.ALIKE.get(variant.pick) == quantize
        packing = variant.quantize or (None if same else quantize)  # the file of that format stays as it is
        return Wanted(shelf, variant.repo, None, variant.pick, packing)
    pieces = re.split("([:@])", text)
    repo, marks = pieces[0], dict(zip(pieces[1::2], pieces[2::2], strict=True))
    revision, pick = marks.get("@"), marks.get(":")
    good = (
        _REPO.fullmatch(repo) and "--" not in repo and ".." not in repo and len(marks) * 2 + 1 == len(pieces)
    )
    if revision is not None:
        good = good and _is_revision(revision)
    if not good or pick == "":
        raise ModelError(
            f"model {model!r} is no id of a hub: owner/name, perhaps @revision or :file. {_ACCEPTED}."
        )
    return Wanted(shelf, repo, revision, pick, quantize, named is None)


def _of_a_page(model: str) -> str:
    """The address of a model's page, as a browser or Ollama has it, as prefix and id; others as they are."""
    address = _ADDRESS.match(model)
    page = _PAGE.fullmatch(model[address.end() :]) if address else None
    return f"{'hf' if page[1] else 'modelscope'}:{page[2]}" if page else model


def _at(want: Wanted, revision: str | None) -> Wanted:
    if revision is None:
        return want
    if not _is_revision(revision):
        raise UsageError(f"the revision {revision!r} is no branch, tag or commit. Correct it.")
    if want.revision not in (None, revision):
        raise UsageError(f"the name says revision {want.revision!r}, not {revision!r}. Drop one of them.")
    return want._replace(revision=revision)


def _is_revision(text: str) -> bool:
    return bool(_REVISION.fullmatch(text)) and not set(text.split("/")) & {"", ".", ".."}


def _usual_hub() -> str:
    """The hub of names without a prefix."""
    named = os.environ.get(ENV_HUB) or "hf"
    if named.lower() not in PREFIXES:
        raise UsageError(f"{ENV_HUB}={named!r} is no hub. Set hf or modelscope, or unset it.")
    return PREFIXES[named.lower()]


def _here(shelf: Shelf, want: Wanted) -> Path | None:
    """The model in a cache, whole; None when it is not."""
    for folder in shelf.snapshots(want.repo, want.revision or shelf.default_revision):
        if (path := choose.find_in(folder, want.pick, want.repo)) is not None:
            return path
    return None


def _fetch(listing: Listing, store: Store, want: Wanted, report: Report | None, verify: bool) -> Path:
    from .download import Download

    files = {file.path: file for file in listing.files}
    choice = choose.choose(files, want.pick, want.repo)
    chosen = [files[name] for name in choice.files]
    download = Download(listing.wire, store, chosen, listing.snapshot)
    folder = download.run(listing.wire.revision, report, verify=verify)
    return folder if choice.gguf is None else folder / choice.gguf


class Kept(NamedTuple):
    """A model in a cache. name: what `find` takes to open it. size: bytes on the disk."""

    name: str
    path: Path
    size: int
    format: str


def kept() -> list[Kept]:
    """Every model in the caches of both hubs that can be opened, one GGUF file at a time."""
    kept = [(path, name(repo)) for name, shelf in _shelves() for repo, path in shelf.kept()]
    return [model for path, name in kept for model in _models_in(path, name)]


def unfinished() -> dict[str, int]:
    """Repositories with files that are not whole, and how many bytes of them lie in the caches."""
    found = dict[str, int]()
    for name, shelf in _shelves():
        for repo, folder in shelf.folders():
            parts = [path for path in folder.glob("blobs/*.incomplete") if "." not in path.stem]  # not theirs
            if size := sum(path.stat().st_size for path in parts):
                found[name(repo)] = size
    return found


def _shelves() -> Iterator[tuple[Callable[[str], str], Shelf]]:
    """Every hub, and how its repositories are named here."""
    from .shelf import shelf_named

    yield str, shelf_named("hf")
    yield "modelscope:{}".format, shelf_named("modelscope")


def _models_in(folder: Path, name: str) -> list[Kept]:
    files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    models = []
    if choose.find_in(folder, None, name) == folder:
        chosen = choose.choose(files, None, name).files
        models.append(Kept(name, folder, sum(files[n].stat().st_size for n in chosen), "safetensors"))
    groups = choose.gguf_files(files)
    labels = Counter(map(choose.quantisation, groups))
    for first, parts in groups.items():
        label = choose.quantisation(first)
        pick = label if label and labels[label] == 1 else first
        size = sum(files[part].stat().st_size for part in parts)
        models.append(Kept(f"{name}:{pick}", files[first], size, f"GGUF {label or ''}".strip()))
    return models
