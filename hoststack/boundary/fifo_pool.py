"""The FIFOs of an application in another process: blocks of shared segments.

The worker makes segments as they are needed, up to a limit, and cuts blocks from them. A block is
free again when both sides are done with it: the worker's FIFO object is gone, and the application
has said that its own is, if it was told of it. A segment all of whose blocks are free goes, if
there is another one: each is an open file and address space of both processes.

Connections share the memory (shares.py): those that have little get some when others get no more,
and FIFOs become smaller before there are none.
"""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import weakref
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from hoststack.boundary.shares import may_have
from hoststack.native.memory.fifo import Fifo
from hoststack.native.memory.segment import make_segment, map_segment

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
    """The application's FIFOs take all the memory that it may have, or that this owner may."""


class FifoSize(NamedTuple):
    """What is asked of a FIFO."""

    wanted_bytes: int
    least_bytes: int
    """Where memory is scarce; no more than `wanted_bytes`."""


class Share:
    """What one owner, a connection, has of an application's memory."""

    def __init__(self) -> None:
        self.used_bytes = 0
        self.least_bytes = 0
        """What the same FIFOs would take if each was as small as possible."""


class _Block:
    """A block in use, or kept for use."""

    __slots__ = ("is_with_application", "is_with_worker", "least_bytes", "memory", "name", "share")

    def __init__(self, name: BlockName, memory: mmap.mmap | None) -> None:
        self.name = name
        self.memory = memory
        self.is_with_worker = False
        self.is_with_application = False
        self.share = Share()
        self.least_bytes = 0


class _Segment:
    """What blocks are cut from."""

    __slots__ = ("memory", "next_offset", "number", "used_blocks")

    def __init__(self, number: int, memory: mmap.mmap) -> None:
        self.number = number
        self.memory = memory
        self.next_offset = 0
        self.used_blocks = 0


