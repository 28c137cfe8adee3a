"""Limits: header sections, content, time, and requests that are reset."""

from __future__ import annotations

from contextlib import suppress

import pylsqpack
import pytest
import trio

from hoststack import QuicConfig, http3
from hoststack.http3 import ErrorCode, Http3Config
from tests.http3.peers import (
    POST,
    REQUEST,
    SMALL,
    ask,
    closed,
    code_of_reset,
    frame,
    greet,
    hello,
    is_alive,
    raw_client,
    raw_server,
    run,
    section,
    settings,
    talking,
    unidirectional,
)

E = ErrorCode


async def status_of(data: bytes) -> int:
    """The status of a response that begins like this."""
    size = data[1] & 0x3F if data[1] < 0x40 else None
    assert data[0] == 1
    assert size is not None
    _, fields = pylsqpack.Decoder(0, 0).feed_header(0, data[2 : 2 + size])
    return int(dict(fields)[b":status"])


@pytest.mark.parametrize("what", ["size", "number"])
def test_a_header_section_above_the_limits(what: str) -> None:
    many = [(b"a%d" % i, b"") for i in range(60)] if what == "number" else [(b"a", bytes(5000))]
    fields = [(name, value.replace(b"\0", b"x")) for name, value in many]

    async def main() -> None:
        config = Http3Config(max_section_bytes=4000, max_fields=50)
        async with raw_client(config=config) as connection:
            await greet(connection)
            stream = await ask(connection, section([*REQUEST, *fields]))
            assert await status_of(await stream.receive_some()) == 431
            assert await is_alive(connection)

    run(main)


def test_a_header_section_that_never_ends() -> None:
    async def main() -> None:
        async with raw_client(config=Http3Config(max_section_bytes=4000)) as connection:
            await greet(connection)
            stream = await connection.open_stream()
            endless = b"\x01\x80\x0f\xff\xff" + section(REQUEST)[2:]
            sent = 0
            with suppress(trio.BrokenResourceError):
                await stream.send_all(endless)
                while sent < 5_000_000:
                    await stream.send_all((b"\x21a" + b"\x7f\x00" + b"x" * 127) * 20)
                    sent += 20 * 131
            assert sent < 2_000_000
            assert await is_alive(connection)

    run(main)


def test_a_response_with_a_header_section_above_the_limits() -> None:
    async def handler(request: http3.Request) -> None:
        await request.respond(200, [("a", "x" * 5000)])

    async def main() -> None:
        async with talking(handler, Http3Config(max_section_bytes=4000)) as client:
            for _ in range(2):
                with pytest.raises(http3.MessageError):
                    await client.request("GET", "/")

    run(main)


def test_a_field_that_is_too_long_for_any_limit(layer: str) -> None:
    """nghttp3 gives up the connection, as it can't go on after such a field."""

    async def main() -> None:
        async with raw_client() as connection:
            await greet(connection)
            field = b"\x21a" + b"\x7f" + _rest(200_000 - 127) + b"x" * 200_000
            stream = await ask(connection, frame(0x01, section(REQUEST)[2:] + field), is_end=False)
            if layer == "nghttp3":
                assert (await closed(connection)).code == E.EXCESSIVE_LOAD
            else:
                assert await status_of(await stream.receive_some()) == 431

    run(main)


def test_content_above_the_limit() -> None:
    async def handler(request: http3.Request) -> None:
        await request.respond(200, [], await request.read())

    async def main() -> None:
        async with talking(handler, Http3Config(max_body_bytes=10_000), quic=SMALL) as client:
            assert (await client.request("POST", "/", [], bytes(10_000))).status == 200
            assert (await client.request("POST", "/", [], bytes(10_001))).status == 413
            assert (await client.request("POST", "/", [], bytes(900_000))).status == 413

    run(main)


def test_content_above_a_programs_own_limit() -> None:
    async def handler(request: http3.Request) -> None:
        await request.respond(200, [], await request.read(max_bytes=100))

    async def main() -> None:
        async with talking(handler) as client:
            assert (await client.request("POST", "/", [], bytes(100))).status == 200
            assert (await client.request("POST", "/", [], bytes(101))).status == 413

    run(main)


