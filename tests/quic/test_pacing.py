"""What a connection paces: nothing for what it sent before its path became slow."""

from __future__ import annotations

import pytest
import trio
import trio.testing

import hoststack
from hoststack import QuicConfig, TlsConfig
from hoststack.link.memory import MemoryNetwork
from tests.support.streams import exchange

pytestmark = pytest.mark.usefixtures("engine")

URI = "quic://10.0.0.1:4433"
TLS = TlsConfig.self_signed(["localhost"])
#: Small, so that little is in flight, and most of it long ago.
CONFIG = QuicConfig(rx_fifo_bytes=32 << 10, connection_window_bytes=64 << 10)
MUCH = bytes(range(251)) * 24_000
LITTLE = bytes(range(251)) * 200


@pytest.mark.parametrize("delay_s", [0.0001, 0.001])
def test_a_path_that_becomes_slow_stops_nothing(delay_s: float) -> None:
    """Neither when the delay changes, nor later."""

    async def main() -> None:
        network = MemoryNetwork(delay_s=delay_s)
        async with (
            hoststack.open_stack(link=network.link("10.0.0.1"), config=CONFIG) as server,
            hoststack.open_stack(link=network.link("10.0.0.2"), config=CONFIG) as client,
            await server.listen(URI, tls=TLS, alpn=["test"]) as listener,
            client.connect(URI, tls=TlsConfig(verify=False), alpn=["test"]) as connected,
            await listener.accept() as accepted,
        ):
            await exchange(connected, accepted, MUCH)
            for changed_s in (0.010, delay_s, 0.010):
                network.impairments.delay_s = changed_s
                began_s = trio.current_time()
                for _ in range(5):
                    await exchange(connected, accepted, LITTLE)
                # Two round trips each: the window is a bit larger than what is sent.
                assert trio.current_time() - began_s < 5 * 2 * 2 * changed_s + 0.05

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
