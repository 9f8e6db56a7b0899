"""A browser, real and played servers, and pages that fail a test when the console shows an error.

In: playwright and Chromium, or every test here is skipped with the reason. Out: fixtures.
Does not know: what is tested.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
from fake_server import fake_app
from serving import listening, served

from deepfast.server.app import create_app
from deepfast.server.service import Service

CHROMIUM = next((path for name in ("chromium", "google-chrome") if (path := shutil.which(name))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]
SIZE = {"width": 1280, "height": 800}


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    api = pytest.importorskip("playwright.sync_api", reason="pip install 'deepfast[browser]' to run these")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here: 'make browser' installs Debian's")
    with api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def real() -> Iterator[str]:
    """The URL of a real server with the bundled model."""
    from deepfast import LLM

    with LLM() as llm, served(llm) as server:
        yield server.url


@pytest.fixture(scope="session")
def with_remote(real: str) -> Iterator[str]:
    """The URL of a server with a model that runs elsewhere: on the real server."""
    from deepfast.client import Endpoint, RemoteModel

    far = RemoteModel(Endpoint(f"{real}/v1", "deepfast-nano", dialect="deepfast"))
    with listening(create_app(Service({"far": far}))) as url:
        yield url


@pytest.fixture
def fake() -> Iterator[Callable[..., SimpleNamespace]]:
    """fake(**options) -> url and state of a played server."""
    with ExitStack() as stack:

        def make(**options: Any) -> SimpleNamespace:
            app = fake_app(**options)
            return SimpleNamespace(url=stack.enter_context(listening(app)), state=app.state)

        yield make


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """visit(url, **context options) -> a page that is ready. Errors in its console fail the test, but for
    those with a text of `page.allowed`."""
    contexts, pages = [], []

    def go(url: str, **options: Any) -> Any:
        contexts.append(browser.new_context(**{"viewport": SIZE, "locale": "en-GB", **options}))
        contexts[-1].grant_permissions(["clipboard-read", "clipboard-write"])
        page = contexts[-1].new_page()
        page.set_default_timeout(5000)
        page.errors, page.allowed = [], []
        page.on("console", lambda said: said.type == "error" and page.errors.append(said.text))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        pages.append(page)
        page.goto(url)
        page.wait_for_selector("body[data-ready]")
        return page

    yield go
    for page in pages:
        wrong = [text for text in page.errors if not any(part in text for part in page.allowed)]
        assert not wrong, f"the console of the page shows {wrong}"
    for context in contexts:
        context.close()
