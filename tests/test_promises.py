"""Every promise at once: requests of any kind, in any company, on any engine, steered and cancelled at will.

mode x budget x minimum x soft landing x schema x tools x stops x biases x speculation x caches x company.
In: a tiny random model. Out: the contract of tests/contract.py for each request, and the same tokens as alone
on an engine without speculation, prefix cache and batches. Does not know: what the tokens mean, speed.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from checkpoints import chat_checkpoint
from contract import Ask, at_rest, check, outcome
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wild_requests import ACTS, HINTS, LOOPING, Plan, group

from deepfast import LLM, AsyncLLM, Completion, Delta, EngineConfig, Variant
from deepfast.engine.scheduler import Chunk
from deepfast.types import UsageError

PLAIN = EngineConfig(max_context=1024, max_kv_tokens=1024, threads=1, speculation=False, prefix_cache=False)
ENGINES = {
    "all": replace(PLAIN, speculation=True, prefix_cache=True, max_kv_tokens=8192),
    "cramped": replace(PLAIN, speculation=True, prefix_cache=True, max_batch_tokens=29, max_kv_tokens=256),
    "speculating": replace(PLAIN, speculation=True, max_kv_tokens=2048),
    "caching": replace(PLAIN, prefix_cache=True, max_kv_tokens=2048, max_batch_tokens=100),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, LLM]]:
    path = chat_checkpoint(tmp_path_factory.mktemp("model"), max_position_embeddings=1024)
    loaded = {name: LLM(path, config=config) for name, config in {"plain": PLAIN, **ENGINES}.items()}
    yield loaded
    for llm in loaded.values():
        llm.close()


# Numbers, so that hypothesis can drop the requests that a failure does not need; unique, or most are alike.
GROUPS = st.lists(st.integers(0, 2**40), min_size=1, max_size=4, unique=True).map(group)


@dataclass
class Read:
    """What a reader saw. did: its act was obeyed."""

    ask: Ask
    act: tuple[str, int] | None
    deltas: list[Delta] = field(default_factory=list)
    done: Completion | None = None
    did: bool = False


def steering(read: Read, stream: Any) -> Any:
    """The call that the reader's act stands for; a coroutine where the stream is asynchronous."""
    assert read.act is not None
    name, count = read.act
    if name == "end":
        return stream.end_thought()
    if name == "extend":
        return stream.extend_thought(count + 1)
    if name == "budget":
        return stream.set_budget(count if count % 3 else None)
    return stream.hint(HINTS[count % len(HINTS)])


def read_in_turn(llm: LLM, reads: list[Read], fork: bool) -> None:
    """Readers in one thread: all requests run while one after the other is read."""
    for read, stream in zip(reads, start(llm, reads, fork), strict=True):
        if read.act is not None:
            for _, delta in zip(range(read.act[1]), stream, strict=False):
                read.deltas.append(delta)
            try:
                if read.act[0] == "cancel":
                    stream.cancel()
                else:
                    steering(read, stream)
                read.did = True
            except UsageError:
                pass
        read.deltas += stream
        read.done = stream.completion


def read_on_a_loop(llm: LLM, reads: list[Read], fork: bool) -> None:
    """Readers on one event loop, all at a time."""

    async def one(read: Read, stream: Any) -> None:
        count = 0
        async for item in stream:
            if isinstance(item, Completion):
                read.done = item
            else:
                read.deltas.append(item)
            count += 1
            if read.act is not None and count == read.act[1] + 1:
                try:
                    if read.act[0] == "cancel":
                        stream.cancel()
                    else:
                        await steering(read, stream)
                    read.did = True
                except UsageError:
                    pass

    async def run() -> None:
        streams = start(AsyncLLM(llm), reads, fork)
        await asyncio.gather(*(one(read, stream) for read, stream in zip(reads, streams, strict=True)))

    asyncio.run(run())


def start(llm: Any, reads: list[Read], fork: bool) -> list[Any]:
    """All requests at once; as branches of the first one's prompt when `fork`."""
    asks = [read.ask for read in reads]
    if fork:
        variants = [Variant(ask.params, ask.thinking) for ask in asks]
        streams: list[Any] = llm.fork_streams(asks[0].messages, variants, asks[0].tools, asks[0].choice)
        return streams
    return [llm.stream(a.messages, a.params, a.thinking, a.tools, a.choice) for a in asks]


def alone(llm: LLM, ask: Ask) -> tuple[Completion | None, list[Delta], str]:
    """The request on the plain engine, or why it was refused."""
    try:
        stream = llm.stream(ask.messages, ask.params, ask.thinking, ask.tools, ask.choice)
    except UsageError as error:
        return None, [], str(error)
    deltas = list(stream)
    return stream.completion, deltas, ""


