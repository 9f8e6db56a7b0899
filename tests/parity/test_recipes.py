"""Recipes as commands: processes that know of each other, one-line refusals, a checkpoint as it is bundled.

In: a tiny random checkpoint, scripts of a few lines. It needs PyTorch and transformers.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from text_fixtures import END_ID, PAD_ID, SIZE

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "recipes"))

import bundle  # noqa: E402
import train_nano  # noqa: E402

from deepfast import LLM, SamplingParams  # noqa: E402
from deepfast.config import EngineConfig  # noqa: E402
from deepfast.train.commands import Run  # noqa: E402
from deepfast.train.presets import NANO, Shape  # noqa: E402
from deepfast.train.stage import Stage  # noqa: E402
from deepfast.train.supervised import new_model  # noqa: E402
from deepfast.train.tokenizer import BUNDLED, copy_text_files  # noqa: E402
from deepfast.types import DeepfastError, UsageError  # noqa: E402


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("work") / "general"
    new_model(Shape(SIZE, 64, 2, 2, 1, 32, 64, 512), PAD_ID, END_ID).save_pretrained(out)
    copy_text_files(BUNDLED, out)
    return out


def bundled(checkpoint: Path, out: Path) -> Path:
    bundle.main(Run(NANO, checkpoint.parent, argparse.Namespace(model=None, out=out)))
    return out


def test_a_bundled_model_is_the_checkpoint_rounded_to_q8(checkpoint: Path, tmp_path: Path) -> None:
    out = bundled(checkpoint, tmp_path / "out")
    files = sorted(path.name for path in out.iterdir())
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= set(files)
    ids, params = [5, 6, 7, 8], SamplingParams(temperature=0, max_tokens=1, logprobs=0, ignore_eos=True)
    said = []
    for model in (checkpoint, out):
        with LLM(model, config=EngineConfig(threads=1)) as llm:
            said.append(llm.generate([ids], params)[0].logprobs[0])
    assert said[0].logprob == pytest.approx(said[1].logprob, abs=0.02)
    rounded = bundle.quantised_tensors(checkpoint / "model.safetensors")
    weight = _weight(checkpoint, "model.layers.0.mlp.up_proj.weight")
    values = rounded["model.layers.0.mlp.up_proj.weight.q8"].astype(np.float32).reshape(64, 2, 32)
    scales = rounded["model.layers.0.mlp.up_proj.weight.scales"].astype(np.float32)[:, :, None]
    assert (np.abs(values * scales - weight.reshape(64, 2, 32)) <= 0.57 * scales).all()


def _weight(checkpoint: Path, name: str) -> np.ndarray:
    from safetensors.numpy import load_file

    return load_file(checkpoint / "model.safetensors")[name]


def test_what_is_bundled_already_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    out = bundled(checkpoint, tmp_path / "out")
    with pytest.raises(UsageError, match="is no plain checkpoint"):
        bundle.main(Run(NANO, tmp_path, argparse.Namespace(model=str(out), out=tmp_path / "again")))


def test_processes_know_of_each_other(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, pathlib\n"
        "names = ('RANK', 'WORLD_SIZE', 'LOCAL_WORLD_SIZE', 'MASTER_PORT')\n"
        "pathlib.Path(sys.argv[1], os.environ['RANK']).write_text(' '.join(os.environ[n] for n in names))\n"
    )
    train_nano._command([str(script), str(tmp_path)], 2)
    first, second = ((tmp_path / rank).read_text().split() for rank in "01")
    assert first[:3] == ["0", "2", "2"] and second[:3] == ["1", "2", "2"] and first[3] == second[3]


def test_when_one_process_fails_the_others_end(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import os, sys, time\ntime.sleep(60) if os.environ['RANK'] == '0' else sys.exit(3)\n")
    began = time.monotonic()
    with pytest.raises(DeepfastError, match="ended with status 3"):
        train_nano._command([str(script)], 2)
    assert time.monotonic() - began < 30


def test_a_stage_begun_otherwise_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    stage = Stage(tmp_path, "fusion")
    stage.begin(checkpoint, "nano")
    stage.begin(checkpoint, "nano")
    with pytest.raises(UsageError, match="begun with another preset"):
        stage.begin(checkpoint, "mini")
    with pytest.raises(UsageError, match="begun with another start"):
        stage.begin(BUNDLED, "nano")
    other = Stage(tmp_path, "distill")
    other.begin(checkpoint, "nano", tasks=["sum"], seed=0)
    with pytest.raises(UsageError, match="begun with another tasks"):
        other.begin(checkpoint, "nano", tasks=["product"], seed=0)


@pytest.mark.parametrize(
    ("recipe", "arguments", "said"),
    [
        ("pretrain", ["--preset", "big"], "no preset 'big'"),
        ("pretrain", ["--preset", "cluster"], "Begin with cold_start"),
        ("cold_start", ["--work", "nowhere"], "python recipes/pretrain.py --work nowhere"),
        ("train_nano", ["--preset", "cluster"], "needs GPUs"),
        ("train_nano", ["--processes", "0"], "--processes 0"),
        ("bundle", ["--work", "pyproject.toml"], "is a file"),
    ],
)
def test_bad_wishes_are_refused_in_one_line(recipe: str, arguments: list[str], said: str) -> None:
    command = [sys.executable, "-P", str(ROOT / "recipes" / f"{recipe}.py"), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and said in done.stderr and done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_the_config_says_how_the_weights_are_kept(checkpoint: Path, tmp_path: Path) -> None:
    config = json.loads((bundled(checkpoint, tmp_path / "out") / "config.json").read_text())
    assert config["quantization_config"] == {"quant_method": "deepfast", "bits": 8, "group_size": 32}
    assert config["architectures"] == ["Qwen3ForCausalLM"]
