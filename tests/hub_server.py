"""A hub in this process that speaks the protocols of Hugging Face and ModelScope, and can fail on demand.

In: repositories as {path: bytes}. Out: an address on 127.0.0.1, a log of requests, faults to switch on.
Large files are sent as the real hubs do it: a redirect to another host that knows ranges. No Xet.
Does not know: models, the program that asks.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pytest

from deepfast.model import hub
from deepfast.types import DeepfastError, ModelError

TINY, GGUF, BIG = "acme/tiny", "acme/tiny-GGUF", "acme/big-GGUF"
MIB = 1 << 20
BIG_FILE = bytes(range(251)) * (3 * MIB // 251 + 1)  # no power of two is a period of it
SMALL = {
    "config.json": b'{"architectures": ["Qwen3ForCausalLM"]}',
    "tokenizer.json": b"{}",
    "model.safetensors": b"\1" * 20_000,
}
LARGE = 10_000  # bytes; from there on a file is stored aside, with its SHA-256
LARGE_NAMES = (".safetensors", ".gguf", ".bin")


@dataclass
class Fault:
    """What goes wrong with a file, `times` times. cut: bytes after which the connection ends, or waits for
    `gate`. flip: a byte that is changed. status: sent instead, with these headers. location: a redirect to
    there. no_range: everything is sent, whatever was asked. longer: sent after the end."""

    times: int = 1
    cut: int | None = None
    flip: int | None = None
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    gate: threading.Event | None = None
    location: str | None = None
    no_range: bool = False
    longer: bytes = b""


class Asked(NamedTuple):
    """One request. first: where its range began."""

    method: str
    path: str
    first: int
    token: str | None


def git_sha1(data: bytes) -> str:
    """What git calls this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class HubServer(ThreadingHTTPServer):
    """The hub. repos may change while it runs; a commit is a hash of what a repository holds."""

    daemon_threads = True

    def __init__(self) -> None:
        """Listen on a free port."""
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.aside = f"http://localhost:{self.server_address[1]}"  # to a client, somebody else
        self.repos: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.faults: dict[str, Fault] = {}  # the end of a path -> what goes wrong there
        self.raw: dict[str, bytes] = {}  # the end of a path -> the body of every answer
        self.names: list[str] = []  # listed in addition, whether they exist or not
        self.log: list[Asked] = []

    def add(self, repo: str, files: Mapping[str, bytes]) -> None:
        """Serve these files."""
        self.repos[repo] = dict(files)

    def commit(self, repo: str) -> str:
        """The commit that all of its branches point to."""
        files = sorted(self.repos[repo].items())
        return hashlib.sha1(
            b"".join(name.encode() + git_sha1(data).encode() for name, data in files)
        ).hexdigest()

    def fetched(self, ending: str = "") -> list[Asked]:
        """The GETs of file contents, in order."""
        return [a for a in self.log if a.method == "GET" and "/cdn/" in a.path and a.path.endswith(ending)]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is what some tests are about."""


def is_large(name: str, data: bytes) -> bool:
    """Is it stored aside?"""
    return len(data) >= LARGE or name.endswith(LARGE_NAMES)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """The log is ours."""

    def do_HEAD(self) -> None:
        """As GET, without the body."""
        self.do_GET()

    def do_GET(self) -> None:
        """Find out who is meant."""
        parts = urlsplit(self.path)
        path, query = unquote(parts.path), {k: v[0] for k, v in parse_qs(parts.query).items()}
        sent = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0]
        first = int(sent)
        server = self.server
        server.log.append(Asked(self.command, self.path, first, self.headers.get("Authorization")))
        for ending, body in server.raw.items():
            if path.endswith(ending):
                return self._send(200, body)
        if (fault := self._fault(path, query)) and fault.status is not None:
            return self._send(fault.status, b"no", fault.headers)
        if fault and fault.location:
            return self._send(302, b"", {"Location": fault.location})
        words = path.strip("/").split("/")
        if words[:2] == ["api", "models"]:
            return self._hugging_face(words[2:])
        if words[:3] == ["api", "v1", "models"]:
            return self._modelscope(words[3:], query)
        if words[0] == "cdn":
            data = server.repos["/".join(words[1:3])]["/".join(words[3:])]
            return self._content(data, first, fault)
        if len(words) > 4 and words[2] == "resolve":
            return self._resolve("/".join(words[:2]), "/".join(words[4:]), first, fault)
        return self._send(404, b"")

    def _fault(self, path: str, query: Mapping[str, str]) -> Fault | None:
        names = (path, query.get("FilePath", path))
        for ending, fault in self.server.faults.items():
            if fault.times > 0 and any(name.endswith(ending) for name in names):
                aside = fault.cut is not None or fault.flip is not None or fault.no_range or fault.longer
                if aside and not ("/cdn/" in path or "/resolve/" in path or path.endswith("/repo")):
                    continue
                if aside and "/cdn/" not in path and ending.endswith(LARGE_NAMES):
                    continue  # the redirect goes well, the content does not
                fault.times -= 1
                return fault
        return None

    def _hugging_face(self, words: list[str]) -> None:
        repo, rest = "/".join(words[:2]), words[2:]
        if repo not in self.server.repos:
            return self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
        commit, files = self.server.commit(repo), self.server.repos[repo]
        revision = "/".join(rest[1:]) or "main"
        if revision not in ("main", "v1", commit):
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        listed = [self._entry(name, data) for name, data in files.items()]
        listed += [{"rfilename": name, "size": 3, "blobId": "0" * 40} for name in self.server.names]
        if rest[:1] == ["tree"]:
            return self._json([self._leaf(name, data) for name, data in files.items()])
        return self._json({"id": repo, "modelId": repo, "sha": commit, "siblings": listed, "private": False})

    @staticmethod
    def _entry(name: str, data: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git_sha1(data)}
        if is_large(name, data):
            sha = hashlib.sha256(data).hexdigest()
            entry["lfs"] = {"sha256": sha, "size": len(data), "pointerSize": 135}
        return entry

    @staticmethod
    def _leaf(name: str, data: bytes) -> dict[str, Any]:
        leaf: dict[str, Any] = {"type": "file", "oid": git_sha1(data), "size": len(data), "path": name}
        if is_large(name, data):
            sha = hashlib.sha256(data).hexdigest()
            leaf["lfs"] = {"oid": sha, "size": len(data), "pointerSize": 135}
        return leaf

    def _resolve(self, repo: str, name: str, first: int, fault: Fault | None) -> None:
        files = self.server.repos.get(repo)
        if files is None:
            return self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
        if repo in self.server.gated and self.headers.get("Authorization") != "Bearer good":
            return self._send(401, b"", {"X-Error-Code": "GatedRepo"})
        head = {"X-Repo-Commit": self.server.commit(repo)}
        if name not in files:
            return self._send(404, b"", {**head, "X-Error-Code": "EntryNotFound"})
        data = files[name]
        if not is_large(name, data):
            return self._content(data, first, fault, {**head, "ETag": f'"{git_sha1(data)}"'})
        sha = hashlib.sha256(data).hexdigest()
        head |= {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{sha}"'}
        return self._send(302, b"", {**head, "Location": f"{self.server.aside}/cdn/{repo}/{quote(name)}"})

    def _modelscope(self, words: list[str], query: Mapping[str, str]) -> None:
        repo = "/".join(words[:2])
        files = self.server.repos.get(repo)
        if files is None or query.get("Revision") not in ("master", "v1"):
            return self._send(404, json.dumps({"Code": 10010205001, "Message": "record not found"}).encode())
        if words[2:] == ["repo", "files"]:
            listed: list[dict[str, Any]] = [{"Name": "docs", "Path": "docs", "Type": "tree", "Size": 0}]
            for name, data in files.items():
                sha = hashlib.sha256(data).hexdigest()
                listed.append({"Path": name, "Type": "blob", "Size": len(data), "Sha256": sha})
            listed += [{"Path": name, "Type": "blob", "Size": 3} for name in self.server.names]
            return self._json({"Code": 200, "Success": True, "Data": {"Files": listed}})
        if (name := query.get("FilePath", "")) not in files:
            return self._send(404, b"{}")
        return self._send(302, b"", {"Location": f"{self.server.aside}/cdn/{repo}/{quote(name)}"})

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _content(
        self, data: bytes, first: int, fault: Fault | None, head: Mapping[str, str] | None = None
    ) -> None:
        """A file, or the rest of it, as the fault lets it through."""
        extra = dict(head or {})
        if fault and fault.no_range:
            first = 0
        if first and first >= len(data):
            return self._send(416, b"", extra)
        if fault and fault.flip is not None:
            data = data[: fault.flip] + bytes([data[fault.flip] ^ 1]) + data[fault.flip + 1 :]
        data += fault.longer if fault else b""
        status = 206 if first else 200
        if first:
            extra["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        cut = fault.cut if fault else None
        return self._send(status, data[first:], extra, cut, fault.gate if fault else None)

    def _send(
        self,
        status: int,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        cut: int | None = None,
        gate: threading.Event | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[:cut])
        self.wfile.flush()
        if gate is not None:
            gate.wait(20)
            self.wfile.write(body[cut:])
        elif cut is not None:
            self.close_connection = True


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """A running hub."""
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def fails(model: str, kind: type[DeepfastError] = ModelError, **more: Any) -> str:
    """The message of the error, which must be one line that ends as a sentence."""
    with pytest.raises(kind) as caught:
        hub.find(model, **more)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    return str(caught.value)


def same(folder: Path, files: Mapping[str, bytes]) -> None:
    """The folder holds these files, and nothing else."""
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert found == files
