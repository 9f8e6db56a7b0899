"""Who owns which KV block, and which computed blocks can be used again: plain bookkeeping over block ids.

In: sequences, how many positions they need, how far they are computed. Out: their lists of block ids. A full
computed block is indexed by what it holds: its own tokens and, through its parent's node, every token before
them. Only such blocks are shared, and nobody writes to them; when nobody uses one it stays, until its room is
needed: the longest unused goes first, the end of a chain before its beginning.
Does not know: keys and values themselves (a backend holds them), which sequence matters more (scheduler).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import count

from ..types import CacheMiss
from .sequence import Sequence

Key = tuple[int, tuple[int, ...]]  # (node of the block before, 0 for none; the tokens of this block)


class BlockPool:
    """`num_blocks` blocks of `block_size` positions. prefix_cache False: no block is ever shared or kept."""

    def __init__(self, num_blocks: int, block_size: int, prefix_cache: bool = True) -> None:
        self.num_blocks, self.block_size, self.prefix_cache = num_blocks, block_size, prefix_cache
        self._free = list(range(num_blocks))  # hold nothing of value
        self._idle: OrderedDict[int, None] = OrderedDict()  # indexed, used by nobody; longest unused first
        self._users = [0] * num_blocks  # sequences that own the block
        self._keys: list[Key | None] = [None] * num_blocks  # what a full computed block holds
        self._nodes = [0] * num_blocks  # names the block's chain: equal nodes, equal tokens from the start
        self._index: dict[Key, int] = {}  # -> block
        self._evicted: OrderedDict[Key, int] = OrderedDict()  # -> its node; the latest `num_blocks` of them
        self._new_node = count(1)

    @property
    def num_free(self) -> int:
        """Blocks that nobody owns, cached ones included."""
        return len(self._free) + len(self._idle)

    @property
    def num_cached(self) -> int:
        """Blocks that nobody owns, but that hold something that may be used again."""
        return len(self._idle)

    @property
    def num_positions(self) -> int:
        """Positions that all blocks together can hold."""
        return self.num_blocks * self.block_size

    def next_free(self, count: int) -> list[int]:
        """The blocks that `reserve` will hand out next, as far as they hold nothing."""
        return self._free[-count:]

    def match(self, seq: Sequence) -> CacheMiss:
        """Give `seq`, which owns nothing, the cached blocks that its tokens begin with; at least its last
        token stays pending. Says why they are not more."""
        assert not seq.blocks and not seq.num_computed
        if not self.prefix_cache:
            return "off"
        node, missing = 0, None
        for key_tokens in self._split(seq.tokens, (len(seq.tokens) - 1) // self.block_size):
            key = node, key_tokens
            block = self._index.get(key)
            if block is None:
                missing = key
                break
            self._use(block)
            seq.blocks.append(block)
            node = self._nodes[block]
        seq.num_computed = len(seq.blocks) * self.block_size
        if missing is None:
            return "none"
        if missing in self._evicted:
            return "evicted"
        return "diverged" if seq.blocks else "cold"

    def commit(self, seq: Sequence) -> None:
        """Index the blocks of `seq` that are full of computed positions."""
        full = seq.num_computed // self.block_size
        if not full or self._keys[seq.blocks[full - 1]] is not None or not self.prefix_cache:
            return
        first = full - 1
        while first and self._keys[seq.blocks[first - 1]] is None:
            first -= 1
        node = self._nodes[seq.blocks[first - 1]] if first else 0
        for i in range(first, full):
            key = node, tuple(seq.tokens[i * self.block_size : (i + 1) * self.block_size])
            node = self._place(key, seq.blocks[i])

    def reserve(self, seq: Sequence, num_tokens: int) -> bool:
        """Make `seq` own blocks for its first `num_tokens` positions, or change nothing and say False."""
        need = -(-num_tokens // self.block_size) - len(seq.blocks)
        if need > self.num_free:
            return False
        for _ in range(need):
            block = self._free.pop() if self._free else self._evict()
            self._users[block] = 1
            seq.blocks.append(block)
        return True

    def release(self, seq: Sequence) -> None:
        """Take every block of `seq` back; its tokens stay, all of them pending again."""
        for block in reversed(seq.blocks):
            self._users[block] -= 1
            if self._users[block]:
                continue
            key = self._keys[block]
            if key is not None and self._index.setdefault(key, block) == block:
                self._idle[block] = None
            else:
                self._forget(block)
                self._free.append(block)
        seq.blocks = []
        seq.num_computed = 0

    def _split(self, tokens: list[int], num_blocks: int) -> Iterator[tuple[int, ...]]:
        size = self.block_size
        return (tuple(tokens[i * size : (i + 1) * size]) for i in range(num_blocks))

    def _use(self, block: int) -> None:
        self._users[block] += 1
        self._idle.pop(block, None)

    def _place(self, key: Key, block: int) -> int:
        """Note what `block` holds; returns its node. The index keeps one block of each content: another that
        was computed at the same time stays its owner's alone."""
        twin = self._index.setdefault(key, block)
        if twin != block:
            node = self._nodes[twin]
        elif key in self._evicted:  # the same content again: what hung below it is found again
            node = self._evicted.pop(key)
        else:
            node = next(self._new_node)
        self._keys[block], self._nodes[block] = key, node
        return node

    def _evict(self) -> int:
        """Forget the content of the block that was unused for longest; it is nobody's."""
        block, _ = self._idle.popitem(last=False)
        key = self._keys[block]
        assert key is not None
        del self._index[key]
        self._evicted[key] = self._nodes[block]
        self._evicted.move_to_end(key)
        if len(self._evicted) > self.num_blocks:
            self._evicted.popitem(last=False)
        self._forget(block)
        return block

    def _forget(self, block: int) -> None:
        self._keys[block], self._nodes[block] = None, 0
