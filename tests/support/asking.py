"""A client that asks: `python -m tests.support.asking URI COUNT AT_ONCE`, on UDP sockets.

Each request is 100 bytes on a stream of its own, and comes back.
"""

from __future__ import annotations

import sys

import trio

import hoststack
from hoststack import TlsConfig

REQUEST = b"x" * 100


async def ask(uri: str, count: int, at_once: int) -> None:
    """So many requests, a few at a time; AssertionError for a wrong answer."""
    left = count

    async def one_after_the_other() -> None:
        nonlocal left
        while left:
            left -= 1
            async with await connection.open_stream() as stream:
                await stream.send_all(REQUEST)
                await stream.send_eof()
                assert b"".join([part async for part in stream]) == REQUEST

    async with (
        hoststack.open_stack(link="udp") as stack,
        stack.connect(uri, tls=TlsConfig(verify=False), alpn=["test"]) as connection,
        trio.open_nursery() as nursery,
    ):
        for _ in range(at_once):
            nursery.start_soon(one_after_the_other)


if __name__ == "__main__":
    trio.run(ask, sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
