"""`deepfast run --batch`: every request of a file in OpenAI's batch format, answered into another file.

In: lines {"custom_id", "method", "url", "body"}. Out: one line {"id", "custom_id", "response", "error"} for
each, as they end; what is there already is not done again. Bodies go through the server's own application,
many at once, so that the engine batches them. Does not know: what bodies mean.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import secrets
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

import click

from ..types import EngineError, UsageError
from .options import Options, open_llm
from .terminal import note

if TYPE_CHECKING:
    import httpx
    from rich.progress import Progress

    from ..engine.llm import LLM

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
FIELDS = ("custom_id", "method", "url", "body")
PACKAGES = ("fastapi", "httpx", "prometheus_client")  # of the extra `server`
WIDTH = 4  # lines on their way for each that the engine runs at once: it never waits for a file
LARGEST_BODY = 2**30  # bytes
MAX_NOTES = 10  # mistakes that are told on stderr; the output has all of them
BEGINNING = b'{"id": "batch_req_'  # of every line that we write


@dataclass(slots=True)
class Done:
    """What the output holds. ids: whether each request was answered well. lines: the numbers of input lines
    that were no requests."""

    ids: dict[str, bool] = field(default_factory=dict)
    lines: set[int] = field(default_factory=set)
    tokens: int = 0  # written in this run

    def note(self, line: dict[str, Any]) -> None:
        """One more line. Raises KeyError or TypeError for one that is not ours."""
        error, response = line["error"], line["response"]
        if error is not None:
            self.lines.add(error["line"])
        else:
            self.ids[line["custom_id"]] = response["status_code"] < 400

    def has(self, number: int, item: dict[str, Any] | Wrong) -> bool:
        """Is there an output for this line of the input?"""
        return number in self.lines if isinstance(item, Wrong) else item["custom_id"] in self.ids


class Wrong(Exception):
    """A line that is no request; its text says why. custom_id: where it has one."""

    def __init__(self, text: str, custom_id: str | None = None) -> None:
        super().__init__(text)
        self.custom_id = custom_id


def run_batch(source: Path, target: Path | None, options: Options) -> int:
    """Answer what is not answered yet. Returns the exit code: 1 if any line of the output has failed. Raises
    UsageError for files that cannot be used."""
    if target is None:
        raise UsageError("--batch needs a file for its answers. Add --out FILE.")
    if target.exists() and source.samefile(target):
        raise UsageError(f"--batch and --out are the same file {target}. Give another --out.")
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise EngineError(
                f"--batch needs {package}, which is not installed. Run: pip install 'deepfast[server]'"
            )
    with _opened(target) as out:
        done, total, left, failed = _read_done(target, out), 0, 0, 0
        for number, item in _items(source):
            total += 1
            left += not done.has(number, item)
            failed += isinstance(item, Wrong)
        if not total:
            raise UsageError(f"{source} holds no lines. Give requests in OpenAI's batch format, one a line.")
        began = time.perf_counter()
        if left:
            try:
                with open_llm(options) as llm, _Bar(total, total - left) as bar:
                    asyncio.run(_answer_all(llm, options["model"], source, _Writer(out, done, bar)))
            except KeyboardInterrupt:
                note(
                    f"interrupted: what was answered is in {target}. The same command goes on with the rest."
                )
                raise click.Abort from None
    failed += sum(not good for good in done.ids.values())
    parts = [f"{total} lines, {left} of them answered now" if left < total else f"{total} lines"]
    parts.append(f"{failed} failed" if failed else "none failed")
    if done.tokens:
        seconds = time.perf_counter() - began
        parts.append(f"{done.tokens:,} tokens at {done.tokens / seconds:,.0f} tok/s, {seconds:.1f} s")
    note(f"[{' · '.join([*parts, str(target)])}]")
    return 1 if failed else 0


# --- files ---


def _items(source: Path) -> Iterator[tuple[int, dict[str, Any] | Wrong]]:
    """Number and request of every line that is not blank, or why it is none."""
    seen = set[str]()
    try:
        with source.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    request = _request(line, seen)
                except Wrong as wrong:
                    yield number, wrong
                    continue
                seen.add(request["custom_id"])
                yield number, request
    except OSError as error:
        raise UsageError(f"--batch {source} cannot be read: {error.strerror}. Give a file.") from error


def _opened(target: Path) -> BinaryIO:
    try:
        return target.open("ab+", buffering=0)
    except OSError as error:
        raise UsageError(f"--out {target} cannot be written: {error.strerror}. Give another.") from error


def _read_done(target: Path, out: BinaryIO) -> Done:
    """What an earlier run left; half a last line is cut off. Raises UsageError for somebody else's file."""
    done, end = Done(), 0
    out.seek(0)
    for number, line in enumerate(out, 1):
        try:
            done.note(json.loads(line))
        except (ValueError, TypeError, KeyError, AttributeError):
            if line.endswith(b"\n") or not line.startswith(BEGINNING[: len(line)]):
                raise UsageError(
                    f"{target} line {number} is no line that --batch writes. Give another --out."
                ) from None
            note(f"line {number} of {target} is only half there: it is done again.")
            out.truncate(end)
            return done
        end += len(line)
        if not line.endswith(b"\n"):
            out.write(b"\n")
    return done


