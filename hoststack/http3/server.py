"""HTTP/3 servers in trio."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import trio

from hoststack.api.connection import Connection
from hoststack.api.listener import Listener
from hoststack.api.stack import Stack
from hoststack.http3.about_connection import ALPN
from hoststack.http3.about_server import AboutServerConnection, Handler, answer
from hoststack.http3.config import Http3Config
from hoststack.http3.errors import ErrorCode, ProtocolError
from hoststack.quic.seam import QuicConfig
from hoststack.quic.tls import TlsConfig


class ServerConnection(AboutServerConnection):
    __doc__ = AboutServerConnection.__doc__


@asynccontextmanager
async def serve_connection(
    connection: Connection, config: Http3Config | None = None
) -> AsyncIterator[ServerConnection]:
    """Serve HTTP/3 on an accepted connection; iterate over the result for its requests.

    At the end of the block the connection is closed (NO_ERROR), after what was sent has arrived;
    when an exception leaves it, at once (INTERNAL_ERROR). Raises ConnectionClosedError.
    """
    error: BaseException | None = None
    async with trio.open_nursery() as nursery:
        http = ServerConnection(connection, config or Http3Config(), nursery.start_soon)
        try:
            await http.start()
            yield http
            await connection.aclose(ErrorCode.NO_ERROR)
        except BaseException as caught:
            if not isinstance(caught, ProtocolError):  # those have closed it
                connection.close_now(ErrorCode.INTERNAL_ERROR)
            if isinstance(caught, trio.Cancelled):
                raise
            # Raised again outside the nursery, which would put it into an ExceptionGroup.
            error = caught
        finally:
            nursery.cancel_scope.cancel()
    if error is not None:
        raise error


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
