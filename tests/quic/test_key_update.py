"""Keys are updated long before AES-GCM's limit."""

from __future__ import annotations

import pytest
import trio
import trio.testing

import hoststack
from hoststack import QuicConfig, TlsConfig
from hoststack.link.memory import MemoryNetwork
from hoststack.worker import engines
from tests.support.streams import exchange

URI = "quic://10.0.0.1:4433"
TLS = TlsConfig.self_signed(["localhost"])
ENGINES = engines.available_engines()
PACKETS_PER_KEY = 400
#: Some 20 packets.
DATA = bytes(range(250)) * 100


@pytest.mark.parametrize("loss", [0.0, 0.02])
def test_a_long_transfer_goes_through_many_keys(engine: str, loss: float) -> None:
    data = bytes(range(256)) * (32_000 if engine == "native" else 8_000)
    config = QuicConfig(packets_per_key=PACKETS_PER_KEY)
    key_updates = 0

    async def main() -> None:
        nonlocal key_updates
        network = MemoryNetwork(seed=5, loss=loss, delay_s=0.005)
        async with (
            hoststack.open_stack(link=network.link("10.0.0.1"), config=config) as server,
            hoststack.open_stack(link=network.link("10.0.0.2"), config=config) as client,
            await server.listen(URI, tls=TLS, alpn=["test"]) as listener,
            client.connect(URI, tls=TlsConfig(verify=False), alpn=["test"]) as connected,
            await listener.accept() as accepted,
        ):
            for _ in range(2):
                await exchange(connected, accepted, data)
                await trio.sleep(1)  # three PTO, before which keys are not updated again
            key_updates = client.counters().key_updates

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert key_updates >= 2


@pytest.mark.parametrize("client", ENGINES)
def test_a_lost_update_is_sent_again(client: str) -> None:
    """A receiver's packets are acknowledgements alone, which it would not send again; and aioquic
    reads with no keys older than those that it sends with."""

    async def transfer(seed: int) -> None:
        network = MemoryNetwork(seed=seed, loss=0.2, delay_s=0.005)
        async with (
            hoststack.open_stack(link=network.link("10.0.0.1"), engine="aioquic") as ours,
            hoststack.open_stack(link=network.link("10.0.0.2"), engine=client) as theirs,
            await ours.listen(URI, tls=TLS, alpn=["test"]) as listener,
            theirs.connect(URI, tls=TlsConfig(verify=False), alpn=["test"]) as connected,
            await listener.accept() as accepted,
            trio.open_nursery() as nursery,
        ):
            stream = await connected.open_stream(unidirectional=True)

            async def send() -> None:
                await stream.send_all(DATA)
                await stream.send_eof()

            nursery.start_soon(send)
            got = b""
            async for received in accepted.streams():
                async for chunk in received:
                    got += chunk
                    accepted.update_keys()
                break
            assert got == DATA
            assert ours.counters().key_updates > 0

    async def main() -> None:
        for seed in range(20):
            with trio.fail_after(25):  # less than the idle timeout
                await transfer(seed)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.usefixtures("engine")
def test_time_never_goes_back_between_turns() -> None:
    """A turn over sockets goes on with the time of its bursts; what is asked for between turns must
    not come with the time at which the last one began, for which ngtcp2 would end the process."""

    async def main() -> None:
        async with (
            hoststack.open_stack(link="udp") as server,
            hoststack.open_stack(link="udp") as client,
            await server.listen("quic://127.0.0.1:0", tls=TLS, alpn=["test"]) as listener,
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
