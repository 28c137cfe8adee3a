"""What one worker hands out holds on the others: tickets, tokens and stateless resets are made with
one secret."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

import hoststack
from hoststack import Connection, Listener, QuicConfig, SessionCache, Stack, TlsConfig
from hoststack.link.base import Path
from hoststack.link.memory import MemoryLink, MemoryNetwork
from hoststack.worker import engines
from hoststack.worker.engines import EngineName
from tests.daemon.conftest import PATIENCE_S, Daemon
from tests.daemon.echoing import TLS, TRUSTING, ask, echo

pytestmark = pytest.mark.skipif(
    "native" not in engines.available_engines(), reason="the native engine was not built"
)

#: Each from a port of its own, so that the kernel's hash takes them to both workers.
CONNECTIONS = 12
SERVER, CLIENT = "10.77.0.1", "10.77.0.2"
SECRET = bytes(range(32))


def retries(daemon: Daemon) -> int:
    found = re.search(r"^ +retries +(\d+)", daemon.ctl("show quic"), re.MULTILINE)
    assert found is not None
    return int(found[1])


def connect_again_and_again(daemon: Daemon, config: QuicConfig) -> tuple[list[int], list[bool]]:
    """The worker of each connection, and whether it resumed the session of another one."""
    workers: list[int] = []
    resumed: list[bool] = []
    tls = TlsConfig(ca=TLS.certificate, sessions=SessionCache())

    async def handle(connection: Connection) -> None:
        workers.append(connection.handle >> 32)
        await echo(connection)

    async def main() -> None:
        with trio.fail_after(PATIENCE_S):
            async with (
                hoststack.attach(daemon.api) as server,
                await server.listen(
                    "quic://127.0.0.1:0", tls=TLS, alpn=["test"], config=config
                ) as listener,
                trio.open_nursery() as nursery,
            ):
                uri = "quic://{}:{}".format(*listener.local)

                async def accept() -> None:
                    while True:
                        nursery.start_soon(handle, await listener.accept())

                nursery.start_soon(accept)
                for _ in range(CONNECTIONS):
                    async with (
                        hoststack.open_stack(link="udp", engine="native") as client,
                        client.connect(uri, tls=tls, alpn=["test"]) as connection,
                    ):
                        resumed.append(connection.is_resumed)
                        assert await ask(connection, b"hello") == b"hello"
                nursery.cancel_scope.cancel()

    trio.run(main)
    return workers, resumed


def test_tickets(daemon: Daemon) -> None:
    workers, resumed = connect_again_and_again(daemon, QuicConfig())
    assert set(workers) == {0, 1}
    assert resumed == [False] + [True] * (CONNECTIONS - 1)


def test_tokens(daemon: Daemon) -> None:
    """A token of NEW_TOKEN spares the next connection the Retry, whichever worker it meets."""
    before = retries(daemon)
    workers, _ = connect_again_and_again(daemon, QuicConfig(retry_above_half_open=0))
    assert set(workers) == {0, 1}
    assert retries(daemon) == before + 1


class Anycast(MemoryNetwork):
    """Two hosts have the server's address, and packets go to the one whose turn it is: as if a
    connection's packets came to another worker."""

    def __init__(self, engine: EngineName = "native") -> None:
        """The server is of that engine."""
        super().__init__()
        self._engine = engine
        self._hosts = [MemoryLink(self, SERVER), MemoryLink(self, SERVER)]
        self.retries = 0
        self.switch(0)

    def switch(self, index: int) -> None:
        self._links[SERVER] = self._hosts[index]

    def _carry(self, data: bytes, path: Path) -> None:
        if path.remote.host == CLIENT and data[0] & 0xF0 == 0xF0:  # RFC 9000 section 17.2.5
            self.retries += 1
            self.switch(1)
        super()._carry(data, path)

    @asynccontextmanager
    async def server(self, index: int, config: QuicConfig) -> AsyncIterator[Listener]:
        async with (
            hoststack.open_stack(
                link=self._hosts[index], engine=self._engine, secret=SECRET, config=config
            ) as stack,
            await stack.listen(f"quic://{SERVER}:4433", tls=TLS, alpn=["test"]) as listener,
        ):
            yield listener


def run_on_two(
    script: Callable[[Anycast, Stack, Listener, Listener], Awaitable[None]],
    config: QuicConfig,
    server: EngineName = "native",
    client_engine: EngineName = "native",
) -> None:
    async def main() -> None:
        network = Anycast(server)
        with trio.fail_after(PATIENCE_S):
            async with (
                network.server(0, config) as one,
                network.server(1, config) as other,
                hoststack.open_stack(link=network.link(CLIENT), engine=client_engine) as client,
            ):
                await script(network, client, one, other)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize("server", ["native", "aioquic"])
def test_a_retry_token_of_one_is_taken_by_the_other(server: EngineName) -> None:
    async def script(network: Anycast, client: Stack, one: Listener, other: Listener) -> None:
        async with (
            client.connect(f"quic://{SERVER}:4433", tls=TRUSTING, alpn=["test"]) as connection,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(echo, await other.accept())
            assert network.retries == 1
            assert await ask(connection, b"hello") == b"hello"
            nursery.cancel_scope.cancel()

    run_on_two(script, QuicConfig(retry_above_half_open=0), server)


@pytest.mark.parametrize("client_engine", ["native", "aioquic"])
@pytest.mark.parametrize("server", ["native", "aioquic"])
def test_a_stateless_reset_of_one_ends_the_others_connection(
    server: EngineName, client_engine: EngineName
) -> None:
    async def script(network: Anycast, client: Stack, one: Listener, other: Listener) -> None:
        async with (
            client.connect(f"quic://{SERVER}:4433", tls=TRUSTING, alpn=["test"]) as connection,
            await one.accept(),
        ):
            network.switch(1)
            stream = await connection.open_stream()
            await stream.send_all(b"to whom?")
            info = await connection.wait_closed()
            assert info.by_peer
            assert "stateless reset" in info.reason.lower()

    run_on_two(script, QuicConfig(), server, client_engine)
