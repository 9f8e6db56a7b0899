"""The block pool's contract: a sequence is given exactly the cached blocks that hold its own beginning, and
what is shared or kept is counted right.

In: random lives of sequences over a tiny alphabet. Out: equality with a plain list of what every block holds.
Does not know: keys and values.
"""

from __future__ import annotations

import random
import time

from fake_engine import check_index, count_blocks, make_sequence

from deepfast.engine.kv_cache import BlockPool
from deepfast.engine.sequence import Sequence


def compute(pool: BlockPool, seq: Sequence, upto: int | None = None) -> None:
    """As a step does: reserve, compute, commit."""
    upto = len(seq.tokens) if upto is None else upto
    assert pool.reserve(seq, upto)
    seq.num_computed = upto
    pool.commit(seq)


def live(pool: BlockPool, tokens: list[int]) -> tuple[int, str]:
    """A sequence comes, is computed whole and goes; returns what it found and what was said about it."""
    seq = make_sequence(tokens, 5)
    miss = pool.match(seq)
    cached = seq.num_computed
    compute(pool, seq)
    pool.release(seq)
    return cached, miss


def random_life(number: int) -> tuple[int, int]:
    """Returns how many positions were found in the cache, and how many blocks were evicted."""
    rng = random.Random(number)
    size = rng.choice([1, 2, 4])
    pool = BlockPool(rng.randint(8, 24), size)
    held: dict[int, tuple[int, ...]] = {}  # block -> all tokens from the start to its end, as computed
    running: list[Sequence] = []
    found = evicted = 0
    for _ in range(60):
        action = rng.random()
        if action < 0.5:
            seq = make_sequence([rng.randrange(2) for _ in range(rng.randint(1, 6 * size))], 100)
            pool.match(seq)
            assert seq.num_computed == len(seq.blocks) * size < len(seq.tokens)
            for i, block in enumerate(seq.blocks):
                assert held[block] == tuple(seq.tokens[: (i + 1) * size]), "a block of another text"
            found += seq.num_computed
            running.append(seq)
        elif running and action < 0.8:
            seq = rng.choice(running)
            seq.tokens += [rng.randrange(2) for _ in range(rng.randint(0, 2 * size))]
            upto = rng.randint(seq.num_computed, len(seq.tokens))
            kept = len(pool._idle)
            if pool.reserve(seq, min(upto + rng.randrange(3), len(seq.tokens) + 3)):  # room for a draft
                evicted += kept - len(pool._idle)
                for i in range(seq.num_computed // size, upto // size):
                    held[seq.blocks[i]] = tuple(seq.tokens[: (i + 1) * size])
                seq.num_computed = upto
                pool.commit(seq)
        elif running:
            pool.release(running.pop(rng.randrange(len(running))))
        count_blocks(pool, running)
        check_index(pool)
    for seq in running:
        pool.release(seq)
    assert pool.num_free == pool.num_blocks
    return found, evicted


def test_random_lives_find_only_what_equals_their_own_beginning():
    results = [random_life(number) for number in range(300)]
    assert sum(found for found, _ in results) > 3000
    assert sum(evicted for _, evicted in results) > 1000


def test_every_miss_has_its_reason():
    pool = BlockPool(8, 4)
    assert live(pool, [1] * 3) == (0, "none")  # no full block: nothing could be cached
    assert live(pool, [1] * 4 + [2] * 5) == (0, "cold")
    assert live(pool, [1] * 4 + [2] * 5) == (8, "none")
    assert live(pool, [1] * 4 + [2] * 4) == (4, "none")  # one token must stay to be computed
    assert live(pool, [1] * 4 + [3] * 5) == (4, "diverged")
    assert live(pool, [5] * 32) == (0, "cold")  # takes every block
    assert live(pool, [1] * 4 + [2] * 5) == (0, "evicted")
    off = BlockPool(8, 4, prefix_cache=False)
    assert live(off, [1] * 9) == live(off, [1] * 9) == (0, "off")


def test_the_longest_unused_goes_first_and_the_end_of_a_chain_before_its_beginning():
    pool = BlockPool(6, 2)
    live(pool, [1, 1, 1, 1, 1, 1])
    live(pool, [2, 2, 2, 2, 2, 2])
    live(pool, [1, 1, 1, 1, 1, 1, 1])  # used again, and took the end of the twos for its seventh token
    assert live(pool, [2, 2, 2, 2, 2]) == (4, "none")
    live(pool, [3, 3, 3, 3])  # takes the free block and the end of the ones
    assert live(pool, [1] * 7)[0] == 4


def test_what_two_compute_at_the_same_time_is_indexed_once_and_shared_by_the_third():
    pool = BlockPool(10, 2)
    pair = [make_sequence([1, 2, 3, 4, 5, 6], 5) for _ in range(2)]
    for upto in (2, 4, 6):
        for seq in pair:
            compute(pool, seq, upto)
    assert not set(pair[0].blocks) & set(pair[1].blocks)
    third = make_sequence([1, 2, 3, 4, 5, 6, 7], 5)
    pool.match(third)
    assert third.blocks == pair[0].blocks
    count_blocks(pool, [*pair, third])
    for seq in (*pair, third):
        pool.release(seq)
    assert len(pool._idle) == 3 and pool.num_free == 10


def test_a_twin_takes_the_place_of_the_block_that_was_evicted():
    pool = BlockPool(5, 2)
    first, twin = make_sequence([1, 2], 5), make_sequence([1, 2, 3, 4], 5)
    compute(pool, first)
    compute(pool, twin)
    pool.release(first)
    other = make_sequence([9] * 6, 5)
    compute(pool, other)  # takes all that is free, the first one's block with it
    pool.release(twin)
    pool.release(other)
    assert live(pool, [1, 2, 3, 4, 5])[0] == 4


def test_the_rest_of_a_chain_is_found_again_when_its_beginning_comes_back():
    pool = BlockPool(4, 2)
    owner, twin = make_sequence([1, 2], 5), make_sequence([1, 2, 3, 4], 5)
    compute(pool, owner)
    compute(pool, twin)
    pool.release(owner)
    compute(pool, taker := make_sequence([7, 7, 7, 7], 5))  # the indexed [1, 2] is gone, [3, 4] is not
    pool.release(taker)
    compute(pool, again := make_sequence([1, 2], 5))
    follower = make_sequence([1, 2, 3, 4, 5], 5)
    assert pool.match(follower) == "none" and follower.num_computed == 4
    for seq in (twin, again, follower):
        pool.release(seq)
    assert pool.num_free == 4


def test_positions_behind_num_computed_are_never_indexed():
    pool = BlockPool(8, 2)
    seq = make_sequence([1, 2, 3, 4, 5, 6], 5)
    assert pool.reserve(seq, 8)  # two more for a draft
    seq.num_computed = 3
    pool.commit(seq)
    assert live(pool, [1, 2, 3, 4, 5, 6, 7])[0] == 2


def test_commit_costs_microseconds_for_each_decoded_token():
    pool, size, length = BlockPool(2500, 16), 16, 32_000
    seq = make_sequence([i % 977 for i in range(length)], 5)
    compute(pool, seq, length - 2000)
    began = time.process_time()
    for upto in range(length - 2000, length):
        pool.reserve(seq, upto)
        seq.num_computed = upto
        pool.commit(seq)
    assert (time.process_time() - began) / 2000 < 20e-6
    assert len(pool._index) == (length - 1) // size


def test_the_next_free_blocks_are_those_that_are_handed_out_next():
    pool = BlockPool(8, 2)
    first, second = make_sequence([1] * 6, 5), make_sequence([2] * 4, 5)
    compute(pool, first)
    expected = pool.next_free(2)
    compute(pool, second)
    assert sorted(expected) == sorted(second.blocks) and len(expected) == 2
    assert len(pool.next_free(100)) == 3 and not set(pool.next_free(3)) & {*first.blocks, *second.blocks}
