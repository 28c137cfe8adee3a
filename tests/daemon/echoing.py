"""An application that echoes, and one that asks it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

import hoststack
from hoststack import Connection, TlsConfig
from tests.daemon.conftest import PATIENCE_S, Daemon

TLS = TlsConfig.self_signed(["127.0.0.1", "::1", "10.77.0.1", "fd77::1"])
TRUSTING = TlsConfig(ca=TLS.certificate)


async def echo(connection: Connection) -> None:
    async for stream in connection.streams():
        assert isinstance(stream, hoststack.Stream)
        async with stream:
            async for data in stream:
                await stream.send_all(data)


async def serve_while_it_lives(
    stack: hoststack.Stack,
    uri: str,
    handler: Callable[[Connection], Awaitable[None]],
    *,
    task_status: trio.TaskStatus[hoststack.Listener],
) -> None:
    """As an application that has nothing left to do when the daemon ends."""
    try:
        await stack.serve(uri, handler, tls=TLS, alpn=["test"], task_status=task_status)
    except trio.BrokenResourceError as error:
        if str(error) != "this listener is gone: the daemon has ended":
            raise


@asynccontextmanager
async def echo_server(stack: hoststack.Stack, host: str = "127.0.0.1") -> AsyncIterator[str]:
    """Its URI."""
    place = f"quic://[{host}]" if ":" in host else f"quic://{host}"
    async with trio.open_nursery() as nursery:
        listener = await nursery.start(serve_while_it_lives, stack, f"{place}:0", echo)
        yield f"{place}:{listener.local[1]}"
        nursery.cancel_scope.cancel()


async def ask(connection: Connection, data: bytes) -> bytes:
    """What an echo server sends back."""
    stream = await connection.open_stream()
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            await stream.send_all(data)
            await stream.send_eof()

        nursery.start_soon(send)
        back = b"".join([part async for part in stream])
    await stream.aclose()
    return back


def is_well(daemon: Daemon) -> None:
    """Hold that a daemon serves: an application attaches, listens, and is answered."""

    async def main() -> None:
        with trio.fail_after(PATIENCE_S):
            async with (
                hoststack.attach(daemon.api) as stack,
                echo_server(stack) as uri,
                stack.connect(uri, tls=TRUSTING, alpn=["test"]) as connection,
            ):
                assert await ask(connection, b"well") == b"well"

    trio.run(main)
