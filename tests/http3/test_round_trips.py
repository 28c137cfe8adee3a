"""Requests and responses, between our client and our server."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from hoststack import QuicConfig, StreamResetError, http3
from tests.http3.peers import SERVER, SMALL, chunks, hello, pattern, run, talking


def test_get() -> None:
    seen: list[http3.Request] = []

    async def handler(request: http3.Request) -> None:
        seen.append(request)
        assert await request.read() == b""
        await request.respond(200, [("X-Kind", "test")], b"hello")

    async def main() -> None:
        async with (
            talking(handler) as client,
            await client.request("GET", "/a?b=c", [("Accept", "*/*")]) as response,
        ):
            assert response.status == 200
            assert response.header("x-kind") == b"test"
            assert response.header("content-length") == b"5"
            assert await response.read() == b"hello"
        [request] = seen
        assert (request.method, request.scheme, request.path) == (b"GET", b"https", b"/a?b=c")
        assert request.authority == SERVER.encode()
        assert request.headers == [(b"accept", b"*/*")]

    run(main)


def test_many_at_a_time() -> None:
    async def handler(request: http3.Request) -> None:
        body = await request.read()
        await request.respond(200, [("path", request.path or b"")], body * 2)

    async def main() -> None:
        async def ask(path: str, body: bytes) -> None:
            async with await client.request("POST", path, [], body) as response:
                assert response.header(b"path") == path.encode()
                assert await response.read() == body * 2

        async with talking(handler) as client, trio.open_nursery() as nursery:
            for i in range(300):
                nursery.start_soon(ask, f"/{i}", pattern(i * 7))

    run(main)


@pytest.mark.parametrize("quic", [None, SMALL], ids=["default", "small"])
def test_content_in_both_directions(quic: QuicConfig | None) -> None:
    content = pattern(300_000)

    async def echo(request: http3.Request) -> None:
        await request.send_headers(200)
        async for chunk in request:
            await request.send_all(chunk)
        await request.send_eof()

    async def parts() -> AsyncIterator[bytes]:
        for part in chunks(content, 7000):
            yield part

    async def main() -> None:
        async with talking(echo, quic=quic) as client:
            for body in (content, parts()):
                async with await client.request("POST", "/", [], body) as response:
                    assert response.status == 200
                    assert await response.read() == content

    run(main)


def test_nobody_reads_more_than_it_is_asked_for() -> None:
    """A program that does not receive stops its peer: both FIFOs are full, and nothing else."""
    sent = [0, 0]

    async def handler(request: http3.Request) -> None:
        await request.send_headers(200)
        while True:
            await request.send_all(bytes(1000))
            sent[0] += 1000

    async def main() -> None:
        async with (
            talking(handler, quic=SMALL) as client,
            await client.open("POST", "/") as response,
        ):
            await response.wait_headers()
            with trio.move_on_after(5):
                while True:
                    await response.send_all(bytes(1000))
                    sent[1] += 1000
            assert await response.receive_some(10)
        assert all(1000 < count < 64_000 for count in sent), sent

    run(main)


def test_trailers_both_ways() -> None:
    async def handler(request: http3.Request) -> None:
        assert await request.read() == b"content"
        assert request.trailers == [(b"digest", b"1")]
        await request.send_headers(200)
        await request.send_all(b"answer")
        await request.send_trailers([("Digest", "2")])

    async def main() -> None:
        async with talking(handler) as client, await client.open("POST", "/") as response:
            await response.send_all(b"content")
            await response.send_trailers([("digest", "1")])
            await response.wait_headers()
            assert await response.read() == b"answer"
            assert response.trailers == [(b"digest", b"2")]

    run(main)


def test_trailers_without_content() -> None:
    async def handler(request: http3.Request) -> None:
        await request.send_headers(200)
        await request.send_trailers([("a", "b")])

    async def main() -> None:
        async with talking(handler) as client, await client.request("GET", "/") as response:
            assert await response.read() == b""
            assert response.trailers == [(b"a", b"b")]

    run(main)


def test_informational_responses() -> None:
    async def handler(request: http3.Request) -> None:
        for link in ("a", "b"):
            await request.inform(103, [("link", link)])
        await request.respond(200)
        with pytest.raises((RuntimeError, trio.ClosedResourceError)):
            await request.inform(103)

    async def main() -> None:
        async with talking(handler) as client, await client.request("GET", "/") as response:
            found = [(103, [(b"link", b"a")]), (103, [(b"link", b"b")])]
            assert list(response.informational) == found
            assert response.status == 200

    run(main)


@pytest.mark.parametrize("status", [200, 204, 304])
def test_no_content_where_there_is_none(status: int) -> None:
    async def handler(request: http3.Request) -> None:
        await request.respond(status, [], b"content")

    async def main() -> None:
        async with (
            talking(handler) as client,
            await client.request("HEAD", "/") as response,
        ):
            assert response.status == status
            assert response.header("content-length") == (b"7" if status == 200 else None)
            assert await response.read() == b""

    run(main)


def test_connect() -> None:
    async def handler(request: http3.Request) -> None:
        assert (request.method, request.authority) == (b"CONNECT", b"example.com:25")
        assert (request.scheme, request.path, request.protocol) == (None, None, None)
        await request.send_headers(200)
        async for chunk in request:
            await request.send_all(chunk.upper())
        await request.send_eof()

    async def main() -> None:
        async with (
            talking(handler) as client,
            await client.open("CONNECT", "example.com:25") as tunnel,
        ):
            await tunnel.wait_headers()
            for word in (b"one", b"two"):
                await tunnel.send_all(word)
                assert await tunnel.receive_some() == word.upper()
            await tunnel.send_eof()
            assert await tunnel.receive_some() == b""

    run(main)


def test_extended_connect() -> None:
    async def handler(request: http3.Request) -> None:
        assert (request.method, request.protocol) == (b"CONNECT", b"websocket")
        assert (request.scheme, request.path) == (b"https", b"/chat")
        await request.send_headers(200)
        await request.send_all(await request.receive_some())
        await request.send_eof()

    async def main() -> None:
        async with (
            talking(handler) as client,
            await client.open("CONNECT", "/chat", protocol="websocket") as tunnel,
        ):
            await tunnel.wait_headers()
            await tunnel.send_all(b"hello")
            assert await tunnel.receive_some() == b"hello"

    run(main)


def test_extended_connect_where_it_is_not_accepted() -> None:
    async def main() -> None:
        config = http3.Http3Config(connect_protocol=False)
        async with talking(hello, config) as client:
            with pytest.raises(http3.NotSupportedError):
                await client.open("CONNECT", "/chat", protocol="websocket")

    run(main)


def test_a_handler_that_fails_is_answered_for(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(request: http3.Request) -> None:
        if request.path == b"/late":
            await request.send_headers(200)
            await request.send_all(b"a part")
            await trio.sleep(1)
        if request.path == b"/closed":
            await request.aclose()
        if request.path == b"/reset":
            request.reset()
        if request.path != b"/nothing":
            raise KeyError("a bug")

    async def main() -> None:
        async with talking(handler) as client:
            async with await client.request("GET", "/early") as response:
                assert response.status == 500
            async with await client.request("GET", "/late") as response:
                assert response.status == 200
                with pytest.raises(StreamResetError) as caught:
                    await response.read()
                assert caught.value.code == http3.ErrorCode.INTERNAL_ERROR
            for path in ("/nothing", "/closed", "/reset"):
                with pytest.raises(StreamResetError):
                    await client.request("GET", path)
            assert (await client.request("GET", "/early")).status == 500

    run(main)
    assert "a bug" in caplog.text


def test_a_response_that_is_not_wanted_any_more() -> None:
    ends: list[BaseException] = []

    async def handler(request: http3.Request) -> None:
        try:
            await request.send_headers(200)
            while True:
                await request.send_all(bytes(10_000))
        except BaseException as error:
            ends.append(error)
            raise

    async def main() -> None:
        async with talking(handler) as client:
            async with await client.request("GET", "/") as response:
                await response.receive_some()
            async with await client.request("GET", "/") as response:
                await response.receive_some()

    run(main)
    assert [type(end).__name__ for end in ends[:1]] == ["StreamStoppedError"]


def test_an_answer_before_the_end_of_the_request() -> None:
    async def handler(request: http3.Request) -> None:
        await request.respond(413, [], b"too much")

    async def main() -> None:
        async with (
            talking(handler, quic=SMALL) as client,
            await client.request("POST", "/", [], bytes(1_000_000)) as response,
        ):
            assert response.status == 413
            assert await response.read() == b"too much"

    run(main)


def test_fields_that_http3_does_not_have() -> None:
    async def main() -> None:
        async with talking() as client:
            for fields in (
                [("connection", "close")],
                [("Transfer-Encoding", "chunked")],
                [(":path", "/other")],
                [("a", "b\0c")],
                [("a", "\n")],
                [("a\0b", "c")],
                [("a b", "c")],
                [("a", "b\r\nc: d")],
            ):
                with pytest.raises(ValueError, match="field"):
                    await client.request("GET", "/", fields)
            for url in ("http://10.0.0.1/", "https://user@10.0.0.1/", "nothing"):
                with pytest.raises(ValueError, match="URL"):
                    await client.request("GET", url)
            assert (await client.request("GET", f"https://{SERVER}/")).status == 200

    run(main)


def test_messages_in_the_wrong_order() -> None:
    async def handler(request: http3.Request) -> None:
        with pytest.raises(RuntimeError):
            await request.send_all(b"content")
        with pytest.raises(RuntimeError):
            await request.send_trailers([])
        await request.send_headers(200)
        with pytest.raises(RuntimeError):
            await request.send_headers(200)
        await request.send_eof()
        with pytest.raises(RuntimeError):
            await request.send_all(b"content")

    async def main() -> None:
        async with talking(handler) as client, await client.request("GET", "/") as response:
            assert response.status == 200
            assert await response.read() == b""

    run(main)
