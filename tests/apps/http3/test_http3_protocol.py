"""HTTP/3: our server and a client of our own making, over the memory link."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import pylsqpack
import pytest
import trio
import trio.testing
from aioquic.buffer import Buffer, encode_uint_var
from aioquic.h3.connection import ErrorCode, FrameType, Setting, StreamType, encode_frame
from aioquic.h3.events import HeadersReceived

import hoststack
from apps import http3_client, http3_server
from apps.http3 import CHUNK_BYTES, Exchange, Http3Connection
from hoststack import QuicConfig, Stack, Stream, StreamResetError, TlsConfig
from hoststack.link.memory import MemoryNetwork
from tests.apps.echo_process import PATIENCE_S
from tests.apps.http3.processes import pattern, rest

pytestmark = pytest.mark.usefixtures("engine")


SERVER, CLIENT = "10.0.0.1", "10.0.0.2"
URI: Final = f"quic://{SERVER}:443"
Handler = Callable[[hoststack.Connection], Awaitable[None]]


@asynccontextmanager
async def over_memory(
    handler: Handler, config: QuicConfig | None = None, **impairments: Any
) -> AsyncIterator[Stack]:
    """The stack of a client that a server with this handler can be reached from."""
    network = MemoryNetwork(**impairments)
    tls = TlsConfig.self_signed([SERVER])
    async with (
        hoststack.open_stack(link=network.link(SERVER), config=config) as server,
        hoststack.open_stack(link=network.link(CLIENT), config=config) as stack,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(partial(server.serve, URI, handler, tls=tls, alpn=["h3"]))
        yield stack
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def http3(stack: Stack) -> AsyncIterator[Http3Connection]:
    """An HTTP/3 connection of that stack."""
    async with (
        stack.connect(URI, tls=TlsConfig(verify=False), alpn=["h3"]) as connection,
        trio.open_nursery() as nursery,
    ):
        http = await Http3Connection.over(connection, is_client=True)
        nursery.start_soon(http.run)
        yield http
        nursery.cancel_scope.cancel()


async def request(http: Http3Connection, path: str, method: str = "GET") -> Exchange:
    return await http.request(
        [
            (b":method", method.encode()),
            (b":scheme", b"https"),
            (b":authority", SERVER.encode()),
            (b":path", path.encode()),
        ]
    )


async def response(exchange: Exchange) -> tuple[dict[bytes, bytes], bytes]:
    """The header section and the content."""
    first = await exchange.receive()
    assert isinstance(first, HeadersReceived)
    content = await rest(exchange)
    await exchange.aclose()
    return dict(first.headers), content


def site_of(folder: Path) -> Handler:
    return partial(http3_server.serve_connection, http3_server.Site(str(folder)))


def test_methods_and_types(folder: Path) -> None:
    async def main() -> None:
        async with over_memory(site_of(folder)) as stack, http3(stack) as http:
            headers, content = await response(await request(http, "/page.html"))
            assert headers == {
                b":status": b"200",
                b"content-type": b"text/html",
                b"content-length": b"7",
            }
            assert content == b"<p>page"
            headers, _ = await response(await request(http, "/unreadable.tar.gz"))
            assert headers[b"content-type"] == b"application/octet-stream"
            headers, content = await response(await request(http, "/empty", "HEAD"))
            assert headers[b"content-length"] == b"0"
            for method in ("POST", "PUT", "DELETE", "OPTIONS", "get"):
                headers, _ = await response(await request(http, "/page.html", method))
                assert (headers[b":status"], headers[b"allow"]) == (b"405", b"GET, HEAD")

    trio.run(main)


def test_a_file_that_becomes_shorter_is_no_whole_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(4 * CHUNK_BYTES))
    config = QuicConfig(rx_fifo_bytes=4096, tx_fifo_bytes=4096)

    async def main() -> None:
        async with over_memory(site_of(tmp_path), config) as stack, http3(stack) as http:
            exchange = await request(http, "/file")
            await exchange.receive()
            os.truncate(tmp_path / "file", CHUNK_BYTES)
            with pytest.raises(StreamResetError) as caught:
                await rest(exchange)
            assert caught.value.code == ErrorCode.H3_INTERNAL_ERROR
            await exchange.aclose()
            assert (await response(await request(http, "/7")))[1] == pattern(7)

    trio.run(main)


class _BugError(Exception):
    """A mistake in a handler."""


@pytest.mark.parametrize(
    "error", [_BugError(), OSError(5, "the disk"), trio.BrokenResourceError("said the handler")]
)
def test_a_handler_that_raises_in_the_middle_resets(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    read = http3_server.Generated.read

    async def failing(self: http3_server.Generated, offset: int, count: int) -> bytes:
        if offset:
            raise error
        return await read(self, offset, count)

    monkeypatch.setattr(http3_server.Generated, "read", failing)

    async def main() -> None:
        async with over_memory(site_of(folder)) as stack, http3(stack) as http:
            exchange = await request(http, f"/{2 * CHUNK_BYTES}")
            with pytest.raises(StreamResetError) as caught:
                await response(exchange)
            assert caught.value.code == ErrorCode.H3_INTERNAL_ERROR
            await exchange.aclose()
            assert (await response(await request(http, "/7")))[1] == pattern(7)

    trio.run(main)


def test_a_handler_that_returns_in_the_middle_resets() -> None:
    async def respond(exchange: Exchange) -> None:
        await exchange.receive()
        await exchange.send_headers([(b":status", b"200")])
        await exchange.send_data(b"half of it")

    async def serve(connection: hoststack.Connection) -> None:
        http = await Http3Connection.over(connection, is_client=False)
        await http.run(respond)

    async def main() -> None:
        async with over_memory(serve) as stack, http3(stack) as http:
            exchange = await request(http, "/")
            with pytest.raises(StreamResetError) as caught:
                await response(exchange)
            assert caught.value.code == ErrorCode.H3_INTERNAL_ERROR
            await exchange.aclose()

    trio.run(main)


def test_a_server_that_ends_in_the_middle_says_so(folder: Path) -> None:
    async def main() -> None:
        serving = trio.CancelScope()

        async def serve(connection: hoststack.Connection) -> None:
            with serving:
                await site_of(folder)(connection)
                pytest.fail("it was not cancelled")
            await trio.sleep_forever()

        async with over_memory(serve) as stack, http3(stack) as http:
            exchange = await request(http, f"/{1 << 30}")
            await exchange.receive()
            serving.cancel()
            with pytest.raises(trio.BrokenResourceError) as caught:
                await rest(exchange)
            assert isinstance(caught.value, StreamResetError | hoststack.ConnectionClosedError)
            assert caught.value.code == ErrorCode.H3_INTERNAL_ERROR

    trio.run(main)


def test_header_sections_refer_to_nothing_that_may_come_later(folder: Path) -> None:
    """A client that offers a dynamic table, and looks at none, understands every response."""
    capacity, blocked = 4096, 100
    encoder = pylsqpack.Encoder()
    settings = encode_frame(
        FrameType.SETTINGS,
        b"".join(
            map(
                uint_var,
                (
                    Setting.QPACK_MAX_TABLE_CAPACITY,
                    capacity,
                    Setting.QPACK_BLOCKED_STREAMS,
                    blocked,
                ),
            )
        ),
    )

    async def take_critical(connection: hoststack.Connection, came: dict[int, bytearray]) -> None:
        async for stream in connection.streams():
            assert not isinstance(stream, Stream)
            came[stream.stream_id] = bytearray(await stream.receive_some())

    async def main() -> None:
        async with (
            over_memory(site_of(folder)) as stack,
            stack.connect(URI, tls=TlsConfig(verify=False), alpn=["h3"]) as connection,
            trio.open_nursery() as nursery,
        ):
            came: dict[int, bytearray] = {}
            nursery.start_soon(take_critical, connection, came)
            control = await connection.open_stream(unidirectional=True)
            await control.send_all(CONTROL + settings)
            for path in ("/7", "/7", "/page.html", "/page.html", "/not-there", "/not-there"):
                stream = await connection.open_stream()
                fields = [
                    (b":method", b"GET"),
                    (b":scheme", b"https"),
                    (b":authority", SERVER.encode()),
                    (b":path", path.encode()),
                ]
                _, section = encoder.encode(stream.stream_id, fields)
                await stream.send_all(encode_frame(FrameType.HEADERS, section))
                await stream.send_eof()
                buffer = Buffer(data=b"".join([chunk async for chunk in stream]))
                assert buffer.pull_uint_var() == FrameType.HEADERS
                answer = buffer.pull_bytes(buffer.pull_uint_var())
                # Raises StreamBlocked for what refers to an entry.
                _, headers = pylsqpack.Decoder(capacity, blocked).feed_header(0, answer)
                assert dict(headers)[b":status"] in (b"200", b"404")
            encoders = [data for data in came.values() if data[0] == StreamType.QPACK_ENCODER]
            assert encoders == [uint_var(StreamType.QPACK_ENCODER)]
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_a_response_waits_for_its_reader(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    produced = 0
    read = http3_server.Generated.read

    async def counting(self: http3_server.Generated, offset: int, count: int) -> bytes:
        nonlocal produced
        data = await read(self, offset, count)
        produced += len(data)
        return data

    monkeypatch.setattr(http3_server.Generated, "read", counting)
    config = QuicConfig(rx_fifo_bytes=65536, tx_fifo_bytes=65536)

    async def main() -> None:
        async with over_memory(site_of(folder), config) as stack, http3(stack) as http:
            exchange = await request(http, "/5000000")
            await trio.testing.wait_all_tasks_blocked(0.1)
            assert 0 < produced <= 2 * 65536 + CHUNK_BYTES
            _, content = await response(exchange)
            assert content == pattern(5_000_000)

    trio.run(main)


def test_requests_that_are_given_up_end_alone(folder: Path) -> None:
    async def main() -> None:
        async with over_memory(site_of(folder)) as stack, http3(stack) as http:
            for _ in range(300):  # More than the server allows at once.
                exchange = await request(http, "/1000000000")
                await exchange.receive()
                await exchange.aclose(ErrorCode.H3_REQUEST_CANCELLED)
            assert (await response(await request(http, "/7")))[1] == pattern(7)

    trio.run(main)


def test_many_requests_over_a_bad_network(folder: Path) -> None:
    async def main() -> None:
        bad: dict[str, Any] = {
            "seed": 3,
            "loss": 0.03,
            "reorder": 0.2,
            "duplicate": 0.1,
            "corrupt": 0.02,
        }
        got = 0

        async def one(size_bytes: int) -> None:
            nonlocal got
            _, content = await response(await request(http, f"/{size_bytes}"))
            assert content == pattern(size_bytes)
            got += 1

        async with over_memory(site_of(folder), **bad) as stack, http3(stack) as http:
            async with trio.open_nursery() as nursery:
                for size_bytes in range(0, 60_000, 1000):
                    nursery.start_soon(one, size_bytes)
            assert got == 60

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def whole(stream: Stream) -> bytes:
    return b"".join([chunk async for chunk in stream])


def test_requests_wait_for_the_header_table(folder: Path) -> None:
    """The bytes of QPACK's encoder stream come after what refers to them."""
    encoder = pylsqpack.Encoder()
    table = bytearray(encode_uint_var(StreamType.QPACK_ENCODER))
    table += encoder.apply_settings(max_table_capacity=4096, blocked_streams=16)

    async def main() -> None:
        async with (
            over_memory(site_of(folder)) as stack,
            stack.connect(URI, tls=TlsConfig(verify=False), alpn=["h3"]) as connection,
        ):
            blocked = []
            for number in range(8):
                stream = await connection.open_stream()
                instructions, section = encoder.encode(
                    stream.stream_id,
                    [
                        (b":method", b"GET"),
                        (b":scheme", b"https"),
                        (b":authority", b"a name that is in no table yet"),
                        (b":path", b"/7"),
                    ],
                )
                table.extend(instructions)
                await stream.send_all(encode_frame(FrameType.HEADERS, section))
                if number % 2:
                    await stream.send_eof()
                if section[0]:  # It needs entries of the table (RFC 9204 section 4.5.1.1).
                    blocked.append(stream)
                else:
                    assert pattern(7) in await whole(stream)
            assert len(blocked) >= 4
            await trio.testing.wait_all_tasks_blocked(0.05)
            encoder_stream = await connection.open_stream(unidirectional=True)
            await encoder_stream.send_all(table)
            for stream in blocked:
                assert pattern(7) in await whole(stream)

    trio.run(main)


