"""Session handles: `worker << 32 | index`, as in VPP's session layer."""

from __future__ import annotations

_INDEX_MASK = 0xFFFF_FFFF


def make_handle(worker: int, index: int) -> int:
    """The 64-bit handle of a worker's session."""
    return worker << 32 | index


def worker_of(handle: int) -> int:
    """The worker that a handle's session lives on."""
    return handle >> 32


def index_of(handle: int) -> int:
    """The index of a handle's session in its worker's table."""
    return handle & _INDEX_MASK