def test_a_header_section_that_does_not_come() -> None:
    async def main() -> None:
        async with raw_client(config=Http3Config(head_seconds=5)) as connection:
            await greet(connection)
            start = trio.current_time()
            stream = await ask(connection, section(REQUEST)[:5], is_end=False)
            assert await code_of_reset(stream) == E.REQUEST_INCOMPLETE
            assert 4 < trio.current_time() - start < 8
            assert await is_alive(connection)

    run(main)


def test_a_connection_without_requests_is_closed() -> None:
    async def main() -> None:
        quic = QuicConfig(idle_timeout_s=1000)
        async with raw_client(config=Http3Config(idle_seconds=60), quic=quic) as connection:
            await greet(connection)
            assert await is_alive(connection)
            start = trio.current_time()
            info = await closed(connection)
            assert (info.code, info.is_application) == (E.NO_ERROR, True)
            assert 50 < trio.current_time() - start < 200

    run(main)


@pytest.mark.parametrize(("bytes_a_second", "is_reset"), [(0, True), (100, True), (1000, False)])
def test_a_response_that_its_client_leaves_unread(bytes_a_second: int, is_reset: bool) -> None:
    answered: list[http3.Request] = []

    async def handler(request: http3.Request) -> None:
        answered.append(request)
        await request.respond(200, [], bytes(80_000))

    async def main() -> None:
        quic = QuicConfig(rx_fifo_bytes=4096, tx_fifo_bytes=4096, idle_timeout_s=1000)
        config = Http3Config(slow_seconds=20)
        async with raw_client(handler, config, quic=quic) as connection:
            await greet(connection)
            stream = await ask(connection, section(REQUEST))
            received = 0
            for _ in range(60):
                await trio.sleep(1)
                if bytes_a_second and not answered[0].is_slow:
                    received += len(await stream.receive_some(bytes_a_second))
            assert answered[0].is_slow is is_reset
            if is_reset:
                assert await code_of_reset(stream) == E.EXCESSIVE_LOAD
            else:
                assert received > 50_000
            # The connection goes on, and a response that is read is not affected.
            other = await ask(connection, section(REQUEST))
            size = 0
            while data := await other.receive_some():
                size += len(data)
            assert size > 80_000
            assert not answered[1].is_slow

    run(main)


@pytest.mark.parametrize("pause_s", [0, 50])
@pytest.mark.parametrize(("bytes_a_second", "is_late"), [(0, True), (100, True), (1000, False)])
def test_content_that_comes_slowly(bytes_a_second: int, is_late: bool, pause_s: int) -> None:
    """While the program waits for it: the client pays for no pause of the program."""
    requests: list[http3.Request] = []

    async def handler(request: http3.Request) -> None:
        requests.append(request)
        assert await request.receive_some(1)
        await trio.sleep(pause_s)
        await request.respond(200, [], await request.read())

    async def main() -> None:
        quic = QuicConfig(idle_timeout_s=1000)
        async with raw_client(handler, Http3Config(slow_seconds=20), quic=quic) as connection:
            await greet(connection)
            stream = await ask(connection, section(REQUEST) + frame(0x00, b"x"), is_end=False)
            if not pause_s:
                with suppress(trio.BrokenResourceError):
                    for _ in range(60):
                        await trio.sleep(1)
                        if bytes_a_second:
                            await stream.send_all(frame(0x00, bytes(bytes_a_second)))
            else:
                await trio.sleep(pause_s - 1)  # all of that time there is nothing
                with suppress(trio.BrokenResourceError):
                    if is_late:
                        await trio.sleep(50)
                    await stream.send_all(frame(0x00, bytes(1000)))
            with suppress(trio.BrokenResourceError):
                await stream.send_eof()
            assert await status_of(await stream.receive_some()) == (408 if is_late else 200)
            assert requests[0].is_slow is is_late
            assert await is_alive(connection)

    run(main)


def test_a_connects_stream_may_be_silent() -> None:
    async def handler(request: http3.Request) -> None:
        await request.send_headers(200)
        assert await request.read() == b"late"
        await request.send_all(b"thanks")
        await request.send_eof()

    async def main() -> None:
        config = Http3Config(slow_seconds=20)
        quic = QuicConfig(idle_timeout_s=1000)
        async with (
            talking(handler, config, quic=quic) as client,
            await client.open("CONNECT", "example.com:443") as response,
        ):
            await trio.sleep(100)
            await response.send_all(b"late")
            await response.send_eof()
            assert await response.read() == b"thanks"

    run(main)


