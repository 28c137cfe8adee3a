"""What a client does against the rules is answered with the code of RFC 9114 or 9204."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import trio

from hoststack import StreamResetError
from hoststack.http3 import ErrorCode, Http3Config, ProtocolError
from tests.http3.peers import (
    POST,
    REQUEST,
    RESPONSE,
    ask,
    closed,
    code_of_reset,
    frame,
    greet,
    is_alive,
    number,
    raw_client,
    raw_server,
    run,
    section,
    settings,
    unidirectional,
)

E = ErrorCode
Fields = tuple[tuple[bytes, bytes], ...]


def without(name: bytes) -> Fields:
    return tuple(field for field in REQUEST if field[0] != name)


CONTROL: dict[str, tuple[bytes, ErrorCode]] = {
    "no settings first": (frame(0x07, number(0)), E.MISSING_SETTINGS),
    "an unknown frame first": (frame(0x21), E.MISSING_SETTINGS),
    "settings twice": (settings() + settings(), E.FRAME_UNEXPECTED),
    "DATA": (settings() + frame(0x00, b"x"), E.FRAME_UNEXPECTED),
    "HEADERS": (settings() + frame(0x01, b"x"), E.FRAME_UNEXPECTED),
    "PUSH_PROMISE": (settings() + frame(0x05, b"x"), E.FRAME_UNEXPECTED),
    **{
        f"HTTP/2's frame {kind:#x}": (settings() + frame(kind, b"x"), E.FRAME_UNEXPECTED)
        for kind in (0x02, 0x06, 0x08, 0x09)
    },
    **{
        f"HTTP/2's setting {key:#x}": (settings((key, 1)), E.SETTINGS_ERROR)
        for key in (0x00, 0x02, 0x03, 0x04, 0x05)
    },
    "a setting twice": (settings((0x21, 1), (0x21, 2)), E.SETTINGS_ERROR),
    "a table twice": (settings((0x01, 0), (0x01, 0)), E.SETTINGS_ERROR),
    "a datagram setting of 2": (settings((0x33, 2)), E.SETTINGS_ERROR),
    "a connect setting of 2": (settings((0x08, 2)), E.SETTINGS_ERROR),
    "half a setting": (frame(0x04, number(0x21)), E.FRAME_ERROR),
    "a setting cut in its value": (frame(0x04, b"\x21\x40"), E.FRAME_ERROR),
    "an empty GOAWAY": (settings() + frame(0x07), E.FRAME_ERROR),
    "a GOAWAY that is too long": (settings() + frame(0x07, b"\x00\x00"), E.FRAME_ERROR),
    "a GOAWAY that grows": (
        settings() + frame(0x07, number(4)) + frame(0x07, number(8)),
        E.ID_ERROR,
    ),
    "a push ID that shrinks": (
        settings() + frame(0x0D, number(4)) + frame(0x0D, number(3)),
        E.ID_ERROR,
    ),
    "a push ID that is too long": (settings() + frame(0x0D, b"\x00\x00"), E.FRAME_ERROR),
    "a priority of no request": (settings() + frame(0xF0700, number(2) + b"u=1"), E.ID_ERROR),
    "a priority far ahead": (settings() + frame(0xF0700, number(1 << 40) + b"u=1"), E.ID_ERROR),
    "a priority of a push": (settings() + frame(0xF0701, number(0) + b"u=1"), E.ID_ERROR),
}


@pytest.mark.parametrize("case", CONTROL)
@pytest.mark.parametrize("is_cut", [False, True], ids=["whole", "byte by byte"])
def test_on_the_control_stream(case: str, is_cut: bool) -> None:
    data, code = CONTROL[case]

    async def main() -> None:
        async with raw_client() as connection:
            stream = await unidirectional(connection, b"\x00")
            try:
                for part in [data[i : i + 1] for i in range(len(data))] if is_cut else [data]:
                    await stream.send_all(part)
                    await trio.sleep(0.01 if is_cut else 0)
            except trio.BrokenResourceError:
                assert is_cut
            info = await closed(connection)
            assert (info.code, info.is_application, info.by_peer) == (code, True, True)

    run(main)


def test_a_frame_of_settings_without_an_end() -> None:
    unknown = b"".join(number(1000 + each) + number(0) for each in range(3000))

    async def main() -> None:
        async with raw_client() as connection:
            await unidirectional(connection, b"\x00" + number(4) + number(1 << 40) + unknown)
            assert (await closed(connection)).code == E.EXCESSIVE_LOAD

    run(main)


STREAMS: dict[str, tuple[bytes, bytes, ErrorCode]] = {
    "two control streams": (b"\x00" + settings(), b"\x00" + settings(), E.STREAM_CREATION_ERROR),
    "two encoder streams": (b"\x02", b"\x02", E.STREAM_CREATION_ERROR),
    "two decoder streams": (b"\x03", b"\x03", E.STREAM_CREATION_ERROR),
    "a push stream": (b"\x00" + settings(), b"\x01\x00", E.STREAM_CREATION_ERROR),
    "a table that is too large": (
        b"\x00" + settings(),
        b"\x02\x3f\xff\xff\x7f",
        E.QPACK_ENCODER_STREAM_ERROR,
    ),
    "an increment of 0": (b"\x00" + settings(), b"\x03\x00", E.QPACK_DECODER_STREAM_ERROR),
    "an increment of nothing": (b"\x00" + settings(), b"\x03\x05", E.QPACK_DECODER_STREAM_ERROR),
    "an insertion without a name": (
        b"\x00" + settings(),
        b"\x02\x3f\xe1\x1f\x80\x00",
        E.QPACK_ENCODER_STREAM_ERROR,
    ),
}


@pytest.mark.parametrize("case", STREAMS)
def test_on_other_unidirectional_streams(case: str) -> None:
    first, second, code = STREAMS[case]

    async def main() -> None:
        async with raw_client() as connection:
            await unidirectional(connection, first)
            await unidirectional(connection, second)
            assert (await closed(connection)).code == code

    run(main)


@pytest.mark.parametrize("kind", [0x00, 0x02, 0x03])
@pytest.mark.parametrize("how", ["end", "reset"])
def test_a_critical_stream_that_is_closed(kind: int, how: str) -> None:
    async def main() -> None:
        async with raw_client() as connection:
            data = number(kind) + (settings() if kind == 0 else b"")
            stream = await unidirectional(connection, data)
            await trio.sleep(1)
            if how == "end":
                await stream.send_eof()
            else:
                stream.reset(0x100)
            assert (await closed(connection)).code == E.CLOSED_CRITICAL_STREAM

    run(main)


@pytest.mark.parametrize("number_of_stream", [1, 2])
def test_our_critical_streams_must_not_be_stopped(number_of_stream: int) -> None:
    """It is noticed when there is something to write on them: here, what QPACK acknowledges."""

    async def main() -> None:
        async with raw_client() as connection:
            await unidirectional(connection, b"\x00" + settings((0x01, 4096)))
            encoder = await unidirectional(connection, b"\x02")
            await unidirectional(connection, b"\x03")
            async for stream in connection.streams():
                if stream.stream_id == 3 + 4 * number_of_stream:
                    stream.stop_sending(0x100)
                    break
            await trio.sleep(1)
            with suppress(trio.BrokenResourceError):
                await encoder.send_all(b"\x3f\xbd\x01" + b"\x48my-field" + b"\x08my value")
                for _ in range(2):
                    await ask(connection, section([*REQUEST, (b"x", b"y" * 20)]))
                    await trio.sleep(1)
            assert (await closed(connection)).code == E.CLOSED_CRITICAL_STREAM

    run(main)


#: Frames on a request's stream that end the connection.
REQUESTS: dict[str, tuple[bytes, ErrorCode]] = {
    "DATA first": (frame(0x00, b"x"), E.FRAME_UNEXPECTED),
    "DATA after trailers": (
        section(POST) + frame(0x00, b"x") + section([(b"a", b"b")]) + frame(0x00, b"x"),
        E.FRAME_UNEXPECTED,
    ),
    "trailers twice": (
        section(POST) + section([(b"a", b"b")]) + section([(b"a", b"b")]),
        E.FRAME_UNEXPECTED,
    ),
    **{
        f"frame {kind:#x}": (section(REQUEST) + frame(kind, b"\x00"), E.FRAME_UNEXPECTED)
        for kind in (0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0D)
    },
    "a static index that is not there": (
        frame(0x01, b"\x00\x00\xff\x80\x01"),
        E.QPACK_DECOMPRESSION_FAILED,
    ),
    "an entry that is not there": (frame(0x01, b"\x00\x00\x80"), E.QPACK_DECOMPRESSION_FAILED),
    "a section that ends within a field": (
        frame(0x01, b"\x00\x00\x51"),
        E.QPACK_DECOMPRESSION_FAILED,
    ),
    "a frame that ends with the stream": (section(POST) + b"\x00\x05ab", E.FRAME_ERROR),
    "a section that ends with the stream": (section(REQUEST)[:-1], E.FRAME_ERROR),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_frames_of_requests(case: str) -> None:
    data, code = REQUESTS[case]

    async def handler(request: Any) -> None:
        await request.read()
        await request.respond(200)

    async def main() -> None:
        async with raw_client(handler) as connection:
            await greet(connection)
            await ask(connection, data)
            assert (await closed(connection)).code == code

    run(main)


#: Messages that end their own stream.
MALFORMED: dict[str, bytes] = {
    **{
        f"no {name.decode()}": section(without(name)) for name in (b":method", b":scheme", b":path")
    },
    "no authority": section(without(b":authority")),
    **{f"{name.decode()} twice": section([(name, value), *REQUEST]) for name, value in REQUEST},
    "a status": section([(b":status", b"200"), *REQUEST]),
    "an unknown pseudo-header": section([(b":other", b"x"), *REQUEST]),
    "a pseudo-header after a field": section([*REQUEST[:-1], (b"a", b"b"), REQUEST[-1]]),
    "upper case": section([*REQUEST, (b"A", b"b")]),
    "an empty path": section([*without(b":path"), (b":path", b"")]),
    "CONNECT with a path": section([(b":method", b"CONNECT"), *REQUEST[1:]]),
    "CONNECT without authority": section([(b":method", b"CONNECT")]),
    "a protocol of GET": section([*REQUEST, (b":protocol", b"websocket")]),
    **{
        name: section([*REQUEST, (name.encode(), b"x")])
        for name in ("connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade")
    },
    "te": section([*REQUEST, (b"te", b"gzip")]),
    "no length": section([*POST, (b"content-length", b"x")]),
    "a negative length": section([*POST, (b"content-length", b"-1")]),
    "less than its length": section([*POST, (b"content-length", b"4")]) + frame(0, b"abc"),
    "more than its length": section([*POST, (b"content-length", b"2")]) + frame(0, b"abc"),
    "nothing of its length": section([*POST, (b"content-length", b"2")]),
    "a pseudo-header in trailers": section(POST) + section([(b":path", b"/")]),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_messages(case: str) -> None:
    async def handler(request: Any) -> None:
        await request.read()
        await request.respond(200)

    async def main() -> None:
        async with raw_client(handler) as connection:
            await greet(connection)
            stream = await ask(connection, MALFORMED[case])
            assert await code_of_reset(stream) == E.MESSAGE_ERROR
            assert await is_alive(connection)

    run(main)


def test_a_request_without_anything() -> None:
    async def main() -> None:
        async with raw_client() as connection:
            await greet(connection)
            stream = await ask(connection, b"")
            assert await code_of_reset(stream) == E.REQUEST_INCOMPLETE
            assert await is_alive(connection)

    run(main)


def test_reserved_frames_settings_and_streams_are_ignored() -> None:
    """RFC 9114 section 9: a peer that sends them tests that."""

    async def main() -> None:
        async with raw_client() as connection:
            control = await greet(connection, (0x21, 5), (0x40, 7))
            await control.send_all(frame(0x21 + 0x1F, bytes(5000)) + frame(0x40))
            for kind in (0x21, 0x54, 0x21 + 0x1F * 1000):
                await unidirectional(connection, number(kind) + bytes(100))
            grease = frame(0x21, bytes(3000))
            stream = await ask(connection, grease + section(REQUEST) + grease + frame(0x00))
            assert await stream.receive_some()
            assert await is_alive(connection)

    run(main)


def test_more_streams_of_unknown_types_than_anybody_needs() -> None:
    async def main() -> None:
        async with raw_client() as connection:
            await greet(connection)
            try:
                for _ in range(1000):
                    await (await unidirectional(connection, number(0x21))).aclose()
                    await trio.sleep(0.01)
                raise AssertionError("the connection is still open")
            except trio.BrokenResourceError:
                pass
            assert (await closed(connection)).code == E.EXCESSIVE_LOAD

    run(main)


def test_a_section_that_waits_for_the_encoder_stream() -> None:
    """An entry may arrive after the section that refers to it: the request waits for it."""

    async def handler(request: Any) -> None:
        assert (b"my-field", b"my value") in request.headers
        assert await request.read() == bytes(100_000)
        await request.respond(200)

    async def main() -> None:
        async with raw_client(handler) as connection:
            await unidirectional(connection, b"\x00" + settings())
            encoder = await unidirectional(connection, b"\x02")
            await unidirectional(connection, b"\x03")
            pseudo = section(POST)[2:]
            # Required Insert Count 1 (encoded as 2), Base 1; then the entry with index 0.
            waiting = frame(0x01, b"\x02\x00" + pseudo[2:] + b"\x80")
            stream = await connection.open_stream()
            with trio.move_on_after(5):
                await stream.send_all(waiting + frame(0x00, bytes(100_000)))
                await stream.send_eof()
            await trio.sleep(5)
            # Set Dynamic Table Capacity 220, Insert With Literal Name
            await encoder.send_all(b"\x3f\xbd\x01" + b"\x48my-field" + b"\x08my value")
            assert await stream.receive_some()

    run(main)


def test_more_sections_that_wait_than_are_allowed() -> None:
    async def main() -> None:
        async with raw_client(config=Http3Config(blocked_streams=3)) as connection:
            await greet(connection)
            for _ in range(4):
                await ask(connection, frame(0x01, b"\x02\x00\x80"), is_end=False)
            assert (await closed(connection)).code == E.QPACK_DECOMPRESSION_FAILED

    run(main)


# --- a server's breaches --------------------------------------------------------------------------

FROM_SERVERS: dict[str, tuple[bytes, bytes, ErrorCode | tuple[ErrorCode, ...]]] = {
    "no settings": (frame(0x07, number(0)), b"", E.MISSING_SETTINGS),
    "a GOAWAY of no request": (settings() + frame(0x07, number(1)), b"", E.ID_ERROR),
    "a push ID": (settings() + frame(0x0D, number(1)), b"", E.FRAME_UNEXPECTED),
    "a priority": (settings() + frame(0xF0700, number(0) + b"u=1"), b"", E.FRAME_UNEXPECTED),
    "a push": (settings(), frame(0x05, b"\x00\x00\x00"), (E.FRAME_UNEXPECTED, E.ID_ERROR)),
    "DATA first": (settings(), frame(0x00, b"x"), E.FRAME_UNEXPECTED),
    "an entry that is not there": (
        settings(),
        frame(0x01, b"\x00\x00\x80"),
        E.QPACK_DECOMPRESSION_FAILED,
    ),
}


@pytest.mark.parametrize("case", FROM_SERVERS)
def test_what_a_server_must_not_do(case: str) -> None:
    control, response, code = FROM_SERVERS[case]
    codes = code if isinstance(code, tuple) else (code,)
    closes: list[int] = []

    async def serve(connection: Any) -> None:
        await unidirectional(connection, b"\x00" + control)
        async with trio.open_nursery() as nursery:

            async def answer() -> None:
                async for stream in connection.streams():
                    if stream.stream_id == 0:
                        await stream.send_all(response)

            nursery.start_soon(answer)
            closes.append((await closed(connection)).code)
            nursery.cancel_scope.cancel()

    async def main() -> None:
        async with raw_server(serve) as client:
            with pytest.raises(trio.BrokenResourceError) as caught:
                await client.request("GET", "/")
            assert getattr(caught.value, "code", None) in codes
            await trio.sleep(1)

    run(main)
    assert closes
    assert closes[0] in codes


def test_a_stream_that_servers_must_not_open() -> None:
    closes: list[int] = []

    async def serve(connection: Any) -> None:
        await unidirectional(connection, b"\x00" + settings())
        await ask(connection, b"x")
        closes.append((await closed(connection)).code)

    async def main() -> None:
        async with raw_server(serve) as client:
            with pytest.raises(trio.BrokenResourceError):
                await client.request("GET", "/")
            await trio.sleep(1)

    run(main)
    assert closes == [E.STREAM_CREATION_ERROR]


BAD_RESPONSES: dict[str, bytes] = {
    "no status": section([(b"a", b"b")]),
    "a status of two digits": section([(b":status", b"20")]),
    "101": section([(b":status", b"101")]),
    "000": section([(b":status", b"000")]),
    "a method": section([*RESPONSE, (b":method", b"GET")]),
    "connection": section([*RESPONSE, (b"connection", b"close")]),
    "less than its length": section([*RESPONSE, (b"content-length", b"5")]) + frame(0, b"abc"),
    "no final response": section([(b":status", b"103")]),
}


@pytest.mark.parametrize("case", BAD_RESPONSES)
def test_malformed_responses(case: str) -> None:
    async def serve(connection: Any) -> None:
        await unidirectional(connection, b"\x00" + settings())
        async for stream in connection.streams():
            if stream.stream_id % 4 == 0:
                await stream.send_all(BAD_RESPONSES[case])
                await stream.send_eof()

    async def main() -> None:
        async with raw_server(serve) as client:
            for _ in range(2):  # the connection is still of use
                with pytest.raises((trio.BrokenResourceError, StreamResetError)) as caught:
                    async with await client.request("GET", "/") as response:
                        await response.read()
                assert getattr(caught.value, "code", None) == E.MESSAGE_ERROR

    run(main)


def test_each_breach_has_a_class_of_its_own() -> None:
    kinds = [type(ProtocolError.of(code, "why")) for code in ErrorCode]
    assert len({kind for kind in kinds if kind is not ProtocolError}) >= 12
    for code in ErrorCode:
        error = ProtocolError.of(code, "why")
        assert error.code == code
        assert code.name in str(error)
        assert "why" in str(error)


@pytest.mark.parametrize("value", [b"\0", b"\n", b"\r", b"\x7f", b"a\0b", b"a\nb"])
def test_values_with_control_characters(value: bytes) -> None:
    """nghttp3 leaves such a field out, and aioquic resets the stream; a program never sees one."""
    seen: list[bytes] = []

    async def handler(request: Any) -> None:
        seen.extend(value for _, value in request.headers)
        await request.respond(200)

    async def main() -> None:
        async with raw_client(handler) as connection:
            await greet(connection)
            name = frame(0x01, section(REQUEST)[2:] + b"\x21a" + bytes([len(value)]) + value)
            stream = await ask(connection, name)
            with suppress(StreamResetError):
                await stream.receive_some()
            assert await is_alive(connection)

    run(main)
    assert not [byte for found in seen for byte in found if byte in b"\0\r\n"]
