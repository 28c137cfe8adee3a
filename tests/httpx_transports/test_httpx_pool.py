"""Connections of the transports: reused, limited, replaced."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import trio

from hoststack import Connection, QuicConfig, http3
from hoststack.http3 import ErrorCode
from tests.http3.peers import run
from tests.httpx_transports.places import Site, raw_server_client, site_client

#: A request with it uses a connection of its own: the certificate is for this name as well.
ELSEWHERE = {"sni_hostname": "localhost"}


def test_idle_connections_are_closed() -> None:
    async def main() -> None:
        site = Site()
        async with site_client(site, limits=httpx.Limits(keepalive_expiry=20)) as client:
            for seconds in (0, 15, 15, 25):
                await trio.sleep(seconds)
                await client.get("/")
            assert len(site.connections) == 2
            info = await site.connections[0].wait_closed()
            assert (info.code, info.by_peer) == (ErrorCode.NO_ERROR, True)

    run(main)


def test_a_slow_answer_outlives_the_idle_timeout() -> None:
    async def slow(request: http3.Request) -> None:
        await trio.sleep(100)
        await request.respond(200)

    async def main() -> None:
        async with site_client(slow, timeout=None) as client:
            assert (await client.get("/")).status_code == 200

    run(main)


def test_few_idle_connections_are_kept() -> None:
    async def main() -> None:
        site = Site()
        async with site_client(site, limits=httpx.Limits(max_keepalive_connections=1)) as client:
            await client.get("/")
            await client.get("/", extensions=ELSEWHERE)
            await site.connections[0].wait_closed()
            assert site.connections[1].close_info is None

    run(main)


def test_the_limit_on_connections() -> None:
    async def main() -> None:
        site = Site()
        async with site_client(site, limits=httpx.Limits(max_connections=1)) as client:
            await client.get("/")
            await client.get("/", extensions=ELSEWHERE)  # in place of the idle one
            assert len(site.connections) == 2
            async with client.stream("GET", "/half", extensions=ELSEWHERE):
                with pytest.raises(httpx.PoolTimeout):
                    await client.get("/")
            await client.get("/")
            assert len(site.connections) == 3

    run(main)


def test_the_servers_limit_on_requests() -> None:
    async def main() -> None:
        site = Site()
        async with site_client(site, quic=QuicConfig(max_streams_bidi=1)) as client:
            async with client.stream("GET", "/half"):
                with pytest.raises(httpx.PoolTimeout, match="allows no more requests"):
                    await client.get("/")
            assert (await client.get("/")).status_code == 200
            assert len(site.connections) == 1

    run(main)


def test_cancelled_requests_leave_a_pool_that_works() -> None:
    async def main() -> None:
        site = Site()
        async with site_client(site, limits=httpx.Limits(max_connections=1)) as client:

            async def one(number: int) -> None:
                with trio.move_on_after(number * 0.001):
                    await client.get("/never" if number % 2 else "/")

            for _ in range(3):
                async with trio.open_nursery() as nursery:
                    for number in range(30):
                        nursery.start_soon(one, number)
            assert (await client.get("/", extensions=ELSEWHERE)).status_code == 200
            pool: Any = client._transport
            assert [one.users for one in pool._core._pool._connections] == [0]

    run(main)


def test_refused_requests_are_sent_again_once() -> None:
    async def main() -> None:
        site = Site()
        async with site_client(site) as client:
            with pytest.raises(httpx.RemoteProtocolError):
                await client.post("/refuse", content=b"x")
            assert len(site.requests) == 2

            async def parts() -> Any:
                yield b"x"

            with pytest.raises(httpx.RemoteProtocolError):
                await client.post("/refuse", content=parts())
            assert len(site.requests) == 3

    run(main)


def test_a_server_that_goes_away() -> None:
    """Requests that it has accepted are answered, others go to a new connection."""
    servers: list[http3.ServerConnection] = []

    async def serve(connection: Connection) -> None:
        async def answer(request: http3.Request) -> None:
            async with request:
                await trio.sleep(2)
                await request.respond(200, [("x-connection", str(len(servers)))])

        async with http3.serve_connection(connection) as http, trio.open_nursery() as nursery:
            servers.append(http)
            async for request in http:
                nursery.start_soon(answer, request)

    async def main() -> None:
        async with raw_server_client(serve) as client:
            async with trio.open_nursery() as nursery:
                statuses: list[int] = []

                async def one() -> None:
                    statuses.append((await client.get("/")).status_code)

                nursery.start_soon(one)
                await trio.sleep(1)
                servers[0].shut_down()
                await trio.sleep(0.1)
                nursery.start_soon(one)
            assert statuses == [200, 200]
            assert len(servers) == 2

    run(main)


def test_a_connection_that_ends() -> None:
    site = Site()

    async def serve(connection: Connection) -> None:
        try:
            async with http3.serve_connection(connection) as http, trio.open_nursery() as nursery:
                async for request in http:
                    nursery.start_soon(http3.answer, site, request)
        except* trio.ClosedResourceError:
            pass  # this side closed it, below

    async def main() -> None:
        async with raw_server_client(serve) as client:
            await client.get("/")
            site.connections[0].close_now(0x100, "good bye")
            await trio.sleep(0.1)
            assert (await client.get("/")).status_code == 200
            async with trio.open_nursery() as nursery:

                async def close() -> None:
                    await trio.sleep(1)
                    site.connections[1].close_now(0x102, "broken")

                nursery.start_soon(close)
                with pytest.raises(httpx.RemoteProtocolError, match="broken"):
                    await client.get("/never")
            assert (await client.get("/")).status_code == 200
            assert len(site.connections) == 3

    run(main)


def test_the_end_of_a_client() -> None:
    async def main() -> None:
        site = Site()
        async with site_client(site) as client:
            await client.get("/")
            await client.aclose()
            info = await site.connections[0].wait_closed()
            assert (info.code, info.by_peer) == (ErrorCode.NO_ERROR, True)
            transport: Any = client._transport
            with pytest.raises(RuntimeError, match="was closed"):
                await transport.handle_async_request(httpx.Request("GET", "https://10.0.0.1/"))

    run(main)
