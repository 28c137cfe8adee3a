"""The datagrams that a client begins with, in whatever order the network brings them: parts of a
large ClientHello, and 0-RTT packets."""

from __future__ import annotations

import itertools
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration

import hoststack
from hoststack import Connection, QuicConfig, SessionCache, Stack, Stream, TlsConfig
from hoststack.link.base import Endpoint, Path
from hoststack.link.memory import MemoryNetwork
from tests.support.initials import Initials
from tests.support.stock_peer import StockPeer

SERVER, CLIENT = "10.0.0.1", "10.0.0.2"
PORT = 4433
URI = f"quic://{SERVER}:{PORT}"
TLS = TlsConfig.self_signed(["localhost", SERVER])
EARLY = QuicConfig(early_data=True, retry_above_half_open=None)
RTT_S = 0.02

Datagrams = list[tuple[bytes, Path]]
Rule = Callable[[Datagrams], Sequence[tuple[bytes, Path]]]


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(60):
            await main()

    trio.run(bounded, clock=trio.testing.MockClock(autojump_threshold=0))


class Reordering(MemoryNetwork):
    """A network that keeps what goes to the server while it is told to."""

    def __init__(self) -> None:
        super().__init__(delay_s=RTT_S / 2)
        self.kept: Datagrams | None = None
        self.came = trio.Event()

    def _carry(self, data: bytes, path: Path) -> None:
        if self.kept is not None and path.remote.host == SERVER:
            self.kept.append((data, path))
            self.came.set()
        else:
            super()._carry(data, path)

    async def change(self, *rules: Rule) -> None:
        """Let a rule decide in what order the client's first flight arrives, and the next one for
        each further rule."""
        for rule in rules:
            self.kept, self.came = [], trio.Event()
            await self.came.wait()
            await trio.sleep(RTT_S / 20)
            flight, self.kept = self.kept, None
            for data, path in rule(flight):
                self._carry(data, path)


# --- a large ClientHello ---

#: As large as with two post-quantum key shares: three datagrams.
LARGE = QuicConfiguration(
    is_client=True,
    alpn_protocols=[*(f"a-long-name-{i:03}-".ljust(120, "x") for i in range(22)), "test"],
    verify_mode=ssl.CERT_NONE,
)
ORDERS = ["".join(order) for order in itertools.permutations("012")]


def in_order(order: str) -> Rule:
    """By numbers: "021" swaps the last two, "0012" sends the first twice."""
    return lambda flight: [flight[int(at)] for at in order]


@pytest.mark.parametrize("order", [*ORDERS, "2211001122", "20", "12"])
@pytest.mark.parametrize("retry", [None, 0], ids=["at once", "after Retry"])
def test_a_client_hello_of_three_datagrams(engine: str, order: str, retry: int | None) -> None:
    async def main() -> None:
        network = Reordering()
        config = QuicConfig(retry_above_half_open=retry)
        async with (
            hoststack.open_stack(link=network.link(SERVER), config=config) as stack,
            await stack.listen(URI, tls=TLS, alpn=["test"]) as listener,
            trio.open_nursery() as nursery,
        ):
            began = trio.current_time()
            rules = [in_order(order)] * (1 if retry is None else 2)
            nursery.start_soon(network.change, *rules)
            peer = StockPeer(network.link(CLIENT))
            await peer.connect(LARGE, SERVER, PORT)
            nursery.start_soon(peer.run)
            async with await listener.accept() as accepted:
                assert accepted.alpn == "test"
                await peer.wait_for(events.HandshakeCompleted)
                if set(order) == set("012"):
                    # Nothing had to be sent again: at most the way there, Retry's and the rest.
                    assert trio.current_time() - began < 4 * RTT_S
                counters = stack.counters()
                assert counters.accepted == 1
                assert "unreadable_initial" not in counters.dropped
            nursery.cancel_scope.cancel()

    run(main)


def test_later_parts_alone_begin_no_connection(engine: str) -> None:
    async def main() -> None:
        network, initials = Reordering(), Initials()
        async with (
            hoststack.open_stack(link=network.link(SERVER)) as stack,
            await stack.listen(URI, tls=TLS, alpn=["test"]),
        ):
            path = Path(Endpoint(CLIENT, 5), Endpoint(SERVER, PORT))
            for _ in range(500):
                network._carry(initials.packet(os.urandom(8), at=100), path)
            await trio.sleep(RTT_S)
            # They count as what they are, and Retry keeps the others out.
            assert stack.counters().half_open == 128
            assert stack.counters().retries == 372
            await trio.sleep(11)
            assert stack.counters().half_open == 0
            assert stack.counters().connections == 0

    run(main)


# --- 0-RTT ---


def is_0rtt(data: bytes) -> bool:
    """Whether a datagram is nothing but 0-RTT; its type has another number in version 2."""
    return data[0] & 0xF0 == (0xD0 if data[1:5] == bytes((0, 0, 0, 1)) else 0xE0)


def early(flight: Datagrams) -> Datagrams:
    return [each for each in flight if is_0rtt(each[0])]


