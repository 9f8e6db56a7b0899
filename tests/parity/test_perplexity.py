"""Perplexity and KL divergence against `transformers` in float32.

In: random checkpoints of all four layouts, as they are and quantised. Out: equal numbers.
Does not know: text.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from checkpoints import GOLDEN, make_checkpoint, random_tensors
from decoding import make_backend

from deepfast.backend.cpu import CpuBackend
from deepfast.backend.quant import rounded
from deepfast.model.compare import compare
from deepfast.model.packed import write_packed
from deepfast.model.weights import Checkpoint

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

IDS = [(37 * i * i + 11 * i + 5) % 160 for i in range(90)]


def log_shares(path: Path) -> np.ndarray:
    """Natural logarithms of the next token's distribution at every position but the last, by transformers."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.inference_mode():
        logits = model(torch.tensor([IDS])).logits[0, :-1].double()
    return np.asarray(torch.log_softmax(logits, dim=-1).numpy())


@pytest.mark.parametrize("name", ["qwen3-tied", "moe-normalised", "qwq", "llama"])
def test_both_perplexities_and_the_divergence_are_theirs(tmp_path: Path, name: str) -> None:
    architecture, config = GOLDEN[name]
    path = make_checkpoint(tmp_path / "original", architecture, seed=5, **config)
    checkpoint = Checkpoint.open(path)
    changed = {
        n: rounded(w, "q8")
        for n, w in random_tensors(checkpoint.config, 5)
        if w.ndim == 2 and "mlp.gate." not in n
    }
    other = make_checkpoint(tmp_path / "other", architecture, seed=5, extra=changed, **config)
    theirs, rounded_theirs = log_shares(path), log_shares(other)
    targets = np.array(IDS[1:])
    rows = np.arange(len(targets))
    divergence = (np.exp(theirs) * (theirs - rounded_theirs)).sum(axis=1)
    found = compare(checkpoint, Checkpoint.open(other), make_backend("reference"), IDS)
    assert found.positions == len(IDS) - 1
    assert found.perplexity_original == pytest.approx(np.exp(-theirs[rows, targets].mean()), rel=1e-4)
    assert found.perplexity == pytest.approx(np.exp(-rounded_theirs[rows, targets].mean()), rel=1e-4)
    assert found.kl_mean == pytest.approx(divergence.mean(), rel=0.02, abs=1e-9)
    write_packed(checkpoint, CpuBackend(2), "q8", tmp_path / "packed")
    native = compare(checkpoint, Checkpoint.open(tmp_path / "packed"), CpuBackend(2), IDS)
    assert native.perplexity_original == pytest.approx(found.perplexity_original, rel=1e-4)
    assert native.perplexity == pytest.approx(found.perplexity, rel=0.05)  # int8 activations besides
