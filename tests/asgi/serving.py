"""Servers of applications over the memory link, and their clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio

import hoststack
from hoststack import QuicConfig, TlsConfig, aio, asgi, http3
from hoststack.asgi import AccessLog, AsgiConfig
from hoststack.asgi import trio as asgi_trio
from hoststack.http3 import aio as http3_aio
from hoststack.link.memory import MemoryNetwork
from tests.http3.peers import CLIENT, SERVER, TRUSTING, URI, run

__all__ = [
    "SERVER",
    "URI",
    "answering",
    "run",
    "serving",
    "serving_in_asyncio",
    "talking",
    "text",
]

#: Of a test in asyncio, for a server that hangs.
PATIENCE_S = 120
TLS = TlsConfig.self_signed([SERVER])


@asynccontextmanager
async def serving(
    application: Any,
    config: AsgiConfig | None = None,
    *,
    access_log: AccessLog | None = None,
    quic: QuicConfig | None = None,
    http3_config: http3.Http3Config | None = None,
    tls: TlsConfig = TLS,
    **impairments: Any,
) -> AsyncIterator[tuple[asgi_trio.Server, hoststack.Stack]]:
    """A server, and the stack of its clients."""
    network = MemoryNetwork(**impairments)
    async with (
        hoststack.open_stack(link=network.link(SERVER), config=quic) as here,
        hoststack.open_stack(link=network.link(CLIENT), config=quic) as stack,
        asgi_trio.open_server(application, config, access_log=access_log) as server,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(partial(server.serve, here, URI, tls=tls, http3=http3_config))
        yield server, stack
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def talking(
    application: Any, config: AsgiConfig | None = None, **options: Any
) -> AsyncIterator[http3.ClientConnection]:
    """A client of an application."""
    async with (
        serving(application, config, **options) as (_, stack),
        http3.open_client(stack, SERVER, tls=TRUSTING) as client,
    ):
        yield client


def answering(*parts: bytes, status: int = 200, headers: Iterable[tuple[bytes, bytes]] = ()) -> Any:
    """An application that answers with these parts."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for number, part in enumerate(parts, 1):
            more = number < len(parts)
            await send({"type": "http.response.body", "body": part, "more_body": more})

    return application


async def text(client: http3.ClientConnection, path: str = "/", method: str = "GET") -> bytes:
    """The content of a page."""
    async with await client.request(method, path) as response:
        return await response.read()


@asynccontextmanager
async def serving_in_asyncio(
    application: Any, config: AsgiConfig | None = None
) -> AsyncIterator[tuple[asgi.Server, http3_aio.ClientConnection]]:
    """A server in asyncio over loopback, and a client of it."""
    tls = TlsConfig.self_signed(["127.0.0.1"])
    async with (
        asyncio.timeout(PATIENCE_S),
        aio.open_stack(link="udp") as stack,
        asgi.open_server(application, config) as server,
    ):
        listening: asyncio.Future[aio.Listener] = asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(
            server.serve(stack, "quic://127.0.0.1:0", tls=tls, listening=listening)
        )
        authority = f"127.0.0.1:{(await listening).local[1]}"
        async with http3_aio.open_client(stack, authority, tls=TRUSTING) as client:
            yield server, client
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
