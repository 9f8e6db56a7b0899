"""Files of a hub into a cache: resumed where they stopped, checked by hash, several at a time.

In: RemoteFiles and the Wire to their server. Out: a Store, in the layout of `huggingface_hub`: blobs by hash,
snapshots that link to them, refs that name snapshots. A file has its final name only when it is whole and
right, and a snapshot only when all of its files are. Does not know: which files a model needs, names of
models, any hub's own protocol.

Why not `snapshot_download`: version 2 of huggingface_hub begins an interrupted file again, and looks at sizes
only. What lies here is found by that library and its friends, and what they fetched is found here.
"""

from __future__ import annotations

import hashlib
import io
import os
import queue
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import filelock

from ..types import ModelError, as_size
from .wire import LONGEST_S, Passing, Wire

WORKERS = 4  # files at a time
RETRIES = 5  # in a row, without a piece of progress
CHUNK = 1 << 20  # bytes
SPARE = 64 << 20  # bytes that must stay free on the disk

State = Literal["start", "move", "wait", "check", "again", "end"]


class RemoteFile(NamedTuple):
    """One file as a hub lists it. sha256: of its content; git: the SHA-1 that git gives it; either may be
    unknown, both are lower-case hex."""

    path: str
    size: int
    url: str
    sha256: str | None = None
    git: str | None = None

    @property
    def key(self) -> str:
        """The name of its content in the cache: what a hub sends as its ETag."""
        return self.sha256 or self.git or hashlib.sha256(f"{self.path}\0{self.size}".encode()).hexdigest()

    def is_whole(self, path: Path) -> bool:
        """Does the file at `path` hold what the hub listed? Reads all of it when a hash is known."""
        if path.stat().st_size != self.size:
            return False
        if self.sha256 is not None:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == self.sha256
        if self.git is not None:
            digest = hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)
            with path.open("rb") as file:
                while piece := file.read(CHUNK):
                    digest.update(piece)
            return digest.hexdigest() == self.git
        return True


class Fetching(NamedTuple):
    """Where a download stands. done and total: bytes of all files, those that were here already included.

    state: "start" (once, before a byte is asked for), "move", "wait" (somebody else fetches `file`), "check"
    (its hash is computed), "again" (it arrived damaged and is fetched from its start), "end".
    """

    repo: str
    file: str
    done: int
    total: int
    state: State


Report = Callable[[Fetching], None]


class Store:
    """One repository in a cache."""

    def __init__(self, folder: Path) -> None:
        """Nothing is made until something is written."""
        self.folder = folder

    def blob(self, file: RemoteFile) -> Path:
        """Where its content lies, whole."""
        return self.folder / "blobs" / file.key

    def partial(self, file: RemoteFile) -> Path:
        """Where the beginning of it lies until it is whole."""
        return self.folder / "blobs" / f"{file.key}.incomplete"

    def snapshot(self, name: str) -> Path:
        """The directory of a commit."""
        return self.folder / "snapshots" / name

    def has(self, file: RemoteFile, snapshot: str) -> bool:
        """Is it here, by its size? Where links are impossible, the snapshot itself holds the content, perhaps
        an older one."""
        blob, plain = self.blob(file), self.snapshot(snapshot) / file.path
        if blob.is_file() and blob.stat().st_size == file.size:
            return True
        return plain.is_file() and not plain.is_symlink() and file.is_whole(plain)

    def fetched(self, file: RemoteFile) -> int:
        """Bytes of an interrupted download that can be kept."""
        partial = self.partial(file)
        size = partial.stat().st_size if partial.is_file() else 0
        return size if size <= file.size else 0

    def commit_of(self, revision: str) -> str | None:
        """What a branch or tag pointed to when it was last looked up."""
        try:
            return (self.folder / "refs" / revision).read_text("utf-8").strip() or None
        except (OSError, ValueError):
            return None

    def publish(self, files: Sequence[RemoteFile], snapshot: str, revision: str) -> Path:
        """Link the blobs into the snapshot and let the revision name it."""
        for file in files:
            target = self.snapshot(snapshot) / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            if self.blob(file).is_file():
                _link(self.blob(file), target)
        if revision != snapshot:
            ref = self.folder / "refs" / revision
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(snapshot, "utf-8")
        return self.snapshot(snapshot)

    @contextmanager
    def locked(self, key: str, waiting: Callable[[], None], stop: threading.Event) -> Iterator[None]:
        """Nobody else, in any process, writes this blob meanwhile."""
        path = self.folder.parent / ".locks" / self.folder.name / f"{key}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        lock: filelock.BaseFileLock = filelock.FileLock(path, mode=0o664)
        said = False
        while not stop.is_set():
            try:
                lock.acquire(timeout=0.5)
                break
            except filelock.Timeout:
                if not said:
                    waiting()
                said = True
            except NotImplementedError:  # a file system without locks
                lock = filelock.SoftFileLock(path)
        try:
            yield
        finally:
            lock.release()


