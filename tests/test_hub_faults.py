"""Hubs on bad days: interruptions, damage, two programs at once, no network, strangers.

In: a hub in this process that fails on demand. Out: equal bytes, none asked for twice, or one clear line.
Does not know: the real hubs; what is fetched when all goes well (test_hub.py does).
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from hub_server import BIG, BIG_FILE, MIB, SMALL, TINY, Fault, HubServer, fails, same

from deepfast.model import download, wire
from deepfast.model import hub as hubs
from deepfast.model.download import Fetching
from deepfast.types import UsageError

# Interrupted, damaged, at once


def test_a_cut_connection_goes_on_where_it_stopped(hub: HubServer) -> None:
    hub.add(BIG, {"big.gguf": BIG_FILE})
    hub.faults["big.gguf"] = Fault(times=2, cut=MIB)
    assert hubs.find(BIG).path.read_bytes() == BIG_FILE
    starts = [asked.first for asked in hub.fetched("big.gguf")]
    assert starts == [0, MIB, 2 * MIB]


def start_pull(model: str, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "deepfast.cli.main", "pull", model, *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until(true: Callable[[], bool]) -> None:
    """Wait for what another process does."""
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        threading.Event().wait(0.01)


@pytest.mark.parametrize("prefix", ["hf", "modelscope"])
def test_a_killed_pull_goes_on_and_asks_only_for_the_rest(
    hub: HubServer, tmp_path: Path, prefix: str
) -> None:
    hub.add(BIG, {"big.gguf": BIG_FILE})
    gate = threading.Event()
    hub.faults["big.gguf"] = Fault(cut=2 * MIB, gate=gate)
    with start_pull(f"{prefix}:{BIG}") as process:

        def written() -> int:
            return sum(path.stat().st_size for path in tmp_path.rglob("*.incomplete"))

        until(lambda: written() >= 2 * MIB)
        process.send_signal(signal.SIGKILL)
    kept = written()
    gate.set()
    events = list[Fetching]()
    assert hubs.find(f"{prefix}:{BIG}", report=events.append).path.read_bytes() == BIG_FILE
    assert [asked.first for asked in hub.fetched("big.gguf")] == [0, kept]
    assert (events[0].state, events[0].done, events[0].total) == ("start", kept, len(BIG_FILE))
    assert (events[-1].state, events[-1].done) == ("end", len(BIG_FILE))
    assert not list(tmp_path.rglob("*.incomplete"))


def test_an_interrupted_pull_leaves_at_once_and_keeps_what_came(hub: HubServer, tmp_path: Path) -> None:
    hub.add(BIG, {"big.gguf": BIG_FILE})
    gate = threading.Event()
    hub.faults["big.gguf"] = Fault(cut=MIB, gate=gate)
    with start_pull(BIG) as process:
        until(lambda: any(p.stat().st_size for p in tmp_path.rglob("*.incomplete")))
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=10)
    gate.set()
    assert process.returncode == 130 and "Traceback" not in said
    assert list(tmp_path.rglob("*.incomplete"))


def test_a_server_without_ranges_begins_again(hub: HubServer) -> None:
    hub.add(BIG, {"big.gguf": BIG_FILE})
    hub.faults["big.gguf"] = Fault(times=1, cut=MIB)
    hub.faults["/big.gguf"] = Fault(times=9, no_range=True)
    events = list[Fetching]()
    assert hubs.find(BIG, report=events.append).path.read_bytes() == BIG_FILE
    assert events[-1].done == len(BIG_FILE)


def test_a_damaged_file_is_fetched_again(hub: HubServer, tmp_path: Path) -> None:
    hub.add(BIG, {"big.gguf": BIG_FILE})
    hub.faults["big.gguf"] = Fault(times=1, flip=MIB)
    events = list[Fetching]()
    assert hubs.find(BIG, report=events.append).path.read_bytes() == BIG_FILE
    assert [event.file for event in events if event.state == "again"] == ["big.gguf"]


@pytest.mark.parametrize("prefix", ["hf", "modelscope"])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_that_stays_damaged_is_refused_by_name(
    hub: HubServer, tmp_path: Path, name: str, prefix: str
) -> None:
    hub.add(TINY, SMALL)
    hub.faults[name] = Fault(times=99, flip=5)
    text = fails(f"{prefix}:{TINY}")
    assert f"{name} of {TINY} arrived damaged twice" in text
    assert not list(tmp_path.rglob(f"snapshots/*/{name}"))


@pytest.mark.parametrize("start", [b"x" * 1000, b"x" * len(BIG_FILE), BIG_FILE + b"more", BIG_FILE])
def test_a_beginning_that_is_wrong_is_not_built_upon(hub: HubServer, tmp_path: Path, start: bytes) -> None:
    hub.add(BIG, {"big.gguf": BIG_FILE})
    hub.faults = {"big.gguf": Fault(cut=MIB), f"cdn/{BIG}/big.gguf": Fault(times=99, status=500)}
    assert "MB are kept" in fails(BIG)
    hub.faults.clear()
    (partial,) = tmp_path.rglob("*.incomplete")
    assert partial.read_bytes() == BIG_FILE[:MIB]
    partial.write_bytes(start)
    assert hubs.find(BIG).path.read_bytes() == BIG_FILE


def test_verify_finds_what_decayed_on_the_disk(hub: HubServer) -> None:
    hub.add(TINY, SMALL)
    path = hubs.find(TINY).path / "model.safetensors"
    blob = path.resolve()
    blob.chmod(0o644)
    blob.write_bytes(b"\2" + SMALL["model.safetensors"][1:])
    assert hubs.find(TINY, refresh=True).path / "model.safetensors" == path
    assert path.read_bytes() != SMALL["model.safetensors"], "sizes are equal"
    hubs.find(TINY, refresh=True, verify=True)
    assert path.read_bytes() == SMALL["model.safetensors"]


def test_two_pulls_at_once_fetch_every_file_once(hub: HubServer) -> None:
    hub.add(BIG, {"big.gguf": BIG_FILE})
    gate = threading.Event()
    hub.faults["big.gguf"] = Fault(cut=MIB, gate=gate)
    events = list[Fetching]()

    def report(event: Fetching) -> None:
        events.append(event)
        if event.state == "wait":
            gate.set()

    with start_pull(BIG) as process:
        until(lambda: bool(hub.fetched("big.gguf")))
        path = hubs.find(BIG, report=report).path
        out, _ = process.communicate(timeout=20)
    assert out.strip() == str(path) and path.read_bytes() == BIG_FILE
    assert "wait" in [event.state for event in events]
    assert len(hub.fetched("big.gguf")) == 1


def test_where_links_are_impossible_there_are_plain_files(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: Any) -> None:
        raise OSError("links are not supported here")

    monkeypatch.setattr(Path, "symlink_to", no_links)
    hub.add(TINY, SMALL)
    path = hubs.find(TINY).path
    assert not (path / "config.json").is_symlink()
    same(path, SMALL)
    before = len(hub.fetched())
    assert hubs.find(TINY, refresh=True).path == path
    assert len(hub.fetched()) == before


def test_a_full_disk_is_noticed_before(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(TINY, SMALL)
    usage = type(shutil.disk_usage("/"))(10**12, 10**12 - 10**6, 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert "HF_HOME" in fails(TINY) and not hub.fetched()
    assert "MODELSCOPE_CACHE" in fails(f"modelscope:{TINY}")


# No network, and other failures


def test_without_a_network_what_is_here_is_used(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(TINY, SMALL)
    path = hubs.find(TINY).path
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    found = hubs.find(TINY, refresh=True)
    assert found.path == path and "127.0.0.1:9 can not be reached" in found.note
    text = fails("acme/other")
    assert "no such directory here" in text and "127.0.0.1:9" in text and "HF_ENDPOINT" not in text
    assert "modelscope:acme/other" in text
    monkeypatch.setenv("HF_ENDPOINT", "http://no-such-host.invalid")
    assert "can not be reached" in fails("acme/other")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hubs.find(TINY, refresh=True).path == path
    assert "HF_HUB_OFFLINE" in fails("acme/other")


def test_a_mirror_is_asked_instead(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(TINY, SMALL)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert hubs.find(TINY, endpoint=f"{hub.url}/").path.is_dir()
    assert "'ftp://x'" in fails("acme/other", UsageError, endpoint="ftp://x")


@pytest.mark.parametrize(
    ("status", "says"),
    [(500, "answers 500"), (503, "answers 503"), (429, "HF_TOKEN"), (418, "answers 418")],
)
def test_an_answer_that_is_none_is_said_in_one_line(hub: HubServer, status: int, says: str) -> None:
    hub.add(TINY, SMALL)
    hub.faults["main"] = Fault(times=99, status=status)
    assert says in fails(TINY)
    hub.faults.clear()
    hub.faults["model.safetensors"] = Fault(times=99, status=status)
    assert says in fails(TINY) and "model.safetensors" in fails(TINY)


def test_trouble_that_passes_is_waited_for(hub: HubServer) -> None:
    hub.add(TINY, SMALL)
    hub.faults["main"] = Fault(times=2, status=503)
    hub.faults["model.safetensors"] = Fault(times=3, status=429, headers={"Retry-After": "0"})
    assert hubs.find(TINY).path.is_dir()


def test_a_long_pause_is_said_and_not_sat_out(hub: HubServer) -> None:
    hub.add(TINY, SMALL)
    hub.faults["main"] = Fault(times=99, status=429, headers={"Retry-After": "3600"})
    began = time.monotonic()
    assert "pause for 3600 s" in fails(TINY)
    assert time.monotonic() - began < 5 and len(hub.log) == 1


def test_the_limit_of_hugging_face_is_understood(hub: HubServer) -> None:
    hub.add(TINY, SMALL)
    hub.faults["main"] = Fault(times=99, status=429, headers={"RateLimit": '"api";r=0;t=255'})
    assert "pause for 255 s" in fails(TINY) and len(hub.log) == 1


def test_a_silent_server_is_given_up(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "READ_S", 0.05)
    monkeypatch.setattr(download, "RETRIES", 1)
    gate = threading.Event()
    hub.add(BIG, {"big.gguf": BIG_FILE})
    hub.faults["big.gguf"] = Fault(times=99, cut=1000, gate=gate)
    text = fails(BIG)
    gate.set()
    assert "sent nothing for 0.05 s" in text and "kept" in text


def test_a_model_that_is_not_there_gated_or_private(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(TINY, SMALL)
    assert "acme/none is not on Hugging Face" in fails("hf:acme/none")
    assert "no such directory here, and acme/none is not on" in fails("acme/none")
    assert "acme/none is not on ModelScope" in fails("modelscope:acme/none")
    assert "no revision 'v7'" in fails(f"{TINY}@v7")
    assert "at revision 'v7'" in fails(f"modelscope:{TINY}@v7")
    hub.raw["/repo/files"] = b'{"Code": 404, "Success": false, "Data": {"Files": null}}'
    assert f"{TINY} is not on ModelScope" in fails(f"modelscope:{TINY}")
    monkeypatch.setenv("HF_TOKEN", "bad")
    assert "token is not accepted" in fails("hf:acme/none")
    monkeypatch.delenv("HF_TOKEN")
    hub.log.clear()
    hub.faults["model.safetensors"] = Fault(times=99, status=403)
    text = fails(TINY)
    assert "says 403 to the request for model.safetensors" in text and "is not on" not in text
    hub.faults.clear()
    hub.gated.add(TINY)
    text = fails(TINY)
    assert "gated" in text and f"{hub.url}/{TINY}" in text and "HF_TOKEN" in text
    monkeypatch.setenv("HF_TOKEN", "good")
    assert hubs.find(TINY).path.is_dir()
    assert {asked.token for asked in hub.log if "/cdn/" not in asked.path} == {None, "Bearer good"}


def test_a_repository_of_pickles_or_without_a_model_is_refused_with_advice(hub: HubServer) -> None:
    hub.add(TINY, {"config.json": b"{}", "pytorch_model.bin": b"x" * 20_000})
    assert "pickles" in fails(TINY) and "save_pretrained" in fails(TINY)
    hub.add(TINY, {"README.md": b"#"})
    assert "neither safetensors nor GGUF" in fails(TINY)
    hub.add(TINY, {"model.safetensors": b"x"})
    assert "no config.json" in fails(TINY)
    assert not hub.fetched()


# Strangers


@pytest.mark.parametrize("prefix", ["hf", "modelscope"])
@pytest.mark.parametrize(
    "name",
    [
        "../../evil.safetensors",
        "/etc/evil.safetensors",
        "a/../../evil.gguf",
        "C:evil.gguf",
        "a\\..\\evil.gguf",
        "a//evil.gguf",
        "evil\x00.gguf",
        "evil\x1b[2J.gguf",
        "evil\ud800.gguf",
        "x" * 300 + ".gguf",
        ".",
        "",
    ],
)
def test_names_that_leave_the_folder_spoil_the_list(
    hub: HubServer, tmp_path: Path, name: str, prefix: str
) -> None:
    hub.add(TINY, SMALL)
    hub.names.append(name)
    text = fails(f"{prefix}:{TINY}")
    assert "outside of its folder" in text and text.isprintable()
    assert not hub.fetched() and not list(tmp_path.rglob("*evil*"))


LISTS: dict[str, bytes] = {
    "no JSON": b"<html>please log in</html>",
    "deep": b"[" * 100_000,
    "a list": b"[]",
    "no files": json.dumps({"sha": "a" * 40, "Data": {}}).encode(),
    "strange commit": json.dumps({"sha": "../../x", "siblings": []}).encode(),
    "strange entries": json.dumps(
        {"sha": "a" * 40, "siblings": [7], "Data": {"Files": [{"Path": 7, "Size": "many"}]}}
    ).encode(),
    "negative size": json.dumps(
        {
            "sha": "a" * 40,
            "siblings": [{"rfilename": "a.gguf", "size": -1}],
            "Data": {"Files": [{"Path": "a.gguf", "Size": -1}]},
        }
    ).encode(),
    "size beyond all": json.dumps(
        {
            "sha": "a" * 40,
            "siblings": [{"rfilename": "a.gguf", "size": 10**30}],
            "Data": {"Files": [{"Path": "a.gguf", "Size": 10**30}]},
        }
    ).encode(),
    "many files": json.dumps(
        {
            "sha": "a" * 40,
            "siblings": [{"rfilename": f"{i}.gguf", "size": 1} for i in range(30_000)],
            "Data": {"Files": [{"Path": f"{i}.gguf", "Size": 1} for i in range(30_000)]},
        }
    ).encode(),
}


@pytest.mark.parametrize("prefix", ["hf", "modelscope"])
@pytest.mark.parametrize("kind", LISTS)
def test_lists_that_are_none_are_refused(hub: HubServer, kind: str, prefix: str) -> None:
    hub.add(TINY, SMALL)
    hub.raw["/revision/main"] = hub.raw["/repo/files"] = LISTS[kind]
    text = fails(f"{prefix}:{TINY}")
    assert TINY in text and ("30,000 files" in text) == (kind == "many files") and not hub.fetched()


def test_an_endless_list_is_not_read_to_its_end(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_JSON", 1 << 20)
    hub.add(TINY, SMALL)
    hub.raw["/revision/main"] = b" " * (3 << 20)
    assert "beyond 1 MiB" in fails(TINY)


def test_a_file_longer_than_listed_is_not_taken(hub: HubServer, tmp_path: Path) -> None:
    hub.add(BIG, {"big.gguf": BIG_FILE})
    hub.faults["big.gguf"] = Fault(times=99, longer=b"x" * MIB)
    assert "is longer than" in fails(BIG)
    assert all(path.stat().st_size == 0 for path in tmp_path.rglob("*.incomplete"))


@pytest.mark.parametrize("where", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://x"])
def test_a_redirect_to_another_kind_of_address_is_refused(hub: HubServer, where: str) -> None:
    hub.add(TINY, SMALL)
    hub.faults["model.safetensors"] = Fault(times=99, location=where)
    assert "Refused" in fails(TINY)
    hub.faults["main"] = Fault(times=99, location=where)
    assert "Refused" in fails(TINY)


def test_a_redirect_in_a_circle_ends(hub: HubServer) -> None:
    hub.add(TINY, SMALL)
    hub.faults["model.safetensors"] = Fault(times=999, location=f"/{TINY}/resolve/main/model.safetensors")
    assert "Refused" in fails(TINY)


def test_a_token_stays_with_the_hub_it_is_for(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(TINY, SMALL)
    monkeypatch.setenv("HF_TOKEN", "secret")
    hubs.find(TINY)
    tokens = {asked.path.split("/")[1]: asked.token for asked in hub.log}
    assert tokens["api"] == "Bearer secret" and tokens["cdn"] is None


@pytest.mark.parametrize(
    ("prefix", "variable", "token"),
    [
        ("hf", "HF_TOKEN", "sécret"),
        ("ms", "MODELSCOPE_API_TOKEN", "sécret"),
        ("ms", "MODELSCOPE_API_TOKEN", "sec\nret"),
    ],
)
def test_a_token_that_is_none_is_named_and_not_shown(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, prefix: str, variable: str, token: str
) -> None:
    hub.add(TINY, SMALL)
    monkeypatch.setenv(variable, token)
    text = fails(f"{prefix}:{TINY}")
    assert variable in text and "ret" not in text.removeprefix("model")


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"])
def test_a_proxy_that_makes_no_sense_is_named(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    huggingface_hub.close_session()
    monkeypatch.setenv(variable, "gopher://nowhere")
    assert variable in fails("hf:acme/tiny", UsageError)
    monkeypatch.delenv(variable)
    hub.add(TINY, SMALL)
    assert hubs.find(TINY).path.is_dir()
