"""The FIFOs of an application in another process: blocks of shared segments.

The worker creates segments on demand, up to a limit, and divides them into blocks. A block is free
again when both sides have released it: the worker's FIFO object is gone, and the application has
released its own, if it had the name. A segment without used blocks is dropped unless it is the
only one, since each costs both processes an open file and address space.

Connections share the memory (shares.py): those that use little still get some when others get no
more, and FIFOs become smaller before they are refused.
"""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import weakref
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from hoststack.boundary.shares import may_have
from hoststack.native.memory.fifo import Fifo
from hoststack.native.memory.segment import make_segment, map_segment

#: Size of a segment, unless a single FIFO is larger.
SEGMENT_BYTES: Final = 64 << 20
#: First number of segments with one FIFO, which another application maps as well.
_FIRST_ALONE: Final = 1 << 31
#: Free blocks of one size that keep their pages; pages of further ones go back to the kernel.
_KEPT_FREE: Final = 16
_PAGE_BYTES: Final = mmap.PAGESIZE


class BlockName(NamedTuple):
    """Location of a FIFO; both processes use it as the FIFO's name."""

    segment: int
    offset: int
    size_bytes: int
    """Size of the FIFO; its block also has a header."""


class PoolExhaustedError(OSError):
    """The FIFO memory of the application, or the share of the owner, is used up."""


class FifoSize(NamedTuple):
    """Requested size of a FIFO."""

    wanted_bytes: int
    least_bytes: int
    """Size when memory is scarce; at most `wanted_bytes`."""


class Share:
    """Memory that one owner, a connection, uses of an application's limit."""

    def __init__(self) -> None:
        self.used_bytes = 0
        self.least_bytes = 0
        """Memory that the same FIFOs would use at their smallest sizes."""


class _Block:
    """A block, in use or free."""

    __slots__ = ("is_with_application", "is_with_worker", "least_bytes", "memory", "name", "share")

    def __init__(self, name: BlockName, memory: mmap.mmap | None) -> None:
        self.name = name
        self.memory = memory
        self.is_with_worker = False
        self.is_with_application = False
        self.share = Share()
        self.least_bytes = 0


class _Segment:
    """A segment that is divided into blocks."""

    __slots__ = ("memory", "next_offset", "number", "used_blocks")

    def __init__(self, number: int, memory: mmap.mmap) -> None:
        self.number = number
        self.memory = memory
        self.next_offset = 0
        self.used_blocks = 0


class _FreeBlocks:
    """The free blocks of one size, by segment.

    The oldest segment is used first, so that the others become empty. A finalizer may call `add` in
    the middle of any method here.
    """

    def __init__(self) -> None:
        self._by_segment: dict[int, list[_Block]] = {}

    def __len__(self) -> int:
        return sum(map(len, list(self._by_segment.values())))

    def add(self, block: _Block) -> None:
        """Add a free block."""
        self._by_segment.setdefault(block.name.segment, []).append(block)

    def take(self) -> _Block | None:
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