def _link(blob: Path, target: Path) -> None:
    """Make `target` the content of `blob`: a relative link, or the file itself where there are no links."""
    if target.exists() and target.resolve() == blob.resolve():
        return
    made = target.with_name(f"{target.name}.{os.getpid()}.link")
    made.unlink(missing_ok=True)
    try:
        made.symlink_to(os.path.relpath(blob, target.parent))
    except (OSError, NotImplementedError):
        os.replace(blob, made)
    os.replace(made, target)


class _Stopped(Exception):
    """Another file failed, or the user interrupted."""


class Download:
    """Brings the files of one snapshot."""

    def __init__(self, wire: Wire, store: Store, files: Sequence[RemoteFile], snapshot: str) -> None:
        """The files must all be wanted; nothing happens yet."""
        self.wire, self.store, self.files, self.snapshot = wire, store, files, snapshot
        self.total = sum(file.size for file in files)
        self.stop = threading.Event()
        self.events: queue.SimpleQueue[tuple[str, int, State] | BaseException | None] = queue.SimpleQueue()

    def run(self, revision: str, report: Report | None = None, *, verify: bool = False) -> Path:
        """Fetch what is missing; the directory with everything. verify: read again what is here, and fetch
        what is not right. Raises ModelError when a file can not be had; what came is kept for the next
        time."""
        try:
            missing = [file for file in self.files if not self._keeps(file, verify)]
            if missing:
                self._check_space(missing)
                self._bring_all(missing, report)
            return self.store.publish(self.files, self.snapshot, revision)
        except OSError as error:
            raise ModelError(
                f"{error.filename or self.store.folder}: {error.strerror or error}. The cache must be "
                f"writable and have room; {self.wire.cache_variable} names another."
            ) from error

    def _keeps(self, file: RemoteFile, verify: bool) -> bool:
        if not self.store.has(file, self.snapshot):
            return False
        places = (self.store.blob(file), self.store.snapshot(self.snapshot) / file.path)
        for place in places if verify else ():
            if place.is_file() and not file.is_whole(place):
                place.unlink()
        return not verify or self.store.has(file, self.snapshot)

    def _check_space(self, missing: Sequence[RemoteFile]) -> None:
        place = self.store.folder
        while not place.exists():
            place = place.parent
        need = sum(file.size - self.store.fetched(file) for file in missing)
        free = shutil.disk_usage(place).free
        if need + SPARE > free:
            raise ModelError(
                f"{self.wire.repo} needs {as_size(need)} more in {self.store.folder}, but "
                f"{as_size(free)} are free there. Make room, or name another folder with "
                f"{self.wire.cache_variable}."
            )

    def _bring_all(self, missing: Sequence[RemoteFile], report: Report | None) -> None:
        tell = report or (lambda _: None)
        repo, total = self.wire.repo, self.total
        done = total - sum(file.size - self.store.fetched(file) for file in missing)
        tell(Fetching(repo, "", done, total, "start"))
        waiting: queue.SimpleQueue[RemoteFile] = queue.SimpleQueue()
        for file in sorted(missing, key=lambda file: -file.size):
            waiting.put(file)
        count = min(WORKERS, len(missing))
        # Daemons: an interrupted program ends at once. What they wrote until then is a valid beginning.
        threads = [threading.Thread(target=self._work, args=(waiting,), daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        running = count
        try:
            while running:
                event = self.events.get()
                if event is None:
                    running -= 1
                elif isinstance(event, BaseException):
                    raise event
                else:
                    done += event[1]
                    tell(Fetching(repo, event[0], done, total, event[2]))
        except Exception:
            self.stop.set()
            for thread in threads:
                thread.join(5.0)
            raise
        finally:
            self.stop.set()
        tell(Fetching(repo, "", done, total, "end"))

    def _work(self, waiting: queue.SimpleQueue[RemoteFile]) -> None:
        try:
            while not self.stop.is_set():
                try:
                    file = waiting.get_nowait()
                except queue.Empty:
                    break
                self._bring(file)
        except _Stopped:
            pass
        except BaseException as error:
            self.events.put(error)
        self.events.put(None)

    def _bring(self, file: RemoteFile) -> None:
        """One file, whole and right, under its final name. Raises ModelError when that can not be done."""

        def tell(delta: int, state: State) -> None:
            self.events.put((file.path, delta, state))

        store, partial = self.store, self.store.partial(file)
        before = store.fetched(file)
        with store.locked(file.key, lambda: tell(0, "wait"), self.stop):
            if self.stop.is_set():
                raise _Stopped
            if store.has(file, self.snapshot):
                tell(file.size - before, "move")
                return
            partial.parent.mkdir(parents=True, exist_ok=True)
            tell(store.fetched(file) - before, "move")  # somebody else may have gone on with it meanwhile
            for _ in range(2):
                self._append(file, partial, tell)
                tell(0, "check")
                if file.is_whole(partial):
                    os.replace(partial, store.blob(file))
                    return
                partial.unlink()
                tell(-file.size, "again")
        raise ModelError(
            f"{file.path} of {self.wire.repo} arrived damaged twice: its hash is not the one that "
            f"{self.wire.title} lists. Try again later, or another endpoint."
        )

    def _append(self, file: RemoteFile, partial: Path, tell: Callable[[int, State], None]) -> None:
        """Ask for the rest until all of it is here; a server may fail, but not many times in a row."""
        failures = 0
        while True:
            before = self.store.fetched(file)
            try:
                with partial.open("ab", buffering=0) as target:
                    self._rest(file, target, before, tell)
                return
            except Passing as error:
                after = partial.stat().st_size
                failures = 0 if after - before >= CHUNK else failures + 1
                if failures > RETRIES or (error.after or 0) > LONGEST_S:
                    kept = f" {after / 1e6:,.1f} MB are kept: the same command goes on." if after else ""
                    raise ModelError(f"{file.path}: {error}{kept} {self.wire.elsewhere}") from error
                if self.stop.wait(error.pause(failures)):
                    raise _Stopped from error

    def _rest(
        self, file: RemoteFile, target: io.FileIO, first: int, tell: Callable[[int, State], None]
    ) -> None:
        """One request. target appends; `first` bytes of it are kept."""
        target.truncate(first)
        if first == file.size:
            return
        have = first
        with self.wire.stream(file.url, file.path, first) as (start, pieces):
            if start != first:  # the server can only begin at the beginning
                target.truncate(0)
                tell(-first, "move")
                have = 0
            for piece in pieces:
                if self.stop.is_set():
                    raise _Stopped
                have += len(piece)
                if have > file.size:
                    target.truncate(0)
                    raise ModelError(
                        f"{file.path} of {self.wire.repo} is longer than the {file.size:,} bytes that "
                        f"{self.wire.title} lists. Try again later, or another endpoint."
                    )
                rest = memoryview(piece)
                while rest:
                    rest = rest[target.write(rest) or 0 :]
                tell(len(piece), "move")
        if have < file.size:
            raise Passing(f"{self.wire.host} closed the connection in the middle of {file.path}.")
