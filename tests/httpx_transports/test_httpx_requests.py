"""Requests of httpx over HTTP/3: what arrives, and what is raised for what does not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import httpx
import httpx2
import pytest
import trio

from hoststack import Connection, QuicConfig, TlsConfig, http3
from hoststack.http3 import ErrorCode, Http3Config
from hoststack.httpx import AsyncHTTP3Transport
from tests.http3.peers import SERVER, SMALL, URI, greet, pattern, run, section
from tests.httpx_transports.places import (
    BASE,
    TLS,
    TRUSTING,
    Site,
    raw_server_client,
    site_client,
    two_stacks,
)

Client = httpx.AsyncClient


async def parts(data: bytes, size_bytes: int = 7000) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size_bytes):
        yield data[at : at + size_bytes]


@pytest.mark.usefixtures("layer")
def test_requests_and_responses() -> None:
    content = pattern(300_000)

    async def main() -> None:
        site = Site()
        async with site_client(site) as client:
            response = await client.get("/page", params={"a": "ä b"})
            assert (response.status_code, response.http_version) == (200, "HTTP/3")
            assert response.text == "hello /page"
            assert response.headers["x-path"] == "/page"
            assert response.extensions["informational"] == [
                (103, [(b"link", b"</style.css>; rel=preload")])
            ]
            assert site.requests[0].path == b"/page?a=%C3%A4+b"
            assert (await client.head("/page")).content == b""
            for body in (b"", content, parts(content)):
                response = await client.post("/echo", content=body)
                assert response.content == (content if body != b"" else b"")
                assert response.extensions["trailers"] == [(b"x-end", b"yes")]
            assert len(site.connections) == 1

    run(main)


def test_fields_of_http1_connections_are_not_sent() -> None:
    async def main() -> None:
        async with site_client(Site()) as client:
            response = await client.post(
                "/fields",
                headers={
                    "Connection": "close",
                    "TE": "gzip",
                    "X-One": "1",
                    "Host": "other.example",
                },
                content=parts(b"abc"),
            )
            names = [line.partition(":")[0] for line in response.text.splitlines()]
            assert "x-one" in names
            assert not {"host", "connection", "te", "transfer-encoding"} & set(names)
            assert response.headers["x-authority"] == "other.example"

    run(main)


def test_content_is_sent_while_the_response_is_received() -> None:
    """Neither side's memory could hold it, if one of the two did not read."""
    total, piece = 3 << 20, bytes(100_000)

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(0, total, len(piece)):
            yield piece

    async def main() -> None:
        async with (
            site_client(Site(), quic=SMALL) as client,
            client.stream("POST", "/echo", content=endless()) as response,
        ):
            received = 0
            async for chunk in response.aiter_raw():
                received += len(chunk)
            assert received >= total

    run(main)


def test_a_response_that_is_not_read_stops_the_server() -> None:
    async def main() -> None:
        site = Site()
        async with site_client(site) as client, client.stream("GET", "/much") as response:
            await trio.sleep(60)
            assert (await client.get("/")).status_code == 200  # others go on
            assert not site.requests[0]._has_sent_end
            assert len(await response.aread()) == 64 * 65536

    run(main)


def test_a_hundred_requests_use_one_connection() -> None:
    """The server allows ten at a time: the others wait."""

    async def main() -> None:
        site = Site()
        statuses = []
        async with site_client(site, quic=QuicConfig(max_streams_bidi=10)) as client:

            async def one(number: int) -> None:
                statuses.append((await client.get(f"/{number}")).text)

            async with trio.open_nursery() as nursery:
                for number in range(100):
                    nursery.start_soon(one, number)
        assert len(set(statuses)) == 100
        assert len(site.connections) == 1

    run(main)


@pytest.mark.usefixtures("layer")
@pytest.mark.parametrize(("path", "said"), [("/cut", "reset the stream"), ("/giant", None)])
def test_a_response_that_is_not_whole(path: str, said: str | None) -> None:
    async def main() -> None:
        site = Site()
        async with site_client(site, http3=Http3Config(max_section_bytes=16384)) as client:
            with pytest.raises(httpx.RemoteProtocolError, match=said) as caught:
                await client.get(path)
            assert caught.value.request.url.path == path
            assert (await client.get("/")).status_code == 200
            assert len(site.connections) == 1

    run(main)


