"""What a connection holds after its requests, and stacks that are attached to a worker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

import hoststack
from hoststack import StreamResetError, TlsConfig, http3
from hoststack.http3.about_connection import AboutHttp3Connection
from hoststack.link.memory import MemoryNetwork
from tests.http3.peers import CLIENT, SERVER, TRUSTING, URI, Handler, pattern, run, talking
from tests.support.attached import attached

#: Critical streams, both sides'.
CRITICAL = 6


def assert_nothing_is_left(http: AboutHttp3Connection) -> None:
    assert not http._exchanges
    assert len(http._streams) <= CRITICAL
    for name in ("_lent", "_pending", "_priorities", "_final", "_rejected", "_full"):
        assert not getattr(http._layer, name, None), name
    assert not getattr(http, "_senders", None)


async def read(client: http3.ClientConnection, path: str) -> bytes:
    async with await client.request("GET", path) as response:
        return await response.read()


def test_nothing_of_requests_is_left() -> None:
    servers: list[AboutHttp3Connection] = []

    async def handler(request: http3.Request) -> None:
        servers[:] = [request._http]
        if request.path == b"/fails":
            await request.send_headers(200)
            return
        if request.path == b"/early":
            await request.respond(200, [], b"early")
            return
        await request.read()
        await request.respond(200, [("priority", "u=1")], pattern(50_000))

    async def main() -> None:
        async with talking(handler) as client:
            for number in range(60):
                async with await client.request("POST", "/", [], bytes(number * 100)) as response:
                    if number % 3:
                        await response.read()
                await (await client.request("POST", "/early", [], bytes(3_000_000))).aclose()
                with pytest.raises(StreamResetError):
                    await read(client, "/fails")
            await trio.sleep(2)
            assert_nothing_is_left(client)
            assert_nothing_is_left(servers[0])

    run(main)


@asynccontextmanager
async def talking_from_elsewhere(handler: Handler) -> AsyncIterator[http3.ClientConnection]:
    """As `talking`, with both sides attached to their stacks, as from other processes."""
    network = MemoryNetwork()
    tls = TlsConfig.self_signed([SERVER])
    async with (
        hoststack.open_stack(link=network.link(SERVER)) as one,
        hoststack.open_stack(link=network.link(CLIENT)) as other,
        attached([one]) as server,
        attached([other]) as stack,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(partial(http3.serve, server, URI, handler, tls=tls))
        async with http3.open_client(stack, SERVER, tls=TRUSTING) as client:
            yield client
        nursery.cancel_scope.cancel()


def test_attached_stacks() -> None:
    async def echo(request: http3.Request) -> None:
        await request.send_headers(200)
        async for chunk in request:
            await request.send_all(chunk)
        await request.send_trailers([("a", "b")])

    async def main() -> None:
        async with talking_from_elsewhere(echo) as client:

            async def one(size_bytes: int) -> None:
                content = pattern(size_bytes)
                async with await client.request("POST", "/", [], content) as response:
                    assert await response.read() == content
                    assert response.trailers == [(b"a", b"b")]

            async with trio.open_nursery() as nursery:
                for number in range(150):
                    nursery.start_soon(one, number * 3000)
            await one(3_000_000)
            response = await client.request("GET", "/")
            await response.aclose()
            await trio.sleep(1)
            assert_nothing_is_left(client)

    run(main)
