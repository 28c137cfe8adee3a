"""The router of the trio API."""

from __future__ import annotations

from collections.abc import Coroutine
from functools import partial
from typing import Any, TypeVar

import trio

from hoststack.api.connection import Connection
from hoststack.api.listener import Listener
from hoststack.api.router import Kinds, Router
from hoststack.api.stream import ReceiveStream, SendStream, Stream
from hoststack.boundary.application import ApplicationSide

T = TypeVar("T")


class TrioRouter(Router):
    """The objects of one application in a trio loop."""

    checkpoint = staticmethod(trio.lowlevel.checkpoint)
    shielded_checkpoint = staticmethod(trio.lowlevel.cancel_shielded_checkpoint)
    checkpoint_if_cancelled = staticmethod(trio.lowlevel.checkpoint_if_cancelled)
    closed_error = trio.ClosedResourceError
    broken_error = trio.BrokenResourceError
    new_event = trio.Event
    new_lot = trio.lowlevel.ParkingLot

    def __init__(self, application: ApplicationSide) -> None:
        super().__init__(
            application, Kinds(Connection, Listener, Stream, SendStream, ReceiveStream)
        )

    async def within(self, seconds: float, awaitable: Coroutine[Any, Any, T]) -> T | None:
        with trio.move_on_after(seconds):
            return await awaitable
        return None

    async def sleep(self, key: int) -> None:
        task = trio.lowlevel.current_task()
        self._sleepers[key] = partial(trio.lowlevel.reschedule, task)

        def abort(_: object) -> trio.lowlevel.Abort:
            del self._sleepers[key]
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