def _request(line: bytes, seen: set[str]) -> dict[str, Any]:
    """The request of a line. Raises Wrong."""
    try:
        request = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise Wrong(f"it is no JSON: {' '.join(str(error).split())}.") from None
    if not isinstance(request, dict):
        raise Wrong(f"it is no object. Give {', '.join(FIELDS)}.")
    name = request.get("custom_id")
    if not isinstance(name, str) or not name or not _is_text(name):
        raise Wrong("custom_id is no text. Give every line its own.")
    if name in seen:
        raise Wrong(f"custom_id {name[:60]!r} stood in an earlier line. Give every line its own.", name)
    if unknown := [key for key in request if key not in FIELDS]:
        raise Wrong(f"unknown field {unknown[0][:60]!r}. Use {', '.join(FIELDS)}.", name)
    if request.get("method") != "POST":
        raise Wrong("its method is not 'POST', which is the only one here.", name)
    if request.get("url") not in URLS:
        raise Wrong(f"its url is not one of {', '.join(URLS)}.", name)
    if not isinstance(request.get("body"), dict):
        raise Wrong("its body is no object. Give what the API would be sent.", name)
    if request["body"].get("stream"):
        raise Wrong("its body asks for a stream, and a file has none. Leave 'stream' out.", name)
    return request


def _is_text(value: str) -> bool:
    """No half of a character, which could not be written."""
    return not any("\ud800" <= char <= "\udfff" for char in value)


# --- answers ---


class _Writer:
    """The output, one line at a time: a line is there as a whole, or not at all."""

    def __init__(self, out: BinaryIO, done: Done, bar: _Bar) -> None:
        self.out, self.done, self.bar = out, done, bar
        self._told = 0

    def write(self, custom_id: str | None, response: dict[str, Any] | None, error: Any) -> None:
        """One more line."""
        line: dict[str, Any] = {"id": f"batch_req_{secrets.token_hex(12)}", "custom_id": custom_id}
        line |= {"response": response, "error": error}
        rest = (json.dumps(line) + "\n").encode()
        while rest:  # nearly full disks take a part, and say so with the next one
            rest = rest[self.out.write(rest) :]
        self.done.note(line)
        self.bar.advance()

    def refuse(self, number: int, wrong: Wrong) -> None:
        """The line of an input line that is no request."""
        self._told += 1
        if self._told <= MAX_NOTES:
            self.bar.say(f"line {number}: {wrong}")
        error = {"code": "invalid_line", "message": str(wrong), "line": number}
        self.write(wrong.custom_id, None, error)


async def _answer_all(llm: LLM, model: str | None, source: Path, writer: _Writer) -> None:
    """Send every line that is not done, a few at once, and write what comes back as it comes. A step of the
    engine that fails takes all lines in it along, so those are asked once more, each alone."""
    done, running, again = writer.done, set[asyncio.Task[None]](), list[dict[str, Any]]()
    width = WIDTH * llm.requests.settings.max_running
    with open(os.devnull, "w") as nowhere:
        client = _client(llm, model, nowhere)
        try:
            for number, item in _items(source):
                if done.has(number, item):
                    continue
                if isinstance(item, Wrong):
                    writer.refuse(number, item)
                    continue
                if len(running) >= width:
                    ended, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    for task in ended:
                        task.result()
                running.add(asyncio.create_task(_answer(client, item, writer, again)))
            await asyncio.gather(*running)
            for item in again:
                await _answer(client, item, writer)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            await client.aclose()


def _client(llm: LLM, model: str | None, log: TextIO) -> httpx.AsyncClient:
    """The server's application around this model, as a client sees it."""
    import httpx

    from ..config import ServerConfig
    from ..engine.llm import AsyncLLM
    from ..server.app import create_app
    from ..server.logs import Log
    from ..server.service import Service

    local = AsyncLLM(llm)
    names = [llm.name] if model is None else [Path(model).expanduser().resolve().name, model]
    # Nobody else is waiting, so whatever one line asks for at once may run.
    service = Service(dict.fromkeys(names, local), max_requests=2**31)
    app = create_app(service, ServerConfig(max_body=LARGEST_BODY), Log("json", log))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://batch", timeout=None)


async def _answer(
    client: httpx.AsyncClient,
    request: dict[str, Any],
    writer: _Writer,
    again: list[dict[str, Any]] | None = None,
) -> None:
    """Send one request and write what came back; where the engine failed, put it into `again` instead."""
    sent = json.dumps(request["body"])  # also what is no good JSON: the API says so, and the others go on
    response = await client.post(request["url"], content=sent, headers={"Content-Type": "application/json"})
    if response.status_code >= 500 and again is not None:
        again.append(request)
        return
    try:
        body = response.json()
    except ValueError:
        body = {"error": {"message": response.text, "type": "api_error", "param": None, "code": None}}
    usage = body.get("usage") or {}
    writer.done.tokens += usage.get("completion_tokens") or usage.get("output_tokens") or 0
    said = {
        "status_code": response.status_code,
        "request_id": response.headers.get("x-request-id", ""),
        "body": body,
    }
    writer.write(request["custom_id"], said, None)


class _Bar:
    """A progress bar on stderr, where that is a terminal."""

    def __init__(self, total: int, before: int) -> None:
        self._total, self._before = total, before
        self._progress: Progress | None = None

    def __enter__(self) -> _Bar:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("answering"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
            self._progress.add_task("lines", total=self._total, completed=self._before)
            self._progress.start()
        return self

    def advance(self) -> None:
        """One more line is written."""
        if self._progress is not None:
            self._progress.advance(self._progress.task_ids[0])

    def say(self, text: str) -> None:
        """A remark that stays."""
        if self._progress is None:
            note(text)
        else:
            self._progress.console.print(text, markup=False, highlight=False, style="dim")

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()
