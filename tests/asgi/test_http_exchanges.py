"""HTTP requests of applications: scopes, content in both directions, and what is out of order."""

from __future__ import annotations

from typing import Any

from hoststack.asgi import AsgiConfig
from tests.asgi.serving import answering, run, talking, text

OFF = AsgiConfig(lifespan="off")


def test_a_scope_has_what_the_request_said() -> None:
    seen: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope, await receive()))
        await answering(b"hello")(scope, receive, send)

    async def main() -> None:
        async with talking(application, OFF) as client:
            headers = [("X-A", "1"), ("cookie", "a=1"), ("cookie", "b=2")]
            async with await client.request("PUT", "/a%20b/%C3%A9?q=%20", headers, b"body") as got:
                assert (got.status, await got.read()) == (200, b"hello")
                assert got.header("server") == b"hoststack"
                assert got.header("content-length") == b"5"
                assert got.header("date")
        [(scope, message)] = seen
        assert message == {"type": "http.request", "body": b"body", "more_body": False}
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
