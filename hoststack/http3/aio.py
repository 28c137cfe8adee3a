"""HTTP/3 servers and clients in asyncio, with the names of hoststack.http3."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from hoststack.aio.connection import Connection
from hoststack.aio.listener import Listener
from hoststack.aio.stack import Stack
from hoststack.http3.about_client import AboutClientConnection, with_port
from hoststack.http3.about_connection import ALPN
from hoststack.http3.about_server import AboutServerConnection, Handler, answer
from hoststack.http3.config import Http3Config
from hoststack.http3.errors import ErrorCode, ProtocolError
from hoststack.quic.seam import QuicConfig
from hoststack.quic.tls import TlsConfig

logger = logging.getLogger(__name__)

__all__ = [
    "ClientConnection",
    "ServerConnection",
    "client_on",
    "open_client",
    "serve",
    "serve_connection",
]


class ServerConnection(AboutServerConnection):
    __doc__ = AboutServerConnection.__doc__


class ClientConnection(AboutClientConnection):
    __doc__ = AboutClientConnection.__doc__


class _Tasks:
    """A connection's own tasks, which end with it."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def start_soon(
        self, function: Callable[..., Coroutine[Any, Any, None]], *arguments: Any
    ) -> None:
        task = asyncio.get_running_loop().create_task(function(*arguments))
        self._running.add(task)
        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a task of an HTTP/3 connection failed", exc_info=error)

    async def cancel(self) -> None:
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


@asynccontextmanager
async def serve_connection(
    connection: Connection, config: Http3Config | None = None
) -> AsyncIterator[ServerConnection]:
    """Serve HTTP/3 on an accepted connection: as `hoststack.http3.serve_connection`."""
    tasks = _Tasks()
    http = ServerConnection(connection, config or Http3Config(), tasks.start_soon)
    try:
        await http.start()
        yield http
        await connection.aclose(ErrorCode.NO_ERROR)
    except BaseException as error:
        if not isinstance(error, ProtocolError):  # those have closed it
            connection.close_now(ErrorCode.INTERNAL_ERROR)
        raise
    finally:
        await tasks.cancel()


async def serve(
    stack: Stack,
    uri: str,
    handler: Handler,
    *,
    tls: TlsConfig,
    config: Http3Config | None = None,
    quic: QuicConfig | None = None,
    listening: asyncio.Future[Listener] | None = None,
) -> None:
    """Listen, and run `handler(request)` in a task for each request, until cancelled: as
    `hoststack.http3.serve`. `listening` gets the Listener. Raises as `hoststack.aio.Stack.serve`.
    """
    await stack.serve(
        uri,
        partial(_serve_connection, handler, config),
        tls=tls,
        alpn=[ALPN],
        config=quic,
        listening=listening,
    )


async def _serve_connection(
    handler: Handler, config: Http3Config | None, connection: Connection
) -> None:
    async with serve_connection(connection, config) as http, asyncio.TaskGroup() as group:
        async for request in http:
            group.create_task(answer(handler, request))


@asynccontextmanager
async def client_on(
    connection: Connection, authority: bytes | str, config: Http3Config | None = None
) -> AsyncIterator[ClientConnection]:
    """Speak HTTP/3 as a client on a connection: as `hoststack.http3.client_on`."""
    tasks = _Tasks()
    name = authority if isinstance(authority, bytes) else authority.encode()
    http = ClientConnection(name, connection, config or Http3Config(), tasks.start_soon)
    try:
        await http.start()
        yield http
    finally:
        connection.close_now(ErrorCode.NO_ERROR)
        await tasks.cancel()


@asynccontextmanager
async def open_client(
    stack: Stack,
    authority: str,
    *,
    tls: TlsConfig | None = None,
    config: Http3Config | None = None,
    quic: QuicConfig | None = None,
) -> AsyncIterator[ClientConnection]:
    """Connect to `HOST[:PORT]` (443), and speak HTTP/3. Raises as `hoststack.aio.Stack.connect`."""
    uri = f"quic://{with_port(authority)}"
    async with (
        stack.connect(uri, tls=tls, alpn=[ALPN], config=quic) as connection,
        client_on(connection, authority, config) as http,
    ):
        yield http
