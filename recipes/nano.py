"""Trains the bundled model, from nothing to the files in `deepfast/bundled/`: `python recipes/nano.py`.

In: no data but a seed (problems are generated). Out: tokenizer, configuration and q8 weights; checkpoints
under `--work`, from which an interrupted run goes on. Two
CPU cores need 72 minutes at the rate measured on idle ones; a GPU is used when present. It knows nothing of
the engine; `recipes/nano_card.py` measures the result with it.
"""

import argparse
import itertools
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from nano_data import TASK_SHARES, Document, Writer, pack, train_tokenizer
from nano_export import export
from nano_model import Nano, NanoConfig, document_mask, optimisers
from tokenizers import Tokenizer
from torch import Tensor

ROW_LENGTH = 320
FEW_ROWS, MANY_ROWS = 12, 16  # rows of a step, early and late
DOCUMENTS_PER_CHUNK = 4000
RATE = 5e-3
RATES = (  # (token, share of the peak learning rate), linear in between; the last token ends the training
    (0, 0.005),
    (200_000, 1.0),
    (5_750_000, 1.0),
    (8_550_000, 0.513),
    (11_600_000, 0.209),
    (14_550_000, 0.045),
    (14_600_000, 0.15),
    (15_700_000, 0.15),
    (17_200_000, 0.01),
)
TOTAL_TOKENS = RATES[-1][0]
MANY_ROWS_FROM = 5_750_000
LAST_SHARES = {
    "product": 0.13,
    "sum": 0.06,
    "difference": 0.11,
    "letters": 0.20,
    "sorting": 0.25,
    "sorting with repeats": 0.25,
}
STAGES: tuple[tuple[int, dict[str, float]], ...] = (  # (from token, task shares)
    (0, TASK_SHARES),
    (1_900_000, {"product": 0.18, "sum": 0.13, "difference": 0.15, "letters": 0.36, "sorting": 0.18}),
    (5_750_000, {"product": 0.24, "sum": 0.17, "difference": 0.17, "letters": 0.20, "sorting": 0.22}),
    (8_550_000, {"product": 0.21, "sum": 0.11, "difference": 0.15, "letters": 0.25, "sorting": 0.28}),
    (11_600_000, {"product": 0.16, "sum": 0.10, "difference": 0.13, "letters": 0.28, "sorting": 0.33}),
    (14_480_000, LAST_SHARES),
)


@dataclass
class Progress:
    tokens: int = 0
    steps: int = 0
    chunk: int = 0
    chunk_began: int = 0  # tokens when the chunk was begun
    row: int = 0  # rows of the chunk already used
    seconds: float = 0.0


class Rows:
    """The endless training rows, chunk after chunk; equal progress gives equal rows."""

    def __init__(self, tokenizer: Tokenizer, progress: Progress) -> None:
        self.tokenizer, self.progress = tokenizer, progress
        self.rows = self._make()

    def _make(self) -> list[list[Document]]:
        seed = 1_000 + self.progress.chunk
        shares = [shares for start, shares in STAGES if start <= self.progress.chunk_began][-1]
        writer = Writer(self.tokenizer, seed, shares)
        rows = pack([writer.document() for _ in range(DOCUMENTS_PER_CHUNK)], ROW_LENGTH)
        random.Random(seed).shuffle(rows)
        return rows

    def take(self, count: int) -> list[list[Document]]:
        if self.progress.row + count > len(self.rows):
            self.progress.chunk, self.progress.row = self.progress.chunk + 1, 0
            self.progress.chunk_began = self.progress.tokens
            self.rows = self._make()
        start = self.progress.row
        self.progress.row += count
        return self.rows[start : start + count]


