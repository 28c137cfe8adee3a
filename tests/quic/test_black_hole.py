"""Paths that carry less than the interfaces at their ends, at first or from some time on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

import hoststack
from hoststack import Connection, QuicConfig, Stack, TlsConfig
from hoststack.link.base import Path
from hoststack.link.memory import MemoryNetwork
from hoststack.worker import engines
from tests.quic.test_moves_on_links import opened
from tests.support.netns import VethPair
from tests.support.streams import exchange

SERVER, CLIENT = "10.0.0.1", "10.0.0.2"
TLS = TlsConfig.self_signed(["localhost"])
TRUSTING = TlsConfig(verify=False)
BASE_BYTES, LARGEST_BYTES = 1200, 1472
DELAY_S = 0.01
#: An RTT of 20 ms, its variance, and 25 ms that the peer may wait with an ACK.
PTO_S = 0.065

needs_native = pytest.mark.skipif(
    "native" not in engines.available_engines(), reason="the native engine was not built"
)
both_engines = pytest.mark.parametrize(
    "engine", [pytest.param("native", marks=needs_native), "aioquic"]
)


class Narrow(MemoryNetwork):
    """A network between interfaces of 1500 that drops datagrams above a size, which may change."""

    def __init__(self, most_bytes: int = 65535, **options: Any) -> None:
        super().__init__(delay_s=DELAY_S, **options)
        self.most_bytes = most_bytes
        self.sizes: list[int] = []
        self.dropped = 0

    def _carry(self, data: bytes, path: Path) -> None:
        self.sizes.append(len(data))
        if len(data) > self.most_bytes:
            self.dropped += 1
        else:
            super()._carry(data, path)


@asynccontextmanager
async def meeting(
    network: MemoryNetwork, engine: Any, config: QuicConfig | None = None, hosts: Any = None
) -> AsyncIterator[tuple[Stack, Stack, Connection, Connection]]:
    server_host, client_host = hosts or (SERVER, CLIENT)
    uri = f"quic://[{server_host}]:4433" if ":" in server_host else f"quic://{server_host}:4433"
    async with (
        hoststack.open_stack(
            link=network.link(server_host), engine=engine, config=config
        ) as server,
        hoststack.open_stack(
            link=network.link(client_host), engine=engine, config=config
        ) as client,
        await server.listen(uri, tls=TLS, alpn=["test"]) as listener,
        client.connect(uri, tls=TRUSTING, alpn=["test"]) as connected,
        await listener.accept() as accepted,
    ):
        yield server, client, accepted, connected


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def size_of(connection: Connection) -> int:
    return int((await connection.statistics())["datagram_bytes"])


class Transfer:
    """One connection's bytes on a stream, as fast as they go."""

    def __init__(self) -> None:
        self.received_bytes = 0
        self.pause_s = 0.0
        self._arrived = trio.Event()

    async def send(self, connection: Connection) -> None:
        stream = await connection.open_stream(unidirectional=True)
        while True:
            await stream.send_all(bytes(5_000))
            if self.pause_s:
                await trio.sleep(self.pause_s)

    async def receive(self, connection: Connection) -> None:
        async for stream in connection.streams():
            async for data in stream:
                self.received_bytes += len(data)
                self._arrived.set()

    async def until(self, more_bytes: int) -> float:
        """How long so many more bytes take."""
        began_s, enough = trio.current_time(), self.received_bytes + more_bytes
        while self.received_bytes < enough:
            self._arrived = trio.Event()
            await self._arrived.wait()
        return trio.current_time() - began_s


@both_engines
@pytest.mark.parametrize("sender", ["server", "client"])
def test_a_path_that_shrinks_under_a_transfer(engine: str, sender: str) -> None:
    async def main() -> None:
        network = Narrow()
        async with meeting(network, engine) as (server, client, accepted, connected):
            here, there = (accepted, connected) if sender == "server" else (connected, accepted)
            transfer = Transfer()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(transfer.send, here)
                nursery.start_soon(transfer.receive, there)
                await transfer.until(100_000)
                assert await size_of(here) == LARGEST_BYTES
                network.most_bytes = 1400
                await trio.sleep(2 * DELAY_S)  # what was under way has come
                # Within three probe timeouts in a row, and the time to send something after them.
                assert await transfer.until(100_000) < 10 * PTO_S
                assert await size_of(here) == BASE_BYTES
                stack = server if sender == "server" else client
                assert stack.counters().black_holes == 1
                # Larger ones are tried again, and all that the path carries is found in time.
                transfer.pause_s = 1.0
                await trio.sleep(60)
                assert BASE_BYTES < await size_of(here) <= 1400
                network.most_bytes = LARGEST_BYTES
                await trio.sleep(120)
                assert await size_of(here) == LARGEST_BYTES
                assert stack.counters().black_holes == 1
                nursery.cancel_scope.cancel()

    run(main)