def uint_var(number: int) -> bytes:
    return bytes(encode_uint_var(number))


CONTROL: Final = uint_var(StreamType.CONTROL)
SETTINGS: Final = encode_frame(FrameType.SETTINGS, b"")


@pytest.mark.parametrize(
    ("unidirectional", "streams", "code"),
    [
        (True, [CONTROL + encode_frame(FrameType.GOAWAY, b"\0")], ErrorCode.H3_MISSING_SETTINGS),
        (True, [CONTROL + SETTINGS + SETTINGS], ErrorCode.H3_FRAME_UNEXPECTED),
        (True, [CONTROL + SETTINGS] * 2, ErrorCode.H3_STREAM_CREATION_ERROR),
        (
            True,
            [CONTROL + uint_var(FrameType.SETTINGS) + uint_var(1 << 30) + bytes(100_000)],
            ErrorCode.H3_EXCESSIVE_LOAD,
        ),
        (
            True,
            [uint_var(StreamType.QPACK_ENCODER) + b"\xff" * 100],
            ErrorCode.QPACK_ENCODER_STREAM_ERROR,
        ),
        (True, [uint_var(StreamType.PUSH)], ErrorCode.H3_STREAM_CREATION_ERROR),
        (False, [encode_frame(FrameType.DATA, b"data")], ErrorCode.H3_FRAME_UNEXPECTED),
        (
            False,
            [encode_frame(FrameType.HEADERS, b"\xff" * 50)],
            ErrorCode.QPACK_DECOMPRESSION_FAILED,
        ),
        (
            False,
            [uint_var(FrameType.HEADERS) + uint_var(1 << 40) + bytes(100_000)],
            ErrorCode.H3_EXCESSIVE_LOAD,
        ),
    ],
)
def test_a_peer_that_breaks_the_rules_ends_alone(
    folder: Path, unidirectional: bool, streams: list[bytes], code: ErrorCode
) -> None:
    async def main() -> None:
        tls = TlsConfig(verify=False)
        async with over_memory(site_of(folder)) as stack, http3(stack) as http:
            async with stack.connect(URI, tls=tls, alpn=["h3"]) as connection:
                for data in streams:
                    stream = await (
                        connection.open_stream(unidirectional=True)
                        if unidirectional
                        else connection.open_stream()
                    )
                    await stream.send_all(data)
                with trio.fail_after(PATIENCE_S):
                    info = await connection.wait_closed()
            assert (info.code, info.is_application, info.by_peer) == (code, True, True)
            assert (await response(await request(http, "/7")))[1] == pattern(7)

    trio.run(main)