def collate(rows: list[list[Document]], device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, document numbers and labels (-100: not learned) of packed rows, each [B, S]."""
    tokens, numbers, labels = ([[fill] * ROW_LENGTH for _ in rows] for fill in (0, -1, -100))
    for index, row in enumerate(rows):
        start = 0
        for number, document in enumerate(row):
            size = len(document.tokens)
            tokens[index][start : start + size] = document.tokens
            numbers[index][start : start + size] = [number] * size
            labels[index][start : start + size - 1] = [
                token if learned else -100
                for token, learned in zip(document.tokens[1:], document.mask[1:], strict=True)
            ]
            start += size
    return torch.tensor(tokens).to(device), torch.tensor(numbers).to(device), torch.tensor(labels).to(device)


def rate_at(tokens: int) -> float:
    """The share of the peak learning rate: warm up, stay, fall."""
    for (start, low), (end, high) in itertools.pairwise(RATES):
        if tokens < end:
            return low + (high - low) * (tokens - start) / (end - start)
    return RATES[-1][1]


def train_steps(model: Nano, opts: list[Any], rows: Rows, total: int, device: str) -> Iterator[float]:
    """One optimiser step per item, until `total` tokens; yields the loss."""
    progress = rows.progress
    while progress.tokens < total:
        count = FEW_ROWS if progress.tokens < MANY_ROWS_FROM else MANY_ROWS
        tokens, numbers, labels = collate(rows.take(count), device)
        wanted = (labels.flatten() >= 0).nonzero()[:, 0]
        loss = F.cross_entropy(model(tokens, document_mask(numbers), wanted), labels.flatten()[wanted])
        loss.backward()
        for optimiser in opts:
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * rate_at(progress.tokens)
            optimiser.step()
            optimiser.zero_grad()
        progress.tokens += tokens.numel()
        progress.steps += 1
        yield loss.item()


def save(path: Path, model: Nano, opts: list[Any], progress: Progress) -> None:
    state = {"model": model.state_dict(), "opts": [o.state_dict() for o in opts], "progress": vars(progress)}
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def restore(path: Path, model: Nano, opts: list[Any]) -> Progress:
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for optimiser, saved in zip(opts, state["opts"], strict=True):
        peaks = [group["peak"] for group in optimiser.param_groups]
        optimiser.load_state_dict(saved)
        for group, peak in zip(optimiser.param_groups, peaks, strict=True):
            group["peak"] = peak
    return Progress(**state["progress"])


def train(model: Nano, tokenizer: Tokenizer, total: int, work: Path, device: str) -> Progress:
    opts = optimisers(model, RATE)
    checkpoint = work / "checkpoint.pt"
    progress = restore(checkpoint, model, opts) if checkpoint.exists() else Progress()
    began, seconds_before, saved, losses = time.monotonic(), progress.seconds, time.monotonic(), []
    for loss in train_steps(model, opts, Rows(tokenizer, progress), total, device):
        losses.append(loss)
        progress.seconds = seconds_before + time.monotonic() - began
        if progress.steps % 20 == 0:
            mean = sum(losses[-20:]) / len(losses[-20:])
            print(
                f"step {progress.steps} tokens {progress.tokens / 1e6:.2f}M of {total / 1e6:.1f}M "
                f"loss {mean:.4f} {progress.seconds:.0f}s",
                flush=True,
            )
        if time.monotonic() - saved > 120:
            save(checkpoint, model, opts, progress)
            saved = time.monotonic()
    save(checkpoint, model, opts, progress)
    return progress


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("deepfast/bundled"), help="model directory")
    parser.add_argument("--work", type=Path, default=Path("build/nano-basics"), help="checkpoints")
    parser.add_argument("--tokens", type=int, default=TOTAL_TOKENS, help="stop early, after so many")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = train_tokenizer()
    model = Nano(NanoConfig(vocab_size=tokenizer.get_vocab_size())).to(device)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters on {device}", flush=True)
    progress = train(model, tokenizer, args.tokens, args.work, device)
    export(model.cpu(), tokenizer, args.out)
    print(f"{progress.tokens:,} tokens in {progress.seconds / 60:.1f} minutes; written to {args.out}")


if __name__ == "__main__":
    main()
