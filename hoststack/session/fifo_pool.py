"""The FIFOs of an application in another process: blocks of shared segments.

The worker makes segments as they are needed, up to a limit, and cuts blocks from them. A block is
free again when both sides are done with it: the worker's FIFO object is gone, and the application
has said that its own is.
"""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import weakref
from collections.abc import Callable
from typing import Final, NamedTuple

from hoststack.native.fifo import Fifo
from hoststack.native.segment import make_segment, map_segment

#: What a segment holds, unless a single FIFO is larger.
SEGMENT_BYTES: Final = 64 << 20
#: Segments with one FIFO, which another application sees as well, have numbers from here on.
_FIRST_ALONE: Final = 1 << 31
#: Free blocks of a size whose pages stay with us; those of others go back to the kernel.
_KEPT_FREE: Final = 16
_PAGE_BYTES: Final = mmap.PAGESIZE


class BlockName(NamedTuple):
    """Where a FIFO lies, as both processes name it."""

    segment: int
    offset: int
    size_bytes: int
    """Of the FIFO; its block is larger by a header."""


class PoolExhaustedError(OSError):
    """The application's FIFOs take all the memory that it may have."""


class _Block:
    """A block in use, or kept for use."""

    __slots__ = ("is_with_application", "is_with_worker", "memory", "name")

    def __init__(self, name: BlockName, memory: mmap.mmap | None) -> None:
        self.name = name
        self.memory = memory
        self.is_with_worker = False
        self.is_with_application = False