def test_content_shorter_than_announced() -> None:
    async def serve(connection: Connection) -> None:
        await greet(connection)
        async for stream in connection.streams():
            if stream.stream_id & 3 == 0:
                head = section([(b":status", b"200"), (b"content-length", b"10")])
                await stream.send_all(head + b"\x00\x04half")
                await stream.send_eof()

    async def main() -> None:
        async with raw_server_client(serve) as client:
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get("/")

    run(main)


def test_timeouts_and_cancellation_reset_the_stream_alone() -> None:
    async def main() -> None:
        site = Site()
        async with site_client(site) as client:
            with pytest.raises(httpx.ReadTimeout):
                await client.get("/never")
            with pytest.raises(httpx.ReadTimeout):
                await client.get("/half")
            with trio.move_on_after(1) as scope:
                await client.get("/half")
            assert scope.cancelled_caught
            async with client.stream("GET", "/half") as response:
                async for chunk in response.aiter_raw():
                    assert chunk == b"half"
                    break
            assert (await client.get("/")).status_code == 200
            await trio.testing.wait_all_tasks_blocked()
            assert len(site.connections) == 1
            assert site.codes == [ErrorCode.REQUEST_CANCELLED] * 4

    run(main)


def test_a_server_that_never_reads() -> None:
    async def main() -> None:
        async with site_client(Site()) as client:
            with pytest.raises(httpx.WriteTimeout):
                await client.post("/unread", content=bytes(8 << 20))
            with pytest.raises(httpx.WriteTimeout):
                await client.post("/unread", content=parts(bytes(8 << 20)))

    run(main)


def test_a_slow_upload_is_no_read_timeout() -> None:
    async def slow() -> AsyncIterator[bytes]:
        for _ in range(10):
            await trio.sleep(4)
            yield b"x"

    async def main() -> None:
        async def whole(request: http3.Request) -> None:
            await request.respond(200, [], await request.read())

        async with site_client(whole) as client:
            assert (await client.post("/", content=slow())).content == b"x" * 10

    run(main)


def test_exceptions_of_the_content_are_raised() -> None:
    async def faulty() -> AsyncIterator[bytes]:
        yield b"a"
        raise KeyError("mine")

    async def main() -> None:
        async with site_client(Site()) as client:
            with pytest.raises(KeyError, match="mine"):
                await client.post("/unread", content=faulty())
            assert (await client.get("/")).status_code == 200

    run(main)


def test_an_answer_before_the_end_of_the_request() -> None:
    async def main() -> None:
        async with site_client(Site()) as client:
            response = await client.post("/answers-first", content=parts(bytes(8 << 20)))
            assert (response.status_code, response.text) == (413, "too much")

    run(main)


def test_servers_that_can_not_be_connected_to() -> None:
    async def main() -> None:
        async with two_stacks() as (server, stack), trio.open_nursery() as nursery:
            await nursery.start(partial(http3.serve, server, URI, Site(), tls=TLS))
            other = await server.listen(f"quic://{SERVER}:444", tls=TLS, alpn=["other"])
            async with Client(
                transport=AsyncHTTP3Transport(TRUSTING, stack=stack), trust_env=False
            ) as client:
                with pytest.raises(httpx.ConnectTimeout, match=r"10\.0\.0\.9 port 443"):
                    await client.get("https://10.0.0.9/")
                with pytest.raises(httpx.ConnectTimeout):
                    await client.get("https://10.0.0.9/", timeout=None)  # QUIC's own
                with pytest.raises(httpx.ConnectError, match="protocol"):
                    await client.get(f"https://{SERVER}:444/")
                with pytest.raises(httpx.ConnectError):
                    await client.get("https://not a name/")
                assert (await client.get(BASE)).status_code == 200
            strict = AsyncHTTP3Transport(TlsConfig.self_signed(["a"]), stack=stack)
            async with Client(transport=strict, trust_env=False) as client:
                with pytest.raises(httpx.ConnectError, match="certificate"):
                    await client.get(BASE)
            named = {"sni_hostname": "elsewhere.example"}
            async with Client(
                transport=AsyncHTTP3Transport(TRUSTING, stack=stack), trust_env=False
            ) as client:
                with pytest.raises(httpx.ConnectError, match="certificate"):
                    await client.get(BASE, extensions=named)
            await other.aclose()
            nursery.cancel_scope.cancel()

    run(main)


