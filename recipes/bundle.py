"""Makes a checkpoint the bundled model: `python recipes/bundle.py --preset nano`.

In: WORK/general, or --model. Out: deepfast/bundled/ (or --out) with q8 weights, one float16 scale per group
of 32, and the text files. The model card there is left as it is; `recipes/card.py --write` measures the
result.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from deepfast.backend.quant import GROUP_SIZE, quantise_q8
from deepfast.model.hub import BUNDLED, resolve
from deepfast.train.commands import Run, run_recipe
from deepfast.train.stage import Stage
from deepfast.train.tokenizer import copy_text_files
from deepfast.types import UsageError

MOST = 24_000_000  # bytes of weights in the wheel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this recipe is asked beside the preset."""
    parser.add_argument("--model", help="a checkpoint in float32 or bfloat16 (default: WORK/general)")
    parser.add_argument(
        "--out", type=Path, default=BUNDLED, help="model directory (default: deepfast/bundled)"
    )


def main(run: Run) -> None:
    """Writes the directory; weights last."""
    from safetensors.numpy import save_file

    args = run.args
    start = resolve(args.model) if args.model else Stage(run.work, "bundle").require("general")
    file, config = start / "model.safetensors", {}
    if file.exists():
        config = json.loads((start / "config.json").read_text(encoding="utf-8"))
    if not config or "quantization_config" in config:
        raise UsageError(f"{start} is no plain checkpoint in one model.safetensors. Name one with --model.")
    tensors = quantised_tensors(file)
    size = sum(array.nbytes for array in tensors.values())
    if size > MOST:
        raise UsageError(
            f"{size / 1e6:.1f} MB of weights are too many for the wheel, which takes {MOST / 1e6:.0f}."
        )
    args.out.mkdir(parents=True, exist_ok=True)
    copy_text_files(start, args.out)
    config["quantization_config"] = {"quant_method": "deepfast", "bits": 8, "group_size": GROUP_SIZE}
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (args.out / "config.json").write_text(text, encoding="utf-8")
    save_file(tensors, args.out / "model.safetensors", metadata={"format": "pt"})
    (args.out / "model.safetensors").chmod(0o644)
    print(f"{size / 1e6:.1f} MB of weights; written to {args.out}")


def quantised_tensors(file: Path) -> dict[str, NDArray[Any]]:
    """Every matrix NAME becomes NAME.q8 and NAME.scales; norms stay float32. A head that repeats the
    embedding is left out."""
    from safetensors import safe_open

    made: dict[str, NDArray[Any]] = {}
    with safe_open(file, "pt") as tensors:
        names = set(tensors.keys()) - {"lm_head.weight"}
        for name in sorted(names):
            array = tensors.get_tensor(name).float().numpy()
            if array.ndim == 2:
                made[f"{name}.q8"], made[f"{name}.scales"] = quantise_q8(array)
            else:
                made[name] = array.copy()
    return made


if __name__ == "__main__":
    run_recipe(main, __doc__, add_arguments)
