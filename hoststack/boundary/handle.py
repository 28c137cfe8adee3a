"""Session handles: `worker << 32 | index`, as in VPP's session layer."""

from __future__ import annotations

_INDEX_MASK = 0xFFFF_FFFF


def make_handle(worker: int, index: int) -> int:
    """Return the 64-bit handle of a worker's session."""
    return worker << 32 | index


def worker_of(handle: int) -> int:
    """Return the worker that owns a handle's session."""
    return handle >> 32


def is_stream(handle: int) -> bool:
    """Return whether a handle is a stream's: those have odd indices."""
    return bool(handle & 1)


def index_of(handle: int) -> int:
    """Return the index of a handle's session in its worker's table."""
    return handle & _INDEX_MASK
