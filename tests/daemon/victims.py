"""Applications to be killed: `python -m tests.daemon.victims API URI` makes one for each line that
comes in; says "moving PID" once that one is in the midst of its work, "gone" when it is dead."""

from __future__ import annotations

import os
import sys

import trio

import hoststack
from hoststack import Connection, TlsConfig

_TLS = TlsConfig.self_signed(["127.0.0.1"])


async def _live(api: str, uri: str) -> None:
    """Listens, is connected, and moves bytes in both directions until it dies."""
    async with (
        hoststack.attach(api, name="victim") as stack,
        await stack.listen("quic://127.0.0.1:0", tls=_TLS, alpn=["test"]),
        stack.connect(uri, tls=TlsConfig(verify=False), alpn=["test"]) as one,
        stack.connect(uri, tls=TlsConfig(verify=False), alpn=["test"]) as other,
        trio.open_nursery() as nursery,
    ):
        moved = 0
        is_moving = trio.Event()

        async def move(connection: Connection) -> None:
            nonlocal moved
            stream = await connection.open_stream()
            async with trio.open_nursery() as both:

                async def send() -> None:
                    while True:
                        await stream.send_all(bytes(50_000))

                both.start_soon(send)
                async for data in stream:
                    moved += len(data)
                    if moved > 500_000:
                        is_moving.set()

        for connection in (one, other, one, other):
            nursery.start_soon(move, connection)
        await is_moving.wait()
        print("moving", os.getpid(), flush=True)
        await trio.sleep_forever()


def main() -> None:
    _, api, uri = sys.argv
    for _ in sys.stdin:
        pid = os.fork()
        if pid == 0:
            trio.run(_live, api, uri)
        os.waitpid(pid, 0)
        print("gone", flush=True)


if __name__ == "__main__":
    main()
