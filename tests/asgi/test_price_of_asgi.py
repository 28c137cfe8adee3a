"""What the bridge to an application costs: function calls, as cProfile counts them."""

from __future__ import annotations

import cProfile
import pstats
from typing import Any

import trio

from hoststack import http3
from hoststack.asgi import AsgiConfig
from tests.asgi import serving
from tests.http3 import peers

MANY = 300
AT_ONCE = 50
#: Of a request without content and its answer in one part, above those of a handler of
#: hoststack.http3 that calls `respond`: some 80. Trio's scope for `answer_seconds` takes 60 more, a
#: task of asyncio none.
MOST_CALLS = 110

BODY = {"type": "http.response.body", "body": b"hello"}


async def hello(scope: Any, receive: Any, send: Any) -> None:
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-type", b"text/plain"), (b"content-length", b"5")],
        }
    )
    await send(BODY)


async def handler(request: http3.Request) -> None:
    fields = [(b"content-type", b"text/plain"), (b"content-length", b"5")]
    await request.respond(200, fields, b"hello")


async def ask(client: http3.ClientConnection, count: int) -> None:
    async def some() -> None:
        for _ in range(count // AT_ONCE):
            async with await client.request("GET", "/") as response:
                assert await response.read() == b"hello"

    async with trio.open_nursery() as nursery:
        for _ in range(AT_ONCE):
            nursery.start_soon(some)


def calls(talking: Any) -> pstats.Stats:
    """The function calls of both ends for MANY requests."""
    profile = cProfile.Profile()

    async def main() -> None:
        async with talking as client:
            await ask(client, AT_ONCE)
            profile.enable()
            await ask(client, MANY)
            profile.disable()

    peers.run(main)
    return pstats.Stats(profile)


def calls_of_the_bridge() -> float:
    config = AsgiConfig(lifespan="off", answer_seconds=None, silence_seconds=None)
    with_asgi = calls(serving.talking(hello, config))
    without = calls(peers.talking(handler))
    return (with_asgi.total_calls - without.total_calls) / MANY  # type: ignore[attr-defined,no-any-return]


def test_an_application_costs_few_function_calls() -> None:
    """The least of five runs: what is collected meanwhile, and in which turns, is not the bridge's
    doing."""
    runs = []
    while (found := calls_of_the_bridge()) > MOST_CALLS:
        runs.append(round(found))
        assert len(runs) < 5, f"{runs} calls for each request"
