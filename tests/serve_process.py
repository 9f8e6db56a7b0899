"""A server in a process or a thread of its own, and a client that can be slow, stop reading, or hang up.

In: options of the command; requests. Out: its URL and log while the block runs; replies as they come over the
wire. Does not know: what the answers mean.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from serving import listening

from deepfast import LLM, AsyncLLM
from deepfast.config import ServerConfig
from deepfast.server.app import create_app
from deepfast.server.logs import Log
from deepfast.server.service import Service

SERVE = [sys.executable, "-P", "-m", "deepfast.cli.main", "serve", "--port", "0", "--no-store"]
QUESTION = [{"role": "user", "content": "What is 47 * 86?"}]
PATIENCE = 60  # seconds: far more than anything here takes


def endless(llm: LLM, **more: Any) -> dict[str, Any]:
    """A request whose thought goes on until the context is full, unless somebody ends it."""
    close = llm.tokenizer.control_id("</think>")
    stops = [llm.tokenizer.control_id(token) for token in ("<|im_end|>", "<|endoftext|>")]
    bias = {str(token): -1000 for token in (close, *stops) if token is not None}
    never = {"logit_bias": bias, "thinking": {"mode": "on", "on_loop": "ignore"}}
    return {"messages": QUESTION, "stream": True, **never, **more}


@dataclass
class Process:
    """A running server."""

    popen: subprocess.Popen[str]
    port: int
    log: list[str] = field(default_factory=list)

    def wait(self) -> int:
        """Its exit code."""
        return self.popen.wait(PATIENCE)


@contextmanager
def process(*options: str, **environment: str) -> Iterator[Process]:
    """Start `deepfast serve` with the bundled model; kill it at the end if it still runs."""
    known = {key: value for key, value in os.environ.items() if not key.startswith("DEEPFAST")}
    with subprocess.Popen(
        [*SERVE, *options], stderr=subprocess.PIPE, text=True, env={**known, **environment}
    ) as popen:
        assert popen.stderr is not None
        reading: threading.Thread | None = None
        try:
            log: list[str] = []
            port = 0
            while not port:
                log.append(line := popen.stderr.readline())
                assert line, "".join(log)
                found = re.search(r"ready: http://\S+?:(\d+) ", line)
                port = int(found[1]) if found else 0
            reading = threading.Thread(target=log.extend, args=(popen.stderr,))
            reading.start()
            yield Process(popen, port, log)
        finally:
            popen.kill()
            popen.wait()
            if reading is not None:
                reading.join()


@contextmanager
def here(
    llm: LLM, config: ServerConfig | None = None, send_buffer: int = 0, log: Log | None = None
) -> Iterator[tuple[int, Service]]:
    """The application in a thread of this process: (port, service)."""
    service = Service({"nano": AsyncLLM(llm)})
    with listening(create_app(service, config, log), send_buffer) as url:
        yield int(url.rpartition(":")[2]), service


def soon(condition: Callable[[], object], seconds: float = 20.0) -> bool:
    """Does it become true?"""
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.005)
    return bool(condition())


class Caller:
    """One HTTP request over a socket of its own. buffer: bytes that the system takes ahead of its reader."""

    def __init__(
        self,
        port: int,
        path: str,
        body: dict[str, Any] | bytes | None = None,
        *,
        buffer: int = 0,
        **headers: str,
    ) -> None:
        raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        self.sock = socket.socket()
        if buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(("127.0.0.1", port))
        method = "GET" if body is None else "POST"
        lines = {"Host": "127.0.0.1", "Content-Type": "application/json", "Content-Length": str(len(raw))}
        lines |= {"Connection": "close"} | {name.replace("_", "-"): value for name, value in headers.items()}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self.sock.sendall(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + raw)
        self.file = self.sock.makefile("rb")
        self.status, self.headers = 0, dict[str, str]()

    def begin(self) -> Caller:
        """Read status and headers."""
        self.status = int(self.file.readline().split()[1])
        while (line := self.file.readline().decode().strip()) != "":
            name, _, value = line.partition(": ")
            self.headers[name.lower()] = value
        return self

    def chunk(self) -> bytes:
        """The next piece of a chunked body; empty at its end. Raises ValueError when it is cut off."""
        length = int(self.file.readline().strip() or b"cut off", 16)
        data = self.file.read(length)
        self.file.readline()
        return data

    def rest(self) -> bytes:
        """All of the body that is left."""
        if "content-length" in self.headers:
            return self.file.read(int(self.headers["content-length"]))
        return b"".join(iter(self.chunk, b""))

    def json(self) -> Any:
        """The whole reply."""
        return json.loads(self.begin().rest())

    def events(self) -> list[Any]:
        """What is left of a stream, each event's data; "[DONE]" stays text."""
        data = [line[6:] for line in self.rest().decode().split("\n") if line.startswith("data: ")]
        return [json.loads(item) if item.startswith("{") else item for item in data]

    def close(self) -> None:
        """Hang up."""
        self.file.close()
        self.sock.close()

    def __enter__(self) -> Caller:
        """Closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Hang up."""
        self.close()


def ends(events: list[Any]) -> list[str]:
    """The finish reasons in a stream of chat chunks."""
    choices = [choice for item in events if isinstance(item, dict) for choice in item.get("choices", ())]
    return [choice["finish_reason"] for choice in choices if choice.get("finish_reason")]