def test_a_limit_on_time_is_more_than_nothing() -> None:
    with pytest.raises(ValueError, match="slow_seconds"):
        Http3Config(slow_seconds=0)


@pytest.mark.parametrize("how", ["before the end", "after the request", "malformed"])
def test_a_client_that_resets_all_its_requests(how: str) -> None:
    """A rapid reset: the client pays with its connection."""
    asked = 0

    async def handler(request: http3.Request) -> None:
        nonlocal asked
        asked += 1
        await trio.sleep(1)
        await request.respond(200, [], bytes(1000))

    async def main() -> None:
        async with raw_client(handler, Http3Config(max_resets=50)) as connection:
            await greet(connection)
            try:
                for _ in range(1000):
                    if how == "malformed":
                        await ask(connection, section(REQUEST[1:]))
                    else:
                        data = section(REQUEST)
                        early = how == "before the end"
                        stream = await ask(connection, data[:5] if early else data, is_end=False)
                        stream.reset(E.REQUEST_CANCELLED)
                        stream.stop_sending(E.REQUEST_CANCELLED)
                        await stream.aclose()
                    await trio.sleep(0.01)
                raise AssertionError("the connection is still open")
            except trio.BrokenResourceError:
                pass
            assert (await closed(connection)).code == E.EXCESSIVE_LOAD

    run(main)
    assert asked < 400


def test_a_client_that_resets_some_of_its_requests() -> None:
    async def main() -> None:
        async with raw_client(config=Http3Config(max_resets=5)) as connection:
            await greet(connection)
            for _ in range(100):
                assert await is_alive(connection)
                stream = await ask(connection, section(REQUEST)[:5], is_end=False)
                stream.reset(E.REQUEST_CANCELLED)
                await stream.aclose()
            assert connection.close_info is None

    run(main)


def test_a_bomb_of_references_to_one_long_entry() -> None:
    """Each byte stands for a field of 4000 bytes."""

    async def main() -> None:
        async with raw_client() as connection:
            await unidirectional(connection, b"\x00" + settings())
            entry = b"\x48my-field" + b"\x7f" + _rest(4000 - 127) + b"x" * 4000
            await unidirectional(connection, b"\x02\x3f\xe1\x1f" + entry)
            await unidirectional(connection, b"\x03")
            await trio.sleep(1)
            for _ in range(3):
                pseudo = section(REQUEST)[4:]
                bomb = frame(0x01, b"\x02\x00" + pseudo + b"\x80" * 10_000)
                stream = await ask(connection, bomb)
                assert await status_of(await stream.receive_some()) == 431
            assert await is_alive(connection)

    run(main)


def _rest(value: int) -> bytes:
    """The continuation of a prefixed integer (RFC 7541 section 5.1)."""
    made = b""
    while value >= 128:
        made += bytes([value & 0x7F | 0x80])
        value >>= 7
    return made + bytes([value])


def test_informational_responses_without_an_end() -> None:
    async def serve(connection: object) -> None:
        await unidirectional(connection, b"\x00" + settings())  # type: ignore[arg-type]
        async for stream in connection.streams():  # type: ignore[attr-defined]
            if stream.stream_id % 4 == 0:
                for _ in range(1000):
                    await stream.send_all(section([(b":status", b"103"), (b"a", b"b")]))
                await stream.send_all(section([(b":status", b"200")]))
                await stream.send_eof()

    async def main() -> None:
        async with raw_server(serve) as client:
            response = await client.request("GET", "/")
            assert response.status == 200
            assert len(response.informational) == 16

    run(main)


def test_nobody_waits_for_a_request_that_nobody_reads() -> None:
    """Content that the program does not read stays in the FIFO; others are answered meanwhile."""

    async def handler(request: http3.Request) -> None:
        if request.method == b"POST":
            await trio.sleep(100)
        await hello(request)

    async def main() -> None:
        async with raw_client(handler, quic=SMALL) as connection:
            await greet(connection)
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(ask, connection, section(POST) + frame(0x00, bytes(100_000)))
                await trio.sleep(1)
                assert await is_alive(connection)
                nursery.cancel_scope.cancel()

    run(main)
