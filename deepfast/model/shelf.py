"""The hubs that models lie on: what they list, where they keep it, what lies in their caches here.

In: a repository and a revision. Out: a Listing of checked names, sizes and hashes; folders of the cache.
Does not know: which files a model needs, how bytes travel, names of the catalog.

Names in a list come from a stranger. One that could leave its folder spoils the whole list.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import quote, urlencode, urlsplit

from huggingface_hub import constants, get_session
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from ..types import ModelError, UsageError
from .download import RemoteFile, Store
from .wire import Wire

if TYPE_CHECKING:
    import httpx2

MAX_FILES = 20_000
MAX_FILE = 1 << 44  # bytes
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_TRUE = ("1", "ON", "YES", "TRUE")
_HF = "https://huggingface.co"
_MODELSCOPE = "https://modelscope.cn"


class Listing(NamedTuple):
    """What a repository holds. snapshot: the commit, or the revision where a hub names no commit."""

    wire: Wire
    snapshot: str
    files: tuple[RemoteFile, ...]


class Shelf(Protocol):
    """A hub. prefix: how it is named before a repository."""

    prefix: str
    default_revision: str
    offline: bool

    def store(self, repo: str) -> Store:
        """Where this repository is kept."""

    def snapshots(self, repo: str, revision: str) -> Iterator[Path]:
        """Directories on this machine that may hold the revision, the best first."""

    def list(self, repo: str, revision: str) -> Listing:
        """Ask the hub. Raises ModelError when it does not have it, or can not be reached."""

    def folders(self) -> Iterator[tuple[str, Path]]:
        """Every repository in the cache here, with its name."""

    def kept(self) -> Iterator[tuple[str, Path]]:
        """Every snapshot in the caches here, with its repository, and @revision when it is not the usual."""


class HuggingFace:
    """huggingface.co or a mirror, and the cache that all its libraries share."""

    prefix, default_revision = "hf", "main"

    def __init__(self, endpoint: str | None = None) -> None:
        """endpoint: a mirror; None for HF_ENDPOINT or the hub itself. The environment is read now."""
        self.endpoint = _address(endpoint, os.environ.get("HF_ENDPOINT") or constants.ENDPOINT)
        self.cache = _hf_cache()
        wanted = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
        self.offline = constants.is_offline_mode() or wanted.upper() in _TRUE

    def store(self, repo: str) -> Store:
        """As in `huggingface_hub`: models--owner--name."""
        return Store(self.cache / f"models--{repo.replace('/', '--')}")

    def snapshots(self, repo: str, revision: str) -> Iterator[Path]:
        """The one that the revision names."""
        store = self.store(repo)
        commit = store.commit_of(revision) or revision
        if (path := store.snapshot(commit)).is_dir() and _is_safe(commit):
            yield path

    def list(self, repo: str, revision: str) -> Listing:
        """One request: the commit, and name, size and hash of every file."""
        mirror = " set HF_ENDPOINT to a mirror," if self.endpoint == _HF else ""
        wire = Wire(
            _client(),
            "Hugging Face",
            self.endpoint,
            repo,
            revision,
            f"Check the network or the proxy,{mirror} try modelscope:{repo}, or give a directory.",
            "HF_TOKEN",
            "HF_HOME",
            _hf_headers(),
        )
        url = f"{self.endpoint}/api/models/{repo}/revision/{quote(revision, safe='')}?blobs=true"
        raw = wire.json(url)
        commit = raw.get("sha") if isinstance(raw, dict) else None
        entries = raw.get("siblings") if isinstance(raw, dict) else None
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit) or not isinstance(entries, list):
            raise _strange(wire)
        base = f"{self.endpoint}/{repo}/resolve/{commit}/"
        return Listing(wire, commit, _checked(wire, [_hf_file(entry, base) for entry in entries]))

    def folders(self) -> Iterator[tuple[str, Path]]:
        """As `store` names them."""
        for path in sorted(self.cache.glob("models--*--*")):
            yield path.name.removeprefix("models--").replace("--", "/", 1), path

    def kept(self) -> Iterator[tuple[str, Path]]:
        """Every snapshot of every model in the cache, by branch or tag where one points to it."""
        for repo, folder in self.folders():
            refs = (path for path in (folder / "refs").rglob("*") if path.is_file())
            named = {ref: Store(folder).commit_of(ref) for ref in _relative(refs, folder / "refs")}
            for path in sorted(folder.glob("snapshots/*")):
                if not path.is_dir():
                    continue
                revisions = [ref for ref, commit in named.items() if commit == path.name] or [path.name]
                usual = self.default_revision in revisions
                yield repo if usual else f"{repo}@{revisions[0]}", path


class ModelScope:
    """modelscope.cn, by plain HTTP."""

    prefix, default_revision = "modelscope", "master"

    def __init__(self, endpoint: str | None = None) -> None:
        """endpoint: another server; None for MODELSCOPE_ENDPOINT, MODELSCOPE_DOMAIN or the hub itself."""
        named = os.environ.get("MODELSCOPE_ENDPOINT") or os.environ.get("MODELSCOPE_DOMAIN")
        self.endpoint = _address(endpoint, named or _MODELSCOPE)
        given = os.environ.get("MODELSCOPE_CACHE")
        home = Path.home() / ".cache" / "modelscope"
        self.cache = Path(given).expanduser() if given else home
        self.older = (self.cache,) if given else (home, home / "hub")
        wanted = os.environ.get("HF_HUB_OFFLINE") or ""
        self.offline = wanted.upper() in _TRUE

    def store(self, repo: str) -> Store:
        """As in `modelscope_hub`: models/owner--name."""
        return Store(self.cache / "models" / repo.replace("/", "--"))

    def snapshots(self, repo: str, revision: str) -> Iterator[Path]:
        """Ours first; then where older versions of ModelScope's own library keep their only revision."""
        paths = [self.store(repo).snapshot(revision)]
        if revision == self.default_revision:
            owner, name = repo.split("/")
            for root in self.older:
                for folder in (root / "models" / owner, root / owner):
                    paths += [folder / name.replace(".", "___"), folder / name]
        yield from (path for path in paths if path.is_dir())

    def folders(self) -> Iterator[tuple[str, Path]]:
        """As `store` names them."""
        for path in sorted(self.cache.glob("models/*--*")):
            yield path.name.replace("--", "/", 1), path

    def list(self, repo: str, revision: str) -> Listing:
        """One request: name, size and SHA-256 of every file."""
        token = os.environ.get("MODELSCOPE_API_TOKEN")
        wire = Wire(
            _client(),
            "ModelScope",
            self.endpoint,
            repo,
            revision,
            f"Check the network or the proxy, try hf:{repo}, or give a directory.",
            "MODELSCOPE_API_TOKEN",
            "MODELSCOPE_CACHE",
            {"User-Agent": "deepfast", **({"Cookie": f"m_session_id={token}"} if token else {})},
        )
        base = f"{self.endpoint}/api/v1/models/{repo}/repo"
        raw = wire.json(f"{base}/files?{urlencode({'Revision': revision, 'Recursive': 'true'})}")
        data = raw.get("Data") if isinstance(raw, dict) else None
        entries = data.get("Files") if isinstance(data, dict) else None
        if isinstance(raw, dict) and raw.get("Success") is False:
            raise wire.absent(f"{wire.host} says no")
        if not isinstance(entries, list):
            raise _strange(wire)
        found = [_modelscope_file(entry, base, revision) for entry in entries]
        return Listing(wire, revision, _checked(wire, [file for file in found if file is not None]))

    def kept(self) -> Iterator[tuple[str, Path]]:
        """Every snapshot, in the layouts of all versions."""
        for repo, folder in self.folders():
            for path in sorted(folder.glob("snapshots/*")):
                if path.is_dir():
                    yield repo if path.name == self.default_revision else f"{repo}@{path.name}", path
        for root in self.older:
            for config in sorted([*root.glob("models/*/*/config.json"), *root.glob("*/*/config.json")]):
                path = config.parent
                if not path.is_symlink() and "--" not in path.parent.name:
                    yield f"{path.parent.name}/{path.name.replace('___', '.')}", path