def keep_promises(
    models: dict[str, LLM], plans: list[Plan], engine: str, fork: bool, loop: bool
) -> list[Read]:
    """Run the plans together; check each one, and compare it with the same request alone."""
    plain, llm = models["plain"], models[engine]
    if fork:
        first = plans[0]
        plans = [replace(p, prompt=first.prompt, tools=first.tools, choice=first.choice) for p in plans]
    reads, wanted = [], []
    for plan in plans:
        ask = plan.ask(plain)
        done, deltas, refused = alone(plain, ask)
        if done is None:
            assert alone(llm, ask)[2] == refused and "\n" not in refused
            continue
        check(plain, ask, deltas, done)
        if done.usage.prompt_tokens + plan.sampling["max_tokens"] > llm.engine.scheduler.pool.num_positions:
            continue
        reads.append(Read(ask, plan.act))
        wanted.append(done)
    if reads:
        (read_on_a_loop if loop else read_in_turn)(llm, reads, fork)
    for read, want in zip(reads, wanted, strict=True):
        compare(llm, read, want)
    assert at_rest(llm) and at_rest(plain)
    return reads


def compare(llm: LLM, read: Read, want: Completion) -> None:
    """The contract, and the tokens of the same request alone as far as nobody interfered."""
    done, act = read.done, read.act[0] if read.act and read.did else ""
    assert done is not None
    steered = act not in ("", "cancel")
    check(llm, read.ask, read.deltas, done, steered=steered, left=act == "cancel")
    if act == "cancel" and done.finish_reason == "abort":
        assert done.token_ids == want.token_ids[: len(done.token_ids)]
    elif not steered:
        assert outcome(done) == outcome(want)
    elif act == "end":
        assert done.thinking.stop == "user"
    elif act == "hint":
        assert read.act and HINTS[read.act[1] % len(HINTS)] in done.reasoning
    elif act == "budget":
        assert read.act and done.thinking.budget == (read.act[1] if read.act[1] % 3 else None)


def seen(read: Read) -> Iterator[str]:
    """Names of what happened to this request."""
    done = read.done
    assert done is not None
    yield done.finish_reason
    yield f"thought ended: {done.thinking.stop}"
    yield f"cache: {done.cache_miss}"
    if read.act and read.did:
        yield read.act[0]
    for name, happened in {
        "calls": done.tool_calls,
        "malformed": done.malformed,
        "waits": done.thinking.waits,
        "cached": done.usage.cached_tokens,
        "structure": read.ask.params.grammar and done.finish_reason == "stop",
        "structure behind a thought": read.ask.params.grammar and done.reasoning,
        "forced": not all(done.sampled),
    }.items():
        if happened:
            yield name


REACHED = (
    *("stop", "length", "tool_calls", "abort"),
    *(f"thought ended: {why}" for why in ("natural", "budget", "loop", "user", "none")),
    *("calls", "malformed", "waits", "cached", "structure", "structure behind a thought", "forced"),
)


def test_chosen_groups_meet_everything(models: dict[str, LLM]):
    """Fixed groups, and proof that what the properties are about does happen in them."""
    met, drafted, luck = Counter[str](), 0, random.Random(1)
    forward = models["all"].engine.runner.forward

    def counting(chunks: Sequence[Chunk]) -> None:
        nonlocal drafted
        drafted += sum(len(chunk.draft) for chunk in chunks)
        forward(chunks)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models["all"].engine.runner, "forward", counting)
        for number in range(52):
            engine = [*ENGINES][number % len(ENGINES)]
            size = luck.randint(1, 3) + 2 * (engine == "cramped")
            plans = group([luck.randrange(2**40) for _ in range(size)]) + [LOOPING] * (number == 0)
            for read in keep_promises(models, plans, engine, luck.random() < 0.3, luck.random() < 0.5):
                met.update(seen(read))
    assert not [name for name in REACHED if not met[name]], met
    assert sum(met[act] for act in ACTS) > 10, met
    assert models["cramped"].engine.scheduler.num_preempted > 0 and drafted > 100


def any_groups(examples: int) -> Any:
    """Hypothesis chooses, and drops from a failure what it does not need."""
    drawn = given(GROUPS, st.sampled_from([*ENGINES]), st.booleans(), st.booleans())
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return lambda test: settings(
        max_examples=examples, derandomize=True, deadline=None, suppress_health_check=checks
    )(drawn(test))


@any_groups(90)
def test_every_request_gets_what_was_promised_and_what_it_would_get_alone(
    models: dict[str, LLM], plans: list[Plan], engine: str, fork: bool, loop: bool
):
    keep_promises(models, plans, engine, fork, loop)


@pytest.mark.slow
@any_groups(3000)
def test_the_same_over_thousands(
    models: dict[str, LLM], plans: list[Plan], engine: str, fork: bool, loop: bool
):
    keep_promises(models, plans, engine, fork, loop)
