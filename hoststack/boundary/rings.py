"""What a worker and an application in another process share from the start: a channel for messages,
a segment with both event rings, and sockets to wake each other.

One side cannot change flags of the other's descriptors. O_NONBLOCK belongs to the open file
description (fcntl(2)), and the only description that both sides have is the memfd's, which is only
mapped.
"""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from typing import Final

from hoststack.boundary.messages import EventCode
from hoststack.native.memory.event_ring import EventRing
from hoststack.native.memory.segment import make_segment, map_segment

#: Entries of an event ring. The producer queues what does not fit.
RING_ENTRIES: Final = 4096
_RING_BYTES: Final = EventRing.block_bytes(RING_ENTRIES)


class EventChannel:
    """One direction of events: a ring, and a queue for what does not fit into it.

    An event only says that something changed, so the queue holds one of each kind for a session.
    The number of sessions therefore bounds it, whatever a peer does.
    """

    def __init__(self, ring: EventRing) -> None:
        self.ring = ring
        self._waiting: dict[tuple[int, int], None] = {}

    def push(self, handle: int, code: EventCode) -> None:
        if self._waiting or not self.ring.push(handle, int(code)):
            self._waiting[handle, int(code)] = None

    def settle(self) -> int:
        """Move queued events into the ring while it has room; return how many are left."""
        while self._waiting and self.ring.push(*(first := next(iter(self._waiting)))):
            del self._waiting[first]
        return len(self._waiting)

    @property
    def is_held_up(self) -> bool:
        """Whether events are queued because the ring was full."""
        return bool(self._waiting)

    def pop_all(self) -> list[tuple[int, int, int]]:
        popped = self.ring.pop_many(RING_ENTRIES)
        while self._waiting:
            self.settle()
            popped += self.ring.pop_many(RING_ENTRIES)
        return popped

    @property
    def is_idle(self) -> bool:
        return not self._waiting and not len(self.ring)


def make_rings(name: str) -> int:
    """Create a segment for both rings, and return its descriptor. Raises OSError."""
    return make_segment(name, 2 * _RING_BYTES)


def open_rings(fd: int) -> tuple[EventRing, EventRing]:
    """Map both rings, down and up, and close the descriptor. Raises ValueError if the segment is
    too small."""
    try:
        memory = map_segment(fd)
    finally:
        os.close(fd)
    if len(memory) < 2 * _RING_BYTES:
        raise ValueError(f"a segment of {len(memory)} bytes is too small for two event rings")
    return EventRing(RING_ENTRIES, memory), EventRing(RING_ENTRIES, memory, _RING_BYTES)


def shared_ends(name: str, owner: ExitStack) -> tuple[list[int], list[int]]:
    """Create what a worker and an application share. Return the worker's descriptors and the
    application's, in the order of boundary/attaching.py; `owner` closes them. Raises OSError."""
    rings = make_rings(name)
    owner.callback(os.close, rings)
    channels = _pair(owner)
    # One pair for each direction: the waking side never reads, the other never writes.
    to_worker, to_application = _pair(owner), _pair(owner)
    return (
        [channels[0], rings, to_worker[0], to_application[0]],
        [channels[1], rings, to_worker[1], to_application[1]],
    )


def _pair(owner: ExitStack) -> tuple[int, int]:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    owner.enter_context(one)
    owner.enter_context(other)
    return one.fileno(), other.fileno()
