"""Work that would stop a worker's loop, such as checking a private key: it runs in threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import trio

T = TypeVar("T")


class OffLoop(Protocol):
    """Runs a function somewhere else and returns its result, or raises what it raised."""

    async def __call__(self, function: Callable[[], T], /) -> T: ...


class Threads:
    """A bounded number of threads. If a call is cancelled, its thread is abandoned, but counts
    until it ends. They have the priority of the loop: one with less that holds the GIL would keep
    the loop waiting for as long as other processes use the CPU."""

    def __init__(self, most: int = 2) -> None:
        self._most = most
        self._limiter = trio.CapacityLimiter(most)

    async def __call__(self, function: Callable[[], T], /) -> T:
        return await trio.to_thread.run_sync(
            function, abandon_on_cancel=True, limiter=self._limiter
        )

    async def wait_ended(self) -> None:
        """Wait until all threads have ended, cancelled or not; then accept no more calls."""
        with trio.CancelScope(shield=True):
            for number in range(self._most):
                await self._limiter.acquire_on_behalf_of(number)