def test_a_stream_without_a_request_is_reset(folder: Path) -> None:
    async def main() -> None:
        async with (
            over_memory(site_of(folder)) as stack,
            stack.connect(URI, tls=TlsConfig(verify=False), alpn=["h3"]) as connection,
        ):
            stream = await connection.open_stream()
            await stream.send_eof()
            with pytest.raises(StreamResetError) as caught:
                await stream.receive_some()
            assert caught.value.code == ErrorCode.H3_REQUEST_INCOMPLETE

    trio.run(main)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "without a response"),
        (uint_var(FrameType.HEADERS) + b"\x20", "H3_FRAME_ERROR"),
        (encode_frame(FrameType.DATA, b"data"), "H3_FRAME_UNEXPECTED"),
        (None, "reset the stream"),
    ],
)
def test_the_client_says_what_a_server_does_wrong(
    capsys: pytest.CaptureFixture[str], answer: bytes | None, said: str
) -> None:
    async def serve(connection: hoststack.Connection) -> None:
        async for stream in connection.streams():
            if isinstance(stream, Stream):
                if answer is None:
                    stream.reset(ErrorCode.H3_INTERNAL_ERROR)
                elif answer:
                    await stream.send_all(answer)
                await stream.aclose()

    async def main() -> bool:
        async with over_memory(serve) as stack:
            download = http3_client.Download(TlsConfig(verify=False))
            target = http3_client.parse_target(f"https://{SERVER}/x", None)
            await download.visit(stack, [target, target])
            return download.has_failed

    assert trio.run(main)
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 2
