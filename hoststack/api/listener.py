"""Listening for connections, as a trio listener."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import trio

from hoststack.boundary import messages as m

if TYPE_CHECKING:
    from hoststack.api.connection import Connection
    from hoststack.api.router import Router


class Listener(trio.abc.Listener["Connection"]):
    """A listening endpoint. Made by `Stack.listen`."""

    def __init__(self, router: Router, handle: int, local: tuple[str, int]) -> None:
        self._router = router
        self._handle = handle
        self._local = local
        self._accepted: deque[Connection] = deque()
        self._sleepers = trio.lowlevel.ParkingLot()
        self._closed = False
        self._lost: str | None = None

    @property
    def handle(self) -> int:
        """The session's 64-bit handle: worker << 32 | index."""
        return self._handle

    @property
    def local(self) -> tuple[str, int]:
        """The address and port that it listens on, with the port that was picked for port 0."""
        return self._local

    async def accept(self) -> Connection:
        """Wait for the next connection, and return it.

        Raises trio.ClosedResourceError after `aclose`, and trio.BrokenResourceError if the listener
        is lost: the daemon has ended, or none of its workers can have the listener.
        """
        await trio.lowlevel.checkpoint()
        while not self._accepted:
            if self._closed:
                raise trio.ClosedResourceError("this listener was closed")
            if self._lost is not None:
                raise trio.BrokenResourceError(f"this listener is gone: {self._lost}")
            await self._sleepers.park()
        connection = self._accepted.popleft()
        connection._take()
        return connection

    async def aclose(self) -> None:
        """Stop listening. Connections that `accept` returned continue; others are closed."""
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Stop listening as `aclose` does, without a checkpoint."""
        if not self._closed:
            self._closed = True
            self._router.forget_listener(self._handle)
            self._router.post(m.Unlisten(self._handle))
            while self._accepted:
                connection = self._accepted.popleft()
                connection._take()
                connection.close_now()
            self._sleepers.unpark_all()

    def _on_lost(self, why: str) -> None:
        self._lost = why
        self._sleepers.unpark_all()

    def _on_accepted(self, connection: Connection) -> None:
        self._accepted.append(connection)
        self._sleepers.unpark(count=1)
