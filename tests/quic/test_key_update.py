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
def test_a_long_transfer_goes_through_many_keys(engine: str, loss: float) -> None:
    data = bytes(range(256)) * (64_000 if engine == "native" else 16_000)
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
            await server.listen(uri, tls=tls, alpn=["test"]) as listener,
            client.connect(uri, tls=TlsConfig(verify=False), alpn=["test"]) as connected,
            await listener.accept() as accepted,
        ):
            await exchange(connected, accepted, data)
            key_updates = client.counters().key_updates

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert key_updates >= 2


@pytest.mark.usefixtures("engine")
def test_time_never_goes_back_between_turns() -> None:
    """A turn over sockets goes on with the time of its bursts; what is asked for between turns must
    not come with the time at which the last one began, for which ngtcp2 would end the process."""

    async def main() -> None:
        tls = TlsConfig.self_signed(["localhost"])
        async with (
            hoststack.open_stack(link="udp") as server,
            hoststack.open_stack(link="udp") as client,
            await server.listen("quic://127.0.0.1:0", tls=tls, alpn=["test"]) as listener,
            trio.open_nursery() as nursery,
        ):
            uri = f"quic://127.0.0.1:{listener.local[1]}"
            trusting = TlsConfig(verify=False)
            async with (
                client.connect(uri, tls=trusting, alpn=["test"]) as connected,
                await listener.accept() as accepted,
            ):
                done = trio.Event()

                async def move() -> None:
                    await exchange(connected, accepted, bytes(20_000_000))
                    done.set()

                nursery.start_soon(move)
                while not done.is_set():
                    connected.update_keys()
                    accepted.update_keys()
                    async with client.connect(uri, tls=trusting, alpn=["test"]):
                        (await listener.accept()).close_now()

    trio.run(main)