class FifoPool:
    """One application's FIFOs in one worker.

    `on_segment(number, fd)` is called for each new segment before one of its FIFOs is named, and
    owns the descriptor. `on_segment_gone(number)` is called for each segment that is dropped. Both
    raise nothing.
    """

    def __init__(
        self,
        name: str,
        limit_bytes: int,
        on_segment: Callable[[int, int], None],
        on_segment_gone: Callable[[int], None],
    ) -> None:
        self._name = name
        self._limit_bytes = limit_bytes
        self._on_segment = on_segment
        self._on_segment_gone = on_segment_gone
        self._segments: dict[int, _Segment] = {}
        self._numbers = itertools.count()
        self._cut_from: _Segment | None = None
        self._unused: set[int] = set()
        """Candidates for `drop_unused`: segments that had no used blocks at some time."""
        self._alone = itertools.count(_FIRST_ALONE)
        self._used_bytes = 0
        self._blocks: dict[BlockName, _Block] = {}
        self._free: defaultdict[int, _FreeBlocks] = defaultdict(_FreeBlocks)
        self._made: weakref.WeakKeyDictionary[Fifo, _Block] = weakref.WeakKeyDictionary()
        self._shares: weakref.WeakKeyDictionary[object, Share] = weakref.WeakKeyDictionary()

    @property
    def used_bytes(self) -> int:
        """Memory of the FIFOs in use."""
        return self._used_bytes

    def has_room_for(self, *sizes_bytes: int) -> bool:
        """Return whether FIFOs of these sizes fit into the limit now."""
        wanted = sum(_block_bytes(size) for size in sizes_bytes)
        return self._used_bytes + wanted <= self._limit_bytes

    def make(self, sizes: Sequence[FifoSize], owner: object | None = None) -> list[Fifo]:
        """Allocate FIFOs in shared memory, all or none.

        `owner` is the connection whose peer causes the allocation, and is limited to its share;
        None when the application itself asks. Raises OSError, PoolExhaustedError if they do not
        fit, and MemoryError.
        """
        chosen = self.choose(sizes, owner)
        share = self._share_of(owner)
        return [
            self._make_one(size_bytes, size.least_bytes, share)
            for size, size_bytes in zip(sizes, chosen, strict=True)
        ]

    def _share_of(self, owner: object | None) -> Share:
        """Return the share that an owner is charged to; a new one without an owner."""
        return Share() if owner is None else self._shares.setdefault(owner, Share())

    def choose(self, sizes: Sequence[FifoSize], owner: object | None) -> list[int]:
        """Return the sizes that FIFOs may have now; raises PoolExhaustedError."""
        wanted = [size.wanted_bytes for size in sizes]
        least = [size.least_bytes for size in sizes]
        most = sum(map(_block_bytes, wanted))
        minimum = sum(map(_block_bytes, least))
        left = self._limit_bytes - self._used_bytes
        share = None if owner is None else self._shares.get(owner, Share())
        if most <= left and (share is None or self._may_have_all(share, most)):
            return wanted
        if minimum > left:
            raise PoolExhaustedError(
                errno.ENOMEM,
                f"the FIFOs of {self._name} use all of its {self._limit_bytes >> 20} MiB: "
                "close streams, or raise fifo-memory-bytes",
            )
        if share is not None and not may_have(self._limit_bytes, left, share.least_bytes, minimum):
            raise PoolExhaustedError(
                errno.ENOMEM, f"a connection used up its share of the FIFO memory of {self._name}"
            )
        return least

    def _may_have_all(self, share: Share, size_bytes: int) -> bool:
        """Return whether a share may get FIFOs of the wanted sizes; half of the memory is for
        these."""
        left = self._limit_bytes // 2 - self._used_bytes
        return share.used_bytes + size_bytes <= left // 4

    def _make_one(self, size_bytes: int, least_bytes: int, share: Share) -> Fifo:
        rounded_bytes = Fifo.rounded_up(size_bytes)
        block = self._free[rounded_bytes].take() or self._cut(rounded_bytes)
        segment = self._segments[block.name.segment]
        try:
            fifo = Fifo(block.name.size_bytes, block.memory, block.name.offset)
        except BaseException:
            self._free[block.name.size_bytes].add(block)
            raise
        segment.used_blocks += 1
        self._charge(fifo, block, least_bytes, share)
        return fifo

    def _charge(self, fifo: Fifo, block: _Block, least_bytes: int, share: Share) -> None:
        block.is_with_worker = True
        block.least_bytes, block.share = _block_bytes(least_bytes), share
        self._blocks[block.name] = block
        self._used_bytes += _block_bytes(fifo.size)
        share.used_bytes += _block_bytes(fifo.size)
        share.least_bytes += block.least_bytes
        self._made[fifo] = block
        weakref.finalize(fifo, self._release_ours, block)

    def adopt(
        self, fifo: Fifo, segment_fd: int, least_bytes: int, owner: object | None = None
    ) -> None:
        """Name a FIFO that has its own segment, charge it as `make` does, and take ownership of
        the segment's descriptor."""
        name = BlockName(next(self._alone), 0, fifo.size)
        share = self._share_of(owner)
        self._charge(fifo, _Block(name, None), least_bytes, share)
        self._on_segment(name.segment, segment_fd)

    def name_of(self, fifo: Fifo) -> BlockName:
        """Return the name of a FIFO from `make` or `adopt`."""
        return self._made[fifo].name

    def hand_out(self, fifo: Fifo) -> BlockName:
        """Return the name of a FIFO for the application, which now has to release it as well."""
        block = self._made[fifo]
        block.is_with_application = True
        return block.name

    def release(self, name: BlockName) -> None:
        """Release a FIFO for the application. Idempotent."""
        block = self._blocks.get(name)
        if block is not None:
            block.is_with_application = False
            self._free_if_unused(block)

    def close(self) -> None:
        """Release everything for an application that is gone. A segment's memory lives until its
        last FIFO is freed."""
        # This also breaks reference cycles.
        self._on_segment, self._on_segment_gone = _close_segment, _ignore_number
        for block in list(self._blocks.values()):
            block.is_with_application = False
            self._free_if_unused(block)
        self._segments.clear()
        self._free.clear()
        self._cut_from = None

    def _cut(self, size_bytes: int) -> _Block:
        stride = _block_bytes(size_bytes)
        segment = self._cut_from
        if segment is None or segment.next_offset + stride > len(segment.memory):
            segment = self._cut_from = self._add_segment(max(SEGMENT_BYTES, stride))
        name = BlockName(segment.number, segment.next_offset, size_bytes)
        segment.next_offset += stride
        return _Block(name, segment.memory)

    def _add_segment(self, size_bytes: int) -> _Segment:
        fd = make_segment(f"hoststack-{self._name}", size_bytes)
        try:
            segment = _Segment(next(self._numbers), map_segment(fd))
        except BaseException:
            os.close(fd)
            raise
        self._segments[segment.number] = segment
        self._on_segment(segment.number, fd)
        return segment

    def drop_unused(self) -> None:
        """Drop the segments without FIFOs, except the last one; called once a turn."""
        while self._unused and len(self._segments) > 1:
            number = self._unused.pop()
            segment = self._segments.get(number)
            if segment is None or segment.used_blocks:
                continue
            del self._segments[number]
            if segment is self._cut_from:
                self._cut_from = None
            for free in list(self._free.values()):
                free.drop(number)
            self._on_segment_gone(number)

    def _release_ours(self, block: _Block) -> None:
        block.is_with_worker = False
        self._free_if_unused(block)

    def _free_if_unused(self, block: _Block) -> None:
        if block.is_with_worker or block.is_with_application:
            return
        if self._blocks.pop(block.name, None) is None:
            return
        self._used_bytes -= _block_bytes(block.name.size_bytes)
        block.share.used_bytes -= _block_bytes(block.name.size_bytes)
        block.share.least_bytes -= block.least_bytes
        if block.memory is None:
            return
        free = self._free[block.name.size_bytes]
        # Only this application sees the old contents. A new FIFO needs a header of zeros.
        offset = block.name.offset
        header_bytes = Fifo.block_bytes(block.name.size_bytes) - block.name.size_bytes
        block.memory[offset : offset + header_bytes] = bytes(header_bytes)
        if len(free) >= _KEPT_FREE:
            block.memory.madvise(mmap.MADV_REMOVE, offset, _block_bytes(block.name.size_bytes))
        free.add(block)
        segment = self._segments.get(block.name.segment)
        if segment is not None:
            segment.used_blocks -= 1
            # Not now: this may run in a finalizer, which interrupts any other code.
            if not segment.used_blocks:
                self._unused.add(segment.number)


