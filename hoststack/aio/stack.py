"""The stack, in asyncio."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from hoststack.aio.connection import Connection
from hoststack.aio.errors import BrokenError, ClosedError
from hoststack.aio.listener import Listener
from hoststack.aio.racing import first_connection
from hoststack.api.about_stack import AboutStack
from hoststack.api.resolving import Address, resolve
from hoststack.boundary.protocols import Config
from hoststack.boundary.uri import Uri
from hoststack.quic.tls import TlsConfig

logger = logging.getLogger(__name__)

Handler = Callable[[Connection], Awaitable[object]]


class Stack(AboutStack[Connection, Listener]):
    """Opens connections and listeners. Created by `hoststack.aio.open_stack` and
    `hoststack.aio.attach`."""

    _first_connection = staticmethod(first_connection)

    async def serve(
        self,
        uri: str,
        handler: Handler,
        *,
        tls: TlsConfig | None = None,
        alpn: Sequence[str] = (),
        config: Config | None = None,
        listening: asyncio.Future[Listener] | None = None,
    ) -> None:
        """Listen, and run `handler(connection)` for every connection, until cancelled, or until the
        listener is closed, as at the end of the stack's block.

        `listening` gets the Listener as soon as there is one. A connection is closed with code 0
        when its handler returns, and with `ABORTED_CODE` when its handler raises or is cancelled. A
        handler's ConnectionError ends only its own connection, since the peer caused it; any other
        exception ends `serve`. Raises BrokenError if the listener is lost, for example with a
        daemon, as soon as all handlers have ended, and what `listen` raises.
        """
        lost: BrokenError | None = None
        async with (
            await self.listen(uri, tls=tls, alpn=alpn, config=config) as listener,
            asyncio.TaskGroup() as group,
        ):
            if listening is not None and not listening.done():
                listening.set_result(listener)
            while lost is None:
                try:
                    connection = await listener.accept()
                except ClosedError:
                    break
                except BrokenError as error:
                    # Raised again outside the group, which would put it into an ExceptionGroup.
                    lost = error
                else:
                    group.create_task(_handle(handler, connection))
        if lost is not None:
            raise lost

    async def _resolve(
        self, uri: Uri, make_error: Callable[[int, str], OSError]
    ) -> Sequence[Address]:
        return await resolve(uri, make_error, asyncio.get_running_loop().getaddrinfo)


async def _handle(handler: Handler, connection: Connection) -> None:
    try:
        async with connection:
            await handler(connection)
    except* ConnectionError as group:
        logger.debug("%r: its handler ended: %r", connection, group.exceptions)
