"""The scheduler's contract on a pretend model: whatever runs beside a sequence, its tokens are those it has
alone.

In: random workloads. Out: equality of tokens, masks and finish reasons; a count of every block after every
step. Does not know: real models.
"""

from __future__ import annotations

import random

import pytest
from fake_engine import HashRunner, make_sequence

from deepfast.engine.engine import Engine
from deepfast.engine.kv_cache import BlockPool
from deepfast.engine.sampler import uniform
from deepfast.engine.scheduler import Scheduler
from deepfast.engine.sequence import Sequence
from deepfast.types import ContextError


def make_engine(
    num_blocks: int, block_size: int, max_batch_tokens: int, max_running: int, salt: int
) -> Engine:
    scheduler = Scheduler(BlockPool(num_blocks, block_size), max_batch_tokens, max_running)
    return Engine(scheduler, HashRunner(block_size, salt))


def outcome(seq: Sequence) -> tuple[object, ...]:
    return seq.tokens, seq.sampled, seq.finish_reason, seq.thinking_stop, seq.completion().reasoning


def count_blocks(engine: Engine, sequences: list[Sequence]) -> None:
    pool = engine.scheduler.pool
    owned = [block for seq in sequences for block in seq.blocks]
    assert len(owned) == len(set(owned)), "a block has two owners"
    assert pool.num_free + len(owned) == pool.num_blocks, "a block is lost"
    for seq in sequences:
        assert len(seq.blocks) * pool.block_size >= seq.num_computed
        assert seq.num_computed == 0 or seq in engine.scheduler.running


def random_requests(rng: random.Random) -> list[dict[str, object]]:
    requests: list[dict[str, object]] = []
    for seed in range(rng.randint(1, 8)):
        budget = rng.choice([None, None, 0, 3, 10, 1000])
        max_new = rng.randint(4 if budget is not None else 1, 40)
        prompt = [rng.randrange(20) for _ in range(rng.randint(1, 30))]
        requests.append({"prompt": prompt, "max_new": max_new, "seed": seed, "budget": budget})
    return requests


def run_workload(number: int) -> int:
    """One random workload, checked against each of its sequences alone; returns how many preemptions it
    had."""
    rng = random.Random(number)
    requests = random_requests(rng)
    block_size = rng.choice([1, 4, 16])
    longest = max(len(r["prompt"]) + 1 + r["max_new"] for r in requests)
    num_blocks = -(-longest // block_size) + rng.choice([0, 0, 2, 10, 100])
    engine = make_engine(num_blocks, block_size, rng.choice([1, 5, 16, 64]), rng.randint(1, 8), number % 251)
    sequences = [make_sequence(**r) for r in requests]
    arrivals = sorted((rng.randint(0, 20), i) for i in range(len(sequences)))
    cancelled = rng.randrange(len(sequences)) if rng.random() < 0.2 else None
    cancel_at, step = rng.randint(0, 20), 0
    while arrivals or engine.scheduler.has_work:
        while arrivals and arrivals[0][0] <= step:
            engine.submit(sequences[arrivals.pop(0)[1]])
        if step == cancel_at and cancelled is not None and all(i != cancelled for _, i in arrivals):
            engine.cancel(sequences[cancelled])
        engine.step()
        count_blocks(engine, sequences)
        step += 1
        assert step < 20_000, "no progress"
    for i, (request, seq) in enumerate(zip(requests, sequences, strict=True)):
        alone = make_sequence(**request)
        quiet = make_engine(200, 16, 512, 1, number % 251)
        quiet.submit(alone)
        while alone.finish_reason is None:
            quiet.step()
        if seq.finish_reason == "abort":
            assert i == cancelled
            assert alone.tokens[: len(seq.tokens)] == seq.tokens
        else:
            assert outcome(seq) == outcome(alone)
    assert engine.scheduler.pool.num_free == num_blocks
    return engine.scheduler.num_preempted


def test_a_thousand_random_workloads_equal_each_sequence_alone_and_lose_no_block():
    preemptions = sum(run_workload(number) for number in range(1000))
    assert preemptions > 500, "the workloads must be tight enough to test preemption"


def test_a_request_that_can_never_fit_is_refused_with_numbers():
    engine = make_engine(num_blocks=4, block_size=4, max_batch_tokens=8, max_running=2, salt=0)
    with pytest.raises(
        ContextError, match="10 tokens and may grow by 7, 17 in all, but the KV cache holds 16"
    ):
        engine.submit(make_sequence([1] * 10, 7))
    assert not engine.scheduler.has_work


def test_a_thought_cut_by_its_budget_is_answered():
    for seed in range(50):
        seq = make_sequence([1, 2, 3], 60, seed=seed, budget=5)
        engine = make_engine(100, 4, 64, 4, 0)
        engine.submit(seq)
        while seq.finish_reason is None:
            engine.step()
        done = seq.completion()
        assert done.content
        if done.thinking.stop == "budget":
            assert done.usage.reasoning_tokens == 5 + 3  # five of its own, three of the stop sentence
            assert done.sampled.count(False) == 5


def test_a_failing_step_ends_every_request_and_frees_every_block():
    engine = make_engine(100, 4, 64, 4, 0)
    ended: list[object] = []
    sequences = [make_sequence([1, 2, 3], 30, seed=i, emit=ended.append) for i in range(3)]
    for seq in sequences:
        engine.submit(seq)
    engine.step()

    def fail(chunks: object) -> list[int | None]:
        raise MemoryError("no more")

    engine.runner.run = fail  # type: ignore[method-assign, assignment]
    engine.start()
    engine.submit(late := make_sequence([1], 5, emit=ended.append))
    while ended.count(None) < 4:
        pass
    assert {s.finish_reason for s in [*sequences, late]} == {"error"}
    assert engine.scheduler.pool.num_free == 100
    engine.close()


def test_uniform_numbers_are_a_function_of_seed_and_position_alone():
    draws = [uniform(seed, position) for seed in range(100) for position in range(100)]
    assert len(set(draws)) == len(draws)
    assert 0 <= min(draws) and max(draws) < 1
    assert abs(sum(draws) / len(draws) - 0.5) < 0.01
    assert uniform(7, 3) == uniform(7, 3) != uniform(3, 7)
