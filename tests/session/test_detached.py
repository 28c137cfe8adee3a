"""What an application in another process had goes with it."""

from __future__ import annotations

import contextlib
import gc
import os

import pytest
import trio
import trio.testing

import hoststack
from hoststack import TlsConfig
from hoststack.boundary.fifo_pool import FifoPool
from hoststack.boundary.remote_application import RemoteApplication
from hoststack.link.memory import MemoryNetwork
from hoststack.session.streams import StreamConnection
from hoststack.worker import engines
from tests.daemon.echoing import ask, echo
from tests.support.attached import attached

HOST = "10.0.0.1"
TLS = TlsConfig.self_signed([HOST])


async def _use(stack: hoststack.Stack, uri: str) -> None:
    async with stack.connect(uri, tls=TlsConfig(ca=TLS.certificate), alpn=["test"]) as connection:
        data = os.urandom(100_000)
        assert await ask(connection, data) == data
        open_one = await connection.open_stream()
        await open_one.send_all(b"and is not closed")


async def _echo(connection: hoststack.Connection) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        await echo(connection)


@pytest.mark.skipif(
    "native" not in engines.available_engines(), reason="the native engine was not built"
)
def test_segments_go_with_the_last_fifo_and_not_with_a_garbage_collection() -> None:
    def of_workers() -> list[object]:
        """What workers have of attached applications; the mappings of segments hang on these."""
        kinds = (RemoteApplication, FifoPool, StreamConnection)
        found = [each for each in gc.get_objects() if isinstance(each, kinds)]
        return [each for each in found if id(each) not in of_other_tests]

    of_other_tests: dict[int, object] = {}

    async def main() -> None:
        network = MemoryNetwork()
        async with (
            hoststack.open_stack(link=network.link(HOST)) as server,
            hoststack.open_stack(link=network.link("10.0.0.2")) as client,
            trio.open_nursery() as nursery,
        ):
            uri = f"quic://{HOST}:4433"
            await nursery.start(
                lambda task_status: server.serve(
                    uri, _echo, tls=TLS, alpn=["test"], task_status=task_status
                )
            )
            for _ in range(5):
                async with attached([client], "doomed") as stack:
                    await _use(stack, uri)
                    assert of_workers()
                await trio.sleep(60)  # closed connections are forgotten
                assert not of_workers()
            nursery.cancel_scope.cancel()

    gc.collect()
    of_other_tests.update({id(each): each for each in of_workers()})
    gc.disable()
    try:
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        gc.enable()
