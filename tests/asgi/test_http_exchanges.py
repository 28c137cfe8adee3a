"""HTTP requests of applications: scopes, content in both directions, and what is out of order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trio

from hoststack import QuicConfig, SessionCache, TlsConfig, http3
from hoststack.asgi import AsgiConfig, is_early, respond_too_early
from hoststack.asgi.scopes import Peer
from tests.asgi.serving import SERVER, TLS, answering, run, serving, talking, text
from tests.http3.peers import SMALL, pattern
from tests.support.certificates import chain_pem, issued, key_pem

OFF = AsgiConfig(lifespan="off")
START = {"type": "http.response.start", "status": 200}


def test_a_scope_has_what_the_request_said() -> None:
    seen: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        body, message = b"", {"more_body": True}
        while message["more_body"]:
            message = await receive()
            body += message["body"]
        seen.append((scope, body))
        await answering(b"hello")(scope, receive, send)

    async def main() -> None:
        async with talking(application, OFF) as client:
            headers = [("X-A", "1"), ("cookie", "a=1"), ("cookie", "b=2")]
            async with await client.request("PUT", "/a%20b/%C3%A9?q=%20", headers, b"body") as got:
                assert (got.status, await got.read()) == (200, b"hello")
                assert got.header("server") == b"hoststack"
                assert got.header("content-length") == b"5"
                assert got.header("date")
        [(scope, body)] = seen
        assert body == b"body"
        assert scope["type"] == "http"
        assert scope["http_version"] == "3"
        assert scope["method"] == "PUT"
        assert scope["scheme"] == "https"
        assert scope["path"] == "/a b/é"
        assert scope["raw_path"] == b"/a%20b/%C3%A9"
        assert scope["query_string"] == b"q=%20"
        assert scope["headers"] == [
            (b"host", b"10.0.0.1"),
            (b"x-a", b"1"),
            (b"content-length", b"4"),
            (b"cookie", b"a=1; b=2"),
        ]
        assert scope["server"] == ("10.0.0.1", 443)
        assert scope["client"][0] == "10.0.0.2"
        assert scope["extensions"]["tls"]["tls_version"] == 0x0304

    run(main)


def test_a_response_in_parts() -> None:
    async def main() -> None:
        async with talking(answering(b"a", b"b", b""), OFF) as client:
            assert await text(client) == b"ab"

    run(main)


def test_content_streams_in_both_directions() -> None:
    content = pattern(300_000)

    async def echo(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        more = True
        while more:
            message = await receive()
            more = message["more_body"]
            await send({"type": "http.response.body", "body": message["body"], "more_body": more})

    async def main() -> None:
        async with talking(echo, OFF, quic=SMALL) as client:
            async with await client.request("POST", "/", [], content) as response:
                assert await response.read() == content
            async with await client.open("POST", "/") as response:  # each part at once
                for part in (b"a", b"b"):
                    await response.send_all(part)
                    assert await response.receive_some() == part
                await response.send_eof()
                assert await response.read() == b""

    run(main)


def test_a_client_that_does_not_read_stops_the_application() -> None:
    sent = 0

    async def application(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        await send(START)
        while True:
            await send({"type": "http.response.body", "body": bytes(1000), "more_body": True})
            sent += 1000

    async def main() -> None:
        async with talking(application, OFF, quic=SMALL) as client:
            response = await client.request("GET", "/")
            await trio.sleep(5)
            assert 1000 < sent < 64_000
            await response.aclose()

    run(main)


def test_head_and_statuses_without_content() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        parts = [b"a", b"bc"] if scope["path"] == "/parts" else [b"abc"]
        status = 304 if scope["path"] == "/304" else 200
        headers = [(b"content-length", b"3")]
        await answering(*parts, status=status, headers=headers)(scope, receive, send)

    async def main() -> None:
        async with talking(application, OFF) as client:
            for path in ("/", "/parts"):
                async with await client.request("HEAD", path) as response:
                    assert response.header("content-length") == b"3"
                    assert await response.read() == b""
                assert await text(client, path) == b"abc"
            response = await client.request("GET", "/304")
            assert (response.status, await response.read()) == (304, b"")

    run(main)


def test_trailers_and_early_hints() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        assert "http.response.trailers" in scope["extensions"]
        await send({"type": "http.response.early_hint", "links": [b"</a.css>; rel=preload"]})
        await send({**START, "trailers": True})
        if scope["path"] == "/parts":
            await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await send({"type": "http.response.body", "body": b"b"})
        kind = "http.response.trailers"
        await send({"type": kind, "headers": [(b"x", b"1")], "more_trailers": True})
        await send({"type": kind, "headers": [(b"y", b"2")]})

    async def main() -> None:
        hints: list[Any] = []
        async with talking(application, OFF) as client:
            for path in ("/", "/parts"):
                async with await client.request("GET", path) as response:
                    hints += response.informational
                    assert (await response.read()).endswith(b"b")
                    assert response.trailers == [(b"x", b"1"), (b"y", b"2")]
            async with await client.request("HEAD", "/") as response:
                assert await response.read() == b""
        assert hints == [(103, [(b"link", b"</a.css>; rel=preload")])] * 2

    run(main)


def test_files_by_path_and_by_descriptor(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    content = pattern(600_000)
    small.write_bytes(b"0123456789")
    large.write_bytes(content)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({**START, "trailers": scope["path"] == "/trailers"})
        kind = "http.response.zerocopysend"
        match scope["path"]:
            case "/small" | "/large" | "/trailers":
                path = str(large if scope["path"] == "/large" else small)
                await send({"type": "http.response.pathsend", "path": path})
            case "/zero":
                with large.open("rb") as file:
                    await send({"type": kind, "file": file, "offset": 5, "count": 400_000,
                                "more_body": True})  # fmt: skip
                    await send({"type": kind, "file": file, "count": 3, "more_body": True})
                    await send({"type": kind, "file": file, "offset": 599_990})
            case "/empty":
                with small.open("rb") as file:
                    await send({"type": kind, "file": file, "offset": 10})
        if scope["path"] == "/trailers":
            await send({"type": "http.response.trailers", "headers": [(b"x", b"1")]})

    async def main() -> None:
        async with talking(application, OFF) as client:
            response = await client.request("GET", "/small")
            assert response.header("content-length") == b"10"
            assert await response.read() == b"0123456789"
            assert await text(client, "/large") == content
            assert await text(client, "/zero") == content[5:400_005] + content[:3] + content[-10:]
            assert await text(client, "/empty") == b""
            response = await client.request("GET", "/trailers")
            assert await response.read() == b"0123456789"
            assert response.trailers == [(b"x", b"1")]
            response = await client.request("HEAD", "/large")
            assert response.header("content-length") == b"600000"
            assert await response.read() == b""

    run(main, patience_s=0.05)  # files are read in threads


def test_content_that_the_client_holds_back() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/read":
            message = await receive()
            await answering(message["body"])(scope, receive, send)
        else:
            await answering(b"no", status=417)(scope, receive, send)

    async def main() -> None:
        async with talking(application, OFF) as client:
            expecting = [("expect", "100-continue")]
            async with await client.open("POST", "/read", expecting) as response:
                while not response.informational:
                    await trio.sleep(0.1)
                    with trio.move_on_after(0.1):
                        await response.wait_headers()
                await response.send_all(b"content")
                await response.send_eof()
                assert await response.read() == b"content"
            async with await client.open("POST", "/refuse", expecting) as response:
                await response.wait_headers()
                assert (response.status, list(response.informational)) == (417, [])

    run(main)


def test_what_is_refused_without_the_application() -> None:
    calls: list[str] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        calls.append(scope["path"])
        assert (await receive())["type"] == "http.disconnect"

    async def main() -> None:
        limits = http3.Http3Config(max_body_bytes=1000)
        async with talking(application, OFF, http3_config=limits) as client:
            response = await client.request("GET", "/", [("host", "other")])
            assert (response.status, await response.read()) == (
                400,
                b"its host is not its :authority\n",
            )
            response = await client.open("CONNECT", "10.0.0.9:22")
            await response.wait_headers()
            assert response.status == 501
            response = await client.open("CONNECT", "/", protocol="connect-udp")
            await response.wait_headers()
            assert response.status == 501
            assert not calls
            response = await client.request("POST", "/", [], bytes(2000))
            assert response.status == 413

    run(main)


def test_connection_fields_are_removed_and_a_root_path_is_added() -> None:
    config = AsgiConfig(
        lifespan="off", root_path="/api", headers=[("alt-svc", "clear")], date_header=False
    )

    async def application(scope: Any, receive: Any, send: Any) -> None:
        assert (scope["root_path"], scope["path"]) == ("/api", "/api/a")
        assert scope["raw_path"] == b"/api/a"
        headers = [(b"Connection", b"keep-alive"), (b"Transfer-Encoding", b"chunked")]
        await answering(b"x", headers=headers)(scope, receive, send)

    async def main() -> None:
        async with talking(application, config) as client:
            response = await client.request("GET", "/a")
            assert response.headers == [(b"alt-svc", b"clear"), (b"content-length", b"1")]

    run(main)


def test_early_data_is_marked() -> None:
    seen: list[bool] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        seen.append(is_early(scope))
        if seen[-1]:
            await scope["extensions"]["hoststack.early_data"]["wait_handshake"]()
            await respond_too_early(send)
        else:
            await answering(b"x")(scope, receive, send)

    async def main() -> None:
        tls = TlsConfig(verify=False, sessions=SessionCache())
        quic = QuicConfig(early_data=True)
        was_early = False
        async with serving(application, OFF, quic=quic, delay_s=0.1) as (_, stack):
            for _ in range(2):
                async with http3.open_client(stack, SERVER, tls=tls) as client:
                    was_early = client.connection.early_data == "pending"
                    response = await client.request("GET", "/")
                    assert response.status == 200  # repeated after 425
                    await client.connection.wait_handshake()
                    await trio.sleep(2)  # for a ticket
        assert seen == ([False, True, False] if was_early else [False, False])

    run(main, patience_s=0.05)


def test_both_sides_certificates() -> None:
    """The client's whole chain, and of the server's the one that it was shown."""
    root = issued("root")
    middle = issued("middle", root)
    leaf = issued("leaf", middle)
    client_chain = [chain_pem(each[0]).decode() for each in (leaf, middle)]
    other = TlsConfig.self_signed(["other.example"])
    server_tls = TlsConfig(
        certificate=TLS.certificate,
        key=TLS.key,
        certificates=other.own,
        ca=chain_pem(root[0]),
        client_certificates="required",
    )
    seen: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["extensions"]["tls"])
        await answering(b"x")(scope, receive, send)

    async def main() -> None:
        async with serving(application, OFF, tls=server_tls) as (_, stack):
            for name, shown in ((None, TLS), ("other.example", other)):
                mine = TlsConfig(
                    certificate=chain_pem(leaf[0], middle[0]),
                    key=key_pem(leaf[1]),
                    server_name=name,
                    verify=False,
                )
                async with http3.open_client(stack, SERVER, tls=mine) as client:
                    assert await text(client) == b"x"
                tls = seen.pop()
                assert tls["client_cert_chain"] == client_chain
                assert tls["client_cert_name"] == "CN=leaf"
                assert tls["client_cert_error"] is None
                assert tls["server_cert"].encode() == shown.certificate
                assert tls["cipher_suite"] in (0x1301, 0x1302, 0x1303)

    run(main)


class _Unreadable:
    """A connection whose client's certificate only the TLS library accepts."""

    own_certificate = None
    cipher_suite = 0x1301
    early_data = None
    handle = 1

    @property
    def peer_certificates(self) -> Any:
        raise ValueError("error parsing asn1 value:\n\x1b[2J")


def test_a_clients_certificate_that_cannot_be_read() -> None:
    tls = Peer(_Unreadable(), "")._make_extensions("http")["tls"]
    assert (tls["client_cert_chain"], tls["client_cert_name"]) == ([], None)
    assert tls["client_cert_error"].isprintable()
    assert "error parsing" in tls["client_cert_error"]
