"""What the native engine does beyond the other one, and that the other one says so."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

import hoststack
from hoststack import Connection, QuicConfig, Stack, TlsConfig
from hoststack.link.base import Endpoint, Path
from hoststack.link.memory import MemoryNetwork
from hoststack.worker import engines
from tests.support.streams import exchange

SERVER, CLIENT = "10.0.0.1", "10.0.0.2"
URI = f"quic://{SERVER}:4433"
TLS = TlsConfig.self_signed(["localhost"])
TRUSTING = TlsConfig(verify=False)

pytestmark = pytest.mark.skipif(
    "native" not in engines.available_engines(), reason="the native engine was not built"
)


class Watched(MemoryNetwork):
    """A network that remembers what went to the server."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.to_server: list[tuple[bytes, Path]] = []
        self.to_client: list[bytes] = []

    def _carry(self, data: bytes, path: Path) -> None:
        if path.remote.host == SERVER:
            self.to_server.append((data, path))
        else:
            self.to_client.append(data)
        super()._carry(data, path)


@asynccontextmanager
async def meeting(
    network: MemoryNetwork,
    config: QuicConfig | None = None,
    client_config: QuicConfig | None = None,
    engine: Any = "native",
    client_engine: Any = "native",
) -> AsyncIterator[tuple[Stack, Stack, Connection, Connection]]:
    async with (
        hoststack.open_stack(link=network.link(SERVER), engine=engine, config=config) as server,
        hoststack.open_stack(
            link=network.link(CLIENT), engine=client_engine, config=client_config or config
        ) as client,
        await server.listen(URI, tls=TLS, alpn=["test"]) as listener,
        client.connect(URI, tls=TRUSTING, alpn=["test"]) as connected,
        await listener.accept() as accepted,
    ):
        yield server, client, accepted, connected


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize("threshold", [0, 1, None])
def test_retry(threshold: int | None) -> None:
    async def main() -> None:
        network = Watched()
        config = QuicConfig(retry_above_half_open=threshold)
        async with meeting(network, config) as (server, _, accepted, connected):
            assert server.counters().retries == (1 if threshold == 0 else 0)
            await exchange(connected, accepted, bytes(50_000))

    run(main)


def test_a_forged_retry_token_is_refused() -> None:
    async def main() -> None:
        network = Watched()
        async with meeting(network, QuicConfig(retry_above_half_open=0)) as (server, *_):
            # The client's second Initial carries the token; from another address it is no good.
            with_token = network.to_server[1][0]
            stranger = Path(Endpoint("10.0.0.66", 5555), Endpoint(SERVER, 4433))
            connections = server.counters().connections
            network._carry(with_token, stranger)
            await trio.sleep(1)
            counters = server.counters()
            assert counters.connections == connections

    run(main)


@pytest.mark.parametrize("engine", ["native", "aioquic"])
def test_version_2(engine: str) -> None:
    async def main() -> None:
        network = Watched()
        config = QuicConfig(version=2)
        async with meeting(network, QuicConfig(), config, engine) as (_, _, accepted, connected):
            assert network.to_server[0][0][1:5] == bytes.fromhex("6b3343cf")
            await exchange(connected, accepted, bytes(50_000))

    run(main)


def test_a_silent_connection_is_kept_alive() -> None:
    async def main() -> None:
        config = QuicConfig(idle_timeout_s=5, keep_alive_s=2)
        async with meeting(MemoryNetwork(), config) as (_, _, accepted, connected):
            await trio.sleep(60)
            assert connected.close_info is None
            await exchange(connected, accepted, b"still there")

    run(main)


def test_without_keep_alive_it_ends() -> None:
    async def main() -> None:
        async with meeting(MemoryNetwork(), QuicConfig(idle_timeout_s=5)) as (*_, connected):
            info = await connected.wait_closed()
            assert info.reason == "Idle timeout"

    run(main)


@pytest.mark.parametrize("probe_mtu", [True, False])
def test_the_path_is_probed_for_its_mtu(probe_mtu: bool) -> None:
    async def main() -> None:
        network = Watched(delay_s=0.01)
        async with meeting(network, QuicConfig(probe_mtu=probe_mtu)) as (_, _, accepted, connected):
            at_first = (await connected.statistics())["datagram_bytes"]
            assert at_first == (1472 if probe_mtu is False else 1200)
            await exchange(connected, accepted, bytes(200_000))
            assert max(len(data) for data, _ in network.to_server) == 1472
            assert (await connected.statistics())["datagram_bytes"] == 1472

    run(main)


def test_a_path_that_carries_less_than_its_interface() -> None:
    class Narrow(MemoryNetwork):
        def _carry(self, data: bytes, path: Path) -> None:
            if len(data) <= 1300:
                super()._carry(data, path)

    async def main() -> None:
        async with meeting(Narrow()) as (_, _, accepted, connected):
            await exchange(connected, accepted, bytes(500_000))

    run(main)


def test_keys_are_updated_by_hand() -> None:
    async def main() -> None:
        async with meeting(MemoryNetwork()) as (_, client, accepted, connected):
            await exchange(connected, accepted, bytes(10_000))
            connected.update_keys()
            await exchange(connected, accepted, bytes(10_000))
            assert client.counters().key_updates == 1

    run(main)


