"""The front door: a model that chats, streams and generates, from a thread (LLM) or an event loop (AsyncLLM).

In: messages or token ids, SamplingParams, Thinking. Out: Completions and streams of Deltas.
Does not know: how chunks are chosen, kernels, HTTP, terminals.
"""

from __future__ import annotations

import asyncio
import queue
import secrets
import time
import weakref
from collections import abc
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from ..backend.base import Backend
from ..backend.cpu import CpuBackend
from ..backend.machine import available_cpus, free_memory
from ..backend.reference import ReferenceBackend
from ..config import BLOCK_SIZE, BUNDLED_NAME, EngineConfig, resolve_sampling
from ..model import hub
from ..model.decoder import Decoder
from ..model.weights import Checkpoint
from ..text.stream import Stream
from ..text.template import ChatTemplate
from ..text.tokenizer import Tokenizer
from ..thinking.budget import CLOSE, STOP_SENTENCE, Budget
from ..thinking.controls import resolve as resolve_thinking
from ..thinking.phases import ControlIds, Phase, PhaseMachine
from ..types import (
    Completion,
    ContextError,
    DeepfastError,
    Delta,
    EngineError,
    Message,
    SamplingParams,
    Thinking,
    ToolCall,
    UsageError,
)
from .engine import Engine
from .kv_cache import BlockPool
from .runner import Runner
from .scheduler import Scheduler
from .sequence import Emit, Sequence

Messages = str | abc.Sequence[Message] | abc.Sequence[Mapping[str, Any]]
Tools = abc.Sequence[Mapping[str, Any]]


