"""Makes the helper modules beside the tests importable from every test folder; a server for many tests."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# The same examples in every run, and none is timed: a busy machine is not a defect.
settings.register_profile(
    "steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background: children would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, str(Path(__file__).resolve().parent))


@pytest.fixture(scope="module")
def served() -> Iterator[Any]:
    """The bundled model, called "nano", behind a server in a thread."""
    from serving import Served, listening, untold

    from deepfast import LLM, AsyncLLM
    from deepfast.server.app import create_app
    from deepfast.server.service import Service

    with LLM() as llm:
        service = Service({"nano": AsyncLLM(llm)})
        with listening(create_app(service, log=untold())) as url:
            yield Served(url, service, llm)


@pytest.fixture(scope="module")
def client(served: Any) -> Iterator[Any]:
    """OpenAI's client of that server."""
    import openai

    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client