class FifoPool:
    """One application's FIFOs in one worker.

    `on_segment(number, fd)` takes over the descriptor of each new segment, before a FIFO of it is
    named; `on_segment_gone(number)` hears of each that has no FIFO any more. Both raise nothing.
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
        """Segments that may have no FIFO any more."""
        self._alone = itertools.count(_FIRST_ALONE)
        self._used_bytes = 0
        self._blocks: dict[BlockName, _Block] = {}
        self._free: dict[int, list[_Block]] = {}
        self._made: weakref.WeakKeyDictionary[Fifo, _Block] = weakref.WeakKeyDictionary()
        self._shares: weakref.WeakKeyDictionary[object, Share] = weakref.WeakKeyDictionary()

    @property
    def used_bytes(self) -> int:
        """What the FIFOs in use take."""
        return self._used_bytes

    def has_room_for(self, *sizes_bytes: int) -> bool:
        """Whether FIFOs of these sizes can be made now."""
        wanted = sum(_block_bytes(size) for size in sizes_bytes)
        return self._used_bytes + wanted <= self._limit_bytes

    def make(self, sizes: Sequence[FifoSize], owner: object | None = None) -> list[Fifo]:
        """Return FIFOs in shared memory, all or none.

        `owner` is a connection whose peer asks for them, and gets no more than its share; None
        stands for what the application itself asks for. Raises OSError, PoolExhaustedError where
        there is no room for them, and MemoryError.
        """
        chosen = self.choose(sizes, owner)
        share = self._share_of(owner)
        return [
            self._make_one(size_bytes, size.least_bytes, share)
            for size, size_bytes in zip(sizes, chosen, strict=True)
        ]

    def _share_of(self, owner: object | None) -> Share:
        """What an owner is charged to; one of its own for what has no owner."""
        return Share() if owner is None else self._shares.setdefault(owner, Share())

    def choose(self, sizes: Sequence[FifoSize], owner: object | None) -> list[int]:
        """As large as FIFOs may be now; raises PoolExhaustedError."""
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
                f"the FIFOs of {self._name} take the {self._limit_bytes >> 20} MiB that it may "
                "have: close streams, or raise fifo-memory-bytes",
            )
        if share is not None and not may_have(self._limit_bytes, left, share.least_bytes, minimum):
            raise PoolExhaustedError(
                errno.ENOMEM, f"one connection has its share of the FIFO memory of {self._name}"
            )
        return least

    def _may_have_all(self, share: Share, size_bytes: int) -> bool:
        """Half of the memory is for FIFOs as large as they are wanted."""
        left = self._limit_bytes // 2 - self._used_bytes
        return share.used_bytes + size_bytes <= left // 4

    def _make_one(self, size_bytes: int, least_bytes: int, share: Share) -> Fifo:
        free = self._free.get(Fifo.rounded_up(size_bytes))
        block = free.pop() if free else self._cut(Fifo.rounded_up(size_bytes))
        segment = self._segments[block.name.segment]
        try:
            fifo = Fifo(block.name.size_bytes, block.memory, block.name.offset)
        except BaseException:
            self._free.setdefault(block.name.size_bytes, []).append(block)
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
        """Give a name to a FIFO that has a segment to itself, and take over its descriptor; it is
        charged as those that `make` returns."""
        name = BlockName(next(self._alone), 0, fifo.size)
        share = self._share_of(owner)
        self._charge(fifo, _Block(name, None), least_bytes, share)
        self._on_segment(name.segment, segment_fd)

    def name_of(self, fifo: Fifo) -> BlockName:
        """Where a FIFO that `make` returned, or `adopt` was given, lies."""
        return self._made[fifo].name

    def hand_out(self, fifo: Fifo) -> BlockName:
        """Return the name of a FIFO, for the application: from now on it has the FIFO, too."""
        block = self._made[fifo]
        block.is_with_application = True
        return block.name

    def release(self, name: BlockName) -> None:
        """The application is done with a FIFO; nothing happens if it was already."""
        block = self._blocks.get(name)
        if block is not None:
            block.is_with_application = False
            self._free_if_unused(block)
            self.drop_unused()

    def close(self) -> None:
        """The application is gone. Segments go when their last FIFO does."""
        # They would be cycles, too.
        self._on_segment, self._on_segment_gone = _tell_nobody, _forget_number
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
        """Drop the segments that have no FIFO any more, all but one; once a turn."""
        while self._unused and len(self._segments) > 1:
            number = self._unused.pop()
            segment = self._segments.get(number)
            if segment is None or segment.used_blocks:
                continue
            del self._segments[number]
            if segment is self._cut_from:
                self._cut_from = None
            for free in list(self._free.values()):
                # In place, and backwards: a finalizer may append one meanwhile.
                for index in reversed(range(len(free))):
                    if free[index].name.segment == number:
                        del free[index]
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
        free = self._free.setdefault(block.name.size_bytes, [])
        # What was in it is this application's own; a FIFO starts with a header of zeros.
        offset = block.name.offset
        header_bytes = Fifo.block_bytes(block.name.size_bytes) - block.name.size_bytes
        block.memory[offset : offset + header_bytes] = bytes(header_bytes)
        if len(free) >= _KEPT_FREE:
            block.memory.madvise(mmap.MADV_REMOVE, offset, _block_bytes(block.name.size_bytes))
        free.append(block)
        segment = self._segments.get(block.name.segment)
        if segment is not None:
            segment.used_blocks -= 1
            # Not at once: this may be a finalizer, in the middle of anything.
            if not segment.used_blocks:
                self._unused.add(segment.number)


def _tell_nobody(number: int, fd: int) -> None:
    """Nobody is there any more."""
    os.close(fd)


def _forget_number(number: int) -> None:
    """Nobody is there any more."""


def _block_bytes(size_bytes: int) -> int:
    """What a FIFO takes of a segment: whole pages."""
    return -(-Fifo.block_bytes(size_bytes) // _PAGE_BYTES) * _PAGE_BYTES


class SharedFifos:
    """The application's side: the FIFOs that the worker names. `on_done(name)` is told of each that
    the application has let go of."""

    def __init__(self, on_done: Callable[[BlockName], None]) -> None:
        self._on_done = on_done
        self._segments: dict[int, mmap.mmap | OSError] = {}
        self._open: weakref.WeakValueDictionary[BlockName, Fifo] = weakref.WeakValueDictionary()

    def add_segment(self, number: int, fds: Sequence[int]) -> None:
        """A segment came; its descriptor is closed. Raises ValueError if it is not sealed.

        One that this process has no room for, or whose descriptor had none, is remembered as such.
        """
        try:
            if not fds:
                # The kernel drops those for which there is no room (unix(7)).
                raise OSError(errno.EMFILE, "too many open files: a stream's memory was lost")
            self._segments[number] = map_segment(fds[0])
        except OSError as error:
            self._segments[number] = error
        finally:
            for fd in fds:
                os.close(fd)

    def remove_segment(self, number: int) -> None:
        """The worker uses a segment no more; FIFOs of it that are open keep its memory."""
        self._segments.pop(number, None)

    def give_up(self, name: BlockName) -> None:
        """A FIFO that could not be opened is wanted no more; one that is open says so itself."""
        if name not in self._open:
            self._on_done(name)

    def open(self, name: BlockName) -> Fifo:
        """The FIFO of a name, the same as before while that is in use.

        Raises ValueError for one that lies outside of the segments, and OSError or MemoryError if
        this process has no room for it.
        """
        known = self._open.get(name)
        if known is not None:
            return known
        memory = self._segments.get(name.segment)
        if name.segment >= _FIRST_ALONE:
            # It lives as long as its only FIFO.
            self._segments.pop(name.segment, None)
        if memory is None:
            raise ValueError(f"there is no segment {name.segment}: the FIFO is nowhere")
        if isinstance(memory, OSError):
            raise OSError(memory.errno, memory.strerror)
        fifo = Fifo(name.size_bytes, memory, name.offset)
        self._open[name] = fifo
        weakref.finalize(fifo, self._on_done, name)
        return fifo
