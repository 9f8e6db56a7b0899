"""Batch mode: files in, files out, whatever is wrong with them and whenever it is interrupted.

In: `deepfast run --batch` with the bundled model, in this process and in one that is interrupted. Out: that
every line gets what the server would have answered, once. Does not know: what the APIs mean.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from serving import served

from deepfast import LLM
from deepfast.cli.main import cli
from deepfast.engine.runner import Runner

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


@pytest.fixture(autouse=True)
def own_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEEPFAST_MODEL", raising=False)


def line(name: str, question: str = "What is 47 * 86?", **body: Any) -> dict[str, Any]:
    """One request."""
    asked = {"model": "deepfast-nano", "messages": [{"role": "user", "content": question}], "seed": 1}
    return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": asked | body}


def batch(folder: Path, lines: list[Any], *options: str) -> tuple[Result, dict[str, Any]]:
    """Run it; the output by custom_id, or by the number of the line that is no request."""
    texts = [one if isinstance(one, str) else json.dumps(one) for one in lines]
    (folder / "in.jsonl").write_text("\n".join(texts) + "\n")
    out = folder / "out.jsonl"
    done = CliRunner().invoke(cli, ["run", "--batch", str(folder / "in.jsonl"), "--out", str(out), *options])
    return done, by_name(out)


def by_name(out: Path) -> dict[str, Any]:
    found = {}
    for text in out.read_text().splitlines() if out.exists() else ():
        one = json.loads(text)
        assert list(one) == ["id", "custom_id", "response", "error"] and one["id"].startswith("batch_req_")
        name = one["error"]["line"] if one["error"] else one["custom_id"]
        assert name not in found, "answered twice"
        found[name] = one
    return found


def test_every_line_gets_what_the_server_would_answer(tmp_path: Path) -> None:
    raw = {"prompt": "<|im_start|>user\nhi<|im_end|>\n", "max_tokens": 5, "seed": 1}
    other = {"input": "What is 3 + 4?", "reasoning": {"effort": "none"}}
    lines = [
        *(line(f"sum {i}", f"What is {i} + 5?") for i in range(20)),
        line("two", n=2, thinking={"mode": "off"}),
        {"custom_id": "raw", "method": "POST", "url": "/v1/completions", "body": raw},
        {"custom_id": "other", "method": "POST", "url": "/v1/responses", "body": other},
        line("你好 🙂", "Sort: 5, 3, 9"),
    ]
    done, answers = batch(tmp_path, lines)
    assert done.exit_code == 0, done.stderr
    assert done.stdout == "" and "24 lines · none failed" in done.stderr and "tok/s" in done.stderr
    assert set(answers) == {one["custom_id"] for one in lines}
    assert all(one["response"]["status_code"] == 200 for one in answers.values())
    assert all(one["response"]["request_id"] and one["error"] is None for one in answers.values())
    assert len(answers["two"]["response"]["body"]["choices"]) == 2
    assert answers["other"]["response"]["body"]["object"] == "response"
    with LLM() as llm, served(llm) as server:
        import httpx

        for name, asked in (("sum 7", lines[7]), ("raw", lines[21])):
            told = httpx.post(server.url + asked["url"], json=asked["body"]).json()
            text = answers[name]["response"]["body"]["choices"][0]
            assert text.get("message") == told["choices"][0].get("message")
            assert text.get("text") == told["choices"][0].get("text")


def test_what_is_wrong_is_told_by_line_and_the_rest_is_answered(tmp_path: Path) -> None:
    lines: list[Any] = [
        line("good"),
        "",
        "no JSON",
        "[1]",
        {**line("x"), "custom_id": 3},
        {**line("\ud800")},
        {**line("get"), "method": "GET"},
        {**line("url"), "url": "/v1/embeddings"},
        {**line("body"), "body": "hi"},
        {**line("more"), "priority": 1},
        line("stream", stream=True),
        line("good", "What is 1 + 1?"),
        line("unknown", model="gpt-9"),
        line("refused", temperature=-1),
    ]
    done, answers = batch(tmp_path, lines)
    assert done.exit_code == 1
    assert answers["good"]["response"]["status_code"] == 200
    assert [answers[name]["response"]["status_code"] for name in ("unknown", "refused")] == [404, 400]
    assert "temperature=-1" in answers["refused"]["response"]["body"]["error"]["message"]
    told = {number: answers[number]["error"]["message"] for number in answers if isinstance(number, int)}
    words = ["no JSON", "no object", "custom_id", "custom_id", "'POST'", "/v1/chat/completions", "no object"]
    words += ["'priority'", "stream", "'good' stood in an earlier line"]
    assert list(told) == list(range(3, 13))
    for (number, text), word in zip(told.items(), words, strict=True):
        assert word in text and f"line {number}: {text}" in done.stderr
        assert answers[number]["error"]["code"] == "invalid_line" and answers[number]["response"] is None
    assert "13 lines · 12 failed" in done.stderr


def test_a_body_that_is_no_good_json_spoils_only_its_own_line(tmp_path: Path) -> None:
    lines = [line("a"), line("half", "\ud800"), line("nan", temperature=float("nan")), line("b")]
    lines.append(json.dumps(line("huge", temperature=7)).replace("7", "1e999"))
    done, answers = batch(tmp_path, lines)
    assert done.exit_code == 1 and "5 lines · 3 failed" in done.stderr
    found = {name: one["response"]["status_code"] for name, one in answers.items()}
    assert found == {"a": 200, "b": 200, "half": 400, "nan": 400, "huge": 400}


def test_nothing_is_done_twice_and_what_was_corrected_is_done(tmp_path: Path) -> None:
    first, before = batch(tmp_path, [line("a"), "broken"])
    assert first.exit_code == 1
    again, same = batch(tmp_path, [line("a"), "broken"])
    assert again.exit_code == 1 and same == before and "2 lines, 0 of them answered now" in again.stderr
    done, answers = batch(tmp_path, [line("a"), line("b"), line("c")])
    assert done.exit_code == 0 and "3 lines, 2 of them answered now" in done.stderr
    assert answers["a"] == before["a"] and {"b", "c"} <= set(answers)


def test_half_a_line_is_done_again(tmp_path: Path) -> None:
    batch(tmp_path, [line("a"), line("b")])
    out = tmp_path / "out.jsonl"
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    for kept in (whole[:-1], whole[:-40], lines[0] + b'{"id"'):
        out.write_bytes(kept)
        done, answers = batch(tmp_path, [line("a"), line("b")])
        assert done.exit_code == 0 and set(answers) == {"a", "b"}
        assert out.read_bytes().startswith(lines[0]) and out.read_bytes().endswith(b"}\n")
        assert ("only half there" in done.stderr) == (kept != whole[:-1])


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    for text in ("my notes", "my notes\n", '{"a": 1}\n', "\n"):
        (tmp_path / "out.jsonl").write_text(text)
        done = CliRunner().invoke(
            cli, ["run", "--batch", str(written(tmp_path)), "--out", str(tmp_path / "out.jsonl")]
        )
        assert done.exit_code == 2 and "line 1 is no line that --batch writes" in done.stderr
        assert (tmp_path / "out.jsonl").read_text() == text


def written(folder: Path) -> Path:
    """An input."""
    path = folder / "in.jsonl"
    path.write_text(json.dumps(line("a")) + "\n")
    return path


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["hello"], "no place for 'hello'"),
        (["--seed", "1"], "--seed cannot be used with --batch"),
        (["--no-think"], "--no-think cannot be used with --batch"),
        (["--think"], "--think cannot be used with --batch"),
        (["--budget", "1"], "--budget cannot be used"),
        (["--json"], "--json cannot be used"),
        (["-n", "3"], "--samples cannot be used"),
        (["--system", "x"], "--system cannot be used"),
    ],
)
def test_every_line_speaks_for_itself(tmp_path: Path, more: list[str], told: str) -> None:
    done, answers = batch(tmp_path, [line("a")], *more)
    assert done.exit_code == 2 and told in done.stderr and not answers


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    source, empty = written(tmp_path), tmp_path / "empty.jsonl"
    empty.write_text("\n\n")
    for arguments, told in (
        (["--batch", source], "Add --out FILE"),
        (["--batch", source, "--out", source], "the same file"),
        (["--batch", source, "--out", tmp_path / "no" / "where"], "cannot be written: No such file"),
        (["--batch", empty, "--out", tmp_path / "o"], "holds no lines"),
        (["--batch", tmp_path / "none", "--out", tmp_path / "o"], "does not exist"),
        (["--out", tmp_path / "o", "hello"], "--out belongs to --batch"),
        ([], "Missing argument 'PROMPT'"),
    ):
        done = CliRunner().invoke(cli, ["run", *map(str, arguments)])
        assert done.exit_code == 2 and told in done.stderr


def test_a_step_that_fails_spoils_only_the_line_at_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Runner.forward

    def fragile(self: Runner, chunks: Any) -> None:
        if any(seq.params.top_k == 77 for seq, *_ in chunks):
            raise RuntimeError("a kernel failed")
        plain(self, chunks)

    monkeypatch.setattr(Runner, "forward", fragile)
    lines = [
        *(line(f"sum {i}") for i in range(4)),
        line("bad", top_k=77),
        *(line(f"more {i}") for i in range(4)),
    ]
    done, answers = batch(tmp_path, lines)
    assert done.exit_code == 1 and "9 lines · 1 failed" in done.stderr
    assert answers.pop("bad")["response"]["status_code"] == 500
    assert {one["response"]["status_code"] for one in answers.values()} == {200} and len(answers) == 8


def test_an_interrupted_batch_goes_on(tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    with LLM() as llm:
        ids = llm.requests.ids
        never = {str(token): -100 for token in (ids.think_close, *ids.stops)}
    endless = {"logit_bias": never, "thinking": {"mode": "on", "on_loop": "ignore"}}
    source.write_text("\n".join(json.dumps(one) for one in [line("a"), line("b", **endless, n=20)]) + "\n")
    command = [
        sys.executable,
        "-P",
        "-m",
        "deepfast.cli.main",
        "run",
        "--batch",
        str(source),
        "--out",
        str(out),
    ]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    deadline = time.monotonic() + 60
    while not (out.exists() and out.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    _, told = running.communicate(timeout=60)
    assert running.returncode == 130 and "The same command goes on" in told and "Traceback" not in told
    assert set(by_name(out)) == {"a"}
    done, answers = batch(tmp_path, [line("a"), line("b")])
    assert done.exit_code == 0 and set(answers) == {"a", "b"}
