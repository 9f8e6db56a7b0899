"""Models from hubs: what is fetched, what is chosen, what a name means, and that all of it is found again.

In: a hub in this process that speaks both protocols. Out: equal bytes, few requests, one meaning for a name.
Does not know: the real hubs; what goes wrong on the way (test_hub_faults.py does).
"""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
from checkpoints import chat_checkpoint
from hub_server import GGUF, SMALL, TINY, HubServer, fails, same

from deepfast.model import choose
from deepfast.model import hub as hubs
from deepfast.types import ModelError, UsageError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A random model that speaks, as files."""
    path = tmp_path_factory.mktemp("tiny")
    chat_checkpoint(path, shards=3)
    return {file.name: file.read_bytes() for file in path.iterdir()}


# What is fetched


@pytest.mark.parametrize("name", [TINY, f"hf:{TINY}", f"modelscope:{TINY}", f"{TINY}@v1", f"ms:{TINY}@v1"])
def test_only_what_is_needed_is_fetched_and_then_found_without_a_request(
    hub: HubServer, checkpoint: dict[str, bytes], name: str
) -> None:
    aside = {
        "README.md": b"# tiny",
        "modeling_tiny.py": b"raise SystemExit('never run')",
        "pytorch_model.bin": b"pickle",
        "consolidated.safetensors": b"the same once more",
        "onnx/model.onnx": b"x" * 20_000,
        "vocab.json": b"{}",
    }
    hub.add(TINY, {**checkpoint, **aside})
    found = hubs.find(name)
    same(found.path, checkpoint)
    assert found.quantize is None
    before = len(hub.log)
    assert hubs.find(name) == found
    assert len(hub.log) == before


def test_our_cache_is_the_cache_of_huggingface_hub(
    hub: HubServer, checkpoint: dict[str, bytes], tmp_path: Path
) -> None:
    hub.add(TINY, checkpoint)
    path = hubs.find(TINY).path
    cache = tmp_path / "hf" / "hub"
    before = len(hub.log)
    theirs = huggingface_hub.snapshot_download(TINY, cache_dir=cache, local_files_only=True)
    assert Path(theirs) == path
    assert len(hub.log) == before
    file = huggingface_hub.hf_hub_download(TINY, "config.json", cache_dir=cache, endpoint=hub.url)
    assert Path(file) == path / "config.json"
    assert not [a for a in hub.log[before:] if a.method == "GET"]
    (repo,) = huggingface_hub.scan_cache_dir(cache).repos
    assert (repo.repo_id, repo.nb_files) == (TINY, len(checkpoint))


def test_what_huggingface_hub_fetched_is_found_here(
    hub: HubServer, checkpoint: dict[str, bytes], tmp_path: Path
) -> None:
    hub.add(TINY, checkpoint)
    theirs = huggingface_hub.snapshot_download(TINY, cache_dir=tmp_path / "hf" / "hub", endpoint=hub.url)
    before = len(hub.log)
    assert hubs.find(TINY).path == Path(theirs)
    assert len(hub.log) == before


def test_what_older_libraries_of_modelscope_fetched_is_found_here(
    hub: HubServer, checkpoint: dict[str, bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "modelscope" / "models" / "acme" / "tiny-0___6b"
    folder.mkdir(parents=True)
    for name, data in checkpoint.items():
        (folder / name).write_bytes(data)
    assert hubs.find("modelscope:acme/tiny-0.6b").path == folder
    assert hub.log == []
    assert [model.name for model in hubs.kept()] == ["modelscope:acme/tiny-0.6b"]


def test_half_a_snapshot_is_no_model(hub: HubServer, checkpoint: dict[str, bytes], tmp_path: Path) -> None:
    hub.add(TINY, checkpoint)
    cache = tmp_path / "hf" / "hub"
    for name in ("config.json", "tokenizer.json", "model-00002-of-00003.safetensors"):
        huggingface_hub.hf_hub_download(TINY, name, cache_dir=cache, endpoint=hub.url)
    before = len(hub.fetched())
    same(hubs.find(TINY).path, checkpoint)
    assert len(hub.fetched()) == before + 2, "the shard that was here is not asked for again"


def test_a_new_commit_is_fetched_only_when_asked_for(hub: HubServer) -> None:
    hub.add(TINY, SMALL)
    old = hubs.find(TINY).path
    hub.add(TINY, {**SMALL, "config.json": b'{"architectures": ["Qwen2ForCausalLM"]}'})
    assert hubs.find(TINY).path == old
    weights = len(hub.fetched("model.safetensors"))
    new = hubs.find(TINY, refresh=True).path
    assert new != old and b"Qwen2" in (new / "config.json").read_bytes()
    assert b"Qwen3" in (old / "config.json").read_bytes()
    assert len(hub.fetched("model.safetensors")) == weights, "equal content is kept"
    assert hubs.find(TINY).path == new


def test_modelscope_gets_new_files_under_the_same_revision(hub: HubServer) -> None:
    hub.add(TINY, SMALL)
    path = hubs.find(f"modelscope:{TINY}").path
    changed = {**SMALL, "config.json": SMALL["config.json"].replace(b"Qwen3", b"Qwen2")}
    hub.add(TINY, changed)
    assert hubs.find(f"modelscope:{TINY}", refresh=True).path == path
    same(path, changed)


# GGUF


def gguf_files(*names: str) -> dict[str, bytes]:
    return {name: f"GGUF {name}".encode() for name in names}


QUANTS = gguf_files("tiny-Q4_K_M.gguf", "tiny-Q8_0.gguf", "tiny-UD-Q2_K_XL.gguf", "mmproj-F16.gguf")
SPLIT = gguf_files(*(f"Q6_K/tiny-Q6_K-0000{i}-of-00003.gguf" for i in (1, 2, 3)))


@pytest.mark.parametrize(
    ("pick", "names"),
    [
        ("Q4_K_M", ["tiny-Q4_K_M.gguf"]),
        ("q8_0", ["tiny-Q8_0.gguf"]),
        ("tiny-q8_0.gguf", ["tiny-Q8_0.gguf"]),
        ("tiny-Q8_0", ["tiny-Q8_0.gguf"]),
        ("ud-q2_k_xl", ["tiny-UD-Q2_K_XL.gguf"]),
        ("Q6_K", list(SPLIT)),
        ("Q6_K/tiny-Q6_K-00002-of-00003.gguf", list(SPLIT)),
    ],
)
def test_one_gguf_of_several_is_named_in_any_case(hub: HubServer, pick: str, names: list[str]) -> None:
    hub.add(GGUF, {**QUANTS, **SPLIT, "README.md": b"#"})
    found = hubs.find(f"{GGUF}:{pick}")
    assert found.path.is_file() and found.path.as_posix().endswith(names[0])
    snapshot = found.path.parents[names[0].count("/")]
    same(snapshot, {name: {**QUANTS, **SPLIT}[name] for name in names})
    before = len(hub.log)
    assert hubs.find(f"{GGUF}:{pick}") == found and len(hub.log) == before


def test_several_gguf_files_are_listed_and_none_is_guessed(hub: HubServer) -> None:
    hub.add(GGUF, {**QUANTS, **SPLIT})
    text = fails(GGUF)
    assert f"{GGUF}:Q4_K_M" in text and "Q4_K_M, Q6_K, Q8_0, UD-Q2_K_XL" in text and "F16" not in text
    assert "no 'Q3_K_M'" in fails(f"{GGUF}:Q3_K_M")
    hub.add(GGUF, gguf_files("only.gguf"))
    assert hubs.find(GGUF, refresh=True).path.name == "only.gguf"
    assert not [a for a in hub.fetched() if "Q" in a.path]
    hub.add(GGUF, QUANTS)
    assert hubs.find(GGUF).path.name == "only.gguf"
    assert "several GGUF files" in fails(GGUF, refresh=True)


def test_parts_that_are_missing_are_noticed(hub: HubServer) -> None:
    parts = list(SPLIT)
    hub.add(GGUF, {name: SPLIT[name] for name in parts[:2]})
    assert "only some parts" in fails(f"{GGUF}:Q6_K")


def test_a_catalog_name_fetches_its_official_file(hub: HubServer) -> None:
    hub.add("Qwen/Qwen3-4B-GGUF", gguf_files("Qwen3-4B-Q4_K_M.gguf", "Qwen3-4B-Q8_0.gguf"))
    assert hubs.find("qwen3").path.name == "Qwen3-4B-Q4_K_M.gguf"
    assert hubs.find("QWEN3:4B-q8").path.name == "Qwen3-4B-Q8_0.gguf"
    hub.add("Qwen/Qwen3-0.6B", SMALL)
    found = hubs.find("modelscope:qwen3:0.6b-q4")
    assert found.quantize == "q4" and "modelscope" in found.path.parts
    assert hubs.find("qwen3:0.6b-bf16").quantize is None


def test_the_environment_names_the_usual_hub(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(TINY, SMALL)
    monkeypatch.setenv("DEEPFAST_HUB", "modelscope")
    assert "modelscope" in hubs.find(TINY).path.parts
    assert "modelscope" not in hubs.find(f"hf:{TINY}").path.parts
    monkeypatch.setenv("DEEPFAST_HUB", "attic")
    assert "'attic'" in fails(TINY, UsageError)


# Names


@pytest.mark.parametrize(
    ("model", "want"),
    [
        ("Qwen/Qwen3-0.6B", hubs.Wanted("hf", "Qwen/Qwen3-0.6B", plain=True)),
        ("HF:Qwen/Qwen3-0.6B", hubs.Wanted("hf", "Qwen/Qwen3-0.6B")),
        ("hf:a/b@main", hubs.Wanted("hf", "a/b", "main")),
        ("a/b@refs/pr/1:Q4_0", hubs.Wanted("hf", "a/b", "refs/pr/1", "Q4_0", plain=True)),
        ("a/b:x/Q4_0.gguf@v1", hubs.Wanted("hf", "a/b", "v1", "x/Q4_0.gguf", plain=True)),
        ("modelscope:qwq", hubs.Wanted("modelscope", "Qwen/QwQ-32B-GGUF", pick="Q4_K_M")),
        ("qwen3:4b-instruct-2507", hubs.Wanted("hf", "Qwen/Qwen3-4B-Instruct-2507", quantize="q4")),
        ("hf.co/Qwen/Qwen3-8B-GGUF:Q4_0", hubs.Wanted("hf", "Qwen/Qwen3-8B-GGUF", pick="Q4_0")),
        ("https://huggingface.co/a/b/", hubs.Wanted("hf", "a/b")),
        ("https://www.modelscope.cn/models/a/b", hubs.Wanted("modelscope", "a/b")),
    ],
)
def test_a_name_asks_for_one_thing(model: str, want: hubs.Wanted) -> None:
    assert hubs.wanted(model) == want


def test_the_address_of_a_page_opens_its_model(hub: HubServer) -> None:
    hub.add(TINY, SMALL)
    assert hubs.find(f"hf.co/{TINY}") == hubs.find(f"https://huggingface.co/{TINY}") == hubs.find(TINY)
    for other in (f"https://example.org/{TINY}", f"https://huggingface.co/{TINY}/tree/main", "hf.co/"):
        assert repr(other) in fails(other)


@pytest.mark.parametrize(
    ("model", "quantize", "want"),
    [
        ("qwen3:4b", "q8", ("Qwen/Qwen3-4B-GGUF", "Q8_0", None)),
        ("qwen3:4b-q8", "q8", ("Qwen/Qwen3-4B-GGUF", "Q8_0", None)),
        ("qwen3:0.6b", "q4", ("Qwen/Qwen3-0.6B", None, "q4")),
        ("qwen3:4b-instruct-2507", "q8", ("Qwen/Qwen3-4B-Instruct-2507", None, "q8")),
        ("qwen3:4b-bf16", "q8", ("Qwen/Qwen3-4B", None, "q8")),
        ("qwen3:4b-q6_k", "q4", ("Qwen/Qwen3-4B-GGUF", "Q6_K", "q4")),
        ("a/b", "q4", ("a/b", None, "q4")),
    ],
)
def test_a_format_that_is_asked_for_completes_a_name(
    model: str, quantize: hubs.Packing, want: tuple[str, str | None, str | None]
) -> None:
    found = hubs.wanted(model, quantize)
    assert (found.repo, found.pick, found.quantize) == want


@pytest.mark.parametrize(("model", "quantize"), [("qwen3:4b-q4", "q8"), ("qwen3:0.6b-q8", "q4")])
def test_a_format_that_the_name_contradicts_is_refused(model: str, quantize: hubs.Packing) -> None:
    says = f"name says {model[-2:]}, --quantize says {quantize}"
    assert says in fails(model, UsageError, quantize=quantize)


@pytest.mark.parametrize(
    "model",
    [
        *("./qwen3", "~/models/x", "/no/such/folder", "../Qwen/x", "a/b/c", "", ".", "models\\x", "x.gguf"),
        *("a/b.gguf", "tests/no-model", "mymodel", "a/b@", "a/b:", "a/b@../x", "a/b@a/../b", "a/b@v1@v2"),
        *("a/..", "../a", "a/b--c", "hf:", "hf:a", "hf:a/b/c", "a/b c", "a/b?x=1", "a/b#x", "a/b\n", "\x00"),
        *("a/" + "b" * 200, "-/x", "qwen3:", "hf:hf:a/b"),
    ],
)
def test_what_is_no_name_is_refused_without_a_request(
    hub: HubServer, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).resolve().parents[1])
    if model == ".":
        assert hubs.find(model).path == Path(".")  # a directory; what is in it, its reader says
        return
    if model == "qwen3:":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert repr(model) in fails(model)
    assert hub.log == []


def test_a_path_object_is_never_a_name(hub: HubServer) -> None:
    with pytest.raises(ModelError, match="'Qwen/Qwen3-0.6B' was not found"):
        hubs.find(Path("Qwen/Qwen3-0.6B"))
    assert hub.log == []


def test_a_path_wins_over_a_name(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("acme/tiny", "qwen3"):
        (tmp_path / folder).mkdir(parents=True)
        assert hubs.find(folder).path == Path(folder)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    (tmp_path / "m.bin").write_bytes(b"")
    assert hubs.find("m.gguf").path == Path("m.gguf")
    assert "not a .gguf file" in fails("m.bin")
    assert "write hf:acme/other" in fails("acme/other")
    assert hub.log == []


def test_quantisations_are_read_from_names_of_files() -> None:
    names = {
        "Qwen3-8B-Q4_K_M.gguf": "Q4_K_M",
        "qwen2.5-7b-instruct-q5_0-00001-of-00002.gguf": "Q5_0",
        "BF16/Qwen3-8B-BF16.gguf": "BF16",
        "model.i1-IQ4_XS.gguf": "IQ4_XS",
        "Qwen3-8B-UD-Q4_K_XL.gguf": "UD-Q4_K_XL",
        "qwen.gguf": None,
    }
    assert {name: choose.quantisation(name) for name in names} == names