class FifoPool:
    """One application's FIFOs in one worker. `on_segment(number, fd)` is told of each new segment
    before a FIFO of it is."""

    def __init__(self, name: str, limit_bytes: int, on_segment: Callable[[int, int], None]) -> None:
        self._name = name
        self._limit_bytes = limit_bytes
        self._on_segment = on_segment
        self._segments: list[tuple[int, mmap.mmap]] = []
        self._next_offset = 0
        self._alone = itertools.count(_FIRST_ALONE)
        self._used_bytes = 0
        self._blocks: dict[BlockName, _Block] = {}
        self._free: dict[int, list[_Block]] = {}
        self._names: weakref.WeakKeyDictionary[Fifo, BlockName] = weakref.WeakKeyDictionary()

    @property
    def used_bytes(self) -> int:
        """What the FIFOs in use take."""
        return self._used_bytes

    def has_room_for(self, *sizes_bytes: int) -> bool:
        """Whether FIFOs of these sizes can be made now."""
        wanted = sum(_block_bytes(size) for size in sizes_bytes)
        return self._used_bytes + wanted <= self._limit_bytes

    def make(self, size_bytes: int) -> Fifo:
        """A FIFO in shared memory; raises PoolExhaustedError."""
        if not self.has_room_for(size_bytes):
            raise PoolExhaustedError(
                errno.ENOMEM,
                f"the FIFOs of {self._name} take the {self._limit_bytes >> 20} MiB that it may "
                "have: close streams, or raise fifo-memory-bytes",
            )
        free = self._free.get(Fifo.rounded_up(size_bytes))
        block = free.pop() if free else self._cut(Fifo.rounded_up(size_bytes))
        block.is_with_worker = block.is_with_application = True
        self._blocks[block.name] = block
        self._used_bytes += _block_bytes(block.name.size_bytes)
        fifo = Fifo(block.name.size_bytes, block.memory, block.name.offset)
        self._names[fifo] = block.name
        weakref.finalize(fifo, self._release_ours, block)
        return fifo

    def has(self, fifo: Fifo) -> bool:
        """Whether `make` returned it."""
        return fifo in self._names

    def adopt(self, fifo: Fifo, segment_fd: int) -> None:
        """Give a name to a FIFO that has a segment to itself; the descriptor stays the caller's."""
        name = BlockName(next(self._alone), 0, fifo.size)
        block = self._blocks[name] = _Block(name, None)
        block.is_with_worker = block.is_with_application = True
        self._used_bytes += _block_bytes(fifo.size)
        self._names[fifo] = name
        weakref.finalize(fifo, self._release_ours, block)
        self._on_segment(name.segment, segment_fd)

    def name_of(self, fifo: Fifo) -> BlockName:
        """Where a FIFO that `make` returned, or `adopt` was given, lies."""
        return self._names[fifo]

    def release(self, name: BlockName) -> None:
        """The application is done with a FIFO; nothing happens if it was already."""
        block = self._blocks.get(name)
        if block is not None:
            block.is_with_application = False
            self._free_if_unused(block)

    def close(self) -> None:
        """The application is gone. Segments go when their last FIFO does."""
        for block in list(self._blocks.values()):
            block.is_with_application = False
            self._free_if_unused(block)
        for fd, _ in self._segments:
            os.close(fd)
        self._segments.clear()
        self._free.clear()
        self._on_segment = _tell_nobody  # or this would be a cycle

    def _cut(self, size_bytes: int) -> _Block:
        stride = _block_bytes(size_bytes)
        if not self._segments or self._next_offset + stride > len(self._segments[-1][1]):
            fd = make_segment(f"hoststack-{self._name}", max(SEGMENT_BYTES, stride))
            self._segments.append((fd, map_segment(fd)))
            self._next_offset = 0
            self._on_segment(len(self._segments) - 1, fd)
        offset = self._next_offset
        self._next_offset += stride
        name = BlockName(len(self._segments) - 1, offset, size_bytes)
        return _Block(name, self._segments[-1][1])

    def _release_ours(self, block: _Block) -> None:
        block.is_with_worker = False
        self._free_if_unused(block)

    def _free_if_unused(self, block: _Block) -> None:
        if block.is_with_worker or block.is_with_application:
            return
        if self._blocks.pop(block.name, None) is None:
            return
        self._used_bytes -= _block_bytes(block.name.size_bytes)
        if block.memory is None:
            return
        free = self._free.setdefault(block.name.size_bytes, [])
        # What was in it is this application's own; a FIFO starts with a header of zeros.
        offset = block.name.offset
        header_bytes = Fifo.block_bytes(block.name.size_bytes) - block.name.size_bytes
        block.memory[offset : offset + header_bytes] = bytes(header_bytes)
        if len(free) >= _KEPT_FREE:
            block.memory.madvise(mmap.MADV_REMOVE, offset, _block_bytes(block.name.size_bytes))
        free.append(block)


def _tell_nobody(number: int, fd: int) -> None:
    """Nobody is there any more."""


def _block_bytes(size_bytes: int) -> int:
    """What a FIFO takes of a segment: whole pages."""
    return -(-Fifo.block_bytes(size_bytes) // _PAGE_BYTES) * _PAGE_BYTES


class SharedFifos:
    """The application's side: the FIFOs that the worker names. `on_done(name)` is told of each that
    the application has let go of."""

    def __init__(self, on_done: Callable[[BlockName], None]) -> None:
        self._on_done = on_done
        self._segments: dict[int, mmap.mmap] = {}

    def add_segment(self, number: int, fd: int) -> None:
        """A segment came; its descriptor is closed. Raises ValueError if it is not sealed."""
        try:
            self._segments[number] = map_segment(fd)
        finally:
            os.close(fd)

    def open(self, name: BlockName) -> Fifo:
        """The FIFO of a name; raises ValueError for one that lies outside of the segments."""
        memory = self._segments.get(name.segment)
        if name.segment >= _FIRST_ALONE:
            # It lives as long as its only FIFO.
            self._segments.pop(name.segment, None)
        if memory is None:
            raise ValueError(f"there is no segment {name.segment}: the FIFO is nowhere")
        fifo = Fifo(name.size_bytes, memory, name.offset)
        weakref.finalize(fifo, self._on_done, name)
        return fifo
