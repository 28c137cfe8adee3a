"""The event rings of an application in another process: both in one segment of shared memory."""

from __future__ import annotations

import os
from typing import Final

from hoststack.native.event_ring import EventRing
from hoststack.native.segment import make_segment, map_segment
from hoststack.session.application import RING_ENTRIES

_RING_BYTES: Final = EventRing.block_bytes(RING_ENTRIES)


def make_rings(name: str) -> int:
    """A segment for both rings; returns its descriptor. Raises OSError."""
    return make_segment(name, 2 * _RING_BYTES)


def open_rings(fd: int) -> tuple[EventRing, EventRing]:
    """Down and up; the descriptor is closed. Raises ValueError for another segment."""
    try:
        memory = map_segment(fd)
    finally:
        os.close(fd)
    if len(memory) < 2 * _RING_BYTES:
        raise ValueError(f"a segment of {len(memory)} bytes is none for two event rings")
    return EventRing(RING_ENTRIES, memory), EventRing(RING_ENTRIES, memory, _RING_BYTES)
