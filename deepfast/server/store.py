"""Answers of /v1/responses that are kept: one SQLite file, used by one thread.

In: the path of the file, how many answers it may hold. Out: answers by id, each with the whole conversation
up to it, so that dropping an old one breaks no later one. The file is its owner's alone (mode 0600).
Does not know: what an answer or an item looks like.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..types import DeepfastError, UsageError

T = TypeVar("T")
Items = list[dict[str, Any]]
KEPT = 1000  # answers, unless told
LAYOUT = 0x64660001  # "df", then the version of the tables; 0 is a new file
BUSY_SECONDS = 5.0  # how long to wait for another process that writes


class StoreError(DeepfastError):
    """The file cannot be read or written."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An answer as it was sent, what was sent to get it, and all items of the conversation, it included."""

    response: dict[str, Any]
    input: Items
    conversation: Items


class Store:
    """Answers by id; the oldest are dropped beyond `kept`. Raises UsageError for a file that is no store."""

    def __init__(self, path: Path, kept: int = KEPT) -> None:
        if kept < 1:
            raise UsageError(f"kept={kept} is below 1. Keep at least one answer, or switch the store off.")
        self.path, self.kept = path, kept
        self._thread = ThreadPoolExecutor(1, "deepfast-store")
        self._file: sqlite3.Connection = self._thread.submit(self._open).result()

    async def put(self, stored: Stored) -> None:
        """Keep an answer under its id. Raises StoreError."""
        texts = [_text(stored.response), _text(stored.input), _text(stored.conversation)]
        await self._run(lambda: self._put(str(stored.response["id"]), texts))

    async def get(self, id: str) -> Stored | None:
        """The answer of that id; None when there is none any more. Raises StoreError."""
        sql = "SELECT response, input, conversation FROM answers WHERE id = ?"
        row = await self._run(lambda: self._file.execute(sql, (id,)).fetchone())
        return None if row is None else Stored(*map(json.loads, row))

    async def delete(self, id: str) -> bool:
        """Forget an answer. False when there was none. Raises StoreError."""
        return await self._run(lambda: self._delete(id))

    async def count(self) -> int:
        """How many answers are kept."""
        sql = "SELECT count(*) FROM answers"
        return int((await self._run(lambda: self._file.execute(sql).fetchone()))[0])

    def close(self) -> None:
        """Finish what is under way and close the file."""
        self._thread.submit(self._file.close).result()
        self._thread.shutdown()

    async def _run(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except sqlite3.Error as error:
            raise StoreError(f"{self.path} failed: {error}. See whether its disk is full.") from error

    def _open(self) -> sqlite3.Connection:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            os.chmod(self.path, 0o600)
        except OSError as error:
            text = f"{self.path} can not be opened: {error.strerror}. Choose another place for the store."
            raise UsageError(text) from error
        file = sqlite3.connect(self.path, timeout=BUSY_SECONDS)
        try:
            self._prepare(file)
        except sqlite3.Error as error:
            file.close()
            raise UsageError(
                f"{self.path} can not be used as the store: {error}. Choose another file."
            ) from error
        except UsageError:
            file.close()
            raise
        return file

    def _prepare(self, file: sqlite3.Connection) -> None:
        version = file.execute("PRAGMA application_id").fetchone()[0]
        tables = file.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if version != LAYOUT and (version or tables):
            raise UsageError(f"{self.path} belongs to another program or version. Choose another file.")
        file.execute("PRAGMA journal_mode = WAL")
        file.execute("PRAGMA secure_delete = ON")  # what was deleted is not left lying in the file
        with file:
            file.execute(f"PRAGMA application_id = {LAYOUT}")
            file.execute(
                "CREATE TABLE IF NOT EXISTS answers (number INTEGER PRIMARY KEY AUTOINCREMENT,"
                " id TEXT UNIQUE NOT NULL, response TEXT NOT NULL, input TEXT NOT NULL,"
                " conversation TEXT NOT NULL)"
            )

    def _put(self, id: str, texts: list[str]) -> None:
        with self._file:
            sql = "INSERT OR REPLACE INTO answers (id, response, input, conversation) VALUES (?, ?, ?, ?)"
            self._file.execute(sql, (id, *texts))
            oldest = "SELECT number FROM answers ORDER BY number DESC LIMIT -1 OFFSET ?"
            self._file.execute(f"DELETE FROM answers WHERE number IN ({oldest})", (self.kept,))

    def _delete(self, id: str) -> bool:
        with self._file:
            found = self._file.execute("DELETE FROM answers WHERE id = ?", (id,)).rowcount > 0
        self._file.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # nor in the log beside the file
        return found


def default_path() -> Path:
    """Where the store is unless told: in XDG's state directory."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "deepfast" / "responses.sqlite3"


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
