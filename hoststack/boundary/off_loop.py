"""Work that would stop a worker's loop, such as checking a private key: it runs in threads."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Protocol, TypeVar, cast
from weakref import WeakValueDictionary

import trio

from hoststack.boundary.user_shares import Process

T = TypeVar("T")


class OffLoop(Protocol):
    """Runs a function somewhere else and returns its result, or raises what it raised."""

    async def __call__(self, function: Callable[[], T], /) -> T: ...


class Threads:
    """A bounded number of threads, of which a user has all but one at a time, and a process one. If
    a call is cancelled, its thread is abandoned, but counts until it ends. They have the priority
    of the loop: one with less that holds the GIL would keep the loop waiting for as long as other
    processes use the CPU."""

    def __init__(self, most: int = 2) -> None:
        self._most = most
        self._limiter = trio.CapacityLimiter(most)
        self._of: WeakValueDictionary[int | Process, trio.CapacityLimiter] = WeakValueDictionary()

    def share_of(self, process: Process) -> OffLoop:
        """Return what runs functions for a process; processes and users wait in their order."""
        limiter = _Limiters(
            self._of.setdefault(process, trio.CapacityLimiter(1)),
            self._of.setdefault(process[0], trio.CapacityLimiter(max(1, self._most - 1))),
            self._limiter,
        )

        async def run(function: Callable[[], T], /) -> T:
            return await trio.to_thread.run_sync(
                function, abandon_on_cancel=True, limiter=cast(trio.CapacityLimiter, limiter)
            )

        return run

    async def wait_ended(self) -> None:
        """Wait until all threads have ended, cancelled or not; then accept no more calls."""
        with trio.CancelScope(shield=True):
            for number in range(self._most):
                await self._limiter.acquire_on_behalf_of(number)


class _Limiters:
    """Several limiters as one, as `trio.to_thread.run_sync` uses it. It releases them when a thread
    has ended."""

    def __init__(self, *limiters: trio.CapacityLimiter) -> None:
        self._limiters = limiters

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        with ExitStack() as undo:
            for limiter in self._limiters:
                await limiter.acquire_on_behalf_of(borrower)
                undo.callback(limiter.release_on_behalf_of, borrower)
            undo.pop_all()

    def release_on_behalf_of(self, borrower: object) -> None:
        for limiter in self._limiters:
            limiter.release_on_behalf_of(borrower)
