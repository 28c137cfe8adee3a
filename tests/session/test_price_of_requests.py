"""What a small request on a stream of its own costs in Python, at the server's side."""

from __future__ import annotations

import cProfile
import pstats
import threading
from functools import partial
from typing import Any

import pytest
import trio

import hoststack
from hoststack import Connection, TlsConfig
from hoststack.worker import engines

REQUEST = b"x" * 100
AT_ONCE = 100
MANY = 3000
#: Function calls for each request, as cProfile counts them. trio's part is some 100: a task, five
#: checkpoints, and what wakes them.
MOST_CALLS = 300


async def answer(stream: Any) -> None:
    async with stream:
        data = b"".join([part async for part in stream])
        await stream.send_all(data)


async def serve(connection: Connection) -> None:
    async with trio.open_nursery() as nursery:
        async for stream in connection.streams():
            nursery.start_soon(answer, stream)


async def ask(uri: str) -> int:
    """MANY requests, AT_ONCE of them at a time; how many were answered."""
    left = MANY
    done = 0

    async def one_after_the_other() -> None:
        nonlocal left, done
        while left:
            left -= 1
            async with await connection.open_stream() as stream:
                await stream.send_all(REQUEST)
                await stream.send_eof()
                assert b"".join([part async for part in stream]) == REQUEST
                done += 1

    async with (
        hoststack.open_stack(link="udp") as stack,
        stack.connect(uri, tls=TlsConfig(verify=False)) as connection,
        trio.open_nursery() as nursery,
    ):
        for _ in range(AT_ONCE):
            nursery.start_soon(one_after_the_other)
    return done


@pytest.mark.skipif(
    "native" not in engines.available_engines(), reason="the native engine was not built"
)
def test_a_request_costs_few_function_calls() -> None:
    """The client runs in another thread: a profile is one thread's."""
    profile = cProfile.Profile()
    answered: list[int] = []

    async def main() -> None:
        async with hoststack.open_stack(link="udp") as stack, trio.open_nursery() as nursery:
            listener = await nursery.start(
                partial(
                    stack.serve,
                    "quic://127.0.0.1:0",
                    serve,
                    tls=TlsConfig.self_signed(["localhost"]),
                )
            )
            uri = f"quic://127.0.0.1:{listener.local[1]}"
            ended = trio.Event()
            loop = trio.lowlevel.current_trio_token()

            def client() -> None:
                try:
                    answered.append(trio.run(ask, uri))
                finally:
                    trio.from_thread.run_sync(ended.set, trio_token=loop)

            thread = threading.Thread(target=client)
            thread.start()
            profile.enable()
            with trio.fail_after(60):
                await ended.wait()
            profile.disable()
            thread.join()
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert answered == [MANY]
    calls = pstats.Stats(profile).total_calls / MANY  # type: ignore[attr-defined]
    assert calls <= MOST_CALLS, f"{calls:.0f} calls for each request"
