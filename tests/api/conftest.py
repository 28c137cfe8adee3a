"""Two stacks on one memory network, on a clock that jumps."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import trio
import trio.testing

import hoststack
from hoststack import Connection, QuicConfig, Stack, TlsConfig
from hoststack.link.memory import MemoryNetwork
from tests.support.attached import attached

SERVER, CLIENT = "10.0.0.1", "10.0.0.2"
URI = f"quic://{SERVER}:4433"

#: Small FIFOs make tests of backpressure short.
SMALL = QuicConfig(rx_fifo_bytes=4096, tx_fifo_bytes=4096)


@dataclass
class Pair:
    """A connection, seen from both sides, and the stacks below it."""

    network: MemoryNetwork
    server: Stack
    client: Stack
    accepted: Connection
    connected: Connection


@pytest.fixture(autouse=True)
def _on_each_engine(engine: str) -> None:
    """All tests here run with each engine."""


@pytest.fixture(scope="session")
def server_tls() -> TlsConfig:
    return TlsConfig.self_signed(["localhost", SERVER])


@pytest.fixture
def client_tls() -> TlsConfig:
    return TlsConfig(verify=False)


MakePair = Callable[..., AbstractAsyncContextManager[Pair]]


Transport = Literal["quic", "attached", "cut-through"]


@pytest.fixture(params=["quic", "attached", "cut-through"])
def transport(request: pytest.FixtureRequest) -> Transport:
    """What is between the two sides of a Pair: a network (with both sides in their stack's loop, or
    attached to it as from other processes), or nothing but a session layer."""
    found: Transport = request.param
    return found


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """No engine has a part in cut-through: once is enough."""
    items[:] = [
        item
        for item in items
        if not isinstance(item, pytest.Function)
        or not hasattr(item, "callspec")
        or item.callspec.params.get("transport") != "cut-through"
        or item.callspec.params.get("engine") == "native"
    ]


@pytest.fixture
def make_pair(server_tls: TlsConfig, client_tls: TlsConfig, transport: Transport) -> MakePair:
    """A context manager of a Pair: `make_pair(config=..., **impairments of the network)`.

    With cut-through both sides are applications of one stack, that of the server's host, and the
    network is for whoever else there is.
    """

    @asynccontextmanager
    async def stacks(
        network: MemoryNetwork, config: QuicConfig | None, server_config: QuicConfig | None
    ) -> AsyncIterator[tuple[Stack, Stack]]:
        async with hoststack.open_stack(
            link=network.link(SERVER), config=server_config or config
        ) as server:
            if transport == "cut-through":
                scopes: list[Literal["local", "global"]] = ["local", "global"]
                async with (
                    server.application("server", scopes=scopes) as one,
                    server.application("client", scopes=scopes, config=config) as other,
                ):
                    yield one, other
                return
            async with hoststack.open_stack(link=network.link(CLIENT), config=config) as client:
                if transport == "quic":
                    yield server, client
                else:
                    async with (
                        attached([server], config=server_config or config) as one,
                        attached([client], config=config) as other,
                    ):
                        yield one, other

    @asynccontextmanager
    async def make(
        config: QuicConfig | None = None,
        server_config: QuicConfig | None = None,
        **network_options: Any,
    ) -> AsyncIterator[Pair]:
        network = MemoryNetwork(**network_options)
        async with (
            stacks(network, config, server_config) as (server, client),
            await server.listen(URI, tls=server_tls, alpn=["test"]) as listener,
            client.connect(URI, tls=client_tls, alpn=["test"]) as connected,
            await listener.accept() as accepted,
        ):
            yield Pair(network, server, client, accepted, connected)

    return make


async def first_stream(connection: Connection) -> Any:
    """The next stream that the peer opens."""
    async for stream in connection.streams():
        return stream
    raise AssertionError("the connection ended instead")


def run(main: Callable[[], Any]) -> Any:
    """trio.run on a clock that jumps to the next deadline when nothing can run."""
    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
