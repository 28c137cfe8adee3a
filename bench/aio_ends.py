"""Ends of the requests in asyncio: `python -m bench.aio_ends server URI SOCKET`, and `requests URI
SOCKET SECONDS AT_ONCE`; both are attached to the daemon at SOCKET. With --uvloop in its loop.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from typing import Any

import uvloop

from bench import ALPN
from bench.ends import REQUEST_BYTES
from hoststack import TlsConfig, aio


async def _answer(stream: aio.Stream | aio.ReceiveStream) -> None:
    assert isinstance(stream, aio.Stream)
    async with stream:
        stream.write(await stream.read())


async def _handle(connection: aio.Connection) -> None:
    async with asyncio.TaskGroup() as group:
        async for stream in connection.streams():
            group.create_task(_answer(stream))


async def _serve(stack: aio.Stack, given: argparse.Namespace) -> None:
    listening: asyncio.Future[aio.Listener] = asyncio.get_running_loop().create_future()
    listening.add_done_callback(lambda _: print("ready", flush=True))
    tls = TlsConfig.self_signed(["localhost"])
    await stack.serve(given.uri, _handle, tls=tls, alpn=[ALPN], listening=listening)


async def _requests(stack: aio.Stack, given: argparse.Namespace) -> None:
    count = 0
    request = os.urandom(REQUEST_BYTES)

    async def one_after_the_other(connection: aio.Connection, end: float) -> None:
        nonlocal count
        while time.perf_counter() < end:
            async with await connection.open_stream() as stream:
                stream.write(request)
                stream.write_eof()
                if await stream.read() != request:
                    sys.exit("aio_ends: other bytes came back")
            count += 1

    tls = TlsConfig(verify=False)
    async with stack.connect(given.uri, tls=tls, alpn=[ALPN]) as connection:
        start = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(given.at_once):
                group.create_task(one_after_the_other(connection, start + given.seconds))
        found: dict[str, Any] = {"count": count, "seconds": time.perf_counter() - start}
    print(json.dumps(found), flush=True)


async def _run(given: argparse.Namespace) -> None:
    async with aio.attach(given.socket) as stack:
        await (_serve if given.role == "server" else _requests)(stack, given)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("role", choices=["server", "requests"])
    parser.add_argument("uri")
    parser.add_argument("socket")
    parser.add_argument("seconds", type=float, nargs="?", default=1.0)
    parser.add_argument("at_once", type=int, nargs="?", default=1)
    parser.add_argument("--uvloop", action="store_true")
    given = parser.parse_args()
    make = uvloop.new_event_loop if given.uvloop else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=make) as runner:
        runner.run(_run(given))


if __name__ == "__main__":
    main()