@both_engines
@pytest.mark.parametrize(
    ("hosts", "most_bytes"),
    [((SERVER, CLIENT), 1492 - 28), (("fd00::1", "fd00::2"), 1492 - 48), ((SERVER, CLIENT), 1200)],
    ids=["ipv4", "ipv6", "least"],
)
def test_a_path_that_carries_less_from_the_beginning(
    engine: str, hosts: tuple[str, str], most_bytes: int
) -> None:
    async def main() -> None:
        network = Narrow(most_bytes)
        async with meeting(network, engine, hosts=hosts) as (server, client, accepted, connected):
            for here, there in ((accepted, connected), (connected, accepted)):
                await exchange(here, there, bytes(100_000))
            await trio.sleep(3)
            for here, there in ((accepted, connected), (connected, accepted)):
                await exchange(here, there, bytes(100_000))
                assert await size_of(here) == most_bytes
            # Nothing above 1,200 bytes went before a probe had proven it: three probes of each size
            # and connection are lost, and nothing else.
            too_large = {size for size in network.sizes if size > most_bytes}
            assert network.dropped == 2 * 3 * len(too_large)
            assert server.counters().black_holes == client.counters().black_holes == 0

    run(main)


@both_engines
def test_small_packets_that_arrive_hide_no_black_hole(engine: str) -> None:
    async def main() -> None:
        network = Narrow()
        async with meeting(network, engine) as (server, _, accepted, connected):
            transfer = Transfer()
            async with trio.open_nursery() as nursery:

                async def chatter() -> None:
                    # Each is acknowledged, so no probe timeout comes.
                    stream = await accepted.open_stream(unidirectional=True)
                    while True:
                        await stream.send_all(b"small")
                        await trio.sleep(DELAY_S / 2)

                nursery.start_soon(transfer.receive, connected)
                nursery.start_soon(transfer.send, accepted)
                await transfer.until(100_000)
                network.most_bytes = 1400
                # The streams come in the order in which they were opened; this one is not read.
                nursery.start_soon(chatter)
                await trio.sleep(2 * DELAY_S)
                assert await transfer.until(100_000) < 20 * PTO_S
                assert server.counters().black_holes == 1
                nursery.cancel_scope.cancel()

    run(main)


@both_engines
def test_an_outage_costs_no_size_for_long(engine: str) -> None:
    async def main() -> None:
        network = Narrow()
        async with meeting(network, engine) as (_, _, accepted, connected):
            transfer = Transfer()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(transfer.receive, connected)
                nursery.start_soon(transfer.send, accepted)
                await transfer.until(100_000)
                transfer.pause_s = 0.5
                network.most_bytes = 0
                await trio.sleep(3)
                network.most_bytes = LARGEST_BYTES
                await transfer.until(10_000)
                await trio.sleep(30)
                assert await size_of(accepted) == LARGEST_BYTES
                nursery.cancel_scope.cancel()

    run(main)


@both_engines
def test_a_size_that_was_taken_for_granted(engine: str) -> None:
    """Also where the path never carried it."""

    async def main() -> None:
        network = Narrow(1400)
        config = QuicConfig(probe_mtu=False)
        async with meeting(network, engine, config) as (server, client, accepted, connected):
            for here, there in ((accepted, connected), (connected, accepted)):
                await exchange(here, there, bytes(100_000))
                assert await size_of(here) == BASE_BYTES
            assert server.counters().black_holes == client.counters().black_holes == 1

    run(main)


@both_engines
def test_datagrams_of_an_application_shrink_with_the_path(engine: str) -> None:
    async def main() -> None:
        network = Narrow()
        config = QuicConfig(datagram_fifo_bytes=65536)
        async with meeting(network, engine, config) as (_, _, accepted, connected):
            await trio.sleep(1)
            largest = connected.max_datagram_bytes
            assert largest > BASE_BYTES
            network.most_bytes = 1400
            with trio.fail_after(20):
                while connected.max_datagram_bytes == largest:
                    await connected.send_datagram(bytes(largest))
                    await trio.sleep(0.1)
            assert connected.max_datagram_bytes < BASE_BYTES
            # What was too large for the path when its turn came is dropped; nothing gets stuck.
            await connected.send_datagram(b"small enough")
            async for datagram in accepted.datagrams():
                if datagram == b"small enough":
                    break

    run(main)


@pytest.mark.needs_root
@both_engines
@pytest.mark.parametrize("kind", ["af_xdp", "udp"])
def test_an_interface_that_takes_less(veth_pair: VethPair, kind: str, engine: Any) -> None:
    """A veth peer drops frames that are larger than its MTU, as a router in between would."""
    a, b = veth_pair.a, veth_pair.b
    uri = f"quic://{a.ipv4}:4433"

    async def main() -> None:
        async with (
            hoststack.open_stack(link=opened(kind, a), engine=engine) as server,
            hoststack.open_stack(link=opened("udp", b), engine=engine) as client,
            await server.listen(uri, tls=TLS, alpn=["test"]) as listener,
            client.connect(uri, tls=TRUSTING, alpn=["test"]) as connected,
            await listener.accept() as accepted,
        ):
            transfer = Transfer()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(transfer.send, accepted)
                nursery.start_soon(transfer.receive, connected)
                with trio.fail_after(20):
                    while await size_of(accepted) < LARGEST_BYTES:
                        await transfer.until(10_000)
                    b.ip("link", "set", b.ifname, "mtu", "1300")
                    # In GSO's large packets the kernel lets veth carry what is too large for it, so
                    # there nothing need happen.
                    is_cut = kind != "udp"
                    while is_cut and await size_of(accepted) == LARGEST_BYTES:
                        await transfer.until(10_000)
                    await transfer.until(1_000_000)
                nursery.cancel_scope.cancel()

    trio.run(main)
