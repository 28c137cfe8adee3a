"""The wires of the links, driven as the native engine drives them: Python decides, C carries."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trio

import pyxdp
from hoststack.link.base import Endpoint, Link, LinkError, Path
from hoststack.link.udp.link import UdpLink
from hoststack.link.wire import CWire
from hoststack.link.xdp.link import AfXdpLink, XdpMode
from tests.support.links import PATIENCE_S, running
from tests.support.netns import Side, VethPair, run
from tests.support.wires import WireCalls

pytest.importorskip("hoststack.native.quic._quic", reason="the native engine was not built")

FAMILIES = ["ipv4", "ipv6"]
LOOPBACK = {"ipv4": "127.0.0.1", "ipv6": "::1"}
BURST = 64
#: A queue that holds more than a socket's buffer, and empties in a fraction of a second.
SHAPED = ["rate", "100mbit", "burst", "64kb", "limit", "64mb"]


class Driver:
    """What the engine does with a wire, without QUIC."""

    def __init__(self, link: Link) -> None:
        self.link = link
        wire = link.wire()
        assert wire is not None
        assert isinstance(wire, CWire)
        self.wire = wire
        self.calls = WireCalls(wire.address)

    def c_path(self, path: Path) -> Any:
        """The C side of a path."""
        self.wire.before_turn(0)
        return self.calls.lib.path_by_id(self.calls.wire, self.wire.number(path))

    async def receive(self, count: int) -> list[tuple[bytes, Path | None, int]]:
        """Wait for that many datagrams, each with the path that its key leads to."""
        got: list[tuple[bytes, Path | None, int]] = []
        while len(got) < count:
            self.wire.before_turn(0)
            burst = self.calls.receive()
            if not burst:
                await self.link.wait_readable()
            got += [(each.payload, self.wire.path_of_key(each.key), each.ecn) for each in burst]
        return got

    async def send(self, datagrams: list[bytes], path: Path, ecn: int = 0) -> int:
        """Send all, waiting for room where there is none; how often that was."""
        waits, way = 0, self.c_path(path)
        for start in range(0, len(datagrams), BURST):
            for data in datagrams[start : start + BURST]:
                assert self.calls.write(way, data, ecn)
            while self.calls.flush():
                assert not self.calls.room()
                waits += 1
                await self.link.wait_writable()
            self.wire.after_turn()
        return waits


@contextmanager
def driving(link: Link) -> Iterator[Driver]:
    """A link's wire; the link is closed first, as a stack does it, and the engine goes later."""
    driver = Driver(link)
    try:
        yield driver
    finally:
        link.close()
        driver.calls.free()


