"""The FIFOs of an application in another process: blocks of shared segments (arena.py).

The worker creates segments on demand, up to a limit. A block is free again when both sides have
released it: the worker's FIFO object is gone, and the application has released its own, if it had
the name.

Connections share the memory (shares.py): those that use little still get some when others get no
more, and FIFOs become smaller before they are refused.
"""

from __future__ import annotations

import errno
import mmap
import os
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

from hoststack.boundary.arena import Arena, Block, block_bytes
from hoststack.boundary.shares import may_have
from hoststack.native.memory.fifo import Fifo
from hoststack.native.memory.segment import map_segment
from hoststack.native.session._session import lib

_PAGE_BYTES: Final = int(lib.HS_PLACE_PAGE_BYTES)
_PAGE_BITS: Final = int(lib.HS_PLACE_PAGE_BITS)
_LOG_BITS: Final = int(lib.HS_PLACE_LOG_BITS)


class BlockName(NamedTuple):
    """Location of a FIFO; both processes use it as the FIFO's name."""

    segment: int
    offset: int
    size_bytes: int
    """Size of the FIFO; its block also has a header."""

    @property
    def place(self) -> int:
        """The same in one number (native/session/records.h)."""
        page = self.offset // _PAGE_BYTES
        log = self.size_bytes.bit_length() - 1
        return (self.segment << _PAGE_BITS | page) << _LOG_BITS | log


class SharedBlock(NamedTuple):
    """A block whose FIFO is opened in C."""

    name: BlockName
    address: int
    block_bytes: int
    memory: mmap.mmap
    """Must exist as long as the block is used."""


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


class _Held:
    """A FIFO in use. `free` is called when both sides have released it."""

    __slots__ = ("free", "is_with_application", "is_with_worker", "least_bytes", "name", "share")

    def __init__(
        self, name: BlockName, free: Callable[[], None], least_bytes: int, share: Share
    ) -> None:
        self.name = name
        self.free = free
        self.is_with_worker = True
        self.is_with_application = False
        self.least_bytes = least_bytes
        self.share = share


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
        self._next_segment = 0
        self._arena = Arena(name, self.add_segment, on_segment_gone)
        self._used_bytes = 0
        self._held: dict[BlockName, _Held] = {}
        self._made: weakref.WeakKeyDictionary[Fifo, _Held] = weakref.WeakKeyDictionary()
        self._shares: weakref.WeakKeyDictionary[object, Share] = weakref.WeakKeyDictionary()

    @property
    def used_bytes(self) -> int:
        """Memory of the FIFOs in use."""
        return self._used_bytes

    def has_room_for(self, *sizes_bytes: int) -> bool:
        """Return whether FIFOs of these sizes fit into the limit now."""
        wanted = sum(block_bytes(size) for size in sizes_bytes)
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
        most = sum(map(block_bytes, wanted))
        minimum = sum(map(block_bytes, least))
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

    def make_blocks(
        self, sizes: Sequence[FifoSize], owner: object | None = None
    ) -> list[SharedBlock]:
        """Allocate blocks as `make` does; `free_block` gives each back."""
        chosen = self.choose(sizes, owner)
        share = self._share_of(owner)
        made = []
        for size, size_bytes in zip(sizes, chosen, strict=True):
            block = self._arena.take(size_bytes)
            held = self._charge(block, size.least_bytes, share)
            made.append(SharedBlock(held.name, *block.location, block.segment.memory))
        return made

    def free_block(self, name: BlockName) -> None:
        """Free a block: neither side uses it any more."""
        held = self._held.get(name)
        if held is not None:
            held.is_with_worker = held.is_with_application = False
            self._free_if_unused(held)

    def _make_one(self, size_bytes: int, least_bytes: int, share: Share) -> Fifo:
        block = self._arena.take(size_bytes)
        try:
            fifo = block.fifo()
        except BaseException:
            self._arena.give_back(block)
            raise
        self._watch(fifo, self._charge(block, least_bytes, share))
        return fifo

    def _charge(self, block: Block[int], least_bytes: int, share: Share) -> _Held:
        name = BlockName(block.segment.label, block.offset, block.size_bytes)
        return self._hold(name, partial(self._arena.give_back, block), least_bytes, share)

    def _hold(
        self, name: BlockName, free: Callable[[], None], least_bytes: int, share: Share
    ) -> _Held:
        held = _Held(name, free, block_bytes(least_bytes), share)
        self._held[name] = held
        self._used_bytes += block_bytes(name.size_bytes)
        share.used_bytes += block_bytes(name.size_bytes)
        share.least_bytes += held.least_bytes
        return held

    def _watch(self, fifo: Fifo, held: _Held) -> None:
        self._made[fifo] = held
        weakref.finalize(fifo, self._release_ours, held)

    def adopt(
        self,
        fifo: Fifo,
        name: BlockName,
        free: Callable[[], None],
        least_bytes: int,
        owner: object | None = None,
    ) -> None:
        """Charge a FIFO in a segment that another application shares, as `make` does. `free` is
        called when both sides have released it, maybe in a finalizer."""
        self._watch(fifo, self._hold(name, free, least_bytes, self._share_of(owner)))

    def add_segment(self, fd: int) -> int:
        """Send a segment to the application, and take ownership of the descriptor; return the
        number that it has there."""
        number = self._next_segment
        self._next_segment += 1
        self._on_segment(number, fd)
        return number

    def remove_segment(self, number: int) -> None:
        """Tell the application that a segment from `add_segment` has no FIFOs left."""
        self._on_segment_gone(number)

    def name_of(self, fifo: Fifo) -> BlockName:
        """Return the name of a FIFO from `make` or `adopt`."""
        return self._made[fifo].name

    def hand_out(self, fifo: Fifo) -> BlockName:
        """Return the name of a FIFO for the application, which now has to release it as well."""
        held = self._made[fifo]
        held.is_with_application = True
        return held.name

    def release(self, name: BlockName) -> None:
        """Release a FIFO for the application. Idempotent."""
        held = self._held.get(name)
        if held is not None:
            held.is_with_application = False
            self._free_if_unused(held)

    def close(self) -> None:
        """Release everything for an application that is gone. A segment's memory lives until its
        last FIFO is freed."""
        # This also breaks reference cycles.
        self._on_segment, self._on_segment_gone = _close_segment, _ignore_number
        for held in list(self._held.values()):
            held.is_with_application = False
            self._free_if_unused(held)
        self._arena.close()

    def drop_unused(self) -> None:
        """Drop the segments without FIFOs, except the last one; called once a turn."""
        self._arena.drop_unused()

    def _release_ours(self, held: _Held) -> None:
        held.is_with_worker = False
        self._free_if_unused(held)

    def _free_if_unused(self, held: _Held) -> None:
        if held.is_with_worker or held.is_with_application:
            return
        if self._held.pop(held.name, None) is None:
            return
        self._used_bytes -= block_bytes(held.name.size_bytes)
        held.share.used_bytes -= block_bytes(held.name.size_bytes)
        held.share.least_bytes -= held.least_bytes
        held.free()


def _close_segment(number: int, fd: int) -> None:
    """Close a segment's descriptor: the application is gone."""
    os.close(fd)


def _ignore_number(number: int) -> None:
    """Do nothing: the application is gone."""


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
        if memory is None:
            raise ValueError(f"there is no segment {name.segment} for the FIFO")
        if isinstance(memory, OSError):
            raise OSError(memory.errno, memory.strerror)
        fifo = Fifo(name.size_bytes, memory, name.offset)
        self._open[name] = fifo
        weakref.finalize(fifo, self._on_done, name)
        return fifo
