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

from hoststack.native.memory.segment import make_segment, map_segment
from hoststack.native.session._session import ffi, lib

#: Events in a ring. What does not fit waits: news with their stream, commands with theirs.
RING_ENTRIES: Final = 4096
_RING_BYTES: Final = int(lib.HS_EVENT_RING_HEADER_BYTES + RING_ENTRIES * lib.HS_EVENT_BYTES)


class EventRingCorruptError(Exception):
    """The other side wrote an impossible index into a ring's shared block."""

    def __init__(self) -> None:
        super().__init__("an index in the event ring's shared block is invalid")


class Rings:
    """Both rings: commands go down to the worker, news up (native/session/records.h)."""

    def __init__(self, fd: int) -> None:
        """Map them, and close the descriptor. Raises OSError, and ValueError if the segment is
        none, or too small."""
        try:
            self.memory = map_segment(fd)
        finally:
            os.close(fd)
        if len(self.memory) < 2 * _RING_BYTES:
            raise ValueError(f"a segment of {len(self.memory)} bytes is too small for two rings")
        self.block_bytes = _RING_BYTES
        # As a number: a pointer would export the memory's buffer for as long as it exists.
        address = int(ffi.cast("uintptr_t", ffi.from_buffer(self.memory)))
        self.down, self.up = (ffi.cast("void *", address + offset) for offset in (0, _RING_BYTES))


def make_rings(name: str) -> int:
    """Create a segment for both rings, and return its descriptor. Raises OSError."""
    return make_segment(name, 2 * _RING_BYTES)


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
