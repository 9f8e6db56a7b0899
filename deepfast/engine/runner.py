"""Runs chunks through the model and samples.

In: chunks whose blocks are reserved. Out: for each, the next token, or None while tokens are still pending.
Does not know: why these chunks, what the tokens mean.
"""

from __future__ import annotations

from collections import abc

from ..backend.base import Backend, Batch
from ..config import KVFormat
from ..model.decoder import Decoder
from .sampler import sample_args
from .scheduler import Chunk


class Runner:
    """A decoder with its KV cache. `num_valid`: ids at or above it are padding rows, never sampled."""

    def __init__(
        self, decoder: Decoder, backend: Backend, num_blocks: int, kv: KVFormat, num_valid: int
    ) -> None:
        self.decoder, self.backend, self.num_valid = decoder, backend, num_valid
        self.cache = decoder.new_cache(num_blocks, kv)

    def run(self, chunks: abc.Sequence[Chunk]) -> list[int | None]:
        """One forward pass. Raises EngineError when the logits hold NaN."""
        completes = [chunk.completes for chunk in chunks]
        batch = Batch.build(
            [(s.tokens[s.num_computed : s.num_computed + n], s.num_computed, s.blocks) for s, n in chunks],
            completes,
        )
        logits = self.decoder.forward(batch, self.cache)
        if not any(completes):
            return [None] * len(chunks)
        args = [sample_args(chunk.seq) for chunk, wanted in zip(chunks, completes, strict=True) if wanted]
        tokens = iter(self.backend.sample(logits, args, self.num_valid))
        return [next(tokens) if wanted else None for wanted in completes]
