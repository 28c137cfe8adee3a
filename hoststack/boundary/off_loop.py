"""Work that would stop a worker's loop, such as checking a private key: it runs in threads."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final, Protocol, TypeVar

import trio

T = TypeVar("T")

#: nice(2) of the threads: where they share a core with the loop, it gets nine tenths of it.
_NICE: Final = 10


class OffLoop(Protocol):
    """Runs a function somewhere else and returns its result, or raises what it raised."""

    async def __call__(self, function: Callable[[], T], /) -> T: ...


class Threads:
    """A bounded number of threads. If a call is cancelled, its thread is abandoned, but counts
    until it ends."""

    def __init__(self, most: int = 2) -> None:
        self._most = most
        self._limiter = trio.CapacityLimiter(most)

    async def __call__(self, function: Callable[[], T], /) -> T:
        return await trio.to_thread.run_sync(
            _run_nicely, function, abandon_on_cancel=True, limiter=self._limiter
        )

    async def wait_ended(self) -> None:
        """Wait until all threads have ended, cancelled or not; then accept no more calls."""
        with trio.CancelScope(shield=True):
            for number in range(self._most):
                await self._limiter.acquire_on_behalf_of(number)


def _run_nicely(function: Callable[[], T]) -> T:
    nice = max(_NICE, os.getpriority(os.PRIO_PROCESS, 0))  # on Linux, of the calling thread
    os.setpriority(os.PRIO_PROCESS, 0, nice)
    return function()
