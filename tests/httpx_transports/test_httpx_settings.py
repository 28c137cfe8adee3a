"""Arguments that a transport refuses, and what it learns from Alt-Svc (RFC 7838)."""

from __future__ import annotations

import ssl
from functools import partial
from typing import Any

import httpx
import pytest
import trio

from hoststack import TlsConfig, http3
from hoststack.httpx import AsyncHTTP3Transport, HTTP3Transport
from hoststack.httpx.alternatives import Alternatives, Origin, parse
from tests.http3.peers import SERVER, URI, run
from tests.httpx_transports.places import BASE, TLS, TRUSTING, Site, two_stacks


@pytest.mark.parametrize("transport", [AsyncHTTP3Transport, HTTP3Transport])
@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        ({"verify": ssl.create_default_context()}, TypeError, "QUIC can't use an ssl.SSLContext"),
        ({"verify": 3.5}, TypeError, "not float"),
        ({"verify": "/nowhere.pem"}, ValueError, "can't be read"),
        ({"cert": "/nowhere.pem"}, ValueError, "can't be read"),
        ({"cert": ("a", "b", "password")}, TypeError, "password"),
        ({"verify": TlsConfig(), "cert": "a"}, ValueError, "into the TlsConfig"),
        ({"proxy": "http://localhost:3128"}, ValueError, "goes through no proxy"),
    ],
)
def test_arguments(
    transport: Any, arguments: dict[str, Any], kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        transport(**arguments)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('h3=":443"', [("", 443, 86400.0)]),
        ('h3=":443"; ma=60, h3-29=":443"; ma=60', [("", 443, 60.0)]),
        ('h2=":443", h3="Other.Example:8443"; persist=1; ma="5"', [("other.example", 8443, 5.0)]),
        ('h3="[2001:db8::1]:443"', [("2001:db8::1", 443, 86400.0)]),
        ('%68%33=":1"', [("", 1, 86400.0)]),
        ('h3=":44\\3"', [("", 443, 86400.0)]),
        ('h3=":0"', []),
        ('h3=":65536"', []),
        ('h3="user@host:443"', []),
        ('h3="caf\u00e9.example:443"', []),  # no field's value
        ('h3="a\x1b]0;x\x07:443"', []),
        ('h3="a?b#c%d:443"', []),
        ('h3=":\u0664\u0664\u0663"', []),  # ARABIC-INDIC DIGITs
        ('h3=":443"; ma=-1', []),
        ('h3=":443"; ma=99999999999', []),
        ('h3=":443" rubbish', []),
        ("h3=:443", []),
        ("", []),
        ("clear", []),
        ('h3="' + "\\" * 5000, []),
        (", " * 5000, []),
    ],
)
def test_alt_svc(text: str, found: list[tuple[str, int, float]]) -> None:
    assert parse(text) == found


def test_what_is_remembered() -> None:
    now = [0.0]
    alternatives = Alternatives(lambda: now[0])
    origin, other = Origin("a", 443), Origin("a", 444)
    alternatives.learn(origin, ['h3=":8443"; ma=100'], age_s=40)
    assert alternatives.find(origin) == Origin("a", 8443)
    assert alternatives.find(other) is None
    now[0] = 61
    assert alternatives.find(origin) is None
    alternatives.learn(origin, ['h3="b:1"; ma=10000'])
    for away_s in (300, 600, 1200):
        alternatives.on_failed(origin)
        now[0] += away_s - 1
        assert alternatives.find(origin) is None
        now[0] += 1
        assert alternatives.find(origin) == Origin("b", 1)
    alternatives.on_answered(origin)
    alternatives.on_failed(origin)
    now[0] += 300
    assert alternatives.find(origin) == Origin("b", 1)
    alternatives.learn(origin, [])  # a response without the field changes nothing
    assert alternatives.find(origin) == Origin("b", 1)
    alternatives.learn(origin, ['h2=":443"'])
    assert alternatives.find(origin) is None
    alternatives.learn(origin, ['h3=":443"'])
    alternatives.learn(origin, ["clear"])
    assert alternatives.find(origin) is None
    for number in range(3000):
        alternatives.learn(Origin(str(number), 443), ['h3=":443"'])
    assert alternatives.find(Origin("0", 443)) is None
    assert alternatives.find(Origin("2999", 443)) is not None


class Fallback(httpx.AsyncBaseTransport):
    """Answers over a version that is not 3."""

    def __init__(self, alt_svc: str) -> None:
        self.alt_svc = alt_svc
        self.is_closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(
            200, headers={"alt-svc": self.alt_svc}, extensions={"http_version": b"HTTP/2"}
        )

    async def aclose(self) -> None:
        self.is_closed = True


def test_requests_go_to_http3_when_the_origin_has_said_so() -> None:
    async def main() -> None:
        fallback = Fallback(f'h3="{SERVER}:443"')
        site = Site()
        async with two_stacks() as (server, stack), trio.open_nursery() as nursery:
            await nursery.start(partial(http3.serve, server, URI, site, tls=TLS))
            transport = AsyncHTTP3Transport(TRUSTING, stack=stack, fallback=fallback)
            async with httpx.AsyncClient(transport=transport, trust_env=False) as client:

                async def version(url: str, **options: Any) -> str:
                    return (await client.get(url, **options)).http_version

                assert await version(BASE) == "HTTP/2"
                assert await version(f"{BASE}/fields") == "HTTP/3"
                assert (b"alt-used", f"{SERVER}:443".encode()) in site.requests[-1].headers
                assert await version(f"http://{SERVER}/") == "HTTP/2"
                # Another host that names this server; the certificate is for it as well.
                assert await version("https://localhost/") == "HTTP/2"
                assert await version("https://localhost/") == "HTTP/3"
                assert site.requests[-1].authority == b"localhost"
                # One whose certificate is not there, and one that does not answer.
                assert await version("https://other.example/") == "HTTP/2"
                assert await version("https://other.example/") == "HTTP/2"
                fallback.alt_svc = 'h3="10.0.0.9:443"'
                assert await version("https://silent.example/") == "HTTP/2"
                began_s = trio.current_time()
                assert await version("https://silent.example/") == "HTTP/2"
                assert 1 < trio.current_time() - began_s < 3
                began_s = trio.current_time()
                assert await version("https://silent.example/") == "HTTP/2"
                assert trio.current_time() - began_s < 1
            assert fallback.is_closed
            nursery.cancel_scope.cancel()

    run(main)


def test_a_server_that_is_misdirected() -> None:
    async def main() -> None:
        async def refuse(request: http3.Request) -> None:
            await request.respond(421)

        async with two_stacks() as (server, stack), trio.open_nursery() as nursery:
            await nursery.start(partial(http3.serve, server, URI, refuse, tls=TLS))
            fallback = Fallback('h3=":443"')
            transport = AsyncHTTP3Transport(TRUSTING, stack=stack, fallback=fallback)
            async with httpx.AsyncClient(transport=transport, trust_env=False) as client:
                for _ in range(2):
                    assert (await client.get(BASE)).http_version == "HTTP/2"
            nursery.cancel_scope.cancel()

    run(main)
