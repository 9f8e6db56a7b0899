"""Deepfast as vs_llama_cpp.py measures it: through LLM.generate, scheduler, drawing and text included.

In: a model directory (packed in q4), threads, the context, a KV format. Out: seconds for a prompt, tokens
per second of generation. A depth is reached once: its keys and values are computed without attention (what
they hold does not matter to time, and with random weights to nobody) and found again by the prefix cache.
Greedy; no drafts, since random weights repeat nothing. Does not know: llama.cpp, rounds.
"""

import random
import time
from pathlib import Path
from typing import Any

from deepfast import LLM, EngineConfig, SamplingParams
from deepfast.backend.cpu import CpuBackend
from deepfast.backend.probe import int8_peak, read_bandwidth

SHORT = 16  # tokens of the prompt at depth 0


class Engine:
    """One LLM. context: the deepest position; room: positions of all prompts that shall stay cached."""

    def __init__(self, model: Path, threads: int, context: int, room: int, kv: str) -> None:
        config = EngineConfig(
            kv=kv,  # type: ignore[arg-type]
            threads=threads,
            max_context=context,
            max_kv_tokens=room,
            speculation=False,
        )
        self._llm = LLM(model, config=config)
        self._depths: set[int] = set()

    def facts(self) -> dict[str, Any]:
        """What runs."""
        backend = self._llm.engine.runner.backend
        return {"isa": getattr(backend, "isa", None), "threads": getattr(backend, "threads", None)}

    def _prompt(self, tokens: int, seed: int) -> list[int]:
        top = min(self._llm.tokenizer.num_ids, self._llm.config.vocab_size)
        draw = random.Random(seed)
        return [draw.randrange(top) for _ in range(tokens)]

    def prompt(self, tokens: int, seed: int) -> float:
        """Seconds from ids to the first token."""
        ids = self._prompt(tokens, seed)
        began = time.perf_counter()
        self._llm.generate([ids], _params(1))
        return time.perf_counter() - began

    def _reach(self, depth: int) -> None:
        """Put the prompt of a depth into the prefix cache."""
        if depth in self._depths:
            return
        backend = self._llm.engine.runner.backend
        backend.attention = lambda q, *_, **__: q  # type: ignore[method-assign]
        try:
            self._llm.generate([self._prompt(depth, depth)], _params(1))
        finally:
            del backend.attention
        self._depths.add(depth)

    def generate(self, depth: int, sequences: int, tokens: int, seed: int) -> float:
        """Tokens per second after the first token, over all sequences together."""
        prompts = [self._prompt(SHORT, 1000 * seed + i) for i in range(sequences)]
        if depth:
            self._reach(depth)
            prompts = [self._prompt(depth, depth)]
        done = self._llm.generate(prompts, _params(tokens))
        first = max(one.timing.first_token_s for one in done)
        return sequences * (tokens - 1) / (max(one.timing.total_s for one in done) - first)

    def probe(self) -> dict[str, float]:
        """Bytes read and int8 products per second by the kernels' instructions on as many threads."""
        probe = CpuBackend(self._llm.engine.runner.backend.threads)  # type: ignore[attr-defined]
        return {"bandwidth": read_bandwidth(probe), "int8_peak": int8_peak(probe)}


def _params(tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
