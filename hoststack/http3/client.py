"""HTTP/3 clients in trio."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from hoststack.api.connection import Connection
from hoststack.api.stack import Stack
from hoststack.http3.about_client import AboutClientConnection, speaking, with_port
from hoststack.http3.about_connection import ALPN
from hoststack.http3.config import Http3Config
from hoststack.http3.tasks import tasks
from hoststack.quic.seam import QuicConfig
from hoststack.quic.tls import TlsConfig


class ClientConnection(AboutClientConnection):
    __doc__ = AboutClientConnection.__doc__


def client_on(
    connection: Connection, authority: bytes | str, config: Http3Config | None = None
) -> AbstractAsyncContextManager[ClientConnection]:
    """Speak HTTP/3 as a client on a connection that negotiated it. `authority` is host and port for
    requests that name none.

    At the end of the block the connection is closed (NO_ERROR). Raises ConnectionClosedError.
    """
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
    """Connect to `HOST[:PORT]` (443), and speak HTTP/3. Raises as `Stack.connect`."""
    uri = f"quic://{with_port(authority)}"
    async with (
        stack.connect(uri, tls=tls, alpn=[ALPN], config=quic) as connection,
        client_on(connection, authority, config) as http,
    ):
        yield http