def plain_socket(host: str) -> socket.socket:
    """A kernel socket to talk with."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_DGRAM)
    made.bind((host, 0))
    made.settimeout(PATIENCE_S)
    return made


def payloads(count: int, size: int = 1000) -> list[bytes]:
    return [(b"\x40" + number.to_bytes(4, "big")).ljust(size, b"\x5a") for number in range(count)]


# --- udp ---


@pytest.mark.parametrize("segments", [True, False], ids=["segments", "single"])
@pytest.mark.parametrize("family", FAMILIES)
def test_udp_both_ways(family: str, segments: bool) -> None:
    host = LOOPBACK[family]

    async def main() -> None:
        with (
            driving(UdpLink(segments=segments)) as left,
            driving(UdpLink(segments=segments)) as right,
        ):
            # Opened when the wire was made already.
            here = left.link.open_port(Endpoint(host, 0))
            there = right.link.open_port(Endpoint("0.0.0.0" if family == "ipv4" else "::", 0))
            async with running(left.link, right.link):
                path = await left.link.connect_path(here.port, Endpoint(host, there.port))
                for ecn in range(4):
                    assert await left.send(payloads(100), path, ecn) == 0
                    got = await right.receive(100)
                    back = got[0][1]
                    assert back == Path(path.remote, path.local)
                    assert got == [(data, back, ecn) for data in payloads(100)]
                assert back is not None
                await right.send([b"back"], back)
                assert await left.receive(1) == [(b"back", path, 0)]
            assert left.link.statistics() == {
                "tx_datagrams": 400,
                "tx_bytes": 400_000,
                "rx_datagrams": 1,
                "rx_bytes": 4,
            }

    trio.run(main)


def test_udp_ports_are_not_without_number() -> None:
    link = UdpLink()
    with driving(link):
        taken = [link.open_port(Endpoint("127.0.0.1", 0)) for _ in range(256)]
        with pytest.raises(LinkError, match="256 UDP ports are open here") as caught:
            link.open_port(Endpoint("127.0.0.1", 0))
        assert caught.value.errno == errno.EMFILE
        link.close_port(taken[0])
        link.open_port(taken[0])


def test_udp_ports_come_and_go() -> None:
    async def main() -> None:
        link = UdpLink()
        first = link.open_port(Endpoint("127.0.0.1", 0))
        with driving(link) as driver, plain_socket("127.0.0.1") as peer:
            second = link.open_port(Endpoint("127.0.0.1", 0))
            remote = Endpoint(*peer.getsockname())
            async with running(link):
                for endpoint in (first, second):
                    peer.sendto(b"x", endpoint)
                    assert await driver.receive(1) == [(b"x", Path(endpoint, remote), 0)]
                path = await link.connect_path(first.port, remote)
                way = driver.c_path(path)
                link.close_port(first)
                assert driver.calls.write(way, b"x")
                assert driver.calls.flush() == 0
                assert link.statistics()["tx_ebadf"] == 1
        statistics = link.statistics()
        assert (statistics["rx_datagrams"], statistics["tx_ebadf"]) == (2, 1)

    trio.run(main)


@contextmanager
def on_one_cpu() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.needs_root
def test_udp_a_full_socket_is_waited_for(veth_pair: VethPair) -> None:
    """A slow interface fills the socket's buffer; what found no room goes first afterwards.

    On one CPU: from two, a veth pair delivers in any order.
    """
    slow, fast = veth_pair.a, veth_pair.b
    run("tc", "-n", slow.namespace, "qdisc", "add", "dev", slow.ifname, "root", "tbf", *SHAPED)

    async def main() -> None:
        with driving(UdpLink()) as left, driving(UdpLink()) as right:
            with slow.inside():
                port = left.link.open_port(Endpoint(slow.ipv4, 0)).port
                with fast.inside():
                    there = right.link.open_port(Endpoint(fast.ipv4, 0))
                path = await left.link.connect_path(port, there)
                # It asks the kernel, in the namespace that we are in.
                assert left.wire.path_bytes(path) == 1500 - 28
            sent = payloads(8000, 1200)
            waits = 0

            async def send() -> None:
                nonlocal waits
                waits = await left.send(sent, path)

            async with running(left.link, right.link), trio.open_nursery() as nursery:
                nursery.start_soon(send)
                got = await right.receive(len(sent))
            assert [data for data, _, _ in got] == sent
            assert waits > 0
            assert left.link.statistics()["tx_datagrams"] == len(sent)

    with on_one_cpu():
        trio.run(main)


# --- af_xdp ---


@contextmanager
def over_xdp(side: Side, mode: XdpMode = "auto") -> Iterator[Driver]:
    """A wire over a side's interface, in a UMEM that knows who has each frame."""
    works, why = pyxdp.available()
    if not works:
        pytest.skip(why)
    with side.inside():
        link = AfXdpLink.open(side.ifname, mode=mode, debug=True)
    with driving(link) as driver:
        yield driver


def open_port(link: Link, side: Side, host: str, port: int) -> Endpoint:
    """Take a port in the side's namespace."""
    with side.inside():
        return link.open_port(Endpoint(host, port))


def errors_in(statistics: dict[str, int]) -> dict[str, int]:
    """What of the counters is not as it should be."""
    return {name: value for name, value in statistics.items() if value and "error" in name}


