"""Runs chunks through the model and draws tokens from the logits.

In: chunks whose blocks are reserved, then the rows to draw from. Out: tokens with their log-probabilities.
Does not know: why these chunks, what the tokens mean, whether a draft was right.
"""

from __future__ import annotations

from collections import abc
from itertools import accumulate

from ..backend.base import Array, Backend, Batch, SampleArgs
from ..config import KVFormat
from ..model.decoder import Decoder
from ..types import EngineError, TokenLogprob
from .sampler import sample_args
from .scheduler import Chunk
from .sequence import Sequence
from .speculate import Row, Sampled


class Runner:
    """A decoder with its KV cache. `num_valid`: ids at or above it are padding rows, never sampled."""

    def __init__(
        self, decoder: Decoder, backend: Backend, num_blocks: int, kv: KVFormat, num_valid: int
    ) -> None:
        self.decoder, self.backend, self.num_valid = decoder, backend, num_valid
        self.cache = decoder.new_cache(num_blocks, kv)
        self._touched: set[int] = set()  # blocks with memory behind them in every layer
        self._fresh: list[int] = []  # blocks that get it now, layer by layer
        self._layer = 0
        self._chunks: abc.Sequence[Chunk] = ()
        self._starts: list[int] = []  # first row of logits of each chunk
        self._logits: Array = None  # [L, V]

    def forward(self, chunks: abc.Sequence[Chunk]) -> None:
        """One pass over the pending tokens and drafts; its logits wait for `sample`."""
        outputs = [1 + len(chunk.draft) if chunk.completes else 0 for chunk in chunks]
        batch = Batch.build(
            [
                ([*s.tokens[s.num_computed : s.num_computed + n], *draft], s.num_computed, s.blocks)
                for s, n, draft in chunks
            ],
            outputs,
        )
        self._chunks, self._starts = chunks, [0, *accumulate(outputs)]
        self._logits = self.decoder.forward(batch, self.cache)

    def sample(self, rows: abc.Sequence[Row]) -> list[Sampled]:
        """One token for each row, as its sequence is now; one that cannot be drawn finishes its sequence."""
        sequences = [self._chunks[row.chunk].seq for row in rows]
        picks = [self._starts[row.chunk] + row.offset for row in rows]
        logits = self._logits
        if picks != list(range(self._starts[-1])):
            logits = self.backend.take(logits, picks)
        args = [sample_args(seq) for seq in sequences]
        try:
            tokens = self.backend.sample(logits, args, self.num_valid)
        except EngineError:  # a row without a token ends its own request, nobody else's
            tokens = [self._sample_alone(logits, i, seq, args[i]) for i, seq in enumerate(sequences)]
        found: list[TokenLogprob | None] = [None] * len(rows)
        for i, seq in enumerate(sequences):
            if (top := seq.params.logprobs) is not None and not seq.finish_reason:
                found[i] = self._logprob(logits, i, tokens[i], top)
        return [Sampled(*pair) for pair in zip(tokens, found, strict=True)]

    def touch(self, blocks: abc.Sequence[int]) -> bool:
        """Have memory behind one layer of those of these blocks that were never used; False if all were."""
        if self._layer == 0:
            self._fresh = [block for block in blocks if block not in self._touched]
        if not self._fresh:
            return False
        self.backend.touch(self.cache, self._layer, self._fresh)
        self._layer = (self._layer + 1) % self.decoder.config.num_layers
        if self._layer == 0:
            self._touched.update(self._fresh)
        return True

    def release(self) -> None:
        """Forget the pass: its sequences belong to their callers, its logits to nobody."""
        self._chunks, self._starts, self._logits = (), [], None

    def _sample_alone(self, logits: Array, row: int, seq: Sequence, args: SampleArgs) -> int:
        """One row's token; a failure finishes its sequence, which then takes no notice of the token."""
        try:
            return self.backend.sample(self.backend.take(logits, [row]), [args], self.num_valid)[0]
        except EngineError as error:
            seq.finish("error", error)
            return -1

    def _logprob(self, logits: Array, row: int, token: int, top: int) -> TokenLogprob:
        ((logprob, best),) = self.backend.log_probs(
            self.backend.take(logits, [row]), [token], top, self.num_valid
        )
        return TokenLogprob(token, logprob, tuple(best))
