"""Makes the helper modules beside the tests importable from every test folder; a server for many tests."""

from __future__ import annotations

import os
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
os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks a real hub; those that need one bring their own


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


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A hub of our own, which the environment names, with empty caches and nobody's token."""
    from hub_server import hub_server
    from huggingface_hub import constants

    from deepfast.model import wire

    for name in (
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "HF_HUB_CACHE",
        "MODELSCOPE_API_TOKEN",
        "DEEPFAST_HUB",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(wire, "PAUSE_S", 0.0)  # nobody waits between two attempts
    with hub_server() as server:
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.url)
        monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "modelscope"))
        yield server


@pytest.fixture(scope="module")
def client(served: Any) -> Iterator[Any]:
    """OpenAI's client of that server."""
    import openai

    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client