def test_packets_of_a_connection_that_is_gone_are_answered_with_a_reset() -> None:
    async def main() -> None:
        network = Watched()
        async with (
            hoststack.open_stack(link=network.link(SERVER), engine="native") as server,
            hoststack.open_stack(link=network.link(CLIENT), engine="native") as client,
            await server.listen(URI, tls=TLS, alpn=["test"]) as listener,
        ):
            async with (
                client.connect(URI, tls=TRUSTING, alpn=["test"]) as connected,
                await listener.accept() as a,
            ):
                await exchange(connected, a, b"x" * 5000)
            await trio.sleep(10)
            assert server.counters().connections == 0
            data, path = next(
                (data, path) for data, path in reversed(network.to_server) if not data[0] & 0x80
            )
            came = len(network.to_client)
            for _ in range(1000):
                network._carry(data, path)
            await trio.sleep(0.5)
            resets = server.counters().stateless_resets
            # Rate limited, and smaller than what they answer.
            assert 1 <= resets <= 64
            assert all(len(reset) < len(data) for reset in network.to_client[came:])

    run(main)


@pytest.mark.parametrize(
    "config",
    [
        QuicConfig(keep_alive_s=1),
        QuicConfig(congestion_control="bbr"),
        QuicConfig(version=3),
    ],
    ids=lambda config: str(config)[-60:],
)
def test_what_aioquic_can_not_do_is_said_when_it_is_asked_for(config: QuicConfig) -> None:
    async def main() -> None:
        async with hoststack.open_stack(
            link=MemoryNetwork().link(SERVER), engine="aioquic", config=config
        ) as stack:
            with pytest.raises(hoststack.ListenError, match=r"aioquic|version"):
                await stack.listen(URI, tls=TLS, alpn=["test"])

    run(main)


@pytest.mark.parametrize("engine", ["native", "aioquic"])
def test_packets_that_were_changed_under_way_are_counted(engine: str) -> None:
    async def main() -> None:
        network = Watched()
        async with meeting(network, engine=engine) as (server, _, accepted, connected):
            await exchange(connected, accepted, bytes(50_000))
            # As it ends: no datagram of the handshake, and to the connection's own ID.
            data, path = network.to_server[-1]
            before = server.counters().dropped.get("undecryptable", 0)
            for at in range(1, 6):
                changed = bytearray(data)
                changed[-at] ^= 1 << at
                network._carry(bytes(changed), path)
            await trio.sleep(0.1)
            assert server.counters().dropped["undecryptable"] == before + 5
            await exchange(connected, accepted, bytes(50_000))

    run(main)


@pytest.mark.parametrize("name", ["reno", "cubic", "bbr"])
def test_congestion_controls(name: str) -> None:
    async def main() -> None:
        config = QuicConfig(congestion_control=name)
        network = MemoryNetwork(seed=9, loss=0.01, delay_s=0.01)
        async with meeting(network, config) as (_, _, accepted, connected):
            await exchange(connected, accepted, bytes(2_000_000))
            assert (await connected.statistics())["rtt_s"] >= 0.02

    run(main)


# --- what is counted ---


@pytest.mark.parametrize("version", [1, 2])
def test_packets_are_counted_by_kind(version: int) -> None:
    async def main() -> None:
        config = QuicConfig(version=version)
        network = MemoryNetwork(delay_s=0.01)
        async with meeting(network, config) as (server, client, accepted, connected):
            await exchange(connected, accepted, bytes(100_000))
            await trio.sleep(1)  # what is under way arrives
            here, there = client.counters(), server.counters()
            assert set(here.tx_packets) == set(here.rx_packets) == {"initial", "handshake", "1rtt"}
            assert here.tx_packets == there.rx_packets
            assert here.rx_packets == there.tx_packets
            assert here.tx_packets["1rtt"] > 100_000 // 1500
            statistics = await connected.statistics()
            assert statistics["tx_1rtt_packets"] >= here.tx_packets["1rtt"]
            assert statistics["rx_handshake_packets"] == here.rx_packets["handshake"]
            assert statistics["resent_bytes"] == 0
            assert "ssthresh_bytes" not in statistics
            assert statistics["rtt_variance_s"] > 0

    run(main)


def test_what_was_lost_is_counted_as_sent_again() -> None:
    async def main() -> None:
        network = MemoryNetwork(seed=2, delay_s=0.01, loss=0.05)
        async with meeting(network) as (_, _, accepted, connected):
            await exchange(connected, accepted, bytes(2_000_000))
            statistics = await connected.statistics()
            # One packet in twenty, roughly, and its bytes go again.
            assert 40_000 < statistics["resent_bytes"] < 400_000
            assert statistics["ssthresh_bytes"] > 0

    run(main)


def test_turns_are_counted_by_their_size() -> None:
    async def main() -> None:
        async with meeting(MemoryNetwork(delay_s=0.01)) as (server, client, accepted, connected):
            await exchange(connected, accepted, bytes(1_000_000))
            for stack in (server, client):
                counters = stack.counters()
                assert len(counters.rx_in_turns) == len(counters.tx_in_turns) == 8
                assert sum(counters.rx_in_turns) == sum(counters.tx_in_turns) == counters.turns
            assert sum(client.counters().tx_in_turns[5:]) > 0

    run(main)


def test_counters_can_be_read_by_another_thread() -> None:
    async def main() -> None:
        async with (
            hoststack.open_stack(link="udp", engine="native") as server,
            hoststack.open_stack(link="udp", engine="native") as client,
            await server.listen("quic://127.0.0.1:0", tls=TLS, alpn=["test"]) as listener,
            client.connect(
                f"quic://127.0.0.1:{listener.local[1]}", tls=TRUSTING, alpn=["test"]
            ) as connected,
            await listener.accept() as accepted,
        ):
            is_over = threading.Event()
            seen: list[tuple[int, int]] = []

            def watch() -> None:
                while not is_over.is_set():
                    counters = server.counters()
                    seen.append((counters.turns, counters.rx_datagrams))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, watch)
                await exchange(connected, accepted, bytes(30_000_000))
                is_over.set()
            assert len(set(seen)) > 10
            assert seen == sorted(seen)
            assert seen[-1][1] <= server.counters().rx_datagrams

    trio.run(main)
