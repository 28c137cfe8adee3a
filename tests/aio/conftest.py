"""Stacks of asyncio programs: with an engine of their own, and attached to a daemon."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
import uvloop

from hoststack import TlsConfig, aio
from tests.daemon.conftest import PATIENCE_S, Daemon, run_daemon

TLS = TlsConfig.self_signed(["127.0.0.1", "localhost"])
TRUSTING = TlsConfig(ca=TLS.certificate)
ALPN = ["test"]

Open = Callable[[], AbstractAsyncContextManager[aio.Stack]]
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


@pytest.fixture(scope="session")
def shared_daemon() -> Iterator[Daemon]:
    with run_daemon("--workers", "2") as running:
        yield running


@pytest.fixture(params=["embedded", "attached"])
def open_stack(request: pytest.FixtureRequest) -> Open:
    """Opens a stack."""
    if request.param == "embedded":
        return lambda: aio.open_stack(link="udp")
    daemon: Daemon = request.getfixturevalue("shared_daemon")
    return lambda: aio.attach(daemon.api)


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Awaitable[None]]], None]:
    """Runs a test in a loop, not for ever."""

    async def limited(main: Callable[[], Awaitable[None]]) -> None:
        async with asyncio.timeout(2 * PATIENCE_S):
            await main()

    def in_loop(main: Callable[[], Awaitable[None]]) -> None:
        with asyncio.Runner(loop_factory=LOOPS[request.param], debug=False) as runner:
            runner.run(limited(main))

    return in_loop


@asynccontextmanager
async def serving(
    stack: aio.Stack, handler: Callable[[aio.Connection], Awaitable[Any]]
) -> AsyncIterator[str]:
    """The URI of a server with that handler."""
    listening: asyncio.Future[aio.Listener] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(
        stack.serve("quic://127.0.0.1:0", handler, tls=TLS, alpn=ALPN, listening=listening)
    )
    await asyncio.wait([listening, task], return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    yield f"quic://127.0.0.1:{listening.result().local[1]}"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def connected(
    stack: aio.Stack, handler: Callable[[aio.Connection], Awaitable[Any]]
) -> AsyncIterator[aio.Connection]:
    """A client's connection to a server with that handler, on the same stack."""
    async with (
        serving(stack, handler) as uri,
        stack.connect(uri, tls=TRUSTING, alpn=ALPN) as connection,
    ):
        yield connection


async def echo(connection: aio.Connection) -> None:
    """Send back what comes on each stream."""

    async def one(stream: aio.Stream | aio.ReceiveStream) -> None:
        assert isinstance(stream, aio.Stream)
        async with stream:
            async for chunk in stream:
                stream.write(chunk)
                await stream.drain()

    async with asyncio.TaskGroup() as group:
        async for stream in connection.streams():
            group.create_task(one(stream))
