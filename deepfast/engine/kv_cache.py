"""Who owns which KV block: plain bookkeeping over block ids.

In: a sequence and how many positions it needs. Out: its list of block ids, longer or empty again.
Does not know: keys and values themselves (a backend holds them), which sequence matters more (scheduler).
"""

from __future__ import annotations

from .sequence import Sequence


class BlockPool:
    """`num_blocks` blocks of `block_size` positions, each free or owned by one sequence.

    Sharing blocks between sequences (prefix cache, forks) will count references here.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
        self._free = list(range(num_blocks))

    @property
    def num_free(self) -> int:
        """Blocks that nobody owns."""
        return len(self._free)

    @property
    def num_positions(self) -> int:
        """Positions that all blocks together can hold."""
        return self.num_blocks * self.block_size

    def reserve(self, seq: Sequence, num_tokens: int) -> bool:
        """Make `seq` own blocks for its first `num_tokens` positions, or change nothing and say False."""
        need = -(-num_tokens // self.block_size) - len(seq.blocks)
        if need > len(self._free):
            return False
        for _ in range(need):
            seq.blocks.append(self._free.pop())
        return True

    def release(self, seq: Sequence) -> None:
        """Take every block of `seq` back; its tokens stay, all of them pending again."""
        self._free += seq.blocks
        seq.blocks = []
        seq.num_computed = 0
