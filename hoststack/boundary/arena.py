"""Blocks of shared segments, for FIFOs.

Segments are created on demand and divided into blocks. A segment without used blocks is dropped
unless it is the only one: each costs every process that maps it an open file and address space.
"""

from __future__ import annotations

import mmap
import os
from collections import defaultdict
from collections.abc import Callable, Collection
from typing import Final, Generic, TypeVar

from hoststack.native.memory.fifo import Fifo
from hoststack.native.memory.segment import make_segment, map_segment
from hoststack.native.session._session import ffi

Label = TypeVar("Label")

#: Size of a segment, unless a single FIFO is larger.
SEGMENT_BYTES: Final = 64 << 20
#: Free blocks of one size that keep their pages; pages of further ones go back to the kernel.
_KEPT_FREE: Final = 16
_PAGE_BYTES: Final = mmap.PAGESIZE


def block_bytes(size_bytes: int) -> int:
    """Return the size of a FIFO's block in a segment: whole pages."""
    return -(-Fifo.block_bytes(size_bytes) // _PAGE_BYTES) * _PAGE_BYTES


class Segment(Generic[Label]):
    """A segment that is divided into blocks."""

    __slots__ = ("label", "memory", "next_offset", "number", "used_blocks")

    def __init__(self, number: int, memory: mmap.mmap) -> None:
        self.number = number
        self.memory = memory
        self.label: Label
        """What `on_segment` returned."""
        self.next_offset = 0
        self.used_blocks = 0


class Block(Generic[Label]):
    """A block, in use or free."""

    __slots__ = ("offset", "segment", "size_bytes")

    def __init__(self, segment: Segment[Label], offset: int, size_bytes: int) -> None:
        self.segment = segment
        self.offset = offset
        self.size_bytes = size_bytes
        """Size of the FIFO in it."""

    def fifo(self) -> Fifo:
        """Return a FIFO in this block; raises MemoryError."""
        return Fifo(self.size_bytes, self.segment.memory, self.offset)

    @property
    def location(self) -> tuple[int, int]:
        """Its address and size with the header, for C."""
        address = int(ffi.cast("uintptr_t", ffi.from_buffer(self.segment.memory)))
        return address + self.offset, Fifo.block_bytes(self.size_bytes)


class _FreeBlocks(Generic[Label]):
    """The free blocks of one size, by segment.

    The oldest segment is used first, so that the others become empty. A finalizer may call `add` in
    the middle of any method here.
    """

    def __init__(self) -> None:
        self._by_segment: dict[int, list[Block[Label]]] = {}

    def __len__(self) -> int:
        return sum(map(len, list(self._by_segment.values())))

    def add(self, block: Block[Label]) -> None:
        """Add a free block."""
        self._by_segment.setdefault(block.segment.number, []).append(block)

    def take(self) -> Block[Label] | None:
        """Remove and return a block of the oldest segment that has one, the one freed last; None if
        there is none."""
        for number in sorted(self._by_segment):
            blocks = self._by_segment[number]
            if blocks:
                return blocks.pop()
        return None

    def drop(self, segment: int) -> None:
        """Forget the blocks of a segment that is dropped."""
        self._by_segment.pop(segment, None)


class Arena(Generic[Label]):
    """Segments and their blocks.

    `on_segment(fd)` is called for each new segment, and owns the descriptor; what it returns is the
    segment's label. It may raise OSError. `on_segment_gone(label)` is called for each segment that
    is dropped; it raises nothing.
    """

    def __init__(
        self,
        name: str,
        on_segment: Callable[[int], Label],
        on_segment_gone: Callable[[Label], None],
    ) -> None:
        self._name = name
        self._on_segment = on_segment
        self._on_segment_gone = on_segment_gone
        self._segments: dict[int, Segment[Label]] = {}
        self._next_number = 0
        self._cut_from: Segment[Label] | None = None
        self._unused: set[int] = set()
        """Candidates for `drop_unused`: segments that had no used blocks at some time."""
        self._free: defaultdict[int, _FreeBlocks[Label]] = defaultdict(_FreeBlocks)

    def take(self, size_bytes: int) -> Block[Label]:
        """Return a block of zeros for a FIFO of at least that size; raises OSError."""
        rounded_bytes = Fifo.rounded_up(size_bytes)
        block = self._free[rounded_bytes].take() or self._cut(rounded_bytes)
        block.segment.used_blocks += 1
        return block

    def _cut(self, size_bytes: int) -> Block[Label]:
        stride = block_bytes(size_bytes)
        segment = self._cut_from
        if segment is None or segment.next_offset + stride > len(segment.memory):
            segment = self._cut_from = self._add_segment(max(SEGMENT_BYTES, stride))
        block = Block(segment, segment.next_offset, size_bytes)
        segment.next_offset += stride
        return block

    def _add_segment(self, size_bytes: int) -> Segment[Label]:
        fd = make_segment(f"hoststack-{self._name}", size_bytes)
        try:
            segment: Segment[Label] = Segment(self._next_number, map_segment(fd))
        except BaseException:
            os.close(fd)
            raise
        segment.label = self._on_segment(fd)
        self._next_number += 1
        self._segments[segment.number] = segment
        return segment

    def give_back(self, block: Block[Label]) -> None:
        """Free a block. A finalizer may call this."""
        if block.segment.number not in self._segments:
            return  # the arena is closed
        # Only those who had the block see its old contents. A new FIFO needs a header of zeros.
        memory, offset, size_bytes = block.segment.memory, block.offset, block.size_bytes
        header_bytes = Fifo.block_bytes(size_bytes) - size_bytes
        memory[offset : offset + header_bytes] = bytes(header_bytes)
        free = self._free[size_bytes]
        if len(free) >= _KEPT_FREE:
            memory.madvise(mmap.MADV_REMOVE, offset, block_bytes(size_bytes))
        free.add(block)
        block.segment.used_blocks -= 1
        # Not now: this may run in a finalizer, which interrupts any other code.
        if not block.segment.used_blocks:
            self._unused.add(block.segment.number)

    @property
    def segments(self) -> Collection[Segment[Label]]:
        """Its segments."""
        return self._segments.values()

    @property
    def has_unused(self) -> bool:
        """Whether `drop_unused` may have something to drop."""
        return bool(self._unused)

    def drop_unused(self, keep: int = 1) -> None:
        """Drop the segments without used blocks, except the last `keep` of all."""
        while self._unused and len(self._segments) > keep:
            number = self._unused.pop()
            segment = self._segments.get(number)
            if segment is None or segment.used_blocks:
                continue
            del self._segments[number]
            if segment is self._cut_from:
                self._cut_from = None
            for free in list(self._free.values()):
                free.drop(number)
            self._on_segment_gone(segment.label)

    def retire(self) -> None:
        """Forget what creates segments: no block is taken any more."""
        del self._on_segment

    def close(self) -> None:
        """Forget all segments, and the callbacks. The memory of a segment lives until its last
        FIFO is freed."""
        del self._on_segment, self._on_segment_gone
        self._segments.clear()
        self._free.clear()
        self._cut_from = None
