"""What a small request on a stream of its own costs in Python at the server's side: prints the
function calls of one, as cProfile counts them. `python -m tests.support.price_of_requests`."""

from __future__ import annotations

import cProfile
import pstats
import sys
from functools import partial
from typing import Any, Final

import trio

import hoststack
from hoststack import Connection, TlsConfig

AT_ONCE: Final = 100
MANY: Final = 5000


async def answer(stream: Any) -> None:
    async with stream:
        data = b"".join([part async for part in stream])
        await stream.send_all(data)


async def serve(connection: Connection) -> None:
    async with trio.open_nursery() as nursery:
        async for stream in connection.streams():
            nursery.start_soon(answer, stream)


async def measure(profile: cProfile.Profile) -> None:
    async with hoststack.open_stack(link="udp") as stack, trio.open_nursery() as nursery:
        tls = TlsConfig.self_signed(["localhost"])
        listener = await nursery.start(
            partial(stack.serve, "quic://127.0.0.1:0", serve, tls=tls, alpn=["test"])
        )
        uri = f"quic://127.0.0.1:{listener.local[1]}"
        client = [sys.executable, "-m", "tests.support.asking", uri, str(MANY), str(AT_ONCE)]
        profile.enable()
        with trio.fail_after(60):
            done = await trio.run_process(client, check=False, capture_stderr=True)
        profile.disable()
        if done.returncode:
            sys.exit(done.stderr.decode())
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    measured = cProfile.Profile()
    trio.run(measure, measured)
    print(pstats.Stats(measured).total_calls / MANY)  # type: ignore[attr-defined]
