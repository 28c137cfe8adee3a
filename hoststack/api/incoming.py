"""What a connection's peer opens or sends, as a trio channel that can be iterated over."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Generic, TypeVar

import trio

from hoststack.api.errors import ConnectionClosedError

if TYPE_CHECKING:
    from hoststack.api.router import Router

T_co = TypeVar("T_co", covariant=True)


class Incoming(trio.abc.ReceiveChannel[T_co], Generic[T_co]):
    """The streams or datagrams of a connection, in order. Returned by `Connection.streams` and
    `Connection.datagrams`.

    It holds no items, so it may be dropped at any time. Closing it ends the iteration; the
    connection stays open.
    """

    def __init__(
        self,
        router: Router,
        take: Callable[[], T_co | None],
        wait: Callable[[], Awaitable[object]],
        wake: Callable[[], object],
    ) -> None:
        """`take` returns the next item, or None if there is none yet; `wait` waits for one, and
        `wake` wakes all tasks in `wait`. Both raise once the connection is closed."""
        self._router = router
        self._take = take
        self._wait = wait
        self._wake = wake
        self._is_closed = False

    async def receive(self) -> T_co:
        """Return the next one.

        Raises trio.EndOfChannel when the connection was closed with code 0 by either side,
        ConnectionClosedError when it ended in another way, and trio.ClosedResourceError after
        `aclose`. Several tasks may receive: each item goes to one of them.
        """
        if self._router.must_yield():
            await self._router.checkpoint()
        else:
            await self._router.checkpoint_if_cancelled()
        try:
            while not self._is_closed:
                item = self._take()
                if item is not None:
                    return item
                await self._wait()
        except self._router.closed_error:
            raise trio.EndOfChannel from None
        except ConnectionClosedError as error:
            if error.code == 0:
                raise trio.EndOfChannel from None
            raise
        raise self._router.closed_error("this iterator was closed")

    async def aclose(self) -> None:
        """End the iteration; tasks in `receive` raise trio.ClosedResourceError."""
        self._is_closed = True
        self._wake()
        await self._router.checkpoint()
