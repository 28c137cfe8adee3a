"""What a packet may cost: not more for all the streams that its connection has."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
import trio
import trio.testing
from aioquic.buffer import encode_uint_var

import hoststack
from hoststack import QuicConfig
from hoststack.link.memory import MemoryNetwork
from hoststack.worker.engines import available_engines
from tests.quic.test_stock_aioquic import OURS, PORT, TLS, URI, client_configuration
from tests.support.stock_peer import StockPeer

STREAMS = 4000
PACKETS = 60
PACKET_BYTES = 1150
#: Far from what a look at each stream costs, and from what a loaded machine adds.
MOST_RATIO = 8
STREAM_AND_END = 0x0B
NO_BYTES = b"\0"
PING = b"\1"
STOP_FIRST_STREAM = b"\5\0\0"


def packets_of(frames: Sequence[bytes]) -> list[bytes]:
    """The payloads of packets that have these frames."""
    packets = [b""]
    for frame in frames:
        if len(packets[-1]) + len(frame) > PACKET_BYTES:
            packets.append(b"")
        packets[-1] += frame
    return packets


def test_stop_sending_is_not_looked_up_among_all_streams() -> None:
    """Hundreds in each packet, for the first of thousands of streams."""
    if "native" not in available_engines():
        pytest.skip("the native engine was not built")
    config = QuicConfig(
        max_streams_bidi=STREAMS, rx_fifo_bytes=4096, tx_fifo_bytes=4096, idle_timeout_s=600
    )

    async def main() -> None:
        network = MemoryNetwork()
        async with (
            hoststack.open_stack(link=network.link(OURS), engine="native", config=config) as stack,
            await stack.listen(URI, tls=TLS, alpn=["test"]) as listener,
        ):
            peer = StockPeer(network.link("10.1.0.1"))
            await peer.meet(client_configuration(), OURS, PORT)
            connection = await listener.accept()

            async def cost_of(frames: Sequence[bytes]) -> float:
                packets = [peer.seal(payload) for payload in packets_of(frames)]
                began = time.process_time()
                for packet in packets:
                    peer.send(packet)
                    await trio.sleep(0.001)
                return time.process_time() - began

            opening = (bytes((STREAM_AND_END,)) + encode_uint_var(4 * n) for n in range(STREAMS))
            await cost_of([each + NO_BYTES for each in opening])
            await trio.sleep(1)
            statistics = await connection.statistics()
            assert statistics is not None
            assert statistics["streams"] == STREAMS
            pings = await cost_of([PING] * PACKETS * PACKET_BYTES)
            stops = await cost_of([STOP_FIRST_STREAM] * (PACKETS * PACKET_BYTES // 3))
            assert stops < MOST_RATIO * pings, f"{stops:.3f} s, and {pings:.3f} s for PING frames"

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
