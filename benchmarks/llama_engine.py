"""llama.cpp as vs_llama_cpp.py measures it: its C interface, called with as little around it as can be.

In: a GGUF file, threads, the context, flash attention or not, the type of K/V. Out: seconds for a prompt,
tokens per second of generation. Logits only where a token is drawn, which is the largest by numpy. Several
sequences have streams of their own (kv_unified off), which is the faster way. A depth is reached once: a
state of STRIDE computed tokens is repeated until it is deep enough (what it holds does not matter to time);
where another version writes states otherwise, the tokens are computed. Does not know: our engine, rounds.
"""

import ctypes
import time
from pathlib import Path
from typing import Any

import llama_cpp as lib
import numpy as np
from llama_state import repeat_state

SHORT = 16  # tokens of the prompt at depth 0
STRIDE = 512  # tokens that are computed to be repeated
BATCH = 2048  # tokens handed in at once, llama.cpp's default; it computes 512 at a time
TYPES = {"f16": lib.GGML_TYPE_F16, "q8_0": lib.GGML_TYPE_Q8_0}


class Engine:
    """One model with a context for one sequence, and one for several when asked for."""

    def __init__(self, file: Path, threads: int, context: int, flash: bool, kv: str) -> None:
        self._log = lib.llama_log_callback(lambda level, text, data: None)  # silence; kept alive
        lib.llama_log_set(self._log, None)
        lib.llama_backend_init()
        self._threads, self._flash, self._kv = threads, flash, TYPES[kv]
        self._model = lib.llama_model_load_from_file(str(file).encode(), lib.llama_model_default_params())
        assert self._model, f"llama.cpp cannot load {file}"
        self._vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model))
        self._batch = lib.llama_batch_init(BATCH, 0, 1)
        self._one = self._context(context, 1)
        self._several: tuple[int, Any] = (0, None)  # sequences, their context
        self._depth = 0  # what the context for one sequence holds
        self._state: Any = None  # of STRIDE tokens
        self.how = "nothing"  # the way the last depth was reached

    def facts(self) -> dict[str, Any]:
        """What runs."""
        return {"system": lib.llama_print_system_info().decode(), "threads": self._threads}

    def _context(self, positions: int, sequences: int) -> Any:
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.kv_unified = positions, sequences, False
        params.n_threads = params.n_threads_batch = self._threads
        params.flash_attn_type = int(self._flash)
        params.type_k = params.type_v = self._kv
        context = lib.llama_init_from_model(self._model, params)
        assert context, f"llama.cpp makes no context of {positions} positions"
        return context

    def _decode(self, context: Any, ids: Any, positions: Any, sequences: Any, draw: Any) -> None:
        """One call: four arrays of equal length; `draw` marks the tokens whose logits are wanted."""
        batch, count = self._batch, len(ids)
        batch.n_tokens = count
        for name, values in (("token", ids), ("pos", positions), ("logits", draw)):
            np.ctypeslib.as_array(getattr(batch, name), (count,))[:] = values
        for i, sequence in enumerate(sequences):
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = int(sequence)
        failed = lib.llama_decode(context, batch)
        assert failed == 0, f"llama_decode: {failed}"

    def _drawn(self, context: Any, rows: int) -> Any:
        """The largest of each row of logits of the last call."""
        logits = np.ctypeslib.as_array(lib.llama_get_logits(context), (rows, self._vocab))
        return logits.argmax(axis=1)

    def _compute(self, ids: Any, first: int) -> None:
        """Put tokens of sequence 0 behind the first ones; the last one's logits can be drawn from."""
        for at in range(0, len(ids), BATCH):
            piece = ids[at : at + BATCH]
            count, draw = len(piece), np.zeros(len(piece), np.int8)
            draw[-1] = at + count == len(ids)
            self._decode(self._one, piece, first + at + np.arange(count), np.zeros(count, int), draw)
        lib.llama_synchronize(self._one)

    def _clear(self, context: Any) -> None:
        lib.llama_memory_clear(lib.llama_get_memory(context), False)
        if context is self._one:
            self._depth = 0

    def _random(self, tokens: int, seed: int) -> Any:
        return np.random.default_rng(seed).integers(0, 150000, tokens)

    def prompt(self, tokens: int, seed: int) -> float:
        """Seconds from ids to the first token."""
        self._clear(self._one)
        ids = self._random(tokens, seed)
        began = time.perf_counter()
        self._compute(ids, 0)
        self._drawn(self._one, 1)
        return time.perf_counter() - began

    def _reach(self, depth: int) -> None:
        """Fill the context for one sequence."""
        if depth == self._depth:
            memory = lib.llama_get_memory(self._one)
            assert lib.llama_memory_seq_rm(memory, 0, depth, -1), "llama.cpp forgets no tokens"
            return
        self._clear(self._one)
        if self._state is None:
            self._state = self._computed_state()
        deep = repeat_state(self._state, depth)
        self.how = f"{STRIDE} tokens, repeated"
        if deep is None or not lib.llama_state_seq_set_data(self._one, _bytes(deep), deep.size, 0):
            self.how = "computed"
            self._compute(self._random(depth, depth), 0)
        self._depth = depth

    def _computed_state(self) -> Any:
        self._compute(self._random(STRIDE, 0), 0)
        size = lib.llama_state_seq_get_size(self._one, 0)
        state = np.empty(size, np.uint8)
        lib.llama_state_seq_get_data(self._one, _bytes(state), size, 0)
        self._clear(self._one)
        return state

    def generate(self, depth: int, sequences: int, tokens: int, seed: int) -> float:
        """Tokens per second after the first token, over all sequences together."""
        context, rows, start = self._one, np.arange(sequences), depth or SHORT
        if depth:
            self._reach(depth)
        elif sequences == 1:
            self._clear(context)
            self._compute(self._random(SHORT, seed), 0)
        else:
            context = self._streams(sequences)
            self._clear(context)
            ids = self._random(SHORT * sequences, seed)
            places = np.tile(np.arange(SHORT), sequences)
            self._decode(context, ids, places, rows.repeat(SHORT), places == SHORT - 1)
        drawn = self._random(sequences, seed)
        draw = np.ones(sequences, np.int8)
        lib.llama_synchronize(context)
        for i in range(tokens):  # the first one starts the clock when it has been drawn
            self._decode(context, drawn, np.full(sequences, start + i), rows, draw)
            drawn = self._drawn(context, sequences)
            if i == 0:
                began = time.perf_counter()
        return sequences * (tokens - 1) / (time.perf_counter() - began)

    def _streams(self, sequences: int) -> Any:
        if self._several[0] != sequences:
            if self._several[0]:
                lib.llama_free(self._several[1])
            self._several = sequences, self._context(256 * sequences, sequences)
        return self._several[1]


def _bytes(array: Any) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
