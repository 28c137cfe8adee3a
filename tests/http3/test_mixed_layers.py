"""nghttp3 and aioquic's layer, with each other."""

from __future__ import annotations

import pytest
import trio

from hoststack import http3
from hoststack.http3 import about_connection
from hoststack.http3.config import Http3Config
from hoststack.http3.seam import Layer
from tests.http3.peers import pattern, run, talking


@pytest.fixture(autouse=True)
def _the_other_layer_for_clients(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, other = about_connection.make_layer, {"nghttp3": "aioquic", "aioquic": "nghttp3"}[layer]

    def make_one(config: Http3Config, *, is_server: bool) -> Layer:
        name = layer if is_server else other
        monkeypatch.setattr(about_connection, "available_layers", lambda: [name])
        return make(config, is_server=is_server)

    if about_connection.importlib.util.find_spec(about_connection._NGHTTP3) is None:
        pytest.skip("nghttp3 was not built in: scripts/bootstrap.sh, then make build")
    monkeypatch.setattr(about_connection, "make_layer", make_one)


def test_messages_of_all_kinds() -> None:
    async def handler(request: http3.Request) -> None:
        body = await request.read()
        await request.inform(103, [("link", "x")])
        await request.send_headers(200, [("x-custom", "again"), *request.headers])
        await request.send_all(body)
        await request.send_trailers(request.trailers or [])

    async def main() -> None:
        async with talking(handler) as client:

            async def one(number: int) -> None:
                content = pattern(number * 1500)
                async with await client.open(
                    "POST", f"/{number}", [("x-own", "again")]
                ) as exchange:
                    await exchange.send_all(content)
                    await exchange.send_trailers([("a", str(number))])
                    await exchange.wait_headers()
                    assert exchange.header("x-own") == b"again"
                    assert await exchange.read() == content
                    assert exchange.trailers == [(b"a", str(number).encode())]
                    assert len(exchange.informational) == 1

            for _ in range(2):  # the second time with entries in the tables
                async with trio.open_nursery() as nursery:
                    for number in range(40):
                        nursery.start_soon(one, number)

    run(main)


def test_requests_that_are_given_up() -> None:
    async def handler(request: http3.Request) -> None:
        await request.respond(200, [("x-custom", "a value")], bytes(500_000))

    async def main() -> None:
        async with talking(handler) as client:
            for _ in range(50):
                await (await client.request("GET", "/")).aclose()
            async with await client.request("GET", "/") as response:
                assert len(await response.read()) == 500_000

    run(main)


def test_a_graceful_end() -> None:
    connections: list[http3.ServerConnection] = []

    async def handler(request: http3.Request) -> None:
        connections.append(request._http)  # type: ignore[arg-type]
        await request.respond(200)

    async def main() -> None:
        async with talking(handler) as client:
            assert (await client.request("GET", "/")).status == 200
            connections[0].shut_down()
            await client.wait_going_away()
            with pytest.raises(http3.GoingAwayError):
                await client.request("GET", "/")

    run(main)
