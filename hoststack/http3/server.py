"""HTTP/3 servers in trio."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from functools import partial

import trio

from hoststack.api.connection import Connection
from hoststack.api.listener import Listener
from hoststack.api.stack import Stack
from hoststack.http3.about_connection import ALPN
from hoststack.http3.about_server import AboutServerConnection, Handler, answer, serving
from hoststack.http3.config import Http3Config
from hoststack.http3.tasks import tasks
from hoststack.quic.seam import QuicConfig
from hoststack.quic.tls import TlsConfig


class ServerConnection(AboutServerConnection):
    __doc__ = AboutServerConnection.__doc__


def serve_connection(
    connection: Connection, config: Http3Config | None = None
) -> AbstractAsyncContextManager[ServerConnection]:
    """Serve HTTP/3 on an accepted connection; iterate over the result for its requests.

    At the end of the block the connection is closed (NO_ERROR), after what was sent has arrived;
    when an exception leaves it, at once (INTERNAL_ERROR). Raises ConnectionClosedError.
    """
    return serving(ServerConnection, tasks, connection, config)


async def serve(
    stack: Stack,
    uri: str,
    handler: Handler,
    *,
    tls: TlsConfig,
    config: Http3Config | None = None,
    quic: QuicConfig | None = None,
    task_status: trio.TaskStatus[Listener] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Listen on `quic://ADDRESS:PORT`, and run `handler(request)` in a task for each request, until
    cancelled. `nursery.start` returns the Listener.

    When the handler returns, what it has not sent is reset. When it raises, the answer is 500, or a
    reset if a response has begun, and the exception is logged; trio.BrokenResourceError, which the
    client caused, is not. Raises as `Stack.serve`.
    """
    await stack.serve(
        uri,
        partial(_serve_connection, handler, config),
        tls=tls,
        alpn=[ALPN],
        config=quic,
        task_status=task_status,
    )


async def _serve_connection(
    handler: Handler, config: Http3Config | None, connection: Connection
) -> None:
    async with (
        serve_connection(connection, config) as http,
        trio.open_nursery() as nursery,
    ):
        async for request in http:
            nursery.start_soon(answer, handler, request)
