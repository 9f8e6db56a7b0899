"""A real server on a free port of 127.0.0.1, in a thread of this process.

In: an application, or a model. Out: its URL while the block runs. Does not know: what it serves.
"""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import uvicorn

from deepfast import LLM, AsyncLLM
from deepfast.server.app import create_app
from deepfast.server.logs import Log
from deepfast.server.service import Service


class Served(NamedTuple):
    """url: without /v1."""

    url: str
    service: Service
    llm: LLM


@contextmanager
def listening(app: Any, send_buffer: int = 0) -> Iterator[str]:
    """Serve an application; yields its URL. send_buffer: bytes that the system takes from the server ahead
    of a reader."""
    config = uvicorn.Config(app, log_config=None, lifespan="on", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    with socket.socket() as sock:
        if send_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        sock.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.005)
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def untold() -> Log:
    """A log that nobody reads: a server's last lines would fall between two tests."""
    return Log("json", io.StringIO())


@contextmanager
def served(llm: LLM, **service: Any) -> Iterator[Served]:
    """Serve one loaded model under its own name."""
    made = Service({llm.name: AsyncLLM(llm)}, **service)
    with listening(create_app(made, log=untold())) as url:
        yield Served(url, made, llm)


def at_rest(llm: LLM, seconds: float = 10.0) -> bool:
    """Waits until nothing runs; True when nobody owns a block."""
    deadline = time.monotonic() + seconds
    while llm.engine.is_busy and time.monotonic() < deadline:
        time.sleep(0.002)
    return llm.engine.scheduler.pool.num_free == llm.engine.scheduler.pool.num_blocks
