"""STREAM frames that do not fit together, or come in more pieces than anyone needs."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from aioquic.buffer import encode_uint_var
from aioquic.quic.events import ConnectionTerminated

import hoststack
from hoststack.link.memory import MemoryNetwork
from hoststack.quic.aioquic.connection import HostConnection
from tests.quic.test_price_of_frames import packets_of
from tests.quic.test_stock_aioquic import (
    OURS,
    PORT,
    TLS,
    URI,
    client_configuration,
    next_stream,
    read_all,
)
from tests.support.stock_peer import StockPeer

pytestmark = pytest.mark.usefixtures("engine")

#: Of many more (1000 with ngtcp2 1.14, 5000 with 1.11), ngtcp2 closes the connection.
PIECES = 900
MOST_PIECES = 256
STREAM, LAST_OF_STREAM, CRYPTO = b"\x0e\0", b"\x0f\0", b"\x06"
FINAL_SIZE_ERROR = 0x06


def frame(kind: bytes, offset: int, data: bytes) -> bytes:
    return kind + encode_uint_var(offset) + encode_uint_var(len(data)) + data


def pieces_kept(stack: Any) -> int:
    """The most that a stream of an aioquic connection has, CRYPTO included."""
    (context,) = stack._worker.layer.engine.connections()
    if not isinstance(context, HostConnection):
        return 0
    streams = [*context._streams.values(), *context._crypto_streams.values()]
    return max(len(stream.receiver._ranges) for stream in streams)


@pytest.mark.parametrize("kind", [STREAM, CRYPTO], ids=["stream", "crypto"])
def test_pieces_beyond_a_limit_are_as_if_lost(kind: bytes) -> None:
    async def main() -> None:
        network = MemoryNetwork()
        async with (
            hoststack.open_stack(link=network.link(OURS)) as stack,
            await stack.listen(URI, tls=TLS, alpn=["test"]) as listener,
        ):
            peer = StockPeer(network.link("10.1.0.1"))
            await peer.meet(client_configuration(), OURS, PORT)
            connection = await listener.accept()

            async def send(*frames: bytes) -> None:
                for payload in packets_of(frames):
                    peer.send(peer.seal(payload))
                    await trio.sleep(0.001)

            await send(*[frame(kind, 2 * n + 1, b"x") for n in range(PIECES)])
            assert connection.close_info is None
            assert pieces_kept(stack) <= MOST_PIECES
            if kind is STREAM:
                # The peer sends again what was not acknowledged.
                whole = b"x" * 2 * PIECES
                parts = range(0, len(whole), 1000)
                await send(*[frame(kind, at, whole[at : at + 1000]) for at in parts])
                await send(frame(LAST_OF_STREAM, 2 * PIECES, b""))
                assert await read_all(await next_stream(connection)) == whole

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize(
    "frames",
    [
        [(LAST_OF_STREAM, 8, b"89"), (STREAM, 10, b"x")],
        [(LAST_OF_STREAM, 8, b"89"), (STREAM, 0, b"x" * 11)],
        [(LAST_OF_STREAM, 8, b"89"), (LAST_OF_STREAM, 0, b"x" * 9)],
        [(LAST_OF_STREAM, 8, b"89"), (LAST_OF_STREAM, 0, b"x" * 11)],
        [(STREAM, 0, b"0123456789"), (LAST_OF_STREAM, 0, b"01234")],
    ],
)
def test_a_stream_has_one_size(frames: list[tuple[bytes, int, bytes]]) -> None:
    """RFC 9000 section 4.5."""

    async def main() -> None:
        network = MemoryNetwork()
        async with (
            hoststack.open_stack(link=network.link(OURS)) as stack,
            await stack.listen(URI, tls=TLS, alpn=["test"]),
            trio.open_nursery() as nursery,
        ):
            peer = StockPeer(network.link("10.1.0.1"))
            await peer.meet(client_configuration(), OURS, PORT)
            for each in frames:
                peer.send(peer.seal(frame(*each)))
            nursery.start_soon(peer.run)
            assert (await peer.wait_for(ConnectionTerminated)).error_code == FINAL_SIZE_ERROR
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
