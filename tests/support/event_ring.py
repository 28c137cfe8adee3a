"""An event ring from Python, for tests and attacks; native/memory/event_ring.h has the rules."""

from __future__ import annotations

import mmap
import struct
from typing import Final, NamedTuple

from hoststack.boundary.rings import EventRingCorruptError
from hoststack.native.session._session import ffi, lib
from tests.support.shared_words import store

_HEADER_BYTES: Final = int(lib.HS_EVENT_RING_HEADER_BYTES)
_EVENT_BYTES: Final = int(lib.HS_EVENT_BYTES)
_WORDS: Final = int(lib.HS_EVENT_WORDS)
_FORM: Final = struct.Struct(f"<QII{_WORDS}Q")
_MASK: Final = (1 << 64) - 1
#: In a ring's block: the producer's index, the consumer's, and where the events begin.
PRODUCER: Final = 0
CONSUMER: Final = 64
EVENTS: Final = _HEADER_BYTES


class RingEvent(NamedTuple):
    """An event; native/session/records.h says what its fields mean."""

    handle: int
    kind: int
    arg: int = 0
    words: tuple[int, ...] = (0,) * _WORDS


def ring_bytes(size: int) -> int:
    """Return the size of the block of a ring of so many events."""
    return _HEADER_BYTES + size * _EVENT_BYTES


def push_raw(memory: mmap.mmap, offset: int, size: int, *events: RingEvent) -> None:
    """Append events to a ring, which may hold anything: as many as its indices leave room for."""
    pushed, popped = (_index(memory, offset + at) for at in (PRODUCER, CONSUMER))
    room = max(0, size - (pushed - popped & _MASK))
    for event in events[:room]:
        words = (*event.words, *(0,) * _WORDS)[:_WORDS]
        at = offset + EVENTS + pushed % size * _EVENT_BYTES
        _FORM.pack_into(memory, at, event.handle, event.kind, event.arg, *words)
        pushed += 1
    store(memory, offset + PRODUCER, pushed & _MASK)


def pop_raw(memory: mmap.mmap, offset: int, size: int) -> list[RingEvent]:
    """Return and drop the events of a ring, which may hold anything."""
    pushed, popped = (_index(memory, offset + at) for at in (PRODUCER, CONSUMER))
    events = []
    for index in range(popped, popped + min(size, pushed - popped & _MASK)):
        handle, kind, arg, *words = _FORM.unpack_from(
            memory, offset + EVENTS + index % size * _EVENT_BYTES
        )
        events.append(RingEvent(handle, kind, arg, tuple(words)))
    store(memory, offset + CONSUMER, popped + len(events) & _MASK)
    return events


def _index(memory: mmap.mmap, at: int) -> int:
    return int(struct.unpack_from("<Q", memory, at)[0])


class EventRing:
    """Both sides of a ring with room for `size` events, a power of two."""

    def __init__(self, size: int, memory: mmap.mmap | None = None, offset: int = 0) -> None:
        """Use a block of `memory`, which must start as zeros, or allocate one.

        Raises ValueError unless the size is a power of two and the block lies within the memory.
        """
        block_bytes = ring_bytes(size)
        if size < 1:
            raise ValueError("ask for a power of two")
        if memory is None:
            memory = mmap.mmap(-1, block_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if offset < 0 or offset + block_bytes > len(memory):
            raise ValueError(f"a ring of {size} events at {offset} lies outside of its memory")
        block = ffi.from_buffer(memory) + offset
        self.size = size
        self.memory = memory
        self._producer = ffi.new("struct hs_event_ring_side *")
        self._consumer = ffi.new("struct hs_event_ring_side *")
        for side in (self._producer, self._consumer):
            if lib.hs_event_ring_open(side, block, block_bytes):
                raise ValueError("ask for a power of two")
        self._event = ffi.new("struct hs_event *")
        self._popped = ffi.new("struct hs_event[]", size)

    def push(self, handle: int, kind: int, arg: int = 0, words: tuple[int, ...] = ()) -> bool:
        """Producer: append an event. Returns False if there is no room."""
        self._event[0] = {"handle": handle, "kind": kind, "arg": arg, "words": list(words)}
        return bool(self._checked(lib.hs_event_ring_push(self._producer, self._event)))

    @property
    def room(self) -> int:
        """Producer: how many events fit now."""
        return self._checked(lib.hs_event_ring_room(self._producer))

    def pop_many(self, most: int) -> list[RingEvent]:
        """Consumer: pop up to `most` events, oldest first."""
        count = self._checked(
            lib.hs_event_ring_pop(self._consumer, self._popped, min(most, self.size))
        )
        return [
            RingEvent(event.handle, event.kind, event.arg, tuple(event.words))
            for event in self._popped[0:count]
        ]

    def __len__(self) -> int:
        return self._checked(lib.hs_event_ring_length(self._consumer))

    def arm(self) -> None:
        """Consumer: request a wake-up for new events. Check the ring once more afterwards."""
        lib.hs_event_ring_arm(self._consumer)

    def take_armed(self) -> bool:
        """Producer, after a push: clear the consumer's wake-up request; return whether there was
        one."""
        return bool(lib.hs_event_ring_take_armed(self._producer))

    def arm_room(self) -> int:
        """Producer: request a wake-up for room; return how many events fit already."""
        return self._checked(lib.hs_event_ring_arm_room(self._producer))

    def take_room_armed(self) -> bool:
        """Consumer, after it popped: the same as `take_armed` for room."""
        return bool(lib.hs_event_ring_take_room_armed(self._consumer))

    @staticmethod
    def _checked(result: int) -> int:
        if result < 0:
            raise EventRingCorruptError
        return result