@pytest.mark.parametrize(
    ("url", "raised"),
    [
        ("http://10.0.0.1/", httpx.UnsupportedProtocol),
        ("ftp://10.0.0.1/", httpx.UnsupportedProtocol),
        ("https:///path", httpx.UnsupportedProtocol),
    ],
)
def test_urls_that_are_not_for_http3(url: str, raised: type[Exception]) -> None:
    async def main() -> None:
        async with Client(transport=AsyncHTTP3Transport(TRUSTING), trust_env=False) as client:
            with pytest.raises(raised):
                await client.get(url)

    run(main)


def test_fields_that_can_not_be_sent() -> None:
    async def main() -> None:
        async with site_client(Site()) as client:
            with pytest.raises(httpx.LocalProtocolError):
                await client.get("/", headers={"bad name": "1"})
            with pytest.raises(httpx.LocalProtocolError):
                await client.get("/", headers={"a": "1\n2"})
            assert (await client.get("/")).status_code == 200

    run(main)


def test_a_server_that_breaks_the_rules() -> None:
    async def serve(connection: Connection) -> None:
        await greet(connection, (0x02, 1))  # a setting of HTTP/2
        async for stream in connection.streams():
            assert stream

    async def main() -> None:
        async with raw_server_client(serve) as client:
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get("/")

    run(main)


def test_httpx2_gets_its_own_classes() -> None:
    async def main() -> None:
        async with two_stacks() as (server, stack), trio.open_nursery() as nursery:
            await nursery.start(partial(http3.serve, server, URI, Site(), tls=TLS))
            transport: Any = AsyncHTTP3Transport(TRUSTING, stack=stack)
            async with httpx2.AsyncClient(transport=transport, trust_env=False) as client:
                response = await client.post(f"{BASE}/echo", content=b"two")
                assert type(response) is httpx2.Response
                assert response.content == b"two"
                with pytest.raises(httpx2.RemoteProtocolError):
                    await client.get(f"{BASE}/cut")
                with pytest.raises(httpx2.ReadTimeout):
                    await client.get(f"{BASE}/never")
            nursery.cancel_scope.cancel()

    run(main)


def test_early_data() -> None:
    async def main() -> None:
        quic = QuicConfig(early_data=True)
        async with site_client(Site(), quic=quic, early_data=True, delay_s=0.05) as client:
            assert (await client.get("/early")).text == "late"
            await trio.sleep(10)  # the idle connection is closed
            assert (await client.get("/early")).text == "early"
            await trio.sleep(10)
            assert (await client.post("/early", content=b"x")).text == "late"

    run(main)


def test_a_request_that_was_too_early_is_repeated() -> None:
    statuses = [200, 425, 200]

    async def answers(request: http3.Request) -> None:
        assert request.may_be_replayed == (len(statuses) == 2)
        await request.respond(statuses.pop(0))

    async def main() -> None:
        quic = QuicConfig(early_data=True)
        async with site_client(answers, quic=quic, early_data=True, delay_s=0.05) as client:
            assert (await client.get("/")).status_code == 200
            await trio.sleep(10)
            assert (await client.get("/")).status_code == 200
            assert not statuses

    run(main)


def test_client_certificates() -> None:
    own = TlsConfig.self_signed(["a.client"])
    server_tls = TlsConfig(
        certificate=TLS.certificate, key=TLS.key, ca=own.certificate, client_certificates="required"
    )

    async def who(request: http3.Request) -> None:
        await request.respond(200, [], str(request.connection.peer_certificate.subject).encode())

    async def main() -> None:
        async with two_stacks() as (server, stack), trio.open_nursery() as nursery:
            await nursery.start(partial(http3.serve, server, URI, who, tls=server_tls))
            shown = TlsConfig(ca=TLS.certificate, certificate=own.certificate, key=own.key)
            transport = AsyncHTTP3Transport(shown, stack=stack)
            async with Client(transport=transport, trust_env=False) as client:
                assert "a.client" in (await client.get(BASE)).text
            async with Client(
                transport=AsyncHTTP3Transport(TRUSTING, stack=stack), trust_env=False
            ) as client:
                with pytest.raises((httpx.ConnectError, httpx.RemoteProtocolError)):
                    await client.get(BASE)
            nursery.cancel_scope.cancel()

    run(main)
