"""The front door: a model that chats, streams, forks and generates, from a thread (LLM) or an event loop
(AsyncLLM).

In: messages or token ids, SamplingParams, Thinking, tools. Out: Completions and streams of Deltas.
Does not know: how requests are rendered, how chunks are chosen, kernels, HTTP, terminals.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections import abc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from ..backend.base import Backend
from ..backend.cpu import CpuBackend
from ..backend.machine import available_cpus, free_memory
from ..backend.reference import ReferenceBackend
from ..config import BLOCK_SIZE, BUNDLED_NAME, EngineConfig, with_yarn
from ..model import hub
from ..model.decoder import Decoder
from ..model.fit import Fit, settle
from ..model.rounding import conversion_notes
from ..model.weights import Checkpoint
from ..text.messages import Messages
from ..text.template import ChatTemplate, Tools
from ..text.tokenizer import Tokenizer
from ..thinking.phases import ControlIds
from ..types import Completion, SamplingParams, Thinking, ToolChoice, UsageError, Variant
from .chat_stream import AsyncChatStream, ChatStream
from .engine import Engine
from .kv_cache import BlockPool
from .request import After, Conversation, RequestBuilder
from .runner import Runner
from .scheduler import Scheduler
from .sequence import Sequence

if TYPE_CHECKING:
    from ..model.download import Report

Stream = TypeVar("Stream", ChatStream, AsyncChatStream)


class LLM:
    """A loaded model with its engine. Thread-safe: any number of threads may chat at once and share batches.

    model: None (the bundled model), a directory in Hugging Face format, also one that `deepfast quantize`
    made, a .gguf file, or a name that model/hub.py explains, which is fetched when it is not here.
    quantize: pack the weights as "q8" or "q4" while loading; None keeps them as stored, or as the name says.
    progress: called with the loaded fraction; fetching: with what is fetched before that. The context is
    the largest that fits in memory, unless the config names one: `fit` says what was found.
    Raises ModelError when the model cannot be had or loaded, UsageError when the memory is not there.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        quantize: Literal["q8", "q4"] | None = None,
        config: EngineConfig | None = None,
        progress: Callable[[float], None] | None = None,
        fetching: Report | None = None,
    ) -> None:
        found = hub.find(model, quantize=quantize, report=fetching)
        path, quantize = found.path, found.quantize
        began = time.monotonic()
        self.name = BUNDLED_NAME if model is None else str(model)
        settings = config or EngineConfig()
        checkpoint = Checkpoint.open(path)
        self.tokenizer = Tokenizer.of(checkpoint.text)
        checkpoint.text = replace(checkpoint.text, tokenizer=None)  # of Qwen3, 50 MB of objects
        self.config = checkpoint.config = with_yarn(checkpoint.config, settings.yarn)
        asked = {self.name: (checkpoint, quantize)}
        self.fit: Fit
        settings, self.fit = settle(asked, settings, free_memory(), available_cpus())[self.name]
        cpu = settings.backend == "cpu"
        backend: Backend = CpuBackend(settings.threads) if cpu else ReferenceBackend()
        decoder = Decoder.load(checkpoint, backend, quantize, progress)
        self.notes = (*self.config.notes, *checkpoint.text.notes)  # what a person should know
        self.notes += conversion_notes(checkpoint) if quantize is None else ()
        assert settings.max_context is not None and settings.max_kv_tokens is not None
        blocks = -(-settings.max_kv_tokens // BLOCK_SIZE)
        pool = BlockPool(blocks, BLOCK_SIZE, prefix_cache=settings.prefix_cache)
        num_valid = min(self.tokenizer.num_ids, self.config.vocab_size)
        runner = Runner(decoder, backend, pool.num_blocks, settings.kv, num_valid)
        self.max_context: int = settings.max_context
        ids = control_ids(self.tokenizer, checkpoint.eos_ids)
        self.requests = RequestBuilder(checkpoint.text, self.tokenizer, ids, self.config.vocab_size, settings)
        self.engine = Engine(Scheduler(pool, settings.max_batch_tokens, settings.max_running), runner)
        self.engine.start()
        self.close = weakref.finalize(self, self.engine.close)
        self.load_seconds = time.monotonic() - began

    @property
    def template(self) -> ChatTemplate:
        """The model's chat template. Raises ModelError when the checkpoint has none."""
        return self.requests.template

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
        tool_choice: ToolChoice = "auto",
    ) -> Completion:
        """Answer a question or a conversation. Raises UsageError for a request that makes no sense."""
        with self.stream(messages, params, thinking, tools, tool_choice) as stream:
            return stream.result()

    def stream(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        thinking: Thinking | None = None,
        tools: Tools | None = None,
        tool_choice: ToolChoice = "auto",
    ) -> ChatStream:
        """Answer piece by piece: iterate over the Deltas; `.completion` holds the whole afterwards."""
        return self.fork_streams(messages, [Variant(params, thinking)], tools, tool_choice)[0]

    def fork(
        self,
        messages: Messages,
        variants: abc.Sequence[Variant],
        tools: Tools | None = None,
        tool_choice: ToolChoice = "auto",
    ) -> list[Completion]:
        """One prompt, computed once, answered in several ways at once; Variant.branches makes n of a kind."""
        streams = self.fork_streams(messages, variants, tools, tool_choice)
        return [stream.result() for stream in streams]

    def fork_streams(
        self,
        messages: Messages,
        variants: abc.Sequence[Variant],
        tools: Tools | None = None,
        tool_choice: ToolChoice = "auto",
    ) -> list[ChatStream]:
        """As `fork`, one stream for each variant. All start, or none does."""
        streams = [ChatStream(self.engine, self, self.requests.encode_hint) for _ in variants]
        return self._start(streams, messages, variants, tools, tool_choice)

    def generate(
        self, prompts: abc.Sequence[abc.Sequence[int]], params: SamplingParams | None = None
    ) -> list[Completion]:
        """Ids in, ids out, batched: no template, no thinking control. Raises UsageError for an empty
        prompt."""
        streams = [ChatStream(self.engine, self, self.requests.encode_hint) for _ in prompts]
        each = [params] * len(prompts)
        return [stream.result() for stream in self._start_raw(streams, prompts, each)]

    def count_tokens(
        self,
        messages: Messages,
        thinking: Thinking | None = None,
        tools: Tools | None = None,
        tool_choice: ToolChoice = "auto",
    ) -> int:
        """How many tokens the prompt of such a chat has; nothing runs. Raises UsageError as `chat` does."""
        conversation = self.requests.conversation(messages, tools)
        return len(self.requests.prompt_ids(conversation, thinking, tool_choice))

    def _start(
        self,
        streams: list[Stream],
        messages: Messages,
        variants: abc.Sequence[Variant],
        tools: Tools | None,
        tool_choice: ToolChoice,
    ) -> list[Stream]:
        """Give every stream its sequence; the first one's prompt is computed before the others begin."""
        if not variants:
            raise UsageError("there are no variants. Give at least one.")
        conversation = self.requests.conversation(messages, tools)
        after = self._prepare_next_turn(conversation) if len(variants) == 1 else None
        made = [
            self.requests.chat(conversation, v.params, v.thinking, tool_choice, stream.emit, after)
            for v, stream in zip(variants, streams, strict=True)
        ]
        for stream, seq in zip(streams, made, strict=True):
            stream.seq = seq
            seq.leader = None if seq is made[0] else made[0]
        self.engine.submit(*made)
        return streams

    def _start_raw(
        self,
        streams: list[Stream],
        prompts: abc.Sequence[abc.Sequence[int]],
        params: abc.Sequence[SamplingParams | None],
        *,
        whole: bool = False,
    ) -> list[Stream]:
        """Give every stream a sequence that continues its ids. All start, or none does."""
        made = [
            self.requests.raw(prompt, wanted, stream.emit, number, whole=whole)
            for number, (stream, prompt, wanted) in enumerate(zip(streams, prompts, params, strict=True))
        ]
        for stream, seq in zip(streams, made, strict=True):
            stream.seq = seq
        self.engine.submit(*made)
        return streams

    def _prepare_next_turn(self, conversation: Conversation) -> After | None:
        """When the turn has ended, compute in idle time what the next prompt begins with."""
        if not self.engine.scheduler.pool.prefix_cache:
            return None
        engine, requests = self.engine, self.requests  # not self: a model nobody holds may be freed

        def after(seq: Sequence) -> None:
            if seq.finish_reason in ("stop", "length", "tool_calls"):
                engine.when_idle(lambda: requests.next_turn(conversation, seq))

        return after


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
        tool_choice: ToolChoice = "auto",
    ) -> Completion:
        """Answer; a cancelled task aborts its request."""
        return await self.stream(messages, params, thinking, tools, tool_choice).result()

    def stream(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        thinking: Thinking | None = None,
        tools: Tools | None = None,
        tool_choice: ToolChoice = "auto",
    ) -> AsyncChatStream:
        """Deltas as they come, then the Completion. Closing the stream aborts the request."""
        return self.fork_streams(messages, [Variant(params, thinking)], tools, tool_choice)[0]

    async def fork(
        self,
        messages: Messages,
        variants: abc.Sequence[Variant],
        tools: Tools | None = None,
        tool_choice: ToolChoice = "auto",
    ) -> list[Completion]:
        """As LLM.fork."""
        return [await s.result() for s in self.fork_streams(messages, variants, tools, tool_choice)]

    def fork_streams(
        self,
        messages: Messages,
        variants: abc.Sequence[Variant],
        tools: Tools | None = None,
        tool_choice: ToolChoice = "auto",
    ) -> list[AsyncChatStream]:
        """As LLM.fork_streams."""
        return self.llm._start(self._streams(len(variants)), messages, variants, tools, tool_choice)

    async def open(
        self,
        messages: Messages,
        variants: abc.Sequence[Variant],
        tools: Tools | None = None,
        tool_choice: ToolChoice = "auto",
    ) -> list[AsyncChatStream]:
        """As fork_streams, for a busy event loop: what a long conversation costs before it runs (rendering,
        encoding, a grammar to compile) is paid in a thread."""
        streams = self._streams(len(variants))
        return await asyncio.to_thread(self.llm._start, streams, messages, variants, tools, tool_choice)

    async def open_raw(
        self, prompts: abc.Sequence[abc.Sequence[int]], params: abc.Sequence[SamplingParams]
    ) -> list[AsyncChatStream]:
        """Continue ids, each with params of its own; all text comes as content, that of <think> too."""
        streams = self._streams(len(prompts))
        return await asyncio.to_thread(self.llm._start_raw, streams, prompts, params, whole=True)

    async def count_tokens(
        self,
        messages: Messages,
        thinking: Thinking | None = None,
        tools: Tools | None = None,
        tool_choice: ToolChoice = "auto",
    ) -> int:
        """As LLM.count_tokens, in a thread."""
        return await asyncio.to_thread(self.llm.count_tokens, messages, thinking, tools, tool_choice)

    def _streams(self, count: int) -> list[AsyncChatStream]:
        llm = self.llm
        return [AsyncChatStream(llm.engine, llm, llm.requests.encode_hint) for _ in range(count)]


def control_ids(tokenizer: Tokenizer, eos_ids: abc.Iterable[int]) -> ControlIds:
    """Ids from the loaded tokenizer, never from a table: a model without a token has None there."""
    stops = {i for i in map(tokenizer.control_id, ("<|im_end|>", "<|endoftext|>")) if i is not None}
    stops |= set(eos_ids)
    think_open, think_close, tool_open, tool_close = map(
        tokenizer.control_id, ("<think>", "</think>", "<tool_call>", "</tool_call>")
    )
    others = tokenizer.control_ids.difference(stops, (think_open, think_close, tool_open, tool_close))
    return ControlIds(think_open, think_close, tool_open, tool_close, frozenset(stops), frozenset(others))
