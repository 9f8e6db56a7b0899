"""Many GPUs: accelerate knows all settings of our file, our optimiser works on weights that FSDP2 spreads.

In: recipes/accelerate/fsdp.yaml, a tiny model in one process of gloo. No GPU; two are not shown here.
"""

import argparse
import copy
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
accelerate = pytest.importorskip("accelerate")

from accelerate.commands.config.config_args import load_config_from_file  # noqa: E402
from accelerate.commands.launch import _validate_launch_command, launch_command_parser  # noqa: E402
from accelerate.utils.launch import prepare_multi_gpu_env  # noqa: E402

from deepfast.train.documents import Mixture  # noqa: E402
from deepfast.train.presets import Supervised  # noqa: E402
from deepfast.train.supervised import optimiser  # noqa: E402

FILE = Path(__file__).resolve().parents[2] / "recipes/accelerate/fsdp.yaml"


def launched(*more: str) -> argparse.Namespace:
    given = ["--config_file", str(FILE), *more, "recipes/pretrain.py", "--preset", "cluster"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(given))
    return args


def test_accelerate_reads_the_file() -> None:
    config = load_config_from_file(str(FILE))
    assert (config.distributed_type.value, config.mixed_precision, config.num_processes) == (
        "FSDP",
        "bf16",
        8,
    )
    options = vars(launch_command_parser().parse_args(["x.py"]))
    assert not {name for name in config.fsdp_config if name not in options}, "accelerate would ignore these"


def test_the_launcher_passes_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    args = launched(
        "--num_processes", "16", "--num_machines", "2", "--machine_rank", "1", "--main_process_ip", "h"
    )
    assert args.use_fsdp and args.training_script_args == ["--preset", "cluster"]
    environment = prepare_multi_gpu_env(args)
    wanted = {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
        "ACCELERATE_MIXED_PRECISION": "bf16",
    }
    assert {name: environment[name] for name in wanted} == wanted


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_the_optimiser_updates_spread_weights_as_whole_ones(kind: str, tmp_path: Path) -> None:
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1
    )
    try:
        torch.manual_seed(0)
        shape = transformers.Qwen3Config(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=16, tie_word_embeddings=True,
        )  # fmt: skip
        whole = transformers.Qwen3ForCausalLM(shape)
        spread = copy.deepcopy(whole)
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        for layer in spread.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(spread, mesh=mesh)
        ids = torch.randint(0, 64, (2, 12))
        settings = Supervised(1, Mixture({"think": 1.0}), 1e-2, 1, 1, 1, optimiser=kind)
        for model in (whole, spread):
            made = optimiser(model, settings)
            for _ in range(2):
                model(input_ids=ids, labels=ids).loss.backward()
                made.step()
                made.zero_grad()
        for ours, theirs in zip(spread.parameters(), whole.parameters(), strict=True):
            torch.testing.assert_close(ours.full_tensor(), theirs, rtol=1e-4, atol=1e-6)
    finally:
        torch.distributed.destroy_process_group()
