"""The objects of one application in an asyncio loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from hoststack.aio.connection import Connection
from hoststack.aio.errors import BrokenError, ClosedError
from hoststack.aio.listener import Listener
from hoststack.aio.stream import ReceiveStream, SendStream, Stream
from hoststack.api.router import Kinds, Router
from hoststack.boundary.application import ApplicationSide

T = TypeVar("T")


class ParkingLot:
    """Tasks that wait, the oldest first."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[None], None] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    async def park(self) -> None:
        """Wait for a wake-up."""
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[waiting] = None
        try:
            await waiting
        except asyncio.CancelledError:
            if waiting.done() and not waiting.cancelled():
                self.unpark()  # the wake-up is the next one's
            self._waiting.pop(waiting, None)
            raise

    def unpark(self, *, count: int = 1) -> None:
        """Wake so many tasks."""
        for waiting in list(islice(self._waiting, count)):
            del self._waiting[waiting]
            _wake(waiting)

    def unpark_all(self) -> None:
        """Wake all tasks."""
        self.unpark(count=len(self._waiting))


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


class AsyncioRouter(Router):
    """The objects of one application in an asyncio loop."""

    closed_error = ClosedError
    broken_error = BrokenError
    new_event = asyncio.Event
    new_lot = ParkingLot

    def __init__(self, application: ApplicationSide) -> None:
        super().__init__(
            application, Kinds(Connection, Listener, Stream, SendStream, ReceiveStream)
        )

    async def checkpoint(self) -> None:
        await asyncio.sleep(0)

    async def checkpoint_if_cancelled(self) -> None:
        """Do nothing: asyncio raises where a task waits."""

    async def shielded_checkpoint(self) -> None:
        """Do nothing: a task that need not wait goes on."""

    async def within(self, seconds: float, awaitable: Coroutine[Any, Any, T]) -> T | None:
        with_limit = asyncio.timeout(seconds)
        try:
            async with with_limit:
                return await awaitable
        except TimeoutError:
            if not with_limit.expired():
                raise
            return None

    async def sleep(self, key: int) -> None:
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers[key] = partial(_wake, waiting)
        try:
            await waiting
        except asyncio.CancelledError:
            self._sleepers.pop(key, None)
            raise

    def when_woken(self, key: int, call: Callable[[], object]) -> None:
        """Call that in place of waking a task that waits."""
        self._sleepers[key] = call
