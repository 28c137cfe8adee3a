"""What a peer may do wrong in WebTransport, or too much of."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest
import trio

from hoststack import Connection, Stream, http3
from hoststack.http3 import ErrorCode, Http3Config, Session, SessionEnd, WebTransportCode
from hoststack.http3.webtransport import sessions, wire
from tests.http3.peers import (
    SERVER,
    closed,
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
from tests.http3.test_webtransport import CONFIG, QUIC, echo, serving

SETTINGS: Final = ((0x33, 1), (0x2B603742, 1))
CONNECT: Final = section(
    [
        (b":method", b"CONNECT"),
        (b":scheme", b"https"),
        (b":authority", SERVER.encode()),
        (b":path", b"/echo"),
        (b":protocol", b"webtransport"),
    ]
)
HEAD: Final = b"\x40\x41"
ONE_WAY_HEAD: Final = b"\x40\x54"


@asynccontextmanager
async def raw(serve: Any = echo) -> AsyncIterator[Connection]:
    async with raw_client(serving(serve), CONFIG, quic=QUIC) as connection:
        await greet(connection, *SETTINGS)
        await connection.wait_handshake()
        yield connection


async def opened(connection: Connection, data: bytes) -> Stream:
    stream = await connection.open_stream()
    await stream.send_all(data)
    return stream


async def begun(connection: Connection) -> Stream:
    """The stream of a session that the server has accepted."""
    stream = await opened(connection, CONNECT)
    assert (await stream.receive_some())[:1] == b"\x01"
    return stream


@pytest.mark.parametrize(
    "head",
    [
        HEAD + b"\x00",
        b"\x80\x00\x00\x41\xc0" + bytes(7),
        b"\xc0" + bytes(6) + b"\x41\x40\x00",
    ],
)
def test_a_head_in_single_bytes(head: bytes) -> None:
    async def main() -> None:
        async with raw() as connection:
            await begun(connection)
            stream = await connection.open_stream()
            for byte in head + b"data":
                await stream.send_all(bytes([byte]))
                await trio.sleep(0.1)
            await stream.send_eof()
            assert await stream.receive_some() == b"data"

    run(main)


@pytest.mark.parametrize("head", [HEAD, ONE_WAY_HEAD])
@pytest.mark.parametrize("session_id", [1, 2, 3, (1 << 62) - 1])
def test_an_invalid_session(head: bytes, session_id: int) -> None:
    async def main() -> None:
        async with raw() as connection:
            data = head + number(session_id)
            await (unidirectional if head == ONE_WAY_HEAD else opened)(connection, data)
            assert (await closed(connection)).code == ErrorCode.ID_ERROR

    run(main)


def test_a_head_that_is_cut() -> None:
    async def main() -> None:
        async with raw() as connection:
            for data in (b"\x40", ONE_WAY_HEAD, ONE_WAY_HEAD + b"\x80"):
                await (await unidirectional(connection, data)).send_eof()
            await trio.sleep(1)
            assert connection.close_info is None
            await (await opened(connection, HEAD + b"\x80")).send_eof()
            assert (await closed(connection)).code == ErrorCode.FRAME_ERROR

    run(main)


def test_streams_and_datagrams_before_their_session() -> None:
    async def main() -> None:
        async with raw() as connection:
            stream = await connection.open_stream()
            head = HEAD + number(stream.stream_id)
            early = [await opened(connection, head + b"%d" % each) for each in range(16)]
            await trio.sleep(1)
            for each in range(20):
                await connection.send_datagram(number(stream.stream_id >> 2) + b"%d" % each)
            await trio.sleep(1)
            code = WebTransportCode.BUFFERED_STREAM_REJECTED
            assert await code_of_reset(await opened(connection, head)) == code
            await stream.send_all(CONNECT)
            for each, one in enumerate(early):
                await one.send_eof()
                assert await one.receive_some() == b"%d" % each
            found = {await connection.receive_datagram() for _ in range(16)}
            assert found == {number(stream.stream_id >> 2) + b"%d" % each for each in range(16)}

    run(main)


def test_streams_for_what_is_no_session() -> None:
    async def main() -> None:
        async with raw() as connection:
            stream = await connection.open_stream()
            early = await opened(connection, HEAD + number(stream.stream_id))
            await trio.sleep(1)
            request = [(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/")]
            await stream.send_all(section([*request, (b":authority", b"a")]))
            assert await code_of_reset(early) == WebTransportCode.SESSION_GONE

    run(main)


def test_streams_after_their_session() -> None:
    async def main() -> None:
        async with raw() as connection:
            session = await begun(connection)
            before = await opened(connection, HEAD + number(session.stream_id) + b"data")
            await trio.sleep(1)
            await session.send_eof()
            assert await code_of_reset(before) == WebTransportCode.SESSION_GONE
            await trio.sleep(1)
            after = await opened(connection, HEAD + number(session.stream_id) + b"data")
            assert await code_of_reset(after) == WebTransportCode.SESSION_GONE

    run(main)


def test_streams_without_a_session_and_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_MAX_REFUSED", 20)

    async def main() -> None:
        async with raw() as connection:
            ended: list[Stream] = []
            for _ in range(2):  # another session allows as many again
                ended.append(await begun(connection))
                await ended[-1].send_eof()
                await trio.sleep(1)
                for _ in range(15):
                    await opened(connection, HEAD + number(ended[-1].stream_id))
                await trio.sleep(1)
            assert connection.close_info is None
            for _ in range(10):
                await opened(connection, HEAD + number(ended[-1].stream_id))
            assert (await closed(connection)).code == ErrorCode.EXCESSIVE_LOAD

    run(main)


def test_more_sessions_than_allowed() -> None:
    async def main() -> None:
        async with raw() as connection:
            sessions = [await begun(connection) for _ in range(2)]
            refused = await opened(connection, CONNECT)
            assert b"429" in await refused.receive_some()
            await sessions[0].send_eof()
            await trio.sleep(1)
            await begun(connection)

    run(main)


def test_one_session_without_flow_control() -> None:
    async def main() -> None:
        async with raw_client(serving(echo), CONFIG, quic=QUIC) as connection:
            await greet(connection, (0x33, 1), (0x2C7CF000, 1))
            await connection.wait_handshake()
            fields = [(b":method", b"CONNECT"), (b":scheme", b"https"), (b":path", b"/")]
            fields += [(b":authority", b"a"), (b":protocol", b"webtransport-h3")]
            connect = section(fields)
            stream = await opened(connection, connect)
            assert b"429" not in await stream.receive_some()
            assert b"429" in await (await opened(connection, connect)).receive_some()

    run(main)


def capsule(kind: int, value: bytes = b"", size: int | None = None) -> bytes:
    return number(kind) + number(len(value) if size is None else size) + value


CLOSE: Final = capsule(0x2843, bytes(4) + b"bye")


@pytest.mark.parametrize(
    "data",
    [
        capsule(0x2843, bytes(3)),
        capsule(0x2843, bytes(4 + 1025)),
        capsule(0x2843, size=1 << 40),
        capsule(0x2843, bytes(4) + b"\xff"),
        capsule(0x78AE, b"x"),
        CLOSE + CLOSE,
        CLOSE + capsule(0x99),
    ],
)
def test_capsules_that_are_malformed(data: bytes) -> None:
    async def main() -> None:
        async with raw() as connection:
            session = await begun(connection)
            await session.send_all(frame(0x00, data) + frame(0x00, b"more"))
            assert await code_of_reset(session) == ErrorCode.MESSAGE_ERROR
            assert connection.close_info is None

    run(main)


def test_a_capsule_that_is_cut() -> None:
    async def main() -> None:
        async with raw() as connection:
            session = await begun(connection)
            await session.send_all(frame(0x00, CLOSE[:-1]))
            await session.send_eof()
            assert await code_of_reset(session) == ErrorCode.MESSAGE_ERROR

    run(main)


def test_capsules_that_are_unknown_and_long() -> None:
    ends: list[SessionEnd] = []

    async def serve(session: Session) -> None:
        ends.append(await session.wait_closed())

    async def main() -> None:
        async with raw(serve) as connection:
            session = await begun(connection)
            long = capsule(0x99, bytes(300_000))
            for at in range(0, len(long), 10_000):
                await session.send_all(frame(0x00, long[at : at + 10_000]))
            for byte in CLOSE:
                await session.send_all(frame(0x00, bytes([byte])))
            await session.send_eof()
            assert await session.receive_some() == b""
        assert ends == [SessionEnd(0, "bye")]

    run(main)


def test_settings_of_all_drafts() -> None:
    async def main() -> None:
        async with raw() as connection:
            control = await connection.streams().receive()
            data = await control.receive_some()
            assert data[:2] == b"\x00\x04"
            size, at = wire.read_number(data, 2) or (0, 0)
            end = at + size
            found = {}
            while at < end:
                key, at = wire.read_number(data, at) or (0, end)
                value, at = wire.read_number(data, at) or (0, end)
                found[key] = value
            assert found.items() >= wire.settings_of(CONFIG).items()
            assert found[0x33] == found[0x08] == 1

    run(main)


@pytest.mark.parametrize("data", [b"\x01", b"\x40\x42", section([(b":method", b"GET")])])
def test_a_server_that_opens_other_streams(data: bytes) -> None:
    codes: list[int] = []

    async def serve(connection: Connection) -> None:
        await unidirectional(connection, b"\x00" + settings(*SETTINGS, (0x08, 1)))
        await opened(connection, data)
        codes.append((await closed(connection)).code)

    async def main() -> None:
        async with raw_server(serve, config=CONFIG, quic=QUIC) as client:
            await client.connection.wait_closed()
        assert codes == [ErrorCode.STREAM_CREATION_ERROR]

    run(main)


def test_a_client_without_the_settings() -> None:
    codes: list[type[Exception]] = []

    async def handler(request: http3.Request) -> None:
        with pytest.raises(http3.NotSupportedError, match="settings"):
            await request.accept_webtransport()
        codes.append(http3.NotSupportedError)
        await request.respond(400)

    async def main() -> None:
        async with raw_client(handler, CONFIG, quic=QUIC) as connection:
            await greet(connection)
            stream = await opened(connection, CONNECT)
            assert await stream.receive_some()
        assert codes

    run(main)


def test_codes_of_the_draft() -> None:
    assert wire.to_http3(0) == 0x52E4A40FA8DB
    assert wire.to_http3(0xFFFFFFFF) == 0x52E5AC983162
    for code in (0, 1, 29, 30, 31, 59, 60, 0xFFFF, 0xFFFFFFFF):
        assert wire.from_http3(wire.to_http3(code)) == code
        assert (wire.to_http3(code) - 0x21) % 0x1F
    for other in (0, 0x102, 0x52E4A40FA8DA, 0x52E4A40FA8DB + 0x1E, 0x52E5AC983163):
        assert wire.from_http3(other) == 0


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (b'"a", "b";q=1 ,"c"', ["a", "b", "c"]),
        (b'"a" "b"', []),
        (b"a", []),
        (b'"a', []),
        (b"", []),
    ],
)
def test_application_protocols_as_sent(value: bytes, found: list[str]) -> None:
    assert wire.available([(b"wt-available-protocols", value)]) == found


def test_limits_of_settings() -> None:
    for count in (-1, 1 << 31):
        with pytest.raises(ValueError, match="webtransport_sessions"):
            Http3Config(webtransport_sessions=count)
