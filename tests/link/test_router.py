"""A port on any address of a machine that forwards: what is for others goes to them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import pytest
import trio

import hoststack
import pyxdp
from hoststack import EmbeddedStack, TlsConfig
from hoststack.link.xdp.link import AfXdpLink
from tests.support.links import PATIENCE_S, steering_of
from tests.support.netns import Side, forward, veth_pair

pytestmark = pytest.mark.needs_root

PORT: Final = 4433
#: Who is behind the router.
BEHIND: Final = {4: "10.99.0.2", 6: "fd99::2"}
#: Of the router, on the side that the sender does not see.
FAR: Final = {4: "10.99.0.1", 6: "fd99::1"}
#: A version that nobody knows: a QUIC server answers with those that it does.
PROBE: Final = bytes.fromhex("c01a2a3a4a 08 0102030405060708 00").ljust(1200, b"\0")
TLS: Final = TlsConfig.self_signed(["localhost"])


@dataclass(frozen=True)
class Network:
    """Three machines in a row."""

    near: Side
    router: Side
    """Its interface to `near`, where XDP is."""
    behind: Side


@pytest.fixture
def network() -> Iterator[Network]:
    with veth_pair() as pair, veth_pair() as other:
        router, near, behind = pair.a, pair.b, other.a
        peer = ("peer", "name", "there", "netns", behind.namespace)
        router.ip("link", "add", "far", "type", "veth", *peer)
        for family in (4, 6):
            net, nodad = ("10.99.0.0/24", ()) if family == 4 else ("fd99::/64", ("nodad",))
            bits = net.rpartition("/")[2]
            for side, ifname, hosts in ((router, "far", FAR), (behind, "there", BEHIND)):
                side.ip("address", "add", f"{hosts[family]}/{bits}", "dev", ifname, *nodad)
            gateway = router.ipv4 if family == 4 else router.ipv6
            near.ip(f"-{family}", "route", "add", net, "via", gateway)
        router.ip("link", "set", "far", "up")
        behind.ip("link", "set", "there", "up")
        for family in (4, 6):
            behind.ip(f"-{family}", "route", "add", "default", "via", FAR[family])
        forward(router, 1)
        yield Network(near, router, behind)


async def socket_of(side: Side, family: int, host: str = "") -> trio.socket.SocketType:
    with side.inside():
        kind = socket.AF_INET if family == 4 else socket.AF_INET6
        made = trio.socket.socket(kind, socket.SOCK_DGRAM)
    if host:
        await made.bind((host, PORT))
    return made


def passed_on(stack: EmbeddedStack) -> int:
    assert isinstance(stack.link, AfXdpLink)
    return steering_of(stack.link).counters()["passed_on"]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", ["quic", "udp"])
def test_what_is_for_others_goes_to_them(network: Network, family: int, protocol: str) -> None:
    works, why = pyxdp.available()
    if not works:
        pytest.skip(why)
    router = network.router

    async def main() -> None:
        uri = f"{protocol}://{'0.0.0.0' if family == 4 else '[::]'}:{PORT}"
        tls, alpn = (TLS, ["test"]) if protocol == "quic" else (None, [])
        async with (
            hoststack.open_stack(router.ifname, link="af_xdp") as stack,
            await stack.listen(uri, tls=tls, alpn=alpn) as listener,
        ):
            with (
                await socket_of(network.near, family) as peer,
                await socket_of(network.behind, family, BEHIND[family]) as other,
            ):
                for number in range(10):
                    payload = PROBE + bytes([number])
                    await peer.sendto(payload, (BEHIND[family], PORT))
                    assert await other.recv(2048) == payload
            assert passed_on(stack) == 10
            # What is for the router itself it takes, on whichever side it has that address.
            for address in (router.ipv4 if family == 4 else router.ipv6, FAR[family]):
                with await socket_of(network.near, family) as peer:
                    await peer.sendto(PROBE, (address, PORT))
                    if protocol == "udp":
                        async with await listener.accept() as connection:
                            assert await connection.receive_datagram() == PROBE
                    else:
                        # Version Negotiation (RFC 9000 section 17.2.1)
                        answer, (host, *_) = await peer.recvfrom(2048)
                        assert host == address
                        assert answer[1:5] == bytes(4)
            assert passed_on(stack) == 10

    async def in_time() -> None:
        with trio.fail_after(PATIENCE_S):
            await main()

    with router.inside():
        trio.run(in_time)
