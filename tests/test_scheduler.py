"""The scheduler's contract on a pretend model: whatever runs beside a sequence, is shared with it or guessed
for it, its tokens are those it has alone.

In: random workloads. Out: equality of tokens, masks and finish reasons; a count of every block after every
step. Does not know: real models.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from fake_engine import Guesser, HashRunner, Parrot, check_index, count_blocks, lasting, make_sequence

from deepfast.engine.engine import Engine
from deepfast.engine.kv_cache import BlockPool
from deepfast.engine.sampler import uniform
from deepfast.engine.scheduler import IDLE_TOKENS, Chunk, Scheduler
from deepfast.engine.sequence import Sequence
from deepfast.types import ContextError


def make_engine(
    num_blocks: int = 100,
    block_size: int = 4,
    max_batch_tokens: int = 64,
    max_running: int = 4,
    salt: int = 0,
    habit: float = 0.0,
    prefix_cache: bool = True,
) -> Engine:
    pool = BlockPool(num_blocks, block_size, prefix_cache)
    return Engine(Scheduler(pool, max_batch_tokens, max_running), HashRunner(pool, salt, habit))  # type: ignore[arg-type]


def run(engine: Engine, *sequences: Sequence) -> None:
    """Until all have finished."""
    engine.submit(*sequences)
    while any(seq.finish_reason is None for seq in sequences):
        engine.step()


def outcome(seq: Sequence) -> tuple[object, ...]:
    done = seq.completion()
    return (
        seq.tokens,
        done.sampled,
        done.finish_reason,
        done.thinking.stop,
        done.thinking.waits,
        done.reasoning,
    )


def random_requests(rng: random.Random) -> list[dict[str, Any]]:
    requests: list[dict[str, Any]] = []
    shared = [rng.randrange(20) for _ in range(30)]
    for seed in range(rng.randint(1, 8)):
        prompt = [rng.randrange(20) for _ in range(rng.randint(1, 30))]
        if rng.random() < 0.5:
            prompt = shared[: rng.randint(1, 30)] + prompt[: rng.randint(0, 10)]
        request: dict[str, Any] = {"prompt": prompt, "seed": seed}
        request["budget"] = budget = rng.choice([None, None, 0, 3, 10, 1000])
        request["max_new"] = rng.randint(4 if budget is not None else 1, 40)
        if budget == 10 and request["max_new"] > 24:
            request["min_tokens"] = rng.choice([0, 8])
            request["soft_landing"] = rng.choice([0, 4])
        request["loop_guard"] = rng.random() < 0.5
        requests.append(request)
    return requests


class Workload:
    """One random workload, checked against each of its sequences alone, without a cache or drafts."""

    def __init__(self, number: int) -> None:
        self.rng = rng = random.Random(number)
        requests = random_requests(rng)
        habit, salt = rng.choice([0.0, 0.8, 1.0]), number % 251
        block_size = rng.choice([1, 4, 16])
        longest = max(len(r["prompt"]) + 1 + r["max_new"] for r in requests)
        num_blocks = -(-longest // block_size) + rng.choice([0, 0, 2, 10, 100])
        batch, running, cache = rng.choice([1, 5, 16, 64]), rng.randint(1, 8), rng.random() < 0.8
        self.engine = make_engine(num_blocks, block_size, batch, running, salt, habit, cache)
        self.alone: list[Sequence] = []
        self.sequences: list[Sequence] = []
        for request in requests:
            self.alone.append(make_sequence(**request))
            run(make_engine(200, 16, 512, 1, salt, habit, prefix_cache=False), self.alone[-1])
            leader = rng.choice(self.sequences) if self.sequences and rng.random() < 0.3 else None
            seq = make_sequence(**request, speculation=rng.random() < 0.6, leader=leader)
            if rng.random() < 0.5:
                seq.speculator = Guesser(seq.tokens, self.alone[-1].tokens, rng)  # type: ignore[assignment]
            self.sequences.append(seq)
        self.background = [
            make_sequence(request["prompt"] + [1, 2, 3], 0) for request in requests if rng.random() < 0.2
        ]
        self.counts: Counter[str] = Counter()

    def run(self) -> Counter[str]:
        """Returns what happened, so that the test can say it tested something."""
        rng, scheduler, sequences = self.rng, self.engine.scheduler, self.sequences
        arrivals = sorted((rng.randint(0, 20), i) for i in range(len(sequences)))
        cancelled = rng.randrange(len(sequences)) if rng.random() < 0.2 else None
        cancel_at, step = rng.randint(0, 20), 0
        for seq in self.background:
            scheduler.add_background(seq)
        while arrivals or scheduler.has_work:
            while arrivals and arrivals[0][0] <= step:
                self.engine.submit(sequences[arrivals.pop(0)[1]])
            if step == cancel_at and cancelled is not None and all(i != cancelled for _, i in arrivals):
                self.engine.cancel(sequences[cancelled])
            self.step()
            step += 1
            if step % 16 == 0:
                check_index(scheduler.pool)
            assert step < 20_000, "no progress"
        for i, (seq, alone) in enumerate(zip(sequences, self.alone, strict=True)):
            self.compare(seq, alone, i == cancelled)
        assert all(seq.finish_reason == "stop" for seq in self.background)
        assert scheduler.pool.num_free == scheduler.pool.num_blocks
        check_index(scheduler.pool)
        assert not scheduler._admitted
        self.counts["preempted"] = scheduler.num_preempted
        return self.counts

    def step(self) -> None:
        """One step, with a look at what it did."""
        scheduler = self.engine.scheduler
        before = {seq: len(seq.tokens) for seq in self.sequences}
        running, preempted = len(scheduler.running), scheduler.num_preempted
        finished, computed = self.engine.step()
        assert computed <= scheduler.max_batch_tokens
        if back := scheduler.num_preempted - preempted:
            left = running - back - len(finished)
            assert len(scheduler.running) <= left, "one came in while another had to step back"
        count_blocks(scheduler.pool, self.sequences + self.background)
        for seq in self.sequences:
            assert not seq.blocks or seq in scheduler.running
            self.counts["drafted"] += seq.num_pending == 1 and len(seq.tokens) > before[seq] + 1

    def compare(self, seq: Sequence, alone: Sequence, cancelled: bool) -> None:
        """Equal, whatever ran beside it."""
        if seq.finish_reason == "abort":
            assert cancelled
            assert alone.tokens[: len(seq.tokens)] == seq.tokens
        else:
            assert outcome(seq) == outcome(alone)
        self.counts["cached"] += seq.cached_tokens
        self.counts[seq.thinking_stop] += 1
        self.counts[seq.cache_miss] += 1


def check_workloads(numbers: range) -> None:
    """Run them, and be sure that they were hard enough to say anything."""
    counts = sum((Workload(number).run() for number in numbers), Counter())
    for what in ("preempted", "drafted", "cached"):
        assert counts[what] > len(numbers) // 2, f"too few {what}: {counts}"
    for what in ("budget", "natural", "cold", "diverged", "evicted", "off", "none"):
        assert counts[what] > len(numbers) // 10, f"too few {what}: {counts}"


def test_hundreds_of_random_workloads_equal_each_sequence_alone_and_lose_no_block():
    check_workloads(range(300))


@pytest.mark.slow
def test_thousands_of_random_workloads_do_too():
    check_workloads(range(300, 3000))


def test_a_request_that_can_never_fit_is_refused_with_numbers():
    engine = make_engine(num_blocks=4, block_size=4, max_batch_tokens=8, max_running=2)
    with pytest.raises(
        ContextError, match="10 tokens and may grow by 7, 17 in all, but the KV cache holds 16"
    ):
        engine.submit(make_sequence([1] * 10, 7))
    assert not engine.scheduler.has_work


def test_a_thought_cut_by_its_budget_is_answered():
    for seed in range(50):
        seq = make_sequence([1, 2, 3], 60, seed=seed, budget=5)
        run(make_engine(), seq)
        done = seq.completion()
        assert done.content
        if done.thinking.stop == "budget":
            assert done.usage.reasoning_tokens == 5 + 3  # five of its own, three of the stop sentence
            assert done.sampled.count(False) == 5


def test_a_failing_step_ends_every_request_and_frees_every_block():
    engine = make_engine()
    ended: list[object] = []
    sequences = [make_sequence([1, 2, 3], 30, seed=i, emit=ended.append) for i in range(3)]
    for seq in sequences:
        engine.submit(seq)
    engine.step()

    def fail(chunks: object) -> None:
        raise MemoryError("no more")

    engine.runner.forward = fail  # type: ignore[method-assign, assignment]
    engine.start()
    engine.submit(late := make_sequence([1], 5, emit=ended.append))
    while ended.count(None) < 4:
        pass
    assert {s.finish_reason for s in [*sequences, late]} == {"error"}
    engine.close()
    assert engine.scheduler.pool.num_free == 100


def test_what_is_cached_is_not_computed_again_and_the_first_admission_reports_it():
    engine = make_engine()
    run(engine, first := make_sequence(list(range(18)), 5))
    assert (first.cached_tokens, first.cache_miss) == (0, "cold")
    engine.submit(again := make_sequence(list(range(18)), 5, seed=1))
    assert engine.step().num_computed == 2  # 16 of 18 are in four blocks of four
    assert (again.cached_tokens, again.cache_miss) == (16, "none")
    engine.submit(other := make_sequence([*range(9), 0, 0, 0, 0], 5))
    engine.step()
    assert (other.cached_tokens, other.cache_miss) == (8, "diverged")


def test_a_preempted_sequence_takes_back_what_is_still_cached_and_reports_its_first_admission():
    engine = make_engine(num_blocks=10, max_running=2)
    old, new = lasting([1] * 14, 20, seed=1), lasting([2] * 14, 20, seed=2)
    engine.submit(old, new, last := lasting([3], 20))
    while not engine.scheduler.num_preempted:
        engine.step()
    assert [*engine.scheduler.waiting] == [new, last] and not new.blocks
    while new in engine.scheduler.waiting:
        engine.step()
    assert new.num_computed > 1
    assert (new.cached_tokens, new.cache_miss) == (0, "cold")


def test_branches_wait_for_the_prompt_of_their_leader_and_nobody_else_waits_for_them():
    engine = make_engine(max_batch_tokens=8, max_running=8)
    prompt = list(range(20))
    leader = lasting(prompt, 30)
    branches = [lasting(prompt, 5, seed=i, leader=leader) for i in (1, 2)]
    other = lasting([9, 9], 5)
    engine.submit(leader, *branches)
    engine.step()
    assert engine.scheduler.running == [leader]
    engine.submit(other)
    engine.step()
    engine.step()  # computes the last 4 of 20, and with the room that is left `other`
    assert engine.scheduler.running == [leader, other]
    engine.step()
    assert engine.scheduler.running == [leader, other, *branches]
    assert [seq.cached_tokens for seq in branches] == [16, 16]


def test_a_branch_of_a_branch_that_waits_waits_too():
    engine = make_engine(max_batch_tokens=8)
    root = lasting(list(range(20)), 5)
    branch = lasting([*range(20), 1, 2, 3, 4, 5], 5, leader=root)
    twig = lasting([*range(20), 1, 2, 3, 4, 5], 5, leader=branch)
    engine.submit(root, branch, twig)
    engine.step()
    engine.step()
    assert engine.scheduler.running == [root]
    while twig.finish_reason is None:
        engine.step()
    assert (branch.cached_tokens, twig.cached_tokens) == (20, 24)


def test_a_leader_that_is_gone_behind_or_never_came_holds_nobody():
    gone, behind, never = (make_sequence(list(range(12)), 5, seed=i) for i in range(3))
    gone.finish("abort")
    followers = [
        make_sequence(list(range(12)), 5, seed=i, leader=x) for i, x in enumerate((gone, behind, never))
    ]
    engine = make_engine()
    run(engine, gone, *followers, behind)
    assert all(seq.finish_reason for seq in followers)

    leader = lasting(list(range(12)), 5)  # without a cache there is nothing to wait for
    branch = lasting(list(range(12)), 5, leader=leader)
    engine = make_engine(prefix_cache=False)
    engine.submit(leader, branch)
    engine.step()
    assert engine.scheduler.running == [leader, branch] and branch.cache_miss == "off"


def test_background_sequences_run_when_nothing_else_does_and_step_back_at_once():
    engine = make_engine(max_batch_tokens=512)
    idle = make_sequence([i % 20 for i in range(200)], 0)
    engine.scheduler.add_background(idle)
    assert engine.step().num_computed == IDLE_TOKENS
    assert idle.blocks
    engine.submit(urgent := make_sequence([5, 5, 5], 4))
    while urgent.finish_reason is None:
        engine.step()
        assert not idle.blocks
    assert engine.step().num_computed == IDLE_TOKENS  # it goes on from where it was
    assert idle.num_computed == 2 * IDLE_TOKENS
    while engine.scheduler.has_work:
        engine.step()
    assert idle.finish_reason == "stop" and not idle.completion().token_ids
    assert engine.scheduler.pool.num_free == 100
    engine.submit(warm := make_sequence(idle.tokens, 4))
    engine.step()
    assert warm.cached_tokens == 196


def test_a_background_sequence_is_cancelled_like_any_other():
    engine = make_engine()
    idle = [make_sequence([1] * 100, 0) for _ in range(2)]
    for seq in idle:
        engine.scheduler.add_background(seq)
    engine.step()
    for seq in engine.scheduler.unfinished():
        engine.cancel(seq)
    engine.step()
    assert [seq.finish_reason for seq in idle] == ["abort", "abort"]
    assert not engine.scheduler.has_work and engine.scheduler.pool.num_free == 100


def test_a_background_sequence_that_nothing_can_be_kept_of_ends_at_once():
    for engine in (make_engine(prefix_cache=False), make_engine(num_blocks=2)):
        engine.scheduler.add_background(idle := make_sequence([1] * 9, 0))
        assert idle.finish_reason == "stop" and not engine.scheduler.has_work


def test_a_sequence_that_ended_between_two_steps_is_taken_out():
    engine = make_engine()
    engine.submit(seq := make_sequence([1, 2, 3], 30), over := make_sequence([4], 30))
    over.finish("length")
    engine.step()
    assert engine.scheduler.running == [seq]
    seq.finish("length")
    assert engine.step().num_computed == 0
    assert not engine.scheduler.has_work and engine.scheduler.pool.num_free == 100


def drafts(engine: Engine, *sequences: Sequence) -> list[int]:
    """Lengths of the drafts of the step after the one that computes the prompts."""
    engine.submit(*sequences)
    engine.step()
    chunks: list[Chunk] = engine.scheduler.schedule()
    return [len(chunk.draft) for chunk in chunks]


def parrot(max_new: int, length: int = 3) -> Sequence:
    """A sequence that is always guessed for."""
    seq = lasting([1] * length, max_new, seed=length)
    seq.speculator = Parrot()  # type: ignore[assignment]
    return seq


def test_drafts_take_only_what_is_left():
    assert drafts(make_engine(), parrot(50), parrot(50, 4)) == [8, 8]
    assert drafts(make_engine(max_batch_tokens=16), parrot(50), parrot(50, 4)) == [8, 6]
    assert drafts(make_engine(), parrot(5), parrot(2, 4)) == [3, 0]  # the last token needs no guess
    tight = make_engine(num_blocks=3, block_size=4)
    assert drafts(tight, parrot(5, 3), parrot(4, 5)) == [0, 2]  # the second's own block has the room
    assert tight.scheduler.num_preempted == 0


def test_speculators_are_told_how_full_the_step_is():
    pair = parrot(50), parrot(50, 4)
    drafts(make_engine(), *pair)
    assert [seq.speculator.asked for seq in pair] == [[(2, 2)], [(10, 2)]]  # type: ignore[union-attr]


def test_uniform_numbers_are_a_function_of_seed_and_position_alone():
    draws = [uniform(seed, position) for seed in range(100) for position in range(100)]
    assert len(set(draws)) == len(draws)
    assert 0 <= min(draws) and max(draws) < 1
    assert abs(sum(draws) / len(draws) - 0.5) < 0.01
    assert uniform(7, 3) == uniform(7, 3) != uniform(3, 7)
