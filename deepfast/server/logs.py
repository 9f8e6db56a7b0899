"""One line for every request: JSON where programs read it, plain text on a terminal.

In: a Record that the way through the server fills; other loggers' warnings. Out: lines on stderr. What
clients wrote is no part of them, unless that was asked for. Does not know: HTTP, how requests run.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from ..config import LogFormat
from ..types import Usage
from .service import Running

UNTOLD = ("/page/", "/render")  # what a page asks for by the dozen
MAX_PROMPT = 20_000  # characters of a body that go into the log where prompts are logged
PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(slots=True)
class Record:
    """What is known of one HTTP request. route: the path's template, which has no client's words in it."""

    id: str
    method: str
    path: str
    client: str = ""
    route: str = ""
    status: int = 0
    seconds: float = 0.0
    runs: list[dict[str, Any]] = field(default_factory=list)
    body: str | None = None
    error: dict[str, Any] | None = None


current: ContextVar[Record | None] = ContextVar("deepfast_record", default=None)  # of the request served here


def note_running(running: Running) -> None:
    """Put a request that has ended into the record of the HTTP request that it served."""
    record = current.get()
    if record is None:
        return
    for variant in range(len(running.streams)):
        done, usage = running.completions.get(variant), usage_of(running, variant)
        run: dict[str, Any] = {"request": running.id, "model": running.model}
        run |= {"prompt_tokens": usage.prompt_tokens, "cached_tokens": usage.cached_tokens}
        run |= {"tokens": usage.completion_tokens, "reasoning_tokens": usage.reasoning_tokens}
        run["stop"] = done.finish_reason if done else "abort"
        if done:
            run["thinking_stop"] = done.thinking.stop
            run["first_token_s"] = round(done.timing.first_token_s, 4)
        record.runs.append(run)


def usage_of(running: Running, variant: int) -> Usage:
    """What a variant has used, also where it was left before its end (a remote model does not say then)."""
    done = running.completions.get(variant)
    if done is not None:
        return done.usage
    usage = getattr(running.streams[variant], "usage", None)
    return usage if isinstance(usage, Usage) else Usage()


def describe(error: BaseException, *, whole: bool) -> dict[str, Any]:
    """Where an error came from. whole: also its text, in which a client's words may stand."""
    frames = traceback.extract_tb(error.__traceback__)
    where = [f"{_short(frame.filename)}:{frame.lineno} {frame.name}" for frame in frames]
    known: dict[str, Any] = {"error": type(error).__name__, "traceback": where}
    return {**known, "text": str(error)} if whole else known


def _short(name: str) -> str:
    path = Path(name)
    return str(path.relative_to(PACKAGE.parent)) if path.is_relative_to(PACKAGE) else path.name


class Log:
    """Writes lines. format "auto": text when the stream is a terminal, JSON otherwise."""

    def __init__(self, format: LogFormat = "auto", stream: TextIO | None = None) -> None:
        self._stream = stream
        chosen = format if format != "auto" else "text" if self._out.isatty() else "json"
        self._as_text = chosen == "text"

    @property
    def _out(self) -> TextIO:
        return self._stream or sys.stderr  # looked up each time: it may be replaced

    def request(self, record: Record) -> None:
        """One request, after its end; the page's own files only when something is wrong with them."""
        if record.path.startswith(UNTOLD) and record.status < 400:
            return
        level = "error" if record.error or record.status >= 500 else "info"
        fields: dict[str, Any] = {"id": record.id, "client": record.client, "method": record.method}
        fields |= {"path": record.path, "status": record.status, "seconds": round(record.seconds, 4)}
        if len(record.runs) == 1:
            fields |= record.runs[0]
        elif record.runs:
            fields["runs"] = record.runs
        if record.body is not None:
            fields["body"] = record.body[:MAX_PROMPT]
        fields |= record.error or {}
        self._write(level, _line(record), fields)

    def say(self, level: str, text: str, **fields: Any) -> None:
        """Something that belongs to no request."""
        self._write(level, text, {"message": text, **fields})

    def _write(self, level: str, line: str, fields: dict[str, Any]) -> None:
        now = time.time()
        if self._as_text:
            text = f"{time.strftime('%H:%M:%S', time.localtime(now))} {line}"
        else:
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
            text = json.dumps({"time": stamp, "level": level, **fields})
        try:
            self._out.write(text + "\n")
            self._out.flush()
        except (OSError, ValueError):  # nobody reads the log: that must not stop the server
            pass


def _line(record: Record) -> str:
    """A request for people; control characters cannot reach the terminal."""
    path = record.path.encode("unicode_escape").decode()
    parts = [f"{record.method} {path} {record.status} {record.seconds:.2f} s"]
    for run in record.runs:
        thought = f", {run['reasoning_tokens']} of thought" if run["reasoning_tokens"] else ""
        parts.append(f"{run['prompt_tokens']}+{run['tokens']} tokens{thought}, {run['stop']}")
    if record.error:
        parts.append(f"{record.error['error']} at {(record.error['traceback'] or ['?'])[-1]}")
    return " · ".join([*parts, record.id])


class Forward(logging.Handler):
    """Other libraries' warnings as lines of our log."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """One warning; the error that came with it as its place alone."""
        error = record.exc_info[1] if record.exc_info else None
        fields = describe(error, whole=False) if error else {}
        self._log.say(record.levelname.lower(), f"{record.name}: {record.getMessage()}", **fields)
