"""torch's caching allocator, replayed on sizes: what a card must hold for tensors to come and go in this order.

Rounding, the two pools, blocks split and joined, segments given back when memory runs out: as c10's
CUDACachingAllocator does it with its default settings (torch 2.13), on one stream.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field

import torch

ROUND, SMALL, SMALL_SEGMENT = 512, 1 << 20, 2 << 20
LARGE_SEGMENT, LARGE, ROUND_LARGE = 20 << 20, 10 << 20, 2 << 20


@dataclass(eq=False)
class Block:
    """A piece of a segment; `before` and `after` are its neighbours there."""

    size: int
    small: bool
    number: int
    free: bool = False
    before: Block | None = None
    after: Block | None = None


@dataclass
class Host:
    """torch's CPU allocator: as many bytes as are asked for, as many as the machine has."""

    allocated: int = 0
    highest: int = 0

    @property
    def reserved(self) -> int:
        """As much as is in use."""
        return self.allocated

    def take(self, size: int) -> Block:
        """A block of `size` bytes."""
        self.allocated += size
        self.highest = max(self.highest, self.allocated)
        return Block(size, False, 0)

    def give(self, block: Block) -> None:
        """Back to the machine."""
        self.allocated -= block.size


@dataclass
class Allocator:
    """One card of `capacity` bytes. `reserved` is what segments take, `allocated` what blocks in use do."""

    capacity: int
    reserved: int = 0
    allocated: int = 0
    highest: int = 0
    """Most that was reserved."""
    _free: dict[bool, list[tuple[int, int, Block]]] = field(default_factory=lambda: {True: [], False: []})
    _made: int = 0

    def take(self, size: int) -> Block:
        """A block of at least `size` bytes; raises torch.OutOfMemoryError where no room can be made."""
        size = max(ROUND, -(-size // ROUND) * ROUND)
        small = size <= SMALL
        block = self._fitting(size, small) or self._segment(size, small)
        rest = block.size - size
        if rest >= (ROUND if small else SMALL + 1):
            tail = self._block(rest, small, block, block.after)
            if block.after is not None:
                block.after.before = tail
            block.size, block.after = size, tail
            self._put(tail)
        block.free = False
        self.allocated += block.size
        return block

    def give(self, block: Block) -> None:
        """Back to its pool, joined with free neighbours."""
        self.allocated -= block.size
        for other in (block.before, block.after):
            if other is None or not other.free:
                continue
            self._drop(other)
            if other is block.before:
                other.size, other.after = other.size + block.size, block.after
                if block.after is not None:
                    block.after.before = other
                block = other
            else:
                block.size, block.after = block.size + other.size, other.after
                if other.after is not None:
                    other.after.before = block
        self._put(block)

    def _block(self, size: int, small: bool, before: Block | None, after: Block | None) -> Block:
        self._made += 1
        return Block(size, small, self._made, before=before, after=after)

    def _put(self, block: Block) -> None:
        block.free = True
        bisect.insort(self._free[block.small], (block.size, block.number, block))

    def _drop(self, block: Block) -> None:
        pool = self._free[block.small]
        del pool[bisect.bisect_left(pool, (block.size, block.number))]  # type: ignore[type-var]

    def _fitting(self, size: int, small: bool) -> Block | None:
        pool = self._free[small]
        at = bisect.bisect_left(pool, (size, 0))  # type: ignore[type-var]
        return pool.pop(at)[2] if at < len(pool) else None

    def _segment(self, size: int, small: bool) -> Block:
        whole = SMALL_SEGMENT if small else LARGE_SEGMENT if size < LARGE else -(-size // ROUND_LARGE) * ROUND_LARGE
        if self.reserved + whole > self.capacity:
            self._release()
        if self.reserved + whole > self.capacity:
            raise torch.OutOfMemoryError(f"Tried to allocate {size / 2**20:.2f} MiB")
        self.reserved += whole
        self.highest = max(self.highest, self.reserved)
        return self._block(whole, small, None, None)

    def _release(self) -> None:
        """Give back every segment that nothing lies in."""
        for pool in self._free.values():
            for entry in [entry for entry in pool if entry[2].before is None and entry[2].after is None]:
                pool.remove(entry)
                self.reserved -= entry[2].size
