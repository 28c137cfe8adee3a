"""Keys are updated long before AES-GCM's limit."""

from __future__ import annotations

import pytest
import trio
import trio.testing

import hoststack
from hoststack import QuicConfig, TlsConfig
from hoststack.link.memory import MemoryNetwork
from tests.support.streams import exchange

PACKETS_PER_KEY = 400


@pytest.mark.parametrize("loss", [0.0, 0.02])
@pytest.mark.usefixtures("engine")
def test_a_long_transfer_goes_through_many_keys(loss: float) -> None:
    data = bytes(range(256)) * 64_000
    uri = "quic://10.0.0.1:4433"
    config = QuicConfig(packets_per_key=PACKETS_PER_KEY)
    key_updates = 0

    async def main() -> None:
        nonlocal key_updates
        network = MemoryNetwork(seed=5, loss=loss, delay_s=0.005)
        tls = TlsConfig.self_signed(["localhost"])
        async with (
            hoststack.open_stack(link=network.link("10.0.0.1"), config=config) as server,
            hoststack.open_stack(link=network.link("10.0.0.2"), config=config) as client,
            await server.listen(uri, tls=tls) as listener,
            client.connect(uri, tls=TlsConfig(verify=False)) as connected,
            await listener.accept() as accepted,
        ):
            await exchange(connected, accepted, data)
            key_updates = client.counters().key_updates

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert key_updates >= 2