@pytest.mark.needs_root
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", ["native", "generic"])
def test_xdp_both_ways(veth_pair: VethPair, mode: XdpMode, family: str) -> None:
    a, b = veth_pair.a, veth_pair.b
    here, there = Endpoint(getattr(a, family), 1000), Endpoint(getattr(b, family), 2000)

    async def main() -> None:
        with over_xdp(a, mode) as left, over_xdp(b, mode) as right:
            open_port(left.link, a, *here)
            open_port(right.link, b, *there)
            async with running(left.link, right.link):
                path = await left.link.connect_path(1000, there)
                most = left.link.max_datagram_bytes(path)
                for ecn in range(4):
                    await left.send(payloads(200, most), path, ecn)
                    got = await right.receive(200)
                    back = got[0][1]
                    assert back is not None
                    assert back == Path(there, here)
                    assert got == [(data, back, ecn) for data in payloads(200, most)]
                    await right.send(payloads(200), back, ecn)
                    got = await left.receive(200)
                    assert got == [(data, path, ecn) for data in payloads(200)]
            for link, tx, rx in ((left.link, most, 1000), (right.link, 1000, most)):
                statistics = link.statistics()
                assert statistics["rx_datagrams"] == statistics["tx_datagrams"] == 800
                assert statistics["tx_bytes"] == 800 * tx
                assert statistics["rx_bytes"] == 800 * rx
                assert errors_in(statistics) == {}

    trio.run(main)


@pytest.mark.needs_root
@pytest.mark.parametrize("family", FAMILIES)
def test_xdp_talks_with_the_kernel(veth_pair: VethPair, family: str) -> None:
    """It takes our checksums, and marks what it sends."""
    a, b = veth_pair.a, veth_pair.b
    for side in (a, b):
        with side.inside():
            run("ethtool", "-K", side.ifname, "tx", "off", "rx", "off")
    host = getattr(b, family)
    level, option = {
        "ipv4": (socket.IPPROTO_IP, socket.IP_TOS),
        "ipv6": (socket.IPPROTO_IPV6, socket.IPV6_TCLASS),
    }[family]

    async def main() -> None:
        with over_xdp(a) as driver:
            here = open_port(driver.link, a, getattr(a, family), 1000)
            with b.inside():
                plain = plain_socket(host)
            with plain as peer:
                async with running(driver.link):
                    port = peer.getsockname()[1]
                    path = await driver.link.connect_path(1000, Endpoint(host, port))
                    for size, ecn in ((1, 0), (13, 1), (1200, 2), (1452, 3)):
                        data = payloads(1, size)[0][:size]
                        await driver.send([data], path, ecn)
                        assert peer.recvfrom(2048)[0] == data
                        peer.setsockopt(level, option, 0xB8 | ecn)
                        peer.sendto(b"\x40" * 30, here)
                        assert await driver.receive(1) == [(b"\x40" * 30, path, ecn)]

    trio.run(main)


@pytest.mark.needs_root
def test_xdp_what_can_not_go_and_what_is_not_for_us(veth_pair: VethPair) -> None:
    a, b = veth_pair.a, veth_pair.b

    async def main() -> None:
        with over_xdp(a) as left, over_xdp(b) as right:
            open_port(left.link, a, "0.0.0.0", 1000)
            open_port(right.link, b, b.ipv4, 2000)
            async with running(left.link, right.link):
                path = await left.link.connect_path(1000, Endpoint(b.ipv4, 2000))
                way = left.c_path(path)
                assert left.calls.write(way, bytes(way.max_datagram_bytes + 1))
                way.has_header = 0
                assert left.calls.write(way, b"no way")
                assert left.calls.flush() == 0
                way.has_header = 1
                await left.send(payloads(1), path)
                assert len(await right.receive(1)) == 1
                # What a bridge would forward.
                way.header.bytes = bytes(6) + bytes(way.header.bytes)[6:]
                assert left.calls.write(way, *payloads(1))
                assert left.calls.flush() == 0
                while not right.link.statistics().get("rx_not_for_us"):
                    assert right.calls.receive() == []
                    await trio.lowlevel.checkpoint()
            statistics = left.link.statistics()
            assert statistics["tx_too_large"] == statistics["tx_no_next_hop"] == 1
            assert statistics["tx_datagrams"] == 2
            assert right.link.statistics()["rx_not_for_us"] == 1

    trio.run(main)


