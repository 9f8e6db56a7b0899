"""Makes models.npz: what `transformers` computes for the checkpoints of tests/checkpoints.py.

In: nothing; run `python tests/golden/make_models.py` with the extra `parity` installed.
Out: for each model the logits of a prompt, [N, V] float32 in eager attention, and 32 greedy tokens.
Does not know: our decoder.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from checkpoints import GOLDEN, PROMPT, make_golden

NEW_TOKENS = 32


def main() -> None:
    """Write models.npz beside this file."""
    arrays: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for name in GOLDEN:
            path = make_golden(Path(folder) / name, name)
            model = AutoModelForCausalLM.from_pretrained(
                path, dtype=torch.float32, attn_implementation="eager"
            ).eval()
            ids = list(PROMPT)
            arrays[f"{name}.logits"] = model(torch.tensor([ids])).logits[0].numpy()  # [N, V]
            for _ in range(NEW_TOKENS):
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            arrays[f"{name}.greedy"] = np.asarray(ids[len(PROMPT) :], np.int32)
    np.savez_compressed(Path(__file__).with_name("models.npz"), **arrays)


if __name__ == "__main__":
    main()
