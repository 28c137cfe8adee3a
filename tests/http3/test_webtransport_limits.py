"""Flow control of WebTransport's sessions (draft-15 section 5), against a client of our making."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import pylsqpack
import pytest
import trio

from hoststack import Connection, QuicConfig, Stream
from hoststack.http3 import ErrorCode, Http3Config, Session, WebTransportCode
from tests.http3.peers import (
    SERVER,
    code_of_reset,
    frame,
    greet,
    number,
    raw_client,
    raw_server,
    run,
    section,
    settings,
    unidirectional,
)
from tests.http3.test_webtransport import QUIC, serving
from tests.http3.test_webtransport_breaches import capsule

CONFIG: Final = Http3Config(webtransport_sessions=3)
WITHOUT: Final = ((0x33, 1), (0x2C7CF000, 1))
CONNECT: Final = section(
    [
        (b":method", b"CONNECT"),
        (b":scheme", b"https"),
        (b":authority", SERVER.encode()),
        (b":path", b"/"),
        (b":protocol", b"webtransport-h3"),
    ]
)
MAX_DATA: Final = 0x190B4D3D
MAX_STREAMS_BIDI: Final = 0x190B4D3F
MAX_STREAMS_UNI: Final = 0x190B4D40


def limited(*, data: int = 0, uni: int = 0, bidi: int = 0) -> tuple[tuple[int, int], ...]:
    """Settings of a client with flow control."""
    return (*WITHOUT, (0x2B61, data), (0x2B64, uni), (0x2B65, bidi))


@asynccontextmanager
async def raw(
    serve: Any, pairs: tuple[tuple[int, int], ...], client_quic: QuicConfig | None = None
) -> AsyncIterator[Connection]:
    async with raw_client(
        serving(serve), CONFIG, quic=QUIC, client_quic=client_quic or QUIC
    ) as connection:
        await greet(connection, *pairs)
        await connection.wait_handshake()
        yield connection


async def begun(connection: Connection) -> Stream:
    """The stream of a session that the server has accepted."""
    stream = await connection.open_stream()
    await stream.send_all(CONNECT)
    assert (await stream.receive_some())[:1] == b"\x01"
    return stream


async def tell(session: Stream, kind: int, value: int) -> None:
    await session.send_all(frame(0x00, capsule(kind, number(value))))


async def next_of_session(connection: Connection) -> Any:
    """The next stream that the server opens, without those of HTTP/3."""
    while True:
        stream = await connection.streams().receive()
        if (await stream.receive_some(1)) == b"\x40":
            await stream.receive_some(2)
            return stream


async def receive(stream: Any, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += await stream.receive_some(count - len(data))
    return data


async def is_silent(stream: Any) -> bool:
    with trio.move_on_after(5):
        await stream.receive_some(1)
        return False
    return True


def test_bytes_wait_for_the_limit() -> None:
    sent = bytes(range(100))

    async def serve(session: Session) -> None:
        async with await session.open_stream(unidirectional=True) as stream:
            await stream.send_all(sent)
        await session.wait_closed()

    async def main() -> None:
        async with raw(serve, limited(data=10, uni=9)) as connection:
            session = await begun(connection)
            stream = await next_of_session(connection)
            assert await receive(stream, 10) == sent[:10]
            assert await is_silent(stream)
            await tell(session, MAX_DATA, 11)
            assert await receive(stream, 1) == sent[10:11]
            assert await is_silent(stream)
            await tell(session, MAX_DATA, 1000)
            assert await receive(stream, 89) == sent[11:]
            assert await stream.receive_some(1) == b""

    run(main)


def test_streams_share_the_limit() -> None:
    """Those that the peer opens have it as well, and what is sent on the session's own is not
    counted."""

    async def serve(session: Session) -> None:
        async def fill(stream: Any) -> None:
            async with stream:
                await stream.send_all(bytes(60))

        await session.drain()
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(fill, await session.open_stream(unidirectional=True))
            nursery.start_soon(fill, await session.streams().receive())
        await session.wait_closed()

    async def main() -> None:
        async with raw(serve, limited(data=100, uni=2)) as connection:
            session = await begun(connection)
            ours = await connection.open_stream()
            await ours.send_all(b"\x40\x41\x00")
            streams = [await next_of_session(connection) for _ in range(2)] + [ours]
            received = [0, 0, 0]

            async def count(at: int) -> None:
                async for chunk in streams[at]:
                    received[at] += len(chunk)

            async with trio.open_nursery() as nursery:
                for at in range(3):
                    nursery.start_soon(count, at)
                now = 100
                for then in (101, 130, 179, 180):
                    await trio.sleep(5)
                    assert sum(received) == now
                    await tell(session, MAX_DATA, then)
                    now = then
            assert received == [60, 60, 60]

    run(main)


@pytest.mark.parametrize(
    ("is_unidirectional", "kind"), [(True, MAX_STREAMS_UNI), (False, MAX_STREAMS_BIDI)]
)
def test_streams_wait_for_the_limit(is_unidirectional: bool, kind: int) -> None:
    opened: list[float] = []

    async def serve(session: Session) -> None:
        with trio.move_on_after(1):
            await session.open_stream(unidirectional=is_unidirectional)
        for _ in range(3):
            stream = await session.open_stream(unidirectional=is_unidirectional)
            opened.append(trio.current_time())
            await stream.send_all(b"x")
        await session.wait_closed()

    async def main() -> None:
        async with raw(serve, limited(data=10)) as connection:
            session = await begun(connection)
            await trio.sleep(5)
            assert not opened
            await tell(session, kind, 2)  # the one that was given up does not count
            await trio.sleep(5)
            assert len(opened) == 2
            await tell(session, kind, 3)
            await trio.sleep(5)
            assert len(opened) == 3

    run(main)


def test_what_a_reset_left_unsent_is_given_back() -> None:
    """The client's window lets 1,000 of 3,000 bytes out; the others may be sent on another
    stream, and no more than those."""

    async def serve(session: Session) -> None:
        stream = await session.open_stream(unidirectional=True)
        await stream.send_all(bytes(3000))
        await trio.sleep(1)
        stream.reset(7)
        await stream.aclose()
        del stream
        async with await session.open_stream(unidirectional=True) as stream:
            await stream.send_all(b"x" * 3000)

    small = QuicConfig(rx_fifo_bytes=1024, datagram_fifo_bytes=65536)

    async def main() -> None:
        async with raw(serve, limited(data=3000, uni=9), client_quic=small) as connection:
            session = await begun(connection)
            first = await next_of_session(connection)
            second = await next_of_session(connection)
            # The head had three bytes of the window.
            final_size = 1024 - 3
            assert await receive(second, 3000 - final_size) == b"x" * (3000 - final_size)
            assert await is_silent(second)
            await tell(session, MAX_DATA, 3000 + final_size)
            assert await receive(second, final_size) == b"x" * final_size
            assert await second.receive_some(1) == b""
            assert await code_of_reset(first) == 0x52E4A40FA8DB + 7

    run(main)


def test_several_sessions() -> None:
    """With flow control as many as the server allows, each with limits of its own."""

    async def serve(session: Session) -> None:
        async with await session.open_stream(unidirectional=True) as stream:
            await stream.send_all(b"12345")
        await session.wait_closed()

    async def main() -> None:
        async with raw(serve, limited(data=4, uni=1)) as connection:
            sessions = []
            for _ in range(CONFIG.webtransport_sessions):
                sessions.append(await begun(connection))
                stream = await next_of_session(connection)
                assert await receive(stream, 4) == b"1234"
                assert await is_silent(stream)
            refused = await connection.open_stream()
            await refused.send_all(CONNECT)
            assert b"429" in await refused.receive_some()

    run(main)


BROKEN: Final = [
    ([capsule(MAX_DATA, number(10))], WebTransportCode.FLOW_CONTROL_ERROR),
    ([capsule(MAX_DATA, number(9))], WebTransportCode.FLOW_CONTROL_ERROR),
    ([capsule(MAX_DATA, number(50))] * 2, WebTransportCode.FLOW_CONTROL_ERROR),
    ([capsule(MAX_STREAMS_UNI, number(2))], WebTransportCode.FLOW_CONTROL_ERROR),
    ([capsule(MAX_STREAMS_BIDI, number(0))], WebTransportCode.FLOW_CONTROL_ERROR),
    ([capsule(MAX_STREAMS_UNI, number((1 << 60) + 1))], ErrorCode.DATAGRAM_ERROR),
    ([capsule(MAX_STREAMS_BIDI, number((1 << 62) - 1))], ErrorCode.DATAGRAM_ERROR),
    ([capsule(0x190B4D43, number((1 << 60) + 1))], ErrorCode.DATAGRAM_ERROR),
    ([capsule(MAX_DATA, b"")], ErrorCode.MESSAGE_ERROR),
    ([capsule(MAX_DATA, b"\x40")], ErrorCode.MESSAGE_ERROR),
    ([capsule(MAX_DATA, b"\x3f\x3f")], ErrorCode.MESSAGE_ERROR),
    ([capsule(MAX_DATA, size=1 << 50)], ErrorCode.MESSAGE_ERROR),
    ([capsule(0x190B4D41, bytes(9))], ErrorCode.MESSAGE_ERROR),
    ([capsule(0x190B4D3E, number(5) * 2)], ErrorCode.MESSAGE_ERROR),
    ([capsule(0x190B4D42, number(5) * 2)], ErrorCode.MESSAGE_ERROR),
]


@pytest.mark.parametrize(("capsules", "code"), BROKEN)
def test_capsules_that_break_a_rule(capsules: list[bytes], code: int) -> None:
    async def serve(session: Session) -> None:
        await session.wait_closed()

    async def main() -> None:
        async with raw(serve, limited(data=10, uni=2)) as connection:
            session = await begun(connection)
            await session.send_all(frame(0x00, b"".join(capsules)))
            assert await code_of_reset(session) == code
            await begun(connection)

    run(main)


def test_capsules_are_ignored_without_flow_control() -> None:
    async def serve(session: Session) -> None:
        async with await session.open_stream(unidirectional=True) as stream:
            await session.wait_draining()
            await stream.send_all(b"x" * 100)

    async def main() -> None:
        async with raw(serve, WITHOUT) as connection:
            session = await begun(connection)
            data = [capsule(MAX_DATA, number(size)) for size in (10, 9, 9)]
            data += [capsule(MAX_STREAMS_UNI, number(0)), capsule(0x190B4D41, number(1))]
            await session.send_all(frame(0x00, b"".join([*data, capsule(0x78AE)])))
            stream = await next_of_session(connection)
            assert await receive(stream, 100) == b"x" * 100

    run(main)


def test_a_client_obeys() -> None:
    """Against a server of our making that knows draft-15 alone."""
    received: list[bytes] = []

    async def serve(connection: Connection) -> None:
        pairs = (*limited(data=3, bidi=1), (0x08, 1))
        await unidirectional(connection, b"\x00" + settings(*pairs))
        while True:
            stream = await connection.streams().receive()
            if stream.stream_id == 0:
                break
        payload = (await stream.receive_some())[2:]
        _, fields = pylsqpack.Decoder(0, 0).feed_header(0, payload)
        assert (b":protocol", b"webtransport-h3") in fields
        await stream.send_all(section([(b":status", b"200")]))
        data = await connection.streams().receive()
        while data.stream_id != 4:
            data = await connection.streams().receive()
        received.append(await receive(data, 3 + 3))
        assert await is_silent(data)
        await tell(stream, MAX_DATA, 8)
        received.append(await receive(data, 5))
        await connection.wait_closed()

    async def main() -> None:
        async with raw_server(serve, config=CONFIG, quic=QUIC) as client:
            session = await client.open_webtransport("/")
            async with await session.open_stream() as stream:
                await stream.send_all(b"abcdefgh")
                await trio.sleep(1)
                with trio.move_on_after(1) as waiting:
                    await session.open_stream()
                assert waiting.cancelled_caught
            await trio.sleep(30)
        assert received == [b"\x40\x41\x00abc", b"defgh"]

    run(main)
