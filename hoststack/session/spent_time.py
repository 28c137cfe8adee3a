"""The time that a worker's thread spends: its CPU time, and what it blocks for the supervisor."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Final

#: What one call counts for at most: the one who asked is not to blame for a supervisor that hangs.
_MOST_BLOCKED_S: Final = 20e-3

_blocked_s = 0.0


def spent_s() -> float:
    """Return the time that this thread has spent, in seconds: neither its sleep, nor what other
    processes take from it."""
    return time.thread_time() + _blocked_s


@contextlib.contextmanager
def blocked() -> Iterator[None]:
    """Count the block as spent: the thread waits in it, and no other task of its loop runs."""
    global _blocked_s
    began, used = time.perf_counter(), time.thread_time()
    try:
        yield
    finally:
        waited = time.perf_counter() - began - (time.thread_time() - used)
        _blocked_s += min(max(0.0, waited), _MOST_BLOCKED_S)
