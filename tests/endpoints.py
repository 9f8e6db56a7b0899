"""Any application behind a socket, and one loaded model behind our own server.

In: an ASGI application, or an LLM. Out: a URL while the `with` block lasts. Does not know: what is asked.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import uvicorn
from serving import serving

from deepfast import LLM, AsyncLLM
from deepfast.server.service import Service


class Served(NamedTuple):
    """url: without /v1."""

    url: str
    service: Service
    llm: LLM


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """Serve an application on a free port; yields its URL."""
    config = uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.005)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)


@contextmanager
def served(llm: LLM) -> Iterator[Served]:
    """Serve one loaded model under its own name."""
    with serving({llm.name: AsyncLLM(llm)}) as server:
        yield Served(server.url, server.service, llm)


def at_rest(llm: LLM, seconds: float = 10.0) -> bool:
    """Waits until nothing runs; True when nobody owns a block."""
    deadline = time.monotonic() + seconds
    while llm.engine.is_busy and time.monotonic() < deadline:
        time.sleep(0.002)
    return llm.engine.scheduler.pool.num_free == llm.engine.scheduler.pool.num_blocks
