"""The udp link over the loopback interface."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import trio

from hoststack.link.base import BURST, Endpoint, LinkError, Outgoing, Path, Received
from hoststack.link.udp.link import UdpLink
from tests.support.netns import VethPair, run

LOOPBACK = {"ipv4": "127.0.0.1", "ipv6": "::1"}
ANY = {"ipv4": "0.0.0.0", "ipv6": "::"}
FAMILIES = ["ipv4", "ipv6"]
#: Longer than anything here takes: the deadline of a test that would wait for ever.
PATIENCE_S = 60
SO_RCVBUFFORCE = 33  # asm-generic/socket.h
#: A queue that holds more than a socket's buffer, and empties in a fraction of a second.
SHAPED = ["rate", "100mbit", "burst", "64kb", "limit", "64mb"]


@contextmanager
def opened() -> Iterator[UdpLink]:
    """A link, closed at the end."""
    link = UdpLink()
    try:
        yield link
    finally:
        link.close()


@contextmanager
def plain_socket(host: str) -> Iterator[socket.socket]:
    """A kernel socket to talk with."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as made:
        made.bind((host, 0))
        made.settimeout(PATIENCE_S)
        yield made


def endpoint_of(plain: socket.socket) -> Endpoint:
    """Where a kernel socket is bound."""
    return Endpoint(*plain.getsockname()[:2])


async def receive(link: UdpLink, count: int) -> list[Received]:
    """Wait for that many datagrams."""
    got: list[Received] = []
    with trio.fail_after(PATIENCE_S):
        while len(got) < count:
            await link.wait_readable()
            got += link.receive()
    return got


async def send(link: UdpLink, burst: Sequence[Outgoing]) -> None:
    """Send all, waiting for room where there is none."""
    with trio.fail_after(PATIENCE_S):
        while burst:
            burst = burst[link.send(burst) :]
            await link.wait_writable()


@pytest.mark.parametrize("bound_to", [LOOPBACK, ANY], ids=["address", "wildcard"])
@pytest.mark.parametrize("family", FAMILIES)
def test_both_ways(family: str, bound_to: dict[str, str]) -> None:
    host = LOOPBACK[family]

    async def main() -> None:
        with opened() as left, opened() as right:
            here = left.open_port(Endpoint(bound_to[family], 0))
            there = right.open_port(Endpoint(bound_to[family], 0))
            assert here.host == there.host == bound_to[family]
            path = await left.connect_path(here.port, Endpoint(host, there.port))
            # A wildcard gives way to the address that is really used.
            assert path == Path(Endpoint(host, here.port), Endpoint(host, there.port))
            payloads = [bytes([n]) * (n * 7) for n in range(200)]
            await send(left, [(data, path) for data in payloads])
            got = await receive(right, 200)
            assert [data for data, _, _ in got] == payloads
            back = got[0][1]
            assert back == Path(path.remote, path.local)
            assert all(each is back and ecn == 0 for _, each, ecn in got)
            await send(right, [(b"back", back)])
            assert [(d, p) for d, p, _ in await receive(left, 1)] == [(b"back", path)]
            assert left.statistics() == {
                "tx_datagrams": 200,
                "tx_bytes": sum(map(len, payloads)),
                "rx_datagrams": 1,
                "rx_bytes": 4,
            }

    trio.run(main)


def test_wildcard_answers_from_the_address_that_was_asked() -> None:
    async def main() -> None:
        with opened() as link, plain_socket("127.0.0.1") as peer:
            port = link.open_port(Endpoint("0.0.0.0", 0)).port
            peer.sendto(b"question", ("127.0.0.7", port))
            ((_, path, _),) = await receive(link, 1)
            assert path.local == Endpoint("127.0.0.7", port)
            assert link.send([(b"answer", path)]) == 1
            assert peer.recvfrom(100) == (b"answer", ("127.0.0.7", port))

    trio.run(main)