class LLM:
    """A loaded model with its engine. Thread-safe: any number of threads may chat at once and share batches.

    model: None (the bundled model) or a directory in Hugging Face format. quantize: pack the weights as "q8"
    or "q4" while loading; None keeps them as stored. Raises ModelError when the model cannot be loaded.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        quantize: Literal["q8", "q4"] | None = None,
        config: EngineConfig | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        began = time.monotonic()
        path = hub.resolve(None if model is None else str(model))
        self.name = BUNDLED_NAME if model is None else str(model)
        settings = config or EngineConfig()
        self.tokenizer = Tokenizer.from_dir(path)
        checkpoint = Checkpoint.open(path)
        self.config = checkpoint.config
        # Settings are checked before minutes of loading; memory is looked at again after it.
        threads = settings.resolve(self.config, free_memory(), available_cpus()).threads
        backend: Backend = ReferenceBackend() if settings.backend == "reference" else CpuBackend(threads or 1)
        decoder = Decoder.load(checkpoint, backend, quantize, progress)
        settings = settings.resolve(self.config, free_memory(), available_cpus())
        assert settings.max_context is not None and settings.max_kv_tokens is not None
        pool = BlockPool(-(-settings.max_kv_tokens // BLOCK_SIZE), BLOCK_SIZE)
        num_valid = min(self.tokenizer.num_ids, self.config.vocab_size)
        runner = Runner(decoder, backend, pool.num_blocks, settings.kv, num_valid)
        self._path, self._template = (
            path,
            None if not ChatTemplate.exists(path) else self._load_template(path),
        )
        self.max_context: int = settings.max_context
        self._ids = _control_ids(self.tokenizer, checkpoint.eos_ids)
        self._text_ids = {
            t: tuple(self.tokenizer.encode(t, control=True)) for t in ("<think>\n", CLOSE, STOP_SENTENCE)
        }
        self.engine = Engine(Scheduler(pool, settings.max_batch_tokens, settings.max_running), runner)
        self.engine.start()
        self.close = weakref.finalize(self, self.engine.close)
        self.load_seconds = time.monotonic() - began

    def _load_template(self, path: Path) -> ChatTemplate:
        return ChatTemplate.from_dir(path, self.tokenizer)

    @property
    def template(self) -> ChatTemplate:
        """The model's chat template. Raises ModelError when the checkpoint has none."""
        if self._template is None:
            self._template = self._load_template(self._path)
        return self._template

    def __enter__(self) -> LLM:
        """`with LLM() as llm:` closes the engine at the end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Abort what is running and stop the engine's thread."""
        self.close()

    def chat(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        thinking: Thinking | None = None,
        tools: Tools | None = None,
    ) -> Completion:
        """Answer a question or a conversation. Raises UsageError for a request that makes no sense."""
        with self.stream(messages, params, thinking, tools) as stream:
            return stream.result()

    def stream(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        thinking: Thinking | None = None,
        tools: Tools | None = None,
    ) -> ChatStream:
        """Answer piece by piece: iterate over the Deltas; `.completion` holds the whole afterwards."""
        stream = ChatStream(self)
        stream.start(self.sequence(messages, params, thinking, tools, stream.emit))
        return stream

    def generate(
        self, prompts: abc.Sequence[abc.Sequence[int]], params: SamplingParams | None = None
    ) -> list[Completion]:
        """Ids in, ids out, batched: no template, no thinking control. Raises UsageError for an empty
        prompt."""
        wanted = params or SamplingParams()
        sequences = []
        for number, prompt in enumerate(prompts):
            bad = [i for i in prompt if not 0 <= i < self.config.vocab_size]
            if not prompt or bad:
                what = f"holds id {bad[0]}" if bad else "is empty"
                raise UsageError(f"prompt {number} {what}. Give ids from 0 to {self.config.vocab_size - 1}.")
            stream = ChatStream(self)
            machine = PhaseMachine(self._ids, prompt)
            resolved = resolve_sampling(wanted, thinking=True)
            sequences.append(
                (stream, self._sequence(list(prompt), resolved, Thinking(), machine, None, stream.emit))
            )
        for stream, seq in sequences:
            stream.start(seq)
        return [stream.result() for stream, _ in sequences]

    def sequence(
        self,
        messages: Messages,
        params: SamplingParams | None,
        thinking: Thinking | None,
        tools: Tools | None,
        emit: Emit,
    ) -> Sequence:
        """Render, encode and check a request. Raises UsageError (ControlError, ContextError) if it cannot
        run."""
        turns, asked = as_messages(messages), thinking or Thinking()
        plan = resolve_thinking(asked, self.template.modes.kind, turns)
        prompt = self.template.encode(turns, tools=tools, enable_thinking=plan.enable_thinking)
        if plan.open_thought and PhaseMachine(self._ids, prompt).phase is not Phase.THINK:
            prompt += self._text_ids["<think>\n"]
        resolved = resolve_sampling(params or SamplingParams(), thinking=plan.thinks)
        max_new = self._max_new(len(prompt), resolved.max_tokens)
        budget = None
        if plan.thinks or asked.budget is not None:
            stop, close = self._text_ids[STOP_SENTENCE], self._text_ids[CLOSE]
            budget = Budget(asked.budget, max_new, asked.answer_reserve, stop, close)
        machine = PhaseMachine(self._ids, prompt)
        return self._sequence(prompt, resolved, asked, machine, budget, emit)

    def _max_new(self, num_prompt: int, asked: int | None) -> int:
        room = self.max_context - num_prompt
        if room < 1:
            raise ContextError(
                f"the prompt has {num_prompt} tokens, but the context holds {self.max_context}. "
                "Shorten it or load the model with a longer context."
            )
        if asked is not None and asked > room:
            raise ContextError(
                f"max_tokens={asked} does not fit: the prompt has {num_prompt} tokens and the context holds "
                f"{self.max_context}. Ask for at most {room}."
            )
        return asked or room

    def _sequence(
        self,
        prompt: list[int],
        params: SamplingParams,
        thinking: Thinking,
        machine: PhaseMachine,
        budget: Budget | None,
        emit: Emit,
    ) -> Sequence:
        return Sequence(
            tokens=prompt,
            params=params,
            thinking=thinking,
            max_new=self._max_new(len(prompt), params.max_tokens),
            seed=secrets.randbits(63) if params.seed is None else params.seed,
            machine=machine,
            stream=Stream(self.tokenizer, params.stop),
            emit=emit,
            budget=budget,
            close_ids=self._text_ids[CLOSE],
        )


