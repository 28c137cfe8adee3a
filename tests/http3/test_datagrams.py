"""HTTP datagrams (RFC 9297)."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio

from hoststack import QuicConfig, http3
from hoststack.http3 import ErrorCode, Http3Config, NotSupportedError, exchange
from hoststack.http3.about_connection import AboutHttp3Connection
from tests.http3.peers import closed, greet, hello, raw_client, run, talking

QUIC = QuicConfig(datagram_fifo_bytes=65536)
CONFIG = Http3Config(datagrams=True)


def test_datagrams_of_requests() -> None:
    async def handler(request: http3.Request) -> None:
        await request.send_headers(200)
        while True:
            data = await request.receive_datagram()
            await request.send_datagram(data + request.path[1:] if request.path else b"")

    async def main() -> None:
        async with (
            talking(handler, CONFIG, quic=QUIC) as client,
            await client.open("CONNECT", "/a", protocol="test") as one,
            await client.open("CONNECT", "/b", protocol="test") as other,
        ):
            await one.wait_headers()
            await other.wait_headers()
            for number in range(10):
                await one.send_datagram(b"%d" % number)
                await other.send_datagram(b"%d" % number)
                assert await one.receive_datagram() == b"%da" % number
                assert await other.receive_datagram() == b"%db" % number

    run(main)


def test_datagrams_where_one_side_has_none() -> None:
    async def main() -> None:
        async with talking(hello) as client, await client.open("POST", "/") as request:
            with pytest.raises(NotSupportedError):
                await request.send_datagram(b"data")

    run(main)


def test_datagrams_that_nobody_receives(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are dropped from a limit of the connection on, and are given back with their request."""
    monkeypatch.setattr(exchange, "_MAX_DATAGRAM_BYTES", 5000)
    seen: list[AboutHttp3Connection] = []

    async def handler(request: http3.Request) -> None:
        seen.append(request._http)
        await request.read()
        await request.respond(200, [], b"")

    async def main() -> None:
        async with talking(handler, CONFIG, quic=QUIC) as client:
            requests = [await client.open("POST", f"/{number}") for number in range(10)]
            for request in requests:
                await request.send_datagram(bytes(999))
            await trio.sleep(1)
            assert seen[0]._datagram_bytes == 4995
            for request in requests:
                await request.send_eof()
                await request.wait_headers()
                await request.aclose()
            await trio.sleep(1)
            assert seen[0]._datagram_bytes == 0

    run(main)


@pytest.mark.parametrize("data", [b"", b"\x40", b"\xff" * 8])
def test_datagrams_without_a_stream(data: bytes) -> None:
    async def main() -> None:
        async with raw_client(hello, CONFIG, quic=QUIC) as connection:
            await greet(connection, (0x33, 1))
            await trio.sleep(1)
            with suppress(trio.BrokenResourceError):
                await connection.send_datagram(data)
            assert (await closed(connection)).code == ErrorCode.DATAGRAM_ERROR

    run(main)


def test_datagrams_of_no_request_are_dropped() -> None:
    async def main() -> None:
        async with raw_client(hello, CONFIG, quic=QUIC) as connection:
            await greet(connection, (0x33, 1))
            await trio.sleep(1)
            await connection.send_datagram(b"\x05late")
            await trio.sleep(1)
            assert connection.close_info is None

    run(main)
