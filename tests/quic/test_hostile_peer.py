"""Peers that have the keys and send what no peer should."""

from __future__ import annotations

import logging
import random

import pytest
import trio
import trio.testing
from aioquic.buffer import encode_uint_var
from aioquic.quic.events import ConnectionTerminated

import hoststack
from hoststack import Connection, TlsConfig
from hoststack.link.memory import MemoryNetwork
from tests.quic.test_stock_aioquic import OURS, PORT, TLS, URI, client_configuration
from tests.support.stock_peer import StockPeer

pytestmark = pytest.mark.usefixtures("engine")

PEERS = 250
PACKETS = 8


def frames(rng: random.Random) -> bytes:
    """Frames, some of them nearly right: type, then numbers, then bytes."""
    made = b""
    for _ in range(rng.randrange(1, 6)):
        kind = rng.choice([*range(0x20), 0x30, 0x31, rng.randrange(1 << 14)])
        numbers = b"".join(
            encode_uint_var(rng.choice((0, 1, 2, 4, 63, 64, 5000, 1 << 30, (1 << 62) - 1)))
            for _ in range(rng.randrange(6))
        )
        made += encode_uint_var(kind) + numbers + rng.randbytes(rng.choice((0, 1, 8, 16, 100)))
    return made[:1300]


async def _serve(connection: Connection) -> None:
    async for stream in connection.streams():
        async with stream:
            if isinstance(stream, hoststack.Stream):
                await stream.send_all(bytes(5000))
            async for _ in stream:
                pass


def test_frames_that_no_peer_should_send(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "hoststack")

    async def main() -> None:
        network = MemoryNetwork(seed=9)
        async with (
            hoststack.open_stack(link=network.link(OURS)) as stack,
            trio.open_nursery() as nursery,
        ):

            async def serve(task_status: trio.TaskStatus[object]) -> None:
                await stack.serve(URI, _serve, tls=TLS, alpn=["test"], task_status=task_status)

            await nursery.start(serve)
            closed = [await _be_hostile(network, seed) for seed in range(PEERS)]
            # Nearly all of them were found out.
            assert sum(closed) > PEERS * 0.8
            # The server is as it was.
            client = hoststack.open_stack(link=network.link("10.9.9.9"))
            async with (
                client as good,
                good.connect(URI, tls=TlsConfig(verify=False), alpn=["test"]) as connection,
            ):
                stream = await connection.open_stream()
                await stream.send_eof()
                assert len(b"".join([chunk async for chunk in stream])) == 5000
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    # A connection that breaks on a frame is closed, and its trace logged: here none does.
    assert [record.exc_text for record in caplog.records] == []


async def _be_hostile(network: MemoryNetwork, seed: int) -> bool:
    """Connect and send such frames; whether the server closed the connection over them."""
    rng = random.Random(seed)
    link = network.link(f"10.1.{seed >> 8}.{seed & 255}")
    peer = StockPeer(link)
    await peer.meet(client_configuration(), OURS, PORT)
    for _ in range(PACKETS):
        peer.send(peer.seal(frames(rng)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.run)
        await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    link.close()
    return any(isinstance(event, ConnectionTerminated) for event in peer.events)