def others(flight: Datagrams) -> Datagrams:
    return [each for each in flight if not is_0rtt(each[0])]


RULES: dict[str, Rule] = {
    "as sent": lambda flight: flight,
    "the Initial last": lambda flight: early(flight) + others(flight),
    "backwards": lambda flight: flight[::-1],
    "twice": lambda flight: (early(flight) + others(flight)) * 2,
    "the Initial lost": early,
}


@asynccontextmanager
async def server_on(network: MemoryNetwork, engine: Any, config: QuicConfig) -> AsyncIterator[Any]:
    seen: list[tuple[str, bytes]] = []

    async def handler(connection: Connection) -> None:
        state = connection.early_data
        async for stream in connection.streams():
            assert isinstance(stream, Stream)
            async with stream:
                seen.append((state, b"".join([chunk async for chunk in stream])))
                await stream.send_all(b"thanks")

    async with (
        hoststack.open_stack(link=network.link(SERVER), engine=engine, config=config) as stack,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(partial(stack.serve, URI, handler, tls=TLS, alpn=["test"]))
        yield stack, seen
        nursery.cancel_scope.cancel()


def client_on(network: MemoryNetwork, version: int) -> AbstractAsyncContextManager[Stack]:
    config = replace(EARLY, version=version)
    return hoststack.open_stack(link=network.link(CLIENT), engine="native", config=config)


async def ask(client: Stack, tls: TlsConfig, data: bytes) -> Connection:
    async with client.connect(URI, tls=tls, alpn=["test"]) as connection:
        stream = await connection.open_stream()
        async with stream:
            await stream.send_all(data)
            await stream.send_eof()
            assert b"".join([chunk async for chunk in stream]) == b"thanks"
        await connection.wait_handshake()
        return connection


@pytest.mark.parametrize(
    ("rule", "version"), [*((rule, 1) for rule in RULES), ("the Initial last", 2)]
)
@pytest.mark.parametrize("retry", [None, 0], ids=["at once", "after Retry"])
@pytest.mark.parametrize("server_engine", ["native", "aioquic"])
def test_0rtt_waits_for_its_client_hello(
    server_engine: str, rule: str, retry: int | None, version: int
) -> None:
    async def main() -> None:
        network, cache = Reordering(), SessionCache()
        tls = TlsConfig(verify=False, sessions=cache)
        config = QuicConfig(early_data=True, retry_above_half_open=retry)
        async with (
            server_on(network, server_engine, config) as (stack, seen),
            client_on(network, version) as client,
            trio.open_nursery() as nursery,
        ):
            await ask(client, tls, b"first")
            for known in cache._servers.values():
                known.tokens.clear()
            before = stack.counters()
            rules = [RULES["as sent"]] if retry == 0 else []
            nursery.start_soon(network.change, *rules, RULES[rule])
            data = os.urandom(6000)
            connection = await ask(client, tls, data)
            assert connection.early_data == "accepted"
            assert seen[1] == ("pending", data)
            counters = stack.counters()
            if server_engine == "native":
                # All of it came early, and none of it a second time.
                assert counters.rx_packets["0rtt"] - before.rx_packets.get("0rtt", 0) >= 5
            if retry is None:
                assert "unknown_cid" not in counters.dropped

    run(main)


def test_0rtt_between_the_parts_of_a_client_hello(engine: str) -> None:
    """ngtcp2 would drop it; the counters show that it waited, for nobody here has its keys."""

    async def main() -> None:
        network, initials = Reordering(), Initials()
        dcid = os.urandom(8)
        path = Path(Endpoint(CLIENT, 5), Endpoint(SERVER, PORT))
        async with (
            hoststack.open_stack(link=network.link(SERVER), config=EARLY) as stack,
            await stack.listen(URI, tls=TLS, alpn=["test"]),
        ):
            network._carry(initials.packet(dcid, end=100), path)
            await trio.sleep(RTT_S)
            for _ in range(300):
                network._carry(some_0rtt(dcid), path)
            await trio.sleep(RTT_S)
            # The store holds 256.
            assert stack.counters().dropped == {"unknown_cid": 44}
            network._carry(initials.packet(dcid, at=100), path)
            await trio.sleep(RTT_S)
            assert stack.counters().dropped["unknown_cid"] == 44

    run(main)


def some_0rtt(dcid: bytes, size: int = 1200) -> bytes:
    """What looks like a 0-RTT packet."""
    header = b"\xd0" + (1).to_bytes(4, "big") + bytes((len(dcid),)) + dcid + b"\0"
    length = size - len(header) - 2
    return header + (0x4000 | length).to_bytes(2, "big") + os.urandom(length)


@pytest.mark.parametrize(("size", "held"), [(1200, 256), (4000, 131), (30, 256)])
def test_a_flood_of_0rtt_is_held_within_bounds(engine: str, size: int, held: int) -> None:
    async def main() -> None:
        network = Reordering()
        path = Path(Endpoint(CLIENT, 5), Endpoint(SERVER, PORT))
        async with (
            hoststack.open_stack(link=network.link(SERVER), config=EARLY) as stack,
            await stack.listen(URI, tls=TLS, alpn=["test"]),
        ):
            for _ in range(1000):
                network._carry(some_0rtt(os.urandom(8), size), path)
            await trio.sleep(RTT_S)
            assert stack.counters().dropped == {"unknown_cid": 1000 - held}
            await trio.sleep(2)
            network._carry(b"\0" * 30, path)  # a turn
            await trio.sleep(RTT_S)
            assert stack.counters().dropped["unknown_cid"] == 1000 + 1
            assert stack.counters().connections == 0

    run(main)


# --- over sockets: nothing is known of the path yet ---


class Relay:
    """Carries datagrams between a client and a server. `begin` makes it change its own address, as
    a NAT does, and send the first datagrams from there in one burst."""

    def __init__(self, server: tuple[str, int]) -> None:
        self._server = server
        self._sockets = ExitStack()
        self._near = self._socket()
        self._far = self._near
        self._first: list[bytes] = []
        self._burst = 0
        self.port: int = self._near.getsockname()[1]

    def _socket(self) -> socket.socket:
        made = self._sockets.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        made.bind(("127.0.0.1", 0))
        made.setblocking(False)
        return made

    def begin(self, burst: int) -> None:
        self._far, self._burst, self._first = self._socket(), burst, []

    async def run(self) -> None:
        with self._sockets:
            async with trio.open_nursery() as nursery:
                returning = self._near
                while True:
                    await trio.lowlevel.wait_readable(self._near)
                    data, client = self._near.recvfrom(65536)
                    if self._burst > 1 and not data[0] & 0x80:
                        continue  # the last words of the connection before
                    self._first.append(data)
                    if len(self._first) < self._burst:
                        continue
                    if returning is not self._far:
                        returning = self._far
                        nursery.start_soon(self._return, returning, client)
                    for each in self._first:
                        self._far.sendto(each, self._server)
                    self._first.clear()
                    self._burst = 1

    async def _return(self, far: socket.socket, client: tuple[str, int]) -> None:
        while True:
            await trio.lowlevel.wait_readable(far)
            self._near.sendto(far.recv(65536), client)


@pytest.mark.parametrize("burst", [8, 2])
@pytest.mark.parametrize("server_engine", ["native", "aioquic"])
def test_0rtt_in_the_burst_of_its_initial(server_engine: Any, burst: int) -> None:
    async def handler(connection: Connection) -> None:
        async for stream in connection.streams():
            assert isinstance(stream, Stream)
            async with stream:
                data = b"".join([chunk async for chunk in stream])
                await stream.send_all(data)

    async def ask_at(client: Stack, tls: TlsConfig, port: int, data: bytes) -> str:
        uri = f"quic://127.0.0.1:{port}"
        async with client.connect(uri, tls=tls, alpn=["test"]) as connection:
            async with await connection.open_stream() as stream:
                await stream.send_all(data)
                await stream.send_eof()
                assert b"".join([chunk async for chunk in stream]) == data
            await connection.wait_handshake()
            return connection.early_data

    async def main() -> None:
        cache = SessionCache()
        tls = TlsConfig(verify=False, server_name="localhost", sessions=cache)
        with trio.fail_after(30):
            async with (
                hoststack.open_stack(link="udp", engine=server_engine, config=EARLY) as server,
                hoststack.open_stack(link="udp", engine="native", config=EARLY) as client,
                trio.open_nursery() as nursery,
            ):
                serve = partial(server.serve, "quic://127.0.0.1:0", handler, tls=TLS, alpn=["test"])
                local = (await nursery.start(serve)).local
                relay = Relay((local[0], local[1]))
                nursery.start_soon(relay.run)
                relay.begin(1)
                assert await ask_at(client, tls, relay.port, b"first") == "none"
                # Where this process is held up, the handshake is over before the data are sent.
                for _ in range(5):
                    relay.begin(burst)
                    data = os.urandom(12_000)
                    assert await ask_at(client, tls, relay.port, data) == "accepted"
                    counters = server.counters()
                    assert "unknown_cid" not in counters.dropped
                    if (
                        server_engine != "native"
                        or counters.rx_packets.get("0rtt", 0) >= burst // 2
                    ):
                        break
                else:
                    pytest.fail("no 0-RTT packet was read")
                nursery.cancel_scope.cancel()

    trio.run(main)


@pytest.mark.parametrize("server_engine", ["native", "aioquic"])
def test_a_client_with_more_protocols_than_a_server_could_offer(server_engine: str) -> None:
    """Their names are most of a ClientHello, whose last datagram comes first."""
    protocols = [f"{i:02}" + "a" * 253 for i in range(31)]

    async def main() -> None:
        network = Reordering()
        async with (
            hoststack.open_stack(link=network.link(SERVER), engine=server_engine) as server,
            hoststack.open_stack(link=network.link(CLIENT), engine="aioquic") as client,
            await server.listen(URI, tls=TLS, alpn=["test"]),
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(network.change, lambda flight: flight[::-1])
            async with client.connect(
                URI, tls=TlsConfig(verify=False), alpn=[*protocols, "test"]
            ) as connection:
                assert connection.alpn == "test"

    run(main)
