"""WebTransport sessions: streams, datagrams, and their ends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest
import trio

from hoststack import QuicConfig, StreamResetError, StreamStoppedError, http3
from hoststack.http3 import (
    Http3Config,
    NotSupportedError,
    Session,
    SessionClosedError,
    SessionEnd,
    SessionRefusedError,
)
from tests.http3.peers import hello, pattern, run, talking

QUIC: Final = QuicConfig(datagram_fifo_bytes=65536)
CONFIG: Final = Http3Config(webtransport_sessions=2)

Serve = Callable[[Session], Awaitable[object]]


async def echo(session: Session) -> None:
    """Send back what comes: on the stream itself, or on one of our own."""

    async def answer(stream: Any) -> None:
        data = b"".join([chunk async for chunk in stream])
        back = stream
        if not hasattr(stream, "send_all"):
            await stream.aclose()
            back = await session.open_stream(unidirectional=True)
        async with back:
            await back.send_all(data)

    async def datagrams() -> None:
        async for data in session.datagrams():
            await session.send_datagram(data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(datagrams)
        async for stream in session.streams():
            nursery.start_soon(answer, stream)


def serving(serve: Serve) -> Callable[[http3.Request], Awaitable[None]]:
    async def handler(request: http3.Request) -> None:
        if not request.is_webtransport:
            await hello(request)
            return
        async with await request.accept_webtransport() as session:
            await serve(session)

    return handler


@asynccontextmanager
async def in_session(serve: Serve = echo, **options: Any) -> AsyncIterator[Session]:
    async with (
        talking(serving(serve), CONFIG, quic=QUIC, **options) as client,
        await client.open_webtransport("/echo") as session,
    ):
        yield session


def test_streams_of_each_kind() -> None:
    async def main() -> None:
        async with in_session() as session:
            for data in (b"", b"x", pattern(300_000)):
                stream = await session.open_stream()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(send, stream, data)
                    assert b"".join([chunk async for chunk in stream]) == data
                one_way = await session.open_stream(unidirectional=True)
                await send(one_way, data)
                back = await session.streams().receive()
                assert b"".join([chunk async for chunk in back]) == data
                await back.aclose()

    run(main)


async def send(stream: Any, data: bytes) -> None:
    await stream.send_all(data)
    await stream.send_eof()


def test_a_server_opens_streams() -> None:
    async def serve(session: Session) -> None:
        for number in range(5):
            async with await session.open_stream() as stream:
                await send(stream, b"%d" % number)
                assert await stream.receive_some() == b"%d" % number
        await session.wait_closed()

    async def main() -> None:
        async with in_session(serve) as session:
            for number in range(5):
                async with await session.streams().receive() as stream:
                    assert await stream.receive_some() == b"%d" % number
                    await send(stream, b"%d" % number)

    run(main)


def test_datagrams() -> None:
    async def main() -> None:
        async with in_session() as session:
            for number in range(100):
                await session.send_datagram(b"%d" % number)
                assert await session.receive_datagram() == b"%d" % number
            most = session.max_datagram_bytes
            await session.send_datagram(bytes(most))
            assert await session.receive_datagram() == bytes(most)
            with pytest.raises(ValueError, match="datagram"):
                await session.send_datagram(bytes(most + 1))

    run(main)


def test_sessions_and_requests_share_a_connection() -> None:
    async def main() -> None:
        async with talking(serving(echo), CONFIG, quic=QUIC) as client:
            async with (
                await client.open_webtransport("/one") as one,
                await client.open_webtransport("/two") as two,
            ):
                for number in range(3):
                    await one.send_datagram(b"one %d" % number)
                    await two.send_datagram(b"two %d" % number)
                    assert await one.receive_datagram() == b"one %d" % number
                    assert await two.receive_datagram() == b"two %d" % number
                with pytest.raises(NotSupportedError, match="2 WebTransport sessions"):
                    await client.open_webtransport("/three")
            async with await client.request("GET", "/") as response:
                assert await response.read() == b"hello"
            async with await client.open_webtransport("/four") as four:
                await four.send_datagram(b"four")
                assert await four.receive_datagram() == b"four"

    run(main)


@pytest.mark.parametrize("code", [0, 1, 0x1D, 0x1E, 0x1F, 0xFFFFFFFF])
def test_codes_of_streams(code: int) -> None:
    async def serve(session: Session) -> None:
        async with await session.streams().receive() as stream:
            await stream.send_all(b"begun")
            with pytest.raises(StreamResetError) as caught:
                await stream.receive_some()
            assert caught.value.code == code
            stream.reset(code)
        async with await session.streams().receive() as stream:
            stream.stop_sending(code)
        await session.wait_closed()

    async def main() -> None:
        async with in_session(serve) as session:
            async with await session.open_stream() as stream:
                await stream.receive_some()  # a reset may overtake what was sent before
                stream.reset(code)
                with pytest.raises(StreamResetError) as reset:
                    await stream.receive_some()
                assert reset.value.code == code
            async with await session.open_stream(unidirectional=True) as one_way:
                await trio.sleep(1)
                with pytest.raises(StreamStoppedError) as stopped:
                    await one_way.send_all(b"late")
                assert stopped.value.code == code

    run(main)


def test_codes_that_are_none() -> None:
    async def main() -> None:
        async with in_session() as session, await session.open_stream() as stream:
            for code in (-1, 1 << 32):
                with pytest.raises(ValueError, match="code"):
                    stream.reset(code)
                with pytest.raises(ValueError, match="code"):
                    await session.close(code)
            with pytest.raises(ValueError, match="1024"):
                await session.close(0, "é" * 513)

    run(main)


def test_a_client_closes_with_a_code() -> None:
    ends: list[SessionEnd] = []

    async def serve(session: Session) -> None:
        stream = await session.open_stream()
        ends.append(await session.wait_closed())
        with pytest.raises((StreamResetError, trio.BrokenResourceError)):
            await stream.receive_some()
        assert [stream async for stream in session.streams()] == []
        assert [data async for data in session.datagrams()] == []
        with pytest.raises(SessionClosedError, match="0x7b"):
            await session.open_stream()
        with pytest.raises(SessionClosedError, match="0x7b"):
            await session.receive_datagram()

    async def main() -> None:
        async with in_session(serve) as session:
            stream = await session.streams().receive()
            await session.close(123, "grüße" + "." * 1017)
            with pytest.raises(trio.BrokenResourceError):
                await stream.send_all(b"late")
            assert (await session.wait_closed()).code == 123
            await trio.sleep(1)
        assert ends == [SessionEnd(123, "grüße" + "." * 1017)]

    run(main)


def test_a_server_drains_and_closes() -> None:
    async def serve(session: Session) -> None:
        await session.drain()
        await session.wait_draining()
        await session.close(7, "done")

    async def main() -> None:
        async with in_session(serve) as session:
            await session.wait_draining()
            assert session.is_draining
            await session.drain()
            assert await session.wait_closed() == SessionEnd(7, "done")

    run(main)


def test_a_handler_that_returns_closes_with_0() -> None:
    async def serve(session: Session) -> None:
        await session.streams().receive()

    async def main() -> None:
        async with in_session(serve) as session:
            await session.open_stream(unidirectional=True)
            assert await session.wait_closed() == SessionEnd(0, "")
            assert [stream async for stream in session.streams()] == []

    run(main)


def test_a_handler_that_fails_resets(caplog: pytest.LogCaptureFixture) -> None:
    async def serve(session: Session) -> None:
        await session.receive_datagram()
        raise RuntimeError("a fault of the program")

    async def main() -> None:
        async with in_session(serve) as session:
            await session.send_datagram(b"go on")
            with pytest.raises(SessionClosedError):
                await session.wait_closed()

    run(main)
    assert "a fault of the program" in caplog.text


def test_application_protocols() -> None:
    async def handler(request: http3.Request) -> None:
        offered = request.webtransport_protocols
        assert offered == ["a", 'b "quoted"', "c"]
        with pytest.raises(ValueError, match="'d'"):
            await request.accept_webtransport(protocol="d")
        async with await request.accept_webtransport(protocol=offered[1]) as session:
            await session.wait_closed()

    async def main() -> None:
        async with talking(handler, CONFIG, quic=QUIC) as client:
            with pytest.raises(ValueError, match="ASCII"):
                await client.open_webtransport("/", protocols=["ü"])
            protocols = ["a", 'b "quoted"', "c"]
            async with await client.open_webtransport("/", protocols=protocols) as session:
                assert session.protocol == 'b "quoted"'

    run(main)


def test_refusals() -> None:
    async def handler(request: http3.Request) -> None:
        assert request.is_webtransport
        await request.respond(404)

    config = Http3Config(webtransport_sessions=2, webtransport_origins=frozenset((b"https://a",)))

    async def main() -> None:
        async with talking(handler, config, quic=QUIC) as client:
            for origin, status in ((b"https://b", 403), (b"https://a", 404)):
                with pytest.raises(SessionRefusedError, match=str(status)):
                    await client.open_webtransport("/", [(b"origin", origin)])

    run(main)


def test_a_side_without_webtransport() -> None:
    async def main() -> None:
        async with talking() as client:
            with pytest.raises(RuntimeError, match="webtransport_sessions"):
                await client.open_webtransport("/")

        async def handler(request: http3.Request) -> None:
            with pytest.raises(RuntimeError, match="no WebTransport session"):
                await request.accept_webtransport()
            await request.respond(200)

        async with (
            talking(handler) as client,
            await client.open("CONNECT", "/", protocol="webtransport") as response,
        ):
            await response.wait_headers()
            assert response.status == 200

    run(main)


def test_the_end_of_the_connection() -> None:
    async def main() -> None:
        async with in_session() as session:
            session.connection.close_now(0x100)
            with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
                await session.wait_closed()
            with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
                await session.receive_datagram()

    run(main)
