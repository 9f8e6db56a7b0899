"""The server around its APIs: who may enter, limits, ids, errors, logs, metrics, models, tokens, steering.

In: the application with the bundled model, called without a network where that is enough. Out: what clients
and operators can rely on. Does not know: the fields of any API (their own tests do).
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from serve_process import QUESTION, Caller, endless, ends, here, soon
from serving import at_rest
from starlette.testclient import TestClient
from starlette.types import Message

from deepfast import LLM, AsyncLLM
from deepfast.config import ServerConfig
from deepfast.server.app import create_app
from deepfast.server.logs import Forward, Log
from deepfast.server.service import Service
from deepfast.types import UsageError

CHAT = "/v1/chat/completions"
SECRET = "the walrus sings at midnight"
DIGITS = ["0", "2", "4", "8"]  # end an answer soon, and no thought
ANTHROPIC = {"model": "nano", "max_tokens": 9, "messages": QUESTION}


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    """The bundled model."""
    with LLM() as loaded:
        yield loaded


def application(llm: LLM, lines: io.StringIO | None = None, **config: Any) -> FastAPI:
    """An application over it, whose log goes to `lines`."""
    log = Log("json", lines or io.StringIO())
    return create_app(Service({"nano": AsyncLLM(llm)}), ServerConfig(**config), log)


@pytest.fixture
def lines() -> io.StringIO:
    """Where the log goes."""
    return io.StringIO()


@pytest.fixture
def client(llm: LLM, lines: io.StringIO) -> TestClient:
    """A client of a server without keys."""
    return TestClient(application(llm, lines))


def test_a_dead_engine_is_no_health() -> None:
    llm = LLM()
    client = TestClient(application(llm))
    llm.close()
    reply = client.get("/health")
    assert (reply.status_code, reply.json()["status"]) == (503, "failed")
    refused = client.post(CHAT, json={"messages": QUESTION})
    assert refused.status_code == 500 and "engine is closed" in refused.json()["error"]["message"]


# --- who may enter ---


def test_any_of_several_keys_opens_in_both_spellings(llm: LLM) -> None:
    client = TestClient(application(llm, api_keys=("alpha-key", "beta-key")))
    for key in ("alpha-key", "beta-key"):
        assert client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
        assert client.get("/v1/models", headers={"x-api-key": key}).status_code == 200
    for wrong in ({}, {"x-api-key": "alpha"}, {"Authorization": "Basic alpha-key"}, {"x-api-key": "é"}):
        raw = {name: value.encode() for name, value in wrong.items()}
        assert client.get("/v1/models", headers=raw).status_code == 401


def test_what_needs_no_key(llm: LLM) -> None:
    client = TestClient(application(llm, api_keys=("alpha-key",)))
    assert client.get("/health").status_code == 200
    for path in ("/metrics", "/openapi.json", "/v1/models", "/nothing", "/healthy", "/health/"):
        assert client.get(path).status_code == 401


def test_errors_have_the_shape_of_the_api(llm: LLM) -> None:
    client = TestClient(application(llm, api_keys=("alpha-key",)))
    openai = client.post(CHAT, json={}).json()
    assert openai["error"].keys() == {"message", "type", "param", "code"}
    assert openai["error"]["code"] == "invalid_api_key"
    reply = client.post("/v1/messages", json=ANTHROPIC)
    assert reply.json()["type"] == "error" and reply.json()["error"]["type"] == "authentication_error"
    assert reply.json()["request_id"] == reply.headers["request-id"] == reply.headers["x-request-id"]


def test_foreign_pages_stay_out_unless_they_are_listed(llm: LLM) -> None:
    listed, foreign = "app://obsidian.md", "https://evil.example"
    client = TestClient(application(llm, cors=(listed,)))
    body = {"prompt": "x"}
    assert client.post("/tokenize", json=body, headers={"Origin": foreign}).status_code == 403
    assert client.post("/tokenize", json=body, headers={"Origin": "http://testserver"}).status_code == 200
    good = client.post("/tokenize", json=body, headers={"Origin": listed})
    assert (good.status_code, good.headers["access-control-allow-origin"]) == (200, listed)
    ask = {"Origin": listed, "Access-Control-Request-Method": "POST"}
    ask["Access-Control-Request-Headers"] = "authorization"
    assert client.options(CHAT, headers=ask).status_code == 200
    assert client.options(CHAT, headers={**ask, "Origin": foreign}).status_code == 400


def test_a_listed_page_may_read_errors_and_asks_without_key(llm: LLM) -> None:
    client = TestClient(application(llm, cors=("*",), api_keys=("alpha-key",)))
    ask = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    assert client.options(CHAT, headers=ask).status_code == 200
    refused = client.post(CHAT, json={}, headers={"Origin": "https://a.example"})
    assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == "*"


def test_a_name_that_was_made_to_point_here_is_refused(llm: LLM) -> None:
    client = TestClient(application(llm, hosts=("127.0.0.1", "::1")))
    for host, status in (("evil.example:8000", 403), ("127.0.0.1:8000", 200), ("[::1]:8000", 200), ("", 403)):
        assert client.get("/v1/models", headers={"Host": host}).status_code == status


# --- limits and nonsense ---


def _call(app: FastAPI, path: str, chunks: list[bytes], **headers: str) -> tuple[int, int]:
    """POST as ASGI messages: (status, how many chunks were taken)."""
    taken, sent = 0, list[Message]()

    async def receive() -> Message:
        nonlocal taken
        taken += 1
        return {"type": "http.request", "body": chunks[taken - 1], "more_body": taken < len(chunks)}

    async def send(message: Message) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
    asyncio.run(app({**scope, "headers": raw, "asgi": {"version": "3.0"}}, receive, send))
    return sent[0]["status"], taken


def test_a_long_body_is_read_no_further_than_its_limit(llm: LLM) -> None:
    app = application(llm, max_body=1024)
    json_type = {"content-type": "application/json"}
    assert _call(app, "/tokenize", [b"x" * 500] * 1000, **json_type) == (413, 3)
    assert _call(app, "/tokenize", [b"x"], **{**json_type, "content-length": "9" * 30}) == (413, 0)
    whole = [b'{"prompt": "', b"y" * 900, b'"}']
    assert _call(app, "/tokenize", whole, **json_type) == (200, 3)


def test_more_tokens_than_the_limit_are_refused_and_none_asked_means_the_limit(llm: LLM) -> None:
    client = TestClient(application(llm, max_tokens=64))
    over = client.post(CHAT, json={"messages": QUESTION, "max_tokens": 65})
    assert over.status_code == 400 and "64" in over.json()["error"]["message"]
    assert client.get("/v1/models").json()["data"][0]["max_output_tokens"] == 64
    with pytest.raises(UsageError, match="max_queue=-1"):
        ServerConfig(max_queue=-1)
    with pytest.raises(UsageError, match="API key"):
        ServerConfig(api_keys=("two words",))
    assert "hidden" not in repr(ServerConfig(api_keys=("hidden",)))


def test_routes_and_methods_that_are_not_there(client: TestClient) -> None:
    for path, kind in (("/v1/nothing", "error"), ("/v1/messages/nothing", "type")):
        reply = client.get(path)
        assert reply.status_code == 404 and reply.json()[kind] and "/openapi.json" in reply.text
    reply = client.get("/v1/embeddings")
    assert (reply.status_code, reply.headers["allow"]) == (405, "POST")
    reply = client.post("/v1/embeddings", json={"input": "a", "model": "nano"})
    assert reply.status_code == 400 and "embeddings are not served" in reply.json()["error"]["message"]


def test_a_body_that_is_not_marked_as_json(client: TestClient) -> None:
    reply = client.post("/tokenize", content=b'{"prompt": "x"}', headers={"Content-Type": "text/plain"})
    assert reply.status_code == 400 and "Content-Type: application/json" in reply.text


@pytest.mark.parametrize("kind", ["application/JSON", "Application/Json; charset=utf-8"])
def test_json_is_checked_however_its_type_is_spelled(client: TestClient, kind: str) -> None:
    for raw, said in ((b'{"prompt": "\\ud800"}', "half of a character"), (b'{"x": NaN}', "NaN is no number")):
        reply = client.post("/tokenize", content=raw, headers={"Content-Type": kind})
        assert reply.status_code == 400 and said in reply.text


MANY = 200_000


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": [1] * MANY}),
        (CHAT, {"messages": QUESTION, "logit_bias": {str(i): "x" for i in range(MANY)}}),
        (CHAT, {"messages": QUESTION, "stop": [1] * MANY}),
        (CHAT, {"messages": QUESTION, "variants": [1] * MANY}),
        (CHAT, {"messages": QUESTION, "variants": [{}] * MANY}),
        ("/v1/completions", {"prompt": [None] * MANY}),
        ("/v1/completions", {"prompt": [[None]] * MANY}),
        ("/v1/responses", {"input": "x", "metadata": dict.fromkeys(map(str, range(MANY)), 1)}),
        ("/v1/messages", {"model": "nano", "max_tokens": 9, "messages": [1] * MANY}),
        ("/detokenize", {"tokens": ["x"] * MANY}),
        ("/render", {"texts": [1] * MANY}),
        (f"{CHAT}/x/control", {"action": "end"} | {f"a{i}": 1 for i in range(MANY)}),
    ],
)
def test_a_million_mistakes_are_one(client: TestClient, path: str, body: dict[str, Any]) -> None:
    began = time.process_time()
    reply = client.post(path, json=body)
    assert reply.status_code == 400 and len(reply.text) < 3000
    assert time.process_time() - began < 2  # listing them all took minutes, and gigabytes


# --- ids, logs, errors of our own ---


def test_request_ids_are_kept_when_sane(client: TestClient, lines: io.StringIO) -> None:
    assert client.get("/health", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    for insane in ("a b", "x" * 200, 'a"b', ""):
        made = client.get("/health", headers={"x-request-id": insane}).headers["x-request-id"]
        assert re.fullmatch(r"req_[0-9a-f]{24}", made)
    assert json.loads(lines.getvalue().splitlines()[0])["id"] == "abc-1"


def test_a_line_of_the_log_has_the_numbers_and_no_prompt(client: TestClient, lines: io.StringIO) -> None:
    messages = [{"role": "system", "content": SECRET}, *QUESTION]
    reply = client.post(CHAT, json={"messages": messages}).json()
    line = json.loads(lines.getvalue())
    usage = reply["usage"]
    assert line["request"] == reply["id"] and line["model"] == "nano" and line["path"] == CHAT
    assert (line["prompt_tokens"], line["tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert line["stop"] == "stop" and line["thinking_stop"] == "natural" and line["first_token_s"] > 0
    client.post(CHAT, json={"messages": messages, SECRET: 1})
    assert SECRET not in lines.getvalue()


def test_prompts_are_logged_where_that_was_asked_for(llm: LLM, lines: io.StringIO) -> None:
    TestClient(application(llm, lines, log_prompts=True)).post("/tokenize", json={"prompt": SECRET})
    assert SECRET in json.loads(lines.getvalue())["body"]


def test_a_bug_is_a_500_with_an_id_and_its_place_in_the_log(llm: LLM, lines: io.StringIO) -> None:
    app = application(llm, lines)

    @app.get("/v1/broken")
    async def broken() -> None:
        raise ZeroDivisionError(SECRET)

    reply = TestClient(app).get("/v1/broken")
    error = reply.json()["error"]
    assert (reply.status_code, error["type"]) == (500, "api_error")
    assert reply.headers["x-request-id"] in error["message"] and SECRET not in reply.text
    line = json.loads(lines.getvalue())
    assert line["level"] == "error" and line["error"] == "ZeroDivisionError" and line["status"] == 500
    assert "broken" in line["traceback"][-1] and SECRET not in lines.getvalue()


def test_the_log_for_people_is_one_line_that_moves_no_cursor(lines: io.StringIO, llm: LLM) -> None:
    client = TestClient(create_app(Service({"nano": AsyncLLM(llm)}), log=Log("text", lines)))
    client.post(CHAT, json={"messages": QUESTION})
    client.get("/a%1b[2J%0ab")
    first, second = lines.getvalue().splitlines()
    assert re.search(rf"POST {CHAT} 200 \d.*tokens, \d+ of thought, stop · req_", first)
    assert "\x1b" not in second and " 404 " in second
    logger = logging.getLogger("deepfast-test")
    logger.addHandler(handler := Forward(Log("json", lines)))
    logger.warning("someone else's\nwords")
    logger.removeHandler(handler)
    assert json.loads(lines.getvalue().splitlines()[-1])["message"] == "deepfast-test: someone else's\nwords"


# --- metrics ---


def test_metrics_count_what_was_done(client: TestClient) -> None:
    usage = client.post(CHAT, json={"messages": QUESTION, "seed": 1}).json()["usage"]
    again = client.post(CHAT, json={"messages": QUESTION, "seed": 1, "thinking_budget": 8}).json()
    client.get("/v1/nobody-knows")
    found = _metrics(client)
    thought = usage["completion_tokens_details"]["reasoning_tokens"]
    second = again["usage"]["completion_tokens_details"]["reasoning_tokens"]
    cached = again["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert found['tokens_total{model="nano",phase="prompt"}'] == 2 * usage["prompt_tokens"]
    assert found['tokens_total{model="nano",phase="reasoning"}'] == thought + second
    assert found['prompt_tokens_cached_total{model="nano"}'] >= cached
    assert found['answers_total{finish_reason="stop",model="nano"}'] == 2
    assert found['thought_stops_total{cause="natural",model="nano"}'] == 1
    assert found['thought_stops_total{cause="budget",model="nano"}'] == 1
    assert found['thought_tokens_sum{mode="on",model="nano"}'] == thought + second
    assert found['first_token_seconds_count{model="nano"}'] == 2
    assert found['http_requests_total{method="GET",route="other",status="404"}'] == 1
    assert found['kv_blocks{model="nano"}'] > 0
    assert found["active"] == found['batch{model="nano"}'] == found['queue{model="nano"}'] == 0


def _metrics(client: TestClient) -> dict[str, float]:
    reply = client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    pairs = (line.rsplit(" ", 1) for line in reply.text.splitlines() if line.startswith("deepfast_"))
    return {name.removeprefix("deepfast_"): float(value) for name, value in pairs}


# --- models, tokens, schema ---


def test_models(client: TestClient, llm: LLM) -> None:
    card = client.get("/v1/models").json()["data"][0]
    assert card == client.get("/v1/models/nano").json()
    assert (card["id"], card["context_length"], card["modes"]) == ("nano", llm.max_context, ["on", "off"])
    assert card["defaults"]["on"]["temperature"] == 0.6 and card["defaults"]["off"]["top_p"] == 0.8
    reply = client.get("/v1/models/a/b")
    assert reply.status_code == 404 and "nano" in reply.json()["error"]["message"]


def test_tokens_there_and_back(client: TestClient, llm: LLM) -> None:
    text = "What is <|im_end|> 数学?"
    made = client.post("/tokenize", json={"prompt": text, "return_token_strs": True}).json()
    assert made["count"] == len(made["tokens"]) == len(made["token_strs"])
    assert made["max_model_len"] == llm.max_context
    assert client.post("/detokenize", json={"tokens": made["tokens"]}).json() == {"prompt": text}
    assert llm.tokenizer.control_id("<|im_end|>") not in made["tokens"]
    for bad in ({"tokens": [-1]}, {"tokens": [10**9]}, {"tokens": ["a"]}, {}):
        assert client.post("/detokenize", json=bad).status_code == 400


def test_a_conversation_has_the_tokens_that_its_answer_is_charged_for(client: TestClient) -> None:
    for switch in ({}, {"enable_thinking": False}, {"enable_thinking": True}):
        body = {"messages": QUESTION, "chat_template_kwargs": switch}
        count = client.post("/tokenize", json=body).json()["count"]
        usage = client.post(CHAT, json={**body, "max_tokens": 300}).json()["usage"]
        assert usage["prompt_tokens"] == count
    shorter = client.post("/tokenize", json={"messages": QUESTION, "add_generation_prompt": False}).json()
    assert shorter["count"] < count


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "either prompt or messages"),
        ({"prompt": "a", "messages": QUESTION}, "either prompt or messages"),
        ({"prompt": "a", "tools": []}, "tools belongs to messages"),
        ({"prompt": "a", "other": 1}, "other"),
        ({"messages": QUESTION, "chat_template_kwargs": {"shout": True}}, "shout"),
        ({"prompt": "a", "model": "gpt"}, "'gpt'"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, "wizard"),
    ],
)
def test_wrong_requests_for_tokens(client: TestClient, body: dict[str, Any], said: str) -> None:
    reply = client.post("/tokenize", json=body)
    assert reply.status_code in (400, 404) and said in reply.json()["error"]["message"]


def test_the_schema_tells_our_errors_and_no_page_loads_scripts_from_elsewhere(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    assert {"/health", "/metrics", "/v1/models", "/tokenize", "/v1/embeddings", CHAT} <= schema[
        "paths"
    ].keys()
    operations = [operation for path in schema["paths"].values() for operation in path.values()]
    assert all("default" in operation["responses"] for operation in operations)
    assert not any("422" in operation["responses"] for operation in operations)
    assert "HTTPValidationError" not in json.dumps(schema)
    for page in ("/docs", "/redoc"):
        assert client.get(page).status_code == 404


# --- steering ---


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"action": "extend"}, "needs tokens"),
        ({"action": "hint", "text": None}, "null is none"),
        ({"action": "end", "tokens": 3}, "does not belong"),
        ({"action": "budget"}, "needs budget"),
        ({"action": "extend", "tokens": 0}, "tokens"),
        ({"action": "stop"}, "action"),
    ],
)
def test_controls_that_make_no_sense(client: TestClient, body: dict[str, Any], said: str) -> None:
    reply = client.post(f"{CHAT}/chatcmpl-1/control", json=body)
    assert reply.status_code == 400 and said in reply.json()["error"]["message"]


def test_what_does_not_run_cannot_be_steered(client: TestClient) -> None:
    assert client.post(f"{CHAT}/chatcmpl-1/control", json={"action": "end"}).status_code == 404
    assert client.post(f"{CHAT}/control", json={"action": "reasoning_end"}).status_code == 404


def _control(port: int, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    with Caller(port, f"{CHAT}/{path}", body) as call:
        return call.begin().status, json.loads(call.rest())


def _thinking(call: Caller) -> str:
    """Read until the thought has begun; the id of the request."""
    found = ""
    while b'"reasoning' not in (data := call.chunk()):
        found = found or json.loads(data.decode().removeprefix("data: "))["id"]
    return found


def test_a_thought_is_steered_while_it_runs(llm: LLM) -> None:
    with (
        here(llm, log=Log("json", io.StringIO())) as (port, _),
        Caller(port, CHAT, endless(llm, stop=DIGITS)) as call,
    ):
        call.begin()
        id = _thinking(call)
        assert _control(port, f"{id}/control", {"action": "budget", "budget": 1900}) == (
            200,
            {"ok": True, "variants": 1},
        )
        assert _control(port, f"{id}/control", {"action": "extend", "tokens": 8})[0] == 200
        assert _control(port, f"{id}/control", {"action": "hint", "text": "Think of 47."})[0] == 200
        assert _control(port, f"{id}/control", {"action": "end", "variant": 3})[0] == 404
        assert _control(port, "control", {"action": "reasoning_end"})[0] == 200
        status, error = _control(port, f"{id}/control", {"action": "end"})
        assert status in (400, 404)  # 404: by now the answer is over too
        assert "over" in error["error"]["message"] or "has ended" in error["error"]["message"]
        events = call.events()
        said = "".join(
            choice["delta"].get("reasoning_content") or ""
            for item in events
            if isinstance(item, dict)
            for choice in item.get("choices", ())
        )
        assert "Think of 47." in said
        last = next(item for item in events if ends([item]))
        assert last["choices"][0]["thinking"]["stop"] == "user"


def test_one_of_several_variants_is_steered(llm: LLM) -> None:
    both = endless(llm, stop=DIGITS, variants=[{"seed": 1}, {"seed": 2}])
    with here(llm, log=Log("json", io.StringIO())) as (port, service), Caller(port, CHAT, both) as call:
        call.begin()
        id = _thinking(call)
        assert soon(lambda: all(stream.usage.reasoning_tokens for stream in service.running(id).streams))
        assert _control(port, f"{id}/control", {"action": "end", "variant": 1})[0] == 200
        status, done = _control(port, f"{id}/control", {"action": "end"})  # the other one alone still thinks
        assert (status, done["variants"]) == (200, 1)
        assert len(ends(call.events())) == 2
        assert at_rest(llm)
