"""An answer carries the acknowledgement of what it answers; what gets none is acknowledged too."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

import hoststack
from hoststack import Connection, TlsConfig
from hoststack.link.memory import MemoryNetwork
from hoststack.worker.engines import available_engines

pytestmark = pytest.mark.skipif(
    "native" not in available_engines(),
    reason="the native engine was not built: scripts/bootstrap.sh, then make build",
)

URI = "quic://10.0.0.1:4433"
TLS = TlsConfig.self_signed(["localhost"])
REQUESTS = 50
#: What looking at the clock takes: most of an eighth of a round trip, which an acknowledgement may
#: wait.
TICK_S = 20e-6


class TickingClock(trio.abc.Clock):
    """Time goes on a bit with each look, and jumps when nothing happens."""

    def __init__(self) -> None:
        self._now_s = 1000.0

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        self._now_s += TICK_S
        return self._now_s

    def deadline_to_sleep_time(self, deadline: float) -> float:
        if deadline == math.inf:
            return 1.0
        self._now_s = max(self._now_s, deadline)
        return 0.0


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Connection, Connection]]:
    network = MemoryNetwork()
    async with (
        hoststack.open_stack(link=network.link("10.0.0.1"), engine="native") as server,
        hoststack.open_stack(link=network.link("10.0.0.2"), engine="native") as client,
        await server.listen(URI, tls=TLS, alpn=["test"]) as listener,
        client.connect(URI, tls=TlsConfig(verify=False), alpn=["test"]) as connected,
        await listener.accept() as accepted,
    ):
        await trio.sleep(1)  # nothing of the handshake is left to be said
        yield connected, accepted


async def sent(connection: Connection) -> int:
    return int((await connection.statistics())["tx_datagrams"])


def test_a_request_is_a_datagram_each_way() -> None:
    async def answer(connection: Connection, nursery: trio.Nursery) -> None:
        async def echo(stream: hoststack.Stream) -> None:
            async with stream:
                await stream.send_all(await stream.receive_some())
                await stream.send_eof()

        async for stream in connection.streams():
            nursery.start_soon(echo, stream)

    async def main() -> None:
        async with pair() as (connected, accepted), trio.open_nursery() as nursery:
            nursery.start_soon(answer, accepted, nursery)
            before = [await sent(each) for each in (connected, accepted)]
            for _ in range(REQUESTS):
                async with await connected.open_stream() as stream:
                    await stream.send_all(b"question")
                    await stream.send_eof()
                    assert b"".join([chunk async for chunk in stream]) == b"question"
            after = [await sent(each) for each in (connected, accepted)]
            for was, is_now in zip(before, after, strict=True):
                assert is_now - was <= REQUESTS * 1.2
            nursery.cancel_scope.cancel()

    trio.run(main, clock=TickingClock())


@pytest.mark.parametrize("reads", [True, False])
def test_what_is_not_answered_is_acknowledged_at_once(reads: bool) -> None:
    """Whether a program reads it or not."""

    async def read(connection: Connection) -> None:
        async for stream in connection.streams():
            async for _ in stream:
                pass

    async def main() -> None:
        async with pair() as (connected, accepted), trio.open_nursery() as nursery:
            if reads:
                nursery.start_soon(read, accepted)
            for _ in range(20):
                began_s = trio.current_time()
                stream = await connected.open_stream(unidirectional=True)
                await stream.send_all(b"news")
                await stream.send_eof()
                await stream.wait_acknowledged()
                assert trio.current_time() - began_s < 100 * TICK_S
            nursery.cancel_scope.cancel()

    trio.run(main, clock=TickingClock())
