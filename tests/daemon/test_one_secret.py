"""What one worker hands out holds on the others: tickets and tokens are made with one secret."""

from __future__ import annotations

import re

import pytest
import trio

import hoststack
from hoststack import Connection, QuicConfig, SessionCache, TlsConfig
from hoststack.engine import engines
from tests.daemon.conftest import PATIENCE_S, Daemon
from tests.daemon.echoing import TLS, ask, echo

pytestmark = pytest.mark.skipif(
    "native" not in engines.available_engines(), reason="the native engine was not built"
)

#: Each from a port of its own, so that the kernel's hash takes them to both workers.
CONNECTIONS = 12


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
                await server.listen("quic://127.0.0.1:0", tls=TLS, config=config) as listener,
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
                        client.connect(uri, tls=tls) as connection,
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
