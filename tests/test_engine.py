"""Equivalences of the whole engine on a tiny random model, and the promises that every request gets.

batched == alone, chunked == whole, preempted == undisturbed, streamed == joined, same seed == same tokens.
In: a random checkpoint of two layers. Out: exact equality of token ids. Does not know: what the tokens mean.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import time
from collections import abc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import chat_checkpoint

from deepfast import LLM, AsyncLLM, EngineConfig, Message, SamplingParams, Thinking
from deepfast.backend.cpu import CpuBackend
from deepfast.engine.engine import BLOCKS_AHEAD
from deepfast.types import Completion, ContextError, ControlError, Delta, EngineError, UsageError

SMALL = EngineConfig(max_context=512, max_kv_tokens=2048, threads=2)
DRAW = SamplingParams(temperature=1.0, top_k=0, top_p=1.0, seed=5, max_tokens=24, ignore_eos=True)
PROMPTS = [[(7 * i + 3 * j) % 250 for j in range(n)] for i, n in enumerate((1, 5, 17, 33, 64, 100, 3, 16))]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", params=["reference", "cpu"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def llm(checkpoint: Path) -> Iterator[LLM]:
    with LLM(checkpoint, config=SMALL) as llm:
        yield llm


@pytest.fixture(scope="module")
def alone(checkpoint: Path, backend: str) -> list[tuple[int, ...]]:
    with LLM(checkpoint, config=dataclasses.replace(SMALL, backend=backend)) as llm:
        return [llm.generate([prompt], DRAW)[0].token_ids for prompt in PROMPTS]


@pytest.mark.parametrize(
    "change",
    [
        {},  # all at once
        {"max_batch_tokens": 7},  # chunked
        {"max_kv_tokens": 160, "max_context": 160},  # preempted
        {"max_running": 2},
        {"threads": 1},
    ],
    ids=["batched", "chunked", "preempted", "two at a time", "one thread"],
)
def test_any_schedule_gives_the_same_tokens(
    checkpoint: Path, backend: str, alone: list[tuple[int, ...]], change: dict[str, int]
):
    with LLM(checkpoint, config=dataclasses.replace(SMALL, backend=backend, **change)) as other:
        assert [c.token_ids for c in other.generate(PROMPTS, DRAW)] == alone
        assert len(set(alone)) == len(alone), "the model must be random enough to tell prompts apart"
        if "max_kv_tokens" in change:
            assert other.engine.scheduler.num_preempted > 0


def test_q8_and_q4_are_batch_invariant_too(checkpoint: Path):
    for quantize in ("q8", "q4"):
        with LLM(checkpoint, quantize=quantize, config=SMALL) as llm:
            alone = [llm.generate([prompt], DRAW)[0].token_ids for prompt in PROMPTS]
            assert [c.token_ids for c in llm.generate(PROMPTS, DRAW)] == alone


def free_blocks(llm: LLM) -> bool:
    """Waits for the engine to come to rest; True when nobody owns a block."""
    deadline = time.monotonic() + 10
    while llm.engine.is_busy and time.monotonic() < deadline:
        time.sleep(0.005)
    return llm.engine.scheduler.pool.num_free == llm.engine.scheduler.pool.num_blocks


def joined(deltas: list[Delta], kind: str) -> str:
    return "".join(d.text for d in deltas if d.kind == kind)


@pytest.mark.parametrize("mode", ["on", "off", "auto"])
def test_streamed_equals_joined(llm: LLM, mode: str):
    for seed in range(4):
        params = SamplingParams(seed=seed, max_tokens=80, temperature=1.5)
        stream = llm.stream("Hello 你好", params, Thinking(mode=mode))
        deltas = list(stream)
        whole = llm.chat("Hello 你好", params, Thinking(mode=mode))
        assert stream.completion.token_ids == whole.token_ids
        assert joined(deltas, "reasoning") == whole.reasoning
        assert joined(deltas, "content") == whole.content
    assert free_blocks(llm)


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others(llm: LLM):
    first, again, other = (llm.generate([[1, 2, 3]], dataclasses.replace(DRAW, seed=s))[0] for s in (1, 1, 2))
    assert first.token_ids == again.token_ids != other.token_ids
    free = dataclasses.replace(DRAW, seed=None)
    assert llm.generate([[1, 2, 3]], free)[0].token_ids != llm.generate([[1, 2, 3]], free)[0].token_ids


def test_a_thought_is_cut_by_its_budget_and_answered(llm: LLM):
    done = llm.chat("Hi", SamplingParams(seed=3, max_tokens=200), Thinking(mode="on", budget=8))
    assert done.thinking.stop == "budget"
    assert done.content.strip()
    stop_sentence = len(llm.tokenizer.encode("\n</think>\n\n", control=True))
    assert done.usage.reasoning_tokens >= 8
    assert done.sampled[:8] == (True,) * 8 and not any(done.sampled[8 : 8 + stop_sentence])


@pytest.mark.parametrize("max_tokens", [8, 20, 60, 300])
def test_the_answer_is_guaranteed_however_little_may_be_generated(llm: LLM, max_tokens: int):
    for seed in range(5):
        done = llm.chat("Hi", SamplingParams(seed=seed, max_tokens=max_tokens), Thinking(mode="on"))
        assert done.content.strip()
        assert done.usage.completion_tokens <= max_tokens
        assert done.finish_reason in ("stop", "length")


def test_thinking_off_gives_no_thought_and_says_so(llm: LLM):
    done = llm.chat("Hi", SamplingParams(seed=3, max_tokens=20), Thinking(mode="off"))
    assert (done.reasoning, done.usage.reasoning_tokens, done.thinking.stop) == ("", 0, "none")


def test_requests_that_make_no_sense_are_refused_in_one_line(llm: LLM):
    refusals = {
        "is empty": lambda: llm.chat(""),
        "no messages": lambda: llm.chat([]),
        "prompt 0 is empty": lambda: llm.generate([[]]),
        "holds id 99999": lambda: llm.generate([[99999]]),
        "the context holds 512": lambda: llm.chat("word " * 5000),
        "max_tokens=511 does not fit": lambda: llm.chat("Hi", SamplingParams(max_tokens=511)),
        "unknown field 'contents'": lambda: llm.chat([{"role": "user", "contents": "Hi"}]),
        "role 'robot'": lambda: llm.chat([{"role": "robot", "content": "Hi"}]),
        "1 new tokens can not hold a thought": lambda: llm.chat(
            "Hi", SamplingParams(max_tokens=1), Thinking(mode="on")
        ),
    }
    for words, call in refusals.items():
        with pytest.raises(UsageError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="budget=-1"):
        Thinking(budget=-1)
    with pytest.raises(ControlError, match="mode is 'off'"):
        Thinking(mode="off", budget=8)
    with pytest.raises(UsageError, match="temperature=-1"):
        SamplingParams(temperature=-1)


def test_more_context_than_the_cache_holds_is_refused_at_the_door(checkpoint: Path):
    with LLM(checkpoint, config=dataclasses.replace(SMALL, max_kv_tokens=64)) as llm:
        with pytest.raises(ContextError, match="the KV cache holds 64"):
            llm.generate([[1] * 60], dataclasses.replace(DRAW, max_tokens=10))


def test_a_dropped_stream_is_aborted_and_its_blocks_are_free_again(llm: LLM):
    params = SamplingParams(max_tokens=400, ignore_eos=True, temperature=1.0)
    stream = llm.stream("Hi", params, Thinking(mode="off"))
    next(stream)
    stream.cancel()
    assert len(list(stream)) < 400
    assert stream.completion.finish_reason == "abort"
    forgotten = llm.stream("Hi", params, Thinking(mode="off"))
    next(forgotten)
    del forgotten
    gc.collect()
    assert free_blocks(llm)


def test_a_stop_string_ends_the_answer_before_it(llm: LLM):
    params = SamplingParams(seed=11, max_tokens=60, temperature=1.5, ignore_eos=True)
    whole = llm.chat("Hi", params, Thinking(mode="off"))
    middle = whole.content[len(whole.content) // 2 :][:2]
    cut = llm.chat("Hi", dataclasses.replace(params, stop=(middle,)), Thinking(mode="off"))
    assert cut.finish_reason == "stop"
    assert cut.content == whole.content[: whole.content.index(middle)]


def test_async_is_the_same_and_a_cancelled_task_frees_its_blocks(llm: LLM):
    params = SamplingParams(seed=3, max_tokens=30)
    off = Thinking(mode="off")

    async def run() -> None:
        model = AsyncLLM(llm)
        answers = await asyncio.gather(*(model.chat("Hi", params, off) for _ in range(3)))
        assert {a.token_ids for a in answers} == {llm.chat("Hi", params, off).token_ids}
        items = [item async for item in model.stream("Hi", params, off)]
        assert isinstance(items[-1], Completion)
        assert "".join(d.text for d in items[:-1] if isinstance(d, Delta)) == answers[0].content
        task = asyncio.create_task(model.chat("Hi", SamplingParams(max_tokens=400, ignore_eos=True), off))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert free_blocks(llm)


def test_many_threads_share_one_model(llm: LLM):
    from concurrent.futures import ThreadPoolExecutor

    ask = [Message("user", "Hi")]
    params = SamplingParams(seed=3, max_tokens=20)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: llm.chat(ask, params, Thinking(mode="off")).token_ids, range(16)))
    assert len(set(answers)) == 1


def test_a_closed_engine_refuses_and_running_requests_end(checkpoint: Path):
    llm = LLM(checkpoint, config=SMALL)
    stream = llm.stream("Hi", SamplingParams(max_tokens=400, ignore_eos=True), Thinking(mode="off"))
    next(stream)
    llm.close()
    list(stream)
    assert stream.completion.finish_reason == "abort"
    with pytest.raises(EngineError, match="closed"):
        llm.generate([[1]], DRAW)


def test_idle_time_puts_memory_behind_the_next_blocks_and_changes_none_that_is_used(checkpoint: Path):
    class Pages(CpuBackend):
        touched: set[tuple[int, int]] = set()

        def touch(self, cache: Any, layer: int, blocks: abc.Sequence[int]) -> None:
            super().touch(cache, layer, blocks)
            self.touched |= {(layer, block) for block in blocks}

    with LLM(checkpoint, config=SMALL) as llm:
        runner, pool = llm.engine.runner, llm.engine.scheduler.pool
        wanted = [llm.generate([prompt], DRAW)[0].token_ids for prompt in PROMPTS]
        runner.backend = Pages(1)
        layers = runner.decoder.config.num_layers
        for block in range(pool.num_blocks):  # the cached ones among them
            for layer in range(layers):
                runner.backend.touch(runner.cache, layer, [block])
        assert [llm.generate([prompt], DRAW)[0].token_ids for prompt in PROMPTS] == wanted
        runner.backend.touched.clear()
        runner._touched.clear()
        upcoming = pool.next_free(BLOCKS_AHEAD)
        llm.generate([[9] * 20], DRAW)
        end = time.monotonic() + 10
        while llm.engine._may_touch and time.monotonic() < end:
            time.sleep(0.01)
        used = set(upcoming) - set(pool.next_free(pool.num_blocks))
        assert {(layer, b) for b in pool.next_free(BLOCKS_AHEAD) for layer in range(layers)} <= Pages.touched
        assert used and not llm.engine.is_busy
