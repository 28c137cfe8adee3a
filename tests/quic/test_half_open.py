"""Handshakes that nobody finishes, by the thousand, and honest clients beside them.

The floods are of 2,000 first packets a second, on a clock that jumps: what they cost in CPU time is
bench/half_open.py's to measure.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

import hoststack
from hoststack import QuicConfig, Stack, TlsConfig
from hoststack.link.base import Endpoint, Path
from hoststack.link.memory import MemoryNetwork
from hoststack.quic.aioquic.tokens import RetryTokens
from tests.support.checksummed import udp_frame
from tests.support.initials import Initials, read_retry
from tests.support.netns import VethPair
from tests.support.streams import exchange

SERVER, CLIENT, ATTACKER = "10.0.0.1", "10.0.0.2", "10.0.0.66"
SERVER_6, CLIENT_6 = "fd00::1", "fd00:0:0:7::2"
PORT = 4433
TLS = TlsConfig.self_signed(["localhost"])
TRUSTING = TlsConfig(verify=False)
RTT_S = 0.02
PER_SECOND = 2000
PATIENCE_S = 60
ETH_P_IP = 0x0800

pytestmark = pytest.mark.usefixtures("engine")


class Flooded(MemoryNetwork):
    """A network in which a host answers Retry, and nothing else."""

    def __init__(self) -> None:
        super().__init__(delay_s=RTT_S / 2)
        self.initials = Initials()
        self.answers_retry = False
        self.answers: list[bytes] = []
        """What came for the attacker."""

    def _carry(self, data: bytes, path: Path) -> None:
        if path.remote.host not in (SERVER, CLIENT, SERVER_6, CLIENT_6):
            self.answers.append(data)
        if self.answers_retry and path.remote.host in (ATTACKER, CLIENT):
            retry = read_retry(data)
            # A port below 1024 is the attacker's, on the client's host too.
            if retry is not None and path.remote.port < 1024:
                again = self.initials.packet(retry.scid, retry.token)
                super()._carry(again, Path(path.remote, path.local))
                return
        super()._carry(data, path)

    def send(self, source: Endpoint, data: bytes | None = None) -> None:
        """Send a client's first packet, or another datagram, from an address."""
        server = SERVER if "." in source.host else SERVER_6
        path = Path(source, Endpoint(server, PORT))
        self._carry(self.initials.first() if data is None else data, path)

    async def flood(self, source: Callable[[], Endpoint], seconds: float) -> None:
        """Send PER_SECOND first packets a second."""
        for _ in range(round(seconds * 100)):
            for _ in range(PER_SECOND // 100):
                self.send(source())
            await trio.sleep(0.01)


def anybody() -> Endpoint:
    """An address that belongs to nobody."""
    return Endpoint(f"10.{os.urandom(1)[0]}.{os.urandom(1)[0]}.77", 5555)


def ports_of(host: str, ports: int = 16) -> Callable[[], Endpoint]:
    """Some ports of one address, each in turn."""
    sent = iter(range(1 << 30))
    return lambda: Endpoint(host, 100 + next(sent) % ports)


async def handshake(client: Stack, uri: str) -> float:
    """Connect once; how long it took."""
    began = trio.current_time()
    with trio.fail_after(30):
        async with client.connect(uri, tls=TRUSTING, alpn=["test"]):
            return trio.current_time() - began


def run(
    script: Callable[[Flooded, Stack, Stack, str], Awaitable[None]],
    config: QuicConfig | None = None,
    hosts: tuple[str, str] = (SERVER, CLIENT),
) -> None:
    async def main() -> None:
        network = Flooded()
        host, client_host = hosts
        uri = f"quic://{host}:{PORT}" if "." in host else f"quic://[{host}]:{PORT}"
        async with (
            hoststack.open_stack(link=network.link(host), config=config) as server,
            hoststack.open_stack(link=network.link(client_host)) as client,
            await server.listen(uri, tls=TLS, alpn=["test"]) as listener,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(accept, listener)
            await script(network, server, client, uri)
            nursery.cancel_scope.cancel()

    async def accept(listener: Any) -> None:
        while True:
            connection = await listener.accept()
            del connection

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def handshakes_beside(
    network: Flooded, client: Stack, uri: str, source: Callable[[], Endpoint]
) -> list[float]:
    """How long honest handshakes take while the flood goes on."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(network.flood, source, 0.8)
        await trio.sleep(0.6)
        took = [await handshake(client, uri) for _ in range(4)]
        await trio.testing.wait_all_tasks_blocked()
    return took


def test_forged_addresses_are_asked_to_prove_themselves() -> None:
    async def script(network: Flooded, server: Stack, client: Stack, uri: str) -> None:
        took = await handshakes_beside(network, client, uri, anybody)
        # A round trip more than else.
        assert max(took) < 4 * RTT_S
        counters = server.counters()
        assert counters.half_open == 128
        assert counters.retries > PER_SECOND * 0.7
        assert not counters.dropped
        # RFC 9000 section 8.1: what is sent to an address that is not proven.
        assert max(map(len, network.answers)) <= 3 * 1200

    run(script)


def test_one_address_that_answers_retry_and_is_silent_then() -> None:
    async def script(network: Flooded, server: Stack, client: Stack, uri: str) -> None:
        network.answers_retry = True
        took = await handshakes_beside(network, client, uri, ports_of(ATTACKER))
        assert max(took) < 4 * RTT_S
        assert server.counters().half_open <= 128 + 60
        assert server.counters().dropped["refused"] > 900

    run(script, QuicConfig(half_open_per_source=60))


def test_its_neighbours_behind_one_nat_are_not_locked_out() -> None:
    async def script(network: Flooded, server: Stack, client: Stack, uri: str) -> None:
        network.answers_retry = True
        took = await handshakes_beside(network, client, uri, ports_of(CLIENT))
        assert max(took) < 4 * RTT_S
        assert server.counters().half_open <= 128 + 60

    run(script, QuicConfig(half_open_per_source=60))


def test_without_retry_the_oldest_makes_room() -> None:
    async def script(network: Flooded, server: Stack, client: Stack, uri: str) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(network.flood, anybody, 0.3)
            await trio.sleep(0.2)
            assert await handshake(client, uri) < 4 * RTT_S
        counters = server.counters()
        assert not counters.retries
        # The connection that is there counts, and nobody knocks it out.
        assert counters.connections <= 101
        assert counters.dropped["replaced"] > 400

    run(script, QuicConfig(retry_above_half_open=None, max_connections=100))


def test_a_handshake_makes_room_in_the_turn_in_which_its_timer_fires() -> None:
    async def script(network: Flooded, server: Stack, client: Stack, uri: str) -> None:
        network.send(anybody())
        await trio.sleep(RTT_S)
        worker: Any = server
        for _ in range(5):
            deadline = worker._worker.layer.engine.next_deadline
            await trio.sleep_until(deadline - RTT_S / 2)
            network.send(anybody())
            await trio.sleep(RTT_S)
        assert server.counters().dropped == {"replaced": 5}
        assert await handshake(client, uri) < 4 * RTT_S

    run(script, QuicConfig(retry_above_half_open=None, max_connections=1))


def test_handshakes_do_not_use_up_the_connections_there_may_be() -> None:
    async def script(network: Flooded, server: Stack, client: Stack, uri: str) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(network.flood, anybody, 0.3)
            await trio.sleep(0.2)
            assert await handshake(client, uri) < 4 * RTT_S
        # Only one that had shown its address took another's place.
        assert server.counters().dropped == {"replaced": 1}

    run(script, QuicConfig(max_connections=20))


def test_established_connections_stay_when_there_is_no_room() -> None:
    async def script(network: Flooded, server: Stack, client: Stack, uri: str) -> None:
        async with client.connect(uri, tls=TRUSTING, alpn=["test"]) as connected:
            await trio.sleep(RTT_S)
            await network.flood(anybody, 0.1)
            await trio.sleep(RTT_S)
            assert server.counters().dropped == {"refused": PER_SECOND // 10}
            await (await connected.open_stream()).send_all(b"still here")

    run(script, QuicConfig(max_connections=1))


def test_first_packets_that_are_none_bring_retry_too() -> None:
    async def script(network: Flooded, server: Stack, client: Stack, uri: str) -> None:
        for _ in range(200):
            data = bytearray(network.initials.first())
            data[-1] ^= 1
            network.send(anybody(), bytes(data))
        await trio.sleep(2 * RTT_S)
        counters = server.counters()
        assert counters.dropped["unreadable_initial"] == 20
        assert counters.retries == 180
        assert await handshake(client, uri) < 4 * RTT_S

    run(script, QuicConfig(retry_above_half_open=20))


def test_all_addresses_of_an_ipv6_64_are_one_source() -> None:
    def one_of_64() -> Endpoint:
        return Endpoint(f"fd00:0:0:66::{os.urandom(2).hex()}", 100)

    async def script(network: Flooded, server: Stack, client: Stack, uri: str) -> None:
        carry = network._carry

        def answering(data: bytes, path: Path) -> None:
            retry = read_retry(data) if path.remote.host.startswith("fd00:0:0:66:") else None
            if retry is not None:
                back = Path(path.remote, path.local)
                carry(network.initials.packet(retry.scid, retry.token), back)
            else:
                carry(data, path)

        network._carry = answering  # type: ignore[method-assign]
        await network.flood(one_of_64, 0.1)
        await trio.sleep(3 * RTT_S)
        assert server.counters().half_open == 30
        assert await handshake(client, uri) < 4 * RTT_S

    config = QuicConfig(retry_above_half_open=0, half_open_per_source=30)
    run(script, config, (SERVER_6, CLIENT_6))


@pytest.mark.parametrize("change", ["another address", "another port", "a changed byte"])
def test_a_token_that_does_not_hold_is_refused(change: str) -> None:
    async def script(network: Flooded, server: Stack, client: Stack, uri: str) -> None:
        source = Endpoint(ATTACKER, 100)
        network.send(source)
        await trio.sleep(2 * RTT_S)
        retry = read_retry(network.answers[-1])
        assert retry is not None
        token = retry.token
        if change == "another address":
            source = Endpoint("10.0.0.67", 100)
        elif change == "another port":
            source = Endpoint(ATTACKER, 101)
        else:
            token = token[:-1] + bytes((token[-1] ^ 1,))
        network.send(source, network.initials.packet(retry.scid, token))
        await trio.sleep(2 * RTT_S)
        counters = server.counters()
        assert counters.dropped == {"bad_token": 1}
        assert counters.connections == 0
        # CONNECTION_CLOSE with INVALID_TOKEN goes back in an Initial packet.
        assert network.answers[-1][0] & 0xF0 == 0xC0

    run(script, QuicConfig(retry_above_half_open=0))


def test_aioquics_tokens_age(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, source, now_ns = RetryTokens(bytes(32)), Endpoint(CLIENT, 5), time.time_ns()
    token = tokens.make(source, 1, b"retry's", b"first")
    monkeypatch.setattr(time, "time_ns", lambda: now_ns + 9 * 10**9)
    assert tokens.original_dcid(token, source, 1, b"retry's") == b"first"
    monkeypatch.setattr(time, "time_ns", lambda: now_ns + 11 * 10**9)
    assert tokens.original_dcid(token, source, 1, b"retry's") is None


@pytest.mark.parametrize("cut", [0, 1, 5, 13, 20])
def test_aioquics_tokens_cut_short(cut: int) -> None:
    tokens, source = RetryTokens(bytes(32)), Endpoint(CLIENT, 5)
    token = tokens.make(source, 1, b"retry's", b"first")[:cut]
    assert tokens.original_dcid(token, source, 1, b"retry's") is None


def test_a_client_goes_on_after_retry() -> None:
    async def main() -> None:
        network = MemoryNetwork(seed=4, loss=0.1, delay_s=0.01)
        uri = f"quic://{SERVER}:{PORT}"
        config = QuicConfig(retry_above_half_open=0)
        async with (
            hoststack.open_stack(link=network.link(SERVER), config=config) as server,
            hoststack.open_stack(link=network.link(CLIENT)) as client,
            await server.listen(uri, tls=TLS, alpn=["test"]) as listener,
            client.connect(uri, tls=TRUSTING, alpn=["test"]) as connected,
            await listener.accept() as accepted,
        ):
            assert server.counters().retries
            await exchange(connected, accepted, bytes(100_000))

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


# --- over real links ---


@pytest.mark.needs_root
@pytest.mark.parametrize("link", ["af_xdp", "udp"])
def test_strangers_are_answered_without_a_path(veth_pair: VethPair, link: Any, engine: str) -> None:
    """Each answer goes back to where its datagram came from: paths for all would fill the table."""
    if engine != "native":
        pytest.skip("aioquic's links make a path for each datagram")
    here, there = veth_pair.a, veth_pair.b
    here.ip("route", "add", "default", "via", there.ipv4)
    macs, count = here.mac + there.mac, 100
    initials = Initials()
    config = QuicConfig(retry_above_half_open=0)
    with there.inside():
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_IP))
        wire.bind((there.ifname, ETH_P_IP))
        wire.setblocking(False)

    async def ask(data: bytes, source: str, port: int) -> bytes:
        """Send a datagram; the answer's."""
        ends = (source, here.ipv4)
        wire.send(udp_frame(data, macs=macs, hosts=ends, ports=(5555, port)))
        while True:
            await trio.lowlevel.wait_readable(wire)
            frame = wire.recv(2048)
            # Behind the Ethernet header: IPv4's addresses, and UDP's payload.
            if frame[26:34] == socket.inet_aton(here.ipv4) + socket.inet_aton(source):
                return frame[42:]

    async def main() -> None:
        async with (
            hoststack.open_stack(here.ifname, link=link, config=config) as stack,
            await stack.listen(f"quic://{here.ipv4}:0", tls=TLS, alpn=["test"]) as listener,
        ):
            port = listener.local[1]
            for number in range(count):
                answer = await ask(initials.first(), f"10.200.1.{number + 1}", port)
                assert read_retry(answer) is not None
            unknown = bytearray(initials.first())
            unknown[1:5] = bytes.fromhex("1a2a3a4a")
            assert (await ask(bytes(unknown), "10.200.2.1", port))[1:5] == bytes(4)
            worker: Any = stack
            assert worker._worker.layer.engine._wire.path_count == 0
            # Who answers has a path.
            retry = read_retry(await ask(initials.first(), "10.200.3.1", port))
            assert retry is not None
            again = initials.packet(retry.scid, retry.token)
            assert (await ask(again, "10.200.3.1", port))[0] & 0xF0 == 0xC0
            counters = stack.counters()
            assert (counters.retries, counters.half_open) == (count + 1, 1)
            assert counters.dropped == {"unknown_version": 1}

    async def in_time() -> None:
        with trio.fail_after(PATIENCE_S):
            await main()

    with wire, here.inside():
        trio.run(in_time)
