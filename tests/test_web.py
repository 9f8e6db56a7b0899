"""The page's files come with the right types and policies, and texts come back as HTML.

In: the application, asked in memory. Out: promises about headers and JSON. Does not know: a browser.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from deepfast.config import ServerConfig
from deepfast.server.app import create_app
from deepfast.server.service import Service
from deepfast.server.web import FOLDER, MAX_TEXTS


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    app = create_app(Service({}), ServerConfig(log_format="text"))
    with TestClient(app) as made:
        yield made


def test_the_page_and_all_that_it_names(client):
    page = client.get("/")
    assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
    names = set(re.findall(r'(?:href|src)="/page/([\w.-]+)"', page.text))
    texts = {name: client.get(f"/page/{name}") for name in names}
    names |= {found for answer in texts.values() for found in re.findall(r'from "\./([\w.-]+)"', answer.text)}
    assert {path.name for path in FOLDER.glob("*.js")} <= names  # each is preloaded
    for name in names:
        answer = client.get(f"/page/{name}")
        assert answer.status_code == 200, name
        kind = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}[name.rsplit(".")[-1]]
        assert answer.headers["content-type"].startswith(kind)
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_nothing_of_the_page_comes_from_elsewhere():
    for path in FOLDER.iterdir():
        for url in re.findall(r"https?://[^\s\"'`)]+", path.read_text()):
            assert url.startswith("http://www.w3.org/"), f"{path.name}: {url}"


def test_the_policy_of_the_page_allows_no_script_in_it(client):
    page = client.get("/")
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    for name in ("script-src", "style-src", "connect-src", "frame-src"):
        assert policy[name] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert not re.search(r"<script(?![^>]*\ssrc=)|\son\w+=|\sstyle=|<style", page.text)


@pytest.mark.parametrize("name", ["preview.html", "preview-scripts.html"])
def test_the_policy_of_previews_allows_no_network(client, name):
    policy = client.get(f"/page/{name}").headers["content-security-policy"]
    assert policy.startswith("sandbox allow-scripts; default-src 'none';")
    assert "http" not in policy and "self" not in policy.replace("frame-ancestors 'self'", "")
    assert ("'unsafe-inline'" in policy.split("script-src")[1]) == (name == "preview-scripts.html")


def test_a_file_that_is_known_is_not_sent_again(client):
    first = client.get("/page/main.js")
    tag = first.headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}'):
        again = client.get("/page/main.js", headers={"If-None-Match": known})
        assert again.status_code == 304 and not again.content and again.headers["etag"] == tag
    assert client.get("/page/main.js", headers={"If-None-Match": '"other"'}).content == first.content


@pytest.mark.parametrize("name", ["web.py", "..%2fweb.py", "%2e%2e", ".", "main.js%00", "x" * 5000])
def test_there_is_nothing_else(client, name):
    answer = client.get(f"/page/{name}")
    assert answer.status_code == 404 and "error" in answer.json()


def test_texts_become_html(client):
    assert client.post("/render", json={"text": "**a**"}).json() == {"html": "<p><strong>a</strong></p>\n"}
    assert client.post("/render", json={"texts": ["a", ""]}).json() == {"html": ["<p>a</p>\n", ""]}


def test_many_texts_have_a_time_together(client, monkeypatch):
    monkeypatch.setattr("deepfast.server.web.ALL_SECONDS", 0.2)
    html = client.post("/render", json={"texts": ["$a" * 20_000] * 20}).json()["html"]
    assert len(html) == 20 and html[-1].startswith('<pre class="plain">')


@pytest.mark.parametrize(
    "body",
    [{}, {"text": "a", "texts": []}, {"text": 1}, {"txt": "a"}, {"texts": ["a"] * (MAX_TEXTS + 1)}, []],
)
def test_a_body_that_makes_no_sense_is_refused(client, body):
    answer = client.post("/render", json=body)
    assert answer.status_code == 400 and answer.json()["error"]["message"]


def test_with_keys_the_page_opens_and_asks(client):
    app = create_app(Service({}), ServerConfig(api_keys=("k",), log_format="text"))
    locked = TestClient(app)
    assert locked.get("/").status_code == locked.get("/page/main.js").status_code == 200
    assert locked.post("/render", json={"text": "a"}).status_code == 401