def _close_segment(number: int, fd: int) -> None:
    """Close a segment's descriptor: the application is gone."""
    os.close(fd)


def _ignore_number(number: int) -> None:
    """Do nothing: the application is gone."""


def _block_bytes(size_bytes: int) -> int:
    """Return the size of a FIFO's block in a segment: whole pages."""
    return -(-Fifo.block_bytes(size_bytes) // _PAGE_BYTES) * _PAGE_BYTES


class SharedFifos:
    """The application's side: maps the FIFOs that the worker names. `on_done(name)` is called for
    each FIFO that the application has freed."""

    def __init__(self, on_done: Callable[[BlockName], None]) -> None:
        self._on_done = on_done
        self._segments: dict[int, mmap.mmap | OSError] = {}
        self._open: weakref.WeakValueDictionary[BlockName, Fifo] = weakref.WeakValueDictionary()

    def add_segment(self, number: int, fds: Sequence[int]) -> None:
        """Map a new segment and close its descriptor. Raises ValueError if it is not sealed.

        If this process has no room for the segment or its descriptor, `open` raises that error.
        """
        try:
            if not fds:
                # The kernel drops descriptors beyond the limit of open files (unix(7)).
                raise OSError(errno.EMFILE, "too many open files: a stream's memory was lost")
            self._segments[number] = map_segment(fds[0])
        except OSError as error:
            self._segments[number] = error
        finally:
            for fd in fds:
                os.close(fd)

    def remove_segment(self, number: int) -> None:
        """Forget a segment that the worker dropped; its memory lives as long as its open FIFOs."""
        self._segments.pop(number, None)

    def give_up(self, name: BlockName) -> None:
        """Release a FIFO that could not be opened; one that is open is released when freed."""
        if name not in self._open:
            self._on_done(name)

    def open(self, name: BlockName) -> Fifo:
        """Return the FIFO with this name; the same object as long as that is in use.

        Raises ValueError for a name outside the segments, and OSError or MemoryError if this
        process has no room for it.
        """
        known = self._open.get(name)
        if known is not None:
            return known
        memory = self._segments.get(name.segment)
        if name.segment >= _FIRST_ALONE:
            # Its only FIFO holds the memory.
            self._segments.pop(name.segment, None)
        if memory is None:
            raise ValueError(f"there is no segment {name.segment} for the FIFO")
        if isinstance(memory, OSError):
            raise OSError(memory.errno, memory.strerror)
        fifo = Fifo(name.size_bytes, memory, name.offset)
        self._open[name] = fifo
        weakref.finalize(fifo, self._on_done, name)
        return fifo