def _relative(paths: Iterable[Path], folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def _client() -> httpx2.Client:
    """The client of huggingface_hub, for both hubs. Raises UsageError when the environment forbids one."""
    try:
        return get_session()
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UsageError(
            f"no connection can be made: {reason}. Check HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, SSL_CERT_FILE."
        ) from error


def shelf_named(prefix: str, endpoint: str | None = None) -> Shelf:
    """The hub with this prefix."""
    return ModelScope(endpoint) if prefix == "modelscope" else HuggingFace(endpoint)


def _hf_cache() -> Path:
    """Where `huggingface_hub` keeps models; it read the environment itself when it was imported."""
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if named is None and (home := os.environ.get("HF_HOME")):
        named = os.path.join(home, "hub")
    return Path(os.path.expandvars(os.path.expanduser(named or constants.HF_HUB_CACHE)))


def _hf_headers() -> dict[str, str]:
    """With the token, which huggingface_hub also looks for in a file."""
    try:
        return build_hf_headers(library_name="deepfast")
    except OSError as error:
        raise UsageError(
            f"the token of Hugging Face: {error.filename}: {error.strerror}. HF_HOME must be a directory "
            "that can be read."
        ) from error


def _address(given: str | None, usual: str) -> str:
    """An endpoint without its last slash. Raises UsageError when it is no http address."""
    text = usual if given is None else given
    text = text if "://" in text else f"https://{text}"
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UsageError(
            f"the endpoint {text!r} is no address. Give one like https://hf-mirror.com, "
            "with --endpoint or HF_ENDPOINT."
        )
    return text.rstrip("/")


def _hf_file(entry: Any, base: str) -> RemoteFile | None:
    if not isinstance(entry, dict):
        return None
    lfs = entry.get("lfs")
    large: Mapping[str, Any] = lfs if isinstance(lfs, dict) else {}
    path, size = entry.get("rfilename"), large.get("size", entry.get("size"))
    if not isinstance(path, str) or type(size) is not int:
        return None
    sha256 = _hex(large.get("sha256") or large.get("oid"), 64)
    git = None if large else _hex(entry.get("blobId"), 40)
    return RemoteFile(path, size, base + quote(path, errors="replace"), sha256, git)


def _modelscope_file(entry: Any, base: str, revision: str) -> RemoteFile | None:
    if not isinstance(entry, dict) or entry.get("Type") == "tree":
        return None
    path, size = entry.get("Path"), entry.get("Size")
    if not isinstance(path, str) or type(size) is not int:
        return None
    url = f"{base}?{urlencode({'Revision': revision, 'FilePath': path}, errors='replace')}"
    return RemoteFile(path, size, url, _hex(entry.get("Sha256"), 64))


def _hex(value: Any, length: int) -> str | None:
    good = isinstance(value, str) and re.fullmatch(f"[0-9a-fA-F]{{{length}}}", value)
    return str(value).lower() if good else None


def _checked(wire: Wire, files: list[RemoteFile | None]) -> tuple[RemoteFile, ...]:
    """The files, when nothing about them is odd. Raises ModelError naming what is."""
    if len(files) > MAX_FILES:
        raise ModelError(
            f"{wire.repo} lists {len(files):,} files; a model has a few hundred, and {MAX_FILES:,} are the "
            "limit. Name another repository."
        )
    kept = dict[str, RemoteFile]()
    for file in files:
        if file is None or not 0 <= file.size <= MAX_FILE:
            raise _strange(wire)
        if not _is_safe(file.path):
            raise ModelError(
                f"{wire.repo} lists a file {file.path[:80]!r}, which would lie outside of its folder. "
                "Nothing was fetched; do not trust this repository."
            )
        kept[file.path] = file
    return tuple(kept.values())


def _is_safe(name: str) -> bool:
    """A relative path that stays inside, on every system, and that a terminal can show."""
    odd = any(ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) < 0xE000 or c == "\\" for c in name)
    inside = all(part not in ("", ".", "..") and len(part) <= 240 for part in name.split("/"))
    return inside and not odd and len(name) <= 1024 and not re.match("[A-Za-z]:", name)


def _strange(wire: Wire) -> ModelError:
    return ModelError(
        f"{wire.host} sends a list of files that is none. Is it a mirror of {wire.title}? {wire.elsewhere}"
    )