class ChatStream:
    """Iterate over the Deltas of one request; leave early (or `cancel`) and the request is aborted."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm  # the model stays loaded as long as somebody reads from it
        self._deltas: queue.SimpleQueue[Delta | None] = queue.SimpleQueue()
        self._seq: Sequence | None = None
        self._ended = False
        self.emit: Emit = self._deltas.put

    def start(self, seq: Sequence) -> None:
        """Hand the request to the engine. Raises ContextError when it can never fit."""
        self._llm.engine.submit(seq)
        self._seq = seq

    def __iter__(self) -> Iterator[Delta]:
        """Deltas, as they come."""
        return self

    def __next__(self) -> Delta:
        """Wait for the next Delta. Raises EngineError when the engine failed."""
        delta = None if self._ended else self._deltas.get()
        if delta is None:
            self._ended = True
            _raise_if_failed(self._seq)
            raise StopIteration
        return delta

    def result(self) -> Completion:
        """Wait for the end and return the whole."""
        for _ in self:
            pass
        return self.completion

    @property
    def completion(self) -> Completion:
        """What came out. Raises UsageError before the end."""
        if self._seq is None or self._seq.finish_reason is None:
            raise UsageError("the stream has not ended. Iterate to its end, or call result().")
        return self._seq.completion()

    def cancel(self) -> None:
        """Abort the request; iteration ends after what was already produced."""
        if self._seq is not None:
            self._llm.engine.cancel(self._seq)

    def __enter__(self) -> ChatStream:
        """`with llm.stream(...) as stream:` aborts the request when the block is left early."""
        return self

    def __exit__(self, *_: object) -> None:
        """Abort the request unless it has ended."""
        if not self._ended:
            self.cancel()

    def __del__(self) -> None:
        """A stream that nobody reads any more must not keep the engine busy."""
        if not self._ended:
            self.cancel()


class AsyncLLM:
    """The same model for an event loop. Wraps an LLM; its engine thread is shared, its callers may be
    many."""

    def __init__(self, llm: LLM) -> None:
        self.llm = llm

    async def chat(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        thinking: Thinking | None = None,
        tools: Tools | None = None,
    ) -> Completion:
        """Answer; a cancelled task aborts its request."""
        completion = None
        async for item in self._run(messages, params, thinking, tools):
            completion = item
        assert isinstance(completion, Completion)
        return completion

    async def stream(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        thinking: Thinking | None = None,
        tools: Tools | None = None,
    ) -> AsyncIterator[Delta | Completion]:
        """Deltas as they come, then the Completion. Closing the iterator aborts the request."""
        async for item in self._run(messages, params, thinking, tools):
            yield item

    async def _run(
        self,
        messages: Messages,
        params: SamplingParams | None,
        thinking: Thinking | None,
        tools: Tools | None,
    ) -> AsyncIterator[Delta | Completion]:
        loop = asyncio.get_running_loop()
        deltas: asyncio.Queue[Delta | None] = asyncio.Queue()

        def emit(delta: Delta | None) -> None:
            try:
                loop.call_soon_threadsafe(deltas.put_nowait, delta)
            except RuntimeError:  # the loop is gone, and with it whoever was reading
                pass

        seq = self.llm.sequence(messages, params, thinking, tools, emit)
        self.llm.engine.submit(seq)
        try:
            while (delta := await deltas.get()) is not None:
                yield delta
            _raise_if_failed(seq)
            yield seq.completion()
        finally:
            self.llm.engine.cancel(seq)


def _raise_if_failed(seq: Sequence | None) -> None:
    if seq is None or seq.error is None:
        return
    if isinstance(seq.error, DeepfastError):
        raise seq.error
    raise EngineError(f"the engine failed: {type(seq.error).__name__}: {seq.error}") from seq.error


def _control_ids(tokenizer: Tokenizer, eos_ids: abc.Iterable[int]) -> ControlIds:
    """Ids from the loaded tokenizer, never from a table: a model without a token has None there."""
    stops = {i for i in map(tokenizer.control_id, ("<|im_end|>", "<|endoftext|>")) if i is not None}
    find = tokenizer.control_id
    return ControlIds(
        think_open=find("<think>"),
        think_close=find("</think>"),
        tool_open=find("<tool_call>"),
        tool_close=find("</tool_call>"),
        stops=frozenset(stops | set(eos_ids)),
    )


def as_messages(messages: Messages) -> list[Message]:
    """A question, Messages, or dicts in OpenAI's shape. Raises UsageError naming what is wrong."""
    if isinstance(messages, str):
        messages = [Message("user", messages)]
    turns = [m if isinstance(m, Message) else _message(m) for m in messages]
    if not turns:
        raise UsageError("there are no messages. Give at least one with role 'user'.")
    for turn in turns:
        if turn.role not in ("system", "user", "assistant", "tool"):
            raise UsageError(f"role {turn.role!r} is unknown. Use 'system', 'user', 'assistant' or 'tool'.")
    if turns[-1].role == "user" and not (turns[-1].content or "").strip():
        raise UsageError("the prompt is empty. Ask something.")
    return turns


def _message(raw: Mapping[str, Any]) -> Message:
    known = {"role", "content", "reasoning", "reasoning_content", "tool_calls", "tool_call_id", "name"}
    if extra := set(raw) - known:
        raise UsageError(
            f"a message has the unknown field {sorted(extra)[0]!r}. Use {', '.join(sorted(known))}."
        )
    content = raw.get("content")
    if content is not None and not isinstance(content, str):
        raise UsageError(f"a message's content is {type(content).__name__}. Give text.")
    calls = []
    for call in raw.get("tool_calls") or ():
        function = call.get("function", call)
        calls.append(ToolCall(function["name"], function["arguments"], call.get("id", "")))
    message = Message(raw.get("role", "user"), content, raw.get("reasoning_content", raw.get("reasoning")))
    return replace(message, tool_calls=tuple(calls))
