"""The ring of session events between a worker and an application; event_ring.h has the rules."""

from __future__ import annotations

import mmap
from struct import Struct
from typing import Final, cast

from hoststack.native.memory._memory import ffi, lib

_HEADER_BYTES: Final = int(lib.HS_EVENT_RING_HEADER_BYTES)
_EVENT: Final = Struct("=QII")

#: (session handle, kind, argument)
RingEvent = tuple[int, int, int]


class EventRingCorruptError(Exception):
    """The other side wrote an impossible index into the shared block."""


class EventRing:
    """A ring with room for `size` events, a power of two."""

    __slots__ = ("_consumer", "_memory", "_popped", "_popped_bytes", "_producer")

    def __init__(self, size: int, memory: mmap.mmap | None = None, offset: int = 0) -> None:
        """Use a block of `memory`, which must start as zeros, or allocate one.

        Raises ValueError unless the size is a power of two and the block lies within the memory.
        """
        if size < 1 or size & (size - 1):
            raise ValueError(f"an event ring of {size}: ask for a power of two")
        block_bytes = self.block_bytes(size)
        if memory is None:
            memory = mmap.mmap(-1, block_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if offset < 0 or offset + block_bytes > len(memory):
            raise ValueError(f"a ring of {size} events at {offset} lies outside of its memory")
        # The pointer is not stored; fifo.py says why.
        block = ffi.from_buffer(memory) + offset
        self._memory = memory
        self._producer = ffi.new("struct hs_event_ring_side *")
        self._consumer = ffi.new("struct hs_event_ring_side *")
        lib.hs_event_ring_open(self._producer, block, block_bytes)
        lib.hs_event_ring_open(self._consumer, block, block_bytes)
        self._popped = ffi.new("struct hs_event[]", size)
        self._popped_bytes = ffi.buffer(self._popped)

    @staticmethod
    def block_bytes(size: int) -> int:
        """Return the bytes of shared memory for a ring of `size` events."""
        return _HEADER_BYTES + size * _EVENT.size

    def push(self, handle: int, kind: int, arg: int = 0) -> bool:
        """Producer: append an event. Returns False if there is no room."""
        pushed: int = lib.hs_event_ring_push(self._producer, handle, kind, arg)
        return bool(self._checked(pushed))

    def pop_many(self, max_events: int) -> list[RingEvent]:
        """Consumer: pop up to `max_events` events, oldest first."""
        count = self._checked(
            lib.hs_event_ring_pop(self._consumer, self._popped, min(max_events, len(self._popped)))
        )
        if not count:
            return []
        popped = _EVENT.iter_unpack(self._popped_bytes[: count * _EVENT.size])
        return cast("list[RingEvent]", list(popped))

    def __len__(self) -> int:
        return self._checked(lib.hs_event_ring_length(self._consumer))

    def arm(self) -> None:
        """Consumer: request a wake-up for new events. Check the ring once more afterwards."""
        lib.hs_event_ring_arm(self._consumer)

    def take_armed(self) -> bool:
        """Producer, after a push: clear the consumer's wake-up request; return whether there was
        one."""
        return bool(lib.hs_event_ring_take_armed(self._producer))

    def _checked(self, result: int) -> int:
        if result < 0:
            raise EventRingCorruptError("an index in the event ring's shared block is invalid")
        return result
