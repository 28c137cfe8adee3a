"""Two ends of one upload: `python -m bench.webtransport_ends ROLE KIND URI [SECONDS]`.

The kind is `webtransport`, a stream of a session, or `raw`, a stream of the connection. The server
reads and counts, and answers with the count; the client prints its figures as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import trio

import hoststack
from bench import ALPN
from hoststack import Connection, QuicConfig, Stream, TlsConfig, http3

_CHUNK: Final = bytes(256 * 1024)
_CONFIG: Final = http3.Http3Config(webtransport_sessions=4)
_QUIC: Final = QuicConfig(datagram_fifo_bytes=65536)


async def _count(stream: Stream) -> None:
    async with stream:
        count = 0
        async for chunk in stream:
            count += len(chunk)
        await stream.send_all(count.to_bytes(8))


async def _session(request: http3.Request) -> None:
    async with await request.accept_webtransport() as session:
        async for stream in session.streams():
            if isinstance(stream, Stream):
                await _count(stream)


async def _streams(connection: Connection) -> None:
    async for stream in connection.streams():
        if isinstance(stream, Stream):
            await _count(stream)


async def _serve(kind: str, uri: str) -> None:
    tls = TlsConfig.self_signed(["localhost"])
    async with hoststack.open_stack(link="udp") as stack, trio.open_nursery() as nursery:
        if kind == "raw":
            serve = partial(stack.serve, uri, _streams, tls=tls, alpn=[ALPN])
        else:
            serve = partial(http3.serve, stack, uri, _session, tls=tls, config=_CONFIG, quic=_QUIC)
        await nursery.start(serve)
        print("ready", flush=True)


Open = Callable[[], Awaitable[Stream]]


@asynccontextmanager
async def _opener(kind: str, uri: str) -> AsyncIterator[Open]:
    tls = TlsConfig(verify=False)
    async with hoststack.open_stack(link="udp") as stack:
        if kind == "raw":
            async with stack.connect(uri, tls=tls, alpn=[ALPN]) as connection:
                yield connection.open_stream
        else:
            async with (
                http3.open_client(
                    stack, uri.removeprefix("quic://"), tls=tls, config=_CONFIG, quic=_QUIC
                ) as client,
                await client.open_webtransport("/") as session,
            ):

                async def open_stream() -> Stream:
                    stream = await session.open_stream()
                    assert isinstance(stream, Stream)
                    return stream

                yield open_stream


async def _send(kind: str, uri: str, seconds: float) -> None:
    async with _opener(kind, uri) as open_stream, await open_stream() as stream:
        sent, began = 0, time.monotonic()
        while time.monotonic() < began + seconds:
            await stream.send_all(_CHUNK)
            sent += len(_CHUNK)
        await stream.send_eof()
        count = int.from_bytes(await stream.receive_some())
        assert count == sent, f"{count} of {sent} bytes arrived"
        print(json.dumps({"bytes": sent, "seconds": time.monotonic() - began}))


def main(role: str, kind: str, uri: str, seconds: str = "1") -> None:
    """Serve until the process is ended, or send for some seconds."""
    if role == "server":
        trio.run(_serve, kind, uri)
    else:
        trio.run(_send, kind, uri, float(seconds))


if __name__ == "__main__":
    main(*sys.argv[1:])
