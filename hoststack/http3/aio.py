"""HTTP/3 servers and clients in asyncio, with the names of hoststack.http3."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

from hoststack.aio.connection import Connection
from hoststack.aio.listener import Listener
from hoststack.aio.stack import Stack
from hoststack.http3.about_client import AboutClientConnection, speaking, with_port
from hoststack.http3.about_connection import ALPN, Spawn
from hoststack.http3.about_server import AboutServerConnection, Handler, answer, serving
from hoststack.http3.config import Http3Config
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


@asynccontextmanager
async def tasks() -> AsyncIterator[Spawn]:
    """Have tasks that end with the block; yields what starts one."""
    running: set[asyncio.Task[None]] = set()

    def start_soon(function: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
        task = asyncio.get_running_loop().create_task(function(*arguments))
        running.add(task)
        task.add_done_callback(on_done)

    def on_done(task: asyncio.Task[None]) -> None:
        running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a task of an HTTP/3 connection failed", exc_info=error)

    try:
        yield start_soon
    finally:
        left = list(running)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


def serve_connection(
    connection: Connection, config: Http3Config | None = None
) -> AbstractAsyncContextManager[ServerConnection]:
    """Serve HTTP/3 on an accepted connection: as `hoststack.http3.serve_connection`."""
    return serving(ServerConnection, tasks, connection, config)


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


def client_on(
    connection: Connection, authority: bytes | str, config: Http3Config | None = None
) -> AbstractAsyncContextManager[ClientConnection]:
    """Speak HTTP/3 as a client on a connection: as `hoststack.http3.client_on`."""
    return speaking(ClientConnection, tasks, connection, authority, config)


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
