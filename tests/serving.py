"""A server in a thread, for tests that talk to it as clients do.

In: models by name (the bundled one, unless told), settings. Out: its URL, while the `with` block lasts.
Does not know: what is asked.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn

from deepfast import LLM, AsyncLLM
from deepfast.config import ServerConfig
from deepfast.server.app import create_app
from deepfast.server.service import Service


@dataclass(frozen=True)
class Serving:
    """A server that runs. url: without a slash at its end."""

    url: str
    app: Any
    service: Service


@contextmanager
def serving(
    models: Mapping[str, Any] | None = None,
    config: ServerConfig | None = None,
    *,
    store: Any = None,
    max_requests: int = 80,
) -> Iterator[Serving]:
    """Serve on a free port of 127.0.0.1 until the block is left; the bundled model is called "nano"."""
    own = LLM() if models is None else None
    service = Service(models or {"nano": AsyncLLM(own)}, max_requests=max_requests)
    app = create_app(service, config)
    app.state.store = store
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.005)
        yield Serving(f"http://127.0.0.1:{listener.getsockname()[1]}", app, service)
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
        if own is not None:
            own.close()