@pytest.mark.needs_root
def test_xdp_routes_are_made_anew(veth_pair: VethPair) -> None:
    """A neighbour that changes its address changes the frames' headers."""
    a, b = veth_pair.a, veth_pair.b

    async def main() -> None:
        with over_xdp(a) as driver:
            open_port(driver.link, a, a.ipv4, 1000)
            async with running(driver.link):
                path = await driver.link.connect_path(1000, Endpoint(b.ipv4, 2000))
                assert bytes(driver.c_path(path).header.bytes)[:12] == b.mac + a.mac
                moved = "02:00:00:00:77:77"
                a.ip("neigh", "replace", b.ipv4, "lladdr", moved, "dev", a.ifname)
                after = bytes.fromhex(moved.replace(":", "")) + a.mac
                while bytes(driver.c_path(path).header.bytes)[:12] != after:
                    await trio.lowlevel.checkpoint()

    trio.run(main)


@pytest.mark.needs_root
def test_xdp_paths_that_came_get_a_route_once_they_are_used(veth_pair: VethPair) -> None:
    a, b = veth_pair.a, veth_pair.b

    async def main() -> None:
        with over_xdp(a) as left, over_xdp(b) as right:
            open_port(left.link, a, a.ipv4, 1000)
            open_port(right.link, b, b.ipv4, 2000)
            async with running(left.link, right.link):
                path = await left.link.connect_path(1000, Endpoint(b.ipv4, 2000))
                await left.send(payloads(1), path)
                ((_, back, _),) = await right.receive(1)
                assert back is not None
                way = right.c_path(back)
                assert way.has_header  # to where it came from
                assert not way.is_routed
                for number in range(20):
                    await right.send(payloads(1), back)
                    assert way.is_routed == (number >= 15)

    trio.run(main)


@pytest.mark.needs_root
def test_xdp_a_ring_that_empties_nowhere_is_a_backlog(veth_pair: VethPair) -> None:
    """With the interface down nothing leaves; with it up all does, in order and once."""
    a, b = veth_pair.a, veth_pair.b
    sent = payloads(3000, 100)

    async def main() -> None:
        with over_xdp(a) as left, over_xdp(b) as right:
            open_port(left.link, a, a.ipv4, 1000)
            open_port(right.link, b, b.ipv4, 2000)
            async with running(left.link, right.link):
                path = await right.link.connect_path(2000, Endpoint(a.ipv4, 1000))
                await right.send(payloads(1), path)
                ((_, back, _),) = await left.receive(1)
                assert back is not None
                way = left.c_path(back)
                a.ip("link", "set", a.ifname, "down")
                written = waiting = 0
                while not waiting:
                    assert left.calls.write(way, sent[written])
                    written += 1
                    if written % BURST == 0:
                        waiting = left.calls.flush()
                assert 2000 < written < len(sent)
                assert not left.calls.room()
                assert left.calls.flush() == waiting
                statistics = left.link.statistics()
                assert statistics["tx_enetdown"] > 0
                a.ip("link", "set", a.ifname, "up")
                # The kernel sends half a ring before it calls the socket writable. What has come
                # is taken away before more is sent: the receiver's ring holds no more either.
                await left.link.wait_writable()
                got: list[Any] = []
                while more := right.calls.receive():
                    got += [(each.payload, None, each.ecn) for each in more]
                assert 0 < len(got) < written
                assert left.calls.flush() == 0
                left.wire.after_turn()
                got += await right.receive(written - len(got))
                assert [data for data, _, _ in got] == sent[:written]
            assert errors_in(left.link.statistics()) == {}

    trio.run(main)