@pytest.mark.parametrize("ecn", [0, 1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_ecn_is_received(family: str, ecn: int) -> None:
    level, option = {
        "ipv4": (socket.IPPROTO_IP, socket.IP_TOS),
        "ipv6": (socket.IPPROTO_IPV6, socket.IPV6_TCLASS),
    }[family]

    async def main() -> None:
        with opened() as link, plain_socket(LOOPBACK[family]) as peer:
            endpoint = link.open_port(Endpoint(LOOPBACK[family], 0))
            # With bits of the DSCP, which are none of ECN's.
            peer.setsockopt(level, option, 0xB8 | ecn)
            peer.sendto(b"x", endpoint)
            ((_, _, seen),) = await receive(link, 1)
            assert seen == ecn

    trio.run(main)


def test_a_burst_has_its_budget() -> None:
    async def main() -> None:
        with opened() as link, plain_socket("127.0.0.1") as peer:
            endpoint = link.open_port(Endpoint("127.0.0.1", 0))
            assert link.receive() == []
            for number in range(150):
                peer.sendto(bytes([number]), endpoint)
            sizes = (1, 10, BURST, 0, BURST, BURST, BURST)
            bursts = [link.receive(size) for size in sizes]
            assert [len(burst) for burst in bursts] == [1, 10, BURST, 0, BURST, 11, 0]
            assert [data for burst in bursts for data, _, _ in burst] == [
                bytes([number]) for number in range(150)
            ]

    trio.run(main)


def test_empty_datagram() -> None:
    async def main() -> None:
        with opened() as link, plain_socket("127.0.0.1") as peer:
            endpoint = link.open_port(Endpoint("127.0.0.1", 0))
            peer.sendto(b"", endpoint)
            ((data, path, _),) = await receive(link, 1)
            assert data == b""
            assert link.send([(b"", path)]) == 1
            assert peer.recv(100) == b""

    trio.run(main)


@pytest.mark.parametrize("family", FAMILIES)
def test_too_large_is_counted_and_taken(family: str) -> None:
    host = LOOPBACK[family]

    async def main() -> None:
        with opened() as link, plain_socket(host) as peer:
            port = link.open_port(Endpoint(host, 0)).port
            path = await link.connect_path(port, endpoint_of(peer))
            most = link.max_datagram_bytes(path)
            huge = bytes(65536)
            burst = [b"first", huge, bytes(most), huge, b"last"]
            assert link.send([(data, path) for data in burst]) == 5
            assert [peer.recv(65536) for _ in range(3)] == [b"first", bytes(most), b"last"]
            statistics = link.statistics()
            assert statistics["tx_emsgsize"] == 2
            assert statistics["tx_datagrams"] == 3

    trio.run(main)


def test_nobody_listens() -> None:
    """The kernel's refusal of one datagram is no error of the next."""

    async def main() -> None:
        with opened() as link, plain_socket("127.0.0.1") as peer:
            port = link.open_port(Endpoint("127.0.0.1", 0)).port
            with plain_socket("127.0.0.1") as gone:
                nobody = endpoint_of(gone)
            lost = await link.connect_path(port, nobody)
            path = await link.connect_path(port, endpoint_of(peer))
            for number in range(10):
                assert link.send([(b"lost", lost), (bytes([number]), path)]) == 2
                assert peer.recv(100) == bytes([number])
            assert link.receive() == []

    trio.run(main)


def test_port_in_use() -> None:
    with opened() as link, opened() as other:
        endpoint = link.open_port(Endpoint("127.0.0.1", 0))
        for each in (link, other):
            with pytest.raises(LinkError, match="ss -ulpn") as caught:
                each.open_port(endpoint)
            assert caught.value.errno == errno.EADDRINUSE


def test_foreign_address() -> None:
    with opened() as link, pytest.raises(LinkError, match=r"192\.0\.2\.1") as caught:
        link.open_port(Endpoint("192.0.2.1", 0))
    assert caught.value.errno == errno.EADDRNOTAVAIL


def test_path_from_a_port_that_is_not_open() -> None:
    async def main() -> None:
        with opened() as link:
            with pytest.raises(LinkError, match="open it first") as caught:
                await link.connect_path(1, Endpoint("127.0.0.1", 9))
            assert caught.value.errno == errno.EADDRNOTAVAIL

    trio.run(main)


def test_a_path_at_once() -> None:
    with opened() as link:
        remote = Endpoint("127.0.0.1", 9)
        wildcard = link.open_port(Endpoint("0.0.0.0", 0))
        # From any address of this machine; what is open on that one comes first.
        for host in ("127.0.0.1", "127.0.0.7"):
            local = Endpoint(host, wildcard.port)
            assert link.path_from(local, remote) == Path(local, remote)
        with pytest.raises(LinkError, match="open it first"):
            link.path_from(Endpoint("127.0.0.1", 1), remote)
        with pytest.raises(LinkError, match="no route"):
            link.path_from(Endpoint("127.0.0.1", wildcard.port), Endpoint("255.255.255.255", 9))


def test_ipv4_and_ipv6_share_a_port_number() -> None:
    async def main() -> None:
        with opened() as link, plain_socket("127.0.0.1") as four, plain_socket("::1") as six:
            port = link.open_port(Endpoint("::", 0)).port
            assert link.open_port(Endpoint("0.0.0.0", port)) == Endpoint("0.0.0.0", port)
            for peer in (four, six):
                path = await link.connect_path(port, endpoint_of(peer))
                assert link.send([(b"x", path)]) == 1
                assert endpoint_of(peer).host == path.local.host
                assert peer.recvfrom(100)[1][1] == port

    trio.run(main)


def test_close_port_gives_it_back() -> None:
    with opened() as link:
        endpoint = link.open_port(Endpoint("127.0.0.1", 0))
        link.close_port(endpoint)
        link.close_port(endpoint)
        with socket.socket(type=socket.SOCK_DGRAM) as other:
            other.bind(endpoint)
        assert link.open_port(endpoint) == endpoint
        assert link.receive() == []


def test_sending_through_a_closed_port_is_counted() -> None:
    async def main() -> None:
        with opened() as link, plain_socket("127.0.0.1") as peer:
            endpoint = link.open_port(Endpoint("127.0.0.1", 0))
            path = await link.connect_path(endpoint.port, endpoint_of(peer))
            link.close_port(endpoint)
            assert link.send([(b"x", path)]) == 1
            assert link.statistics()["tx_ebadf"] == 1

    trio.run(main)


def test_many_sockets_are_fair() -> None:
    """Sockets that always have more than a burst each get their turn."""

    async def main() -> None:
        with opened() as link, plain_socket("127.0.0.1") as peer:
            ports = [link.open_port(Endpoint("127.0.0.1", 0)) for _ in range(8)]
            for endpoint in ports:
                for _ in range(2 * BURST):
                    peer.sendto(b"x", endpoint)
            turns = []
            for _ in range(len(ports)):
                got = link.receive()
                assert len(got) == BURST
                turns += [path.local for _, path, _ in got]
            assert {endpoint: turns.count(endpoint) for endpoint in ports} == dict.fromkeys(
                ports, BURST
            )

    trio.run(main)


def test_close_is_idempotent() -> None:
    link = UdpLink()
    endpoint = link.open_port(Endpoint("127.0.0.1", 0))
    link.close()
    link.close()
    with opened() as other:
        assert other.open_port(endpoint) == endpoint


@pytest.mark.needs_root
def test_a_full_socket_is_waited_for(veth_pair: VethPair) -> None:
    """A slow interface fills the socket's buffer; what found no room is sent later."""
    slow = veth_pair.a
    run("tc", "-n", slow.namespace, "qdisc", "add", "dev", slow.ifname, "root", "tbf", *SHAPED)

    async def main() -> None:
        with opened() as link:
            with veth_pair.b.inside():
                peer = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            # All of them have room there, also where this process has to wait for a processor.
            peer.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
            await peer.bind((veth_pair.b.ipv4, 0))
            there = Endpoint(*peer.getsockname())
            with slow.inside():
                port = link.open_port(Endpoint(slow.ipv4, 0)).port
                path = await link.connect_path(port, there)
            burst = [(number.to_bytes(4, "big") * 300, path) for number in range(8000)]
            taken = link.send(burst)
            assert BURST < taken < len(burst)
            with peer, trio.fail_after(PATIENCE_S):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(send, link, burst[taken:])
                    got = [await peer.recv(1500) for _ in burst]
            # A veth pair may change their order, when its sender moves to another processor.
            assert sorted(got) == [data for data, _ in burst]
            assert link.statistics()["tx_datagrams"] == len(burst)

    trio.run(main)
