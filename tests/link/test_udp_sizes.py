"""What a path of the UDP link carries: when an MTU shrinks, and where there is no way."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
import trio

import hoststack
from hoststack import TlsConfig
from hoststack.link.base import Endpoint
from hoststack.link.udp.link import UdpLink
from hoststack.worker import engines
from tests.support.links import running
from tests.support.netns import Side, VethPair
from tests.support.streams import exchange

pytestmark = pytest.mark.needs_root

TLS = TlsConfig.self_signed(["localhost"])
TRUSTING = TlsConfig(verify=False)
LOOPBACK = {"ipv4": "127.0.0.1", "ipv6": "::1"}
HEADER_BYTES = {"ipv4": 28, "ipv6": 48}

needs_native = pytest.mark.skipif(
    "native" not in engines.available_engines(), reason="the native engine was not built"
)


@pytest.fixture
def side(veth_pair: VethPair) -> Iterator[Side]:
    """A namespace, for the sake of its loopback interface; the test is in it."""
    veth_pair.a.ip("link", "set", "lo", "up")
    with veth_pair.a.inside():
        yield veth_pair.a


def set_mtu(side: Side, mtu_bytes: int) -> None:
    side.ip("link", "set", "lo", "mtu", str(mtu_bytes))


@needs_native
@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_a_connection_goes_on_when_the_mtu_shrinks(side: Side, family: str) -> None:
    host = LOOPBACK[family]
    uri = f"quic://[{host}]" if family == "ipv6" else f"quic://{host}"

    async def main() -> None:
        async with (
            hoststack.open_stack(link="udp", engine="native") as server,
            hoststack.open_stack(link="udp", engine="native") as client,
            await server.listen(f"{uri}:4433", tls=TLS, alpn=["test"]) as listener,
            client.connect(f"{uri}:4433", tls=TRUSTING, alpn=["test"]) as connected,
            await listener.accept() as accepted,
        ):
            with trio.fail_after(10):
                await exchange(connected, accepted, bytes(1_000_000))
                assert "tx_emsgsize" not in client.link.statistics()
                set_mtu(side, 4000)
                await exchange(connected, accepted, bytes(1_000_000))
                # Two bursts at most were too large.
                assert 0 < client.link.statistics()["tx_emsgsize"] <= 128

    trio.run(main)


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_without_an_engine_in_c(side: Side, family: str) -> None:
    host = LOOPBACK[family]

    async def main() -> None:
        link = UdpLink()
        try:
            here = link.open_port(Endpoint(host, 0))
            async with running(link):
                path = await link.connect_path(here.port, here)
                assert link.max_datagram_bytes(path) == 16384
                set_mtu(side, 4000)
                assert link.send([(bytes(16384), path), (bytes(100), path)]) == 2
                assert link.max_datagram_bytes(path) == 4000 - HEADER_BYTES[family]
                statistics = link.statistics()
                assert statistics["tx_emsgsize"] == 1
                assert (statistics["tx_datagrams"], statistics["tx_bytes"]) == (1, 100)
        finally:
            link.close()

    trio.run(main)


def unreachable(pair: VethPair) -> socket.socket:
    """A socket on side b at an address to which side a has no route. Anyone can forge one."""
    pair.b.ip("address", "add", "203.0.113.5/32", "dev", pair.b.ifname)
    with pair.b.inside():
        stranger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        stranger.bind(("203.0.113.5", 0))
    return stranger


def test_who_is_out_of_reach_is_no_error(veth_pair: VethPair) -> None:
    a, stranger = veth_pair.a, unreachable(veth_pair)

    async def main() -> None:
        link = UdpLink()
        try:
            here = link.open_port(Endpoint(a.ipv4, 0))
            async with running(link):
                stranger.sendto(b"from nowhere", here)
                while not (received := link.receive()):
                    await link.wait_readable()
                ((_, path, _),) = received
                assert link.max_datagram_bytes(path) == 1200
                assert link.send([(b"to nowhere", path)]) == 1
                statistics = link.statistics()
                assert statistics["tx_enetunreach"] == 1
                assert (statistics["tx_datagrams"], statistics["tx_bytes"]) == (0, 0)
        finally:
            link.close()

    with a.inside(), stranger:
        trio.run(main)


def test_a_stack_outlives_who_is_out_of_reach(veth_pair: VethPair, engine: str) -> None:
    a, stranger = veth_pair.a, unreachable(veth_pair)
    # A long header of a version that nobody has: it is answered (RFC 9000 section 6.1).
    unknown = b"\xc0\x0a\x0a\x0a\x0a\x08" + bytes(8) + b"\x00"

    async def main() -> None:
        async with (
            hoststack.open_stack(link="udp", engine=engine) as server,
            await server.listen(f"quic://{a.ipv4}:4433", tls=TLS, alpn=["test"]),
        ):
            stranger.sendto(unknown.ljust(1200, b"\x00"), (a.ipv4, 4433))
            with trio.fail_after(10):
                while not server.link.statistics().get("tx_enetunreach"):
                    await trio.lowlevel.checkpoint()

    with a.inside(), stranger:
        trio.run(main)
