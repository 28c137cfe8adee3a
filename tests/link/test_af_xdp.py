"""The af_xdp link over veth pairs: datagrams both ways, errors, and nothing left behind."""

from __future__ import annotations

import errno
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.resources import files
from pathlib import Path as FilePath
from typing import Any

import pytest
import trio

import pyxdp
from hoststack.link.base import Endpoint, Link, LinkError, Outgoing, Path, Received
from hoststack.link.xdp.link import AfXdpLink, XdpMode
from tests.support.checksummed import CTAG, STAG, udp_frame
from tests.support.links import running, steering_of
from tests.support.netns import Side, VethPair, run

pytestmark = pytest.mark.needs_root

PORT = 4433
FAMILIES = ["ipv4", "ipv6"]
SHORT = b"\x40" + bytes(range(40))

# linux/if_packet.h; Python's socket module lacks them.
SOL_PACKET, PACKET_AUXDATA = 263, 8
TP_STATUS_VLAN_VALID = 0x10


@pytest.fixture(autouse=True)
def _extension() -> None:
    works, why = pyxdp.available()
    if not works:
        pytest.skip(why)


@contextmanager
def opened(side: Side, mode: XdpMode = "auto") -> Iterator[AfXdpLink]:
    """A link on a side's interface, which checks that it never mixes up frames."""
    with side.inside():
        link = AfXdpLink.open(side.ifname, mode=mode, debug=True)
    try:
        yield link
    finally:
        link.close()
        with side.inside():
            assert pyxdp.attached_programs(side.ifname) == []


def open_port(link: Link, side: Side, host: str, port: int = PORT) -> Endpoint:
    """Take a port in the side's namespace."""
    with side.inside():
        return link.open_port(Endpoint(host, port))


async def receive(link: Link, count: int) -> list[Received]:
    """Wait for that many datagrams."""
    got: list[Received] = []
    while len(got) < count:
        await link.wait_readable()
        got += link.receive(count - len(got))
    return got


async def send(link: Link, burst: Sequence[Outgoing]) -> None:
    """Send all, waiting for room where there is none."""
    while burst:
        burst = burst[link.send(burst) :]
        if burst:
            await link.wait_writable()


def quic(number: int, size: int = 100) -> bytes:
    """A payload with a short header, that can be told from others."""
    return (b"\x40" + number.to_bytes(4, "big")).ljust(size, b"\x5a")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", ["native", "generic"])
def test_both_ways(veth_pair: VethPair, mode: XdpMode, family: str) -> None:
    a, b = veth_pair.a, veth_pair.b
    here, there = getattr(a, family), getattr(b, family)

    async def main() -> None:
        with opened(a, mode) as left, opened(b, mode) as right:
            assert left.mode == right.mode == mode
            open_port(left, a, here, 1000)
            open_port(right, b, there, 2000)
            async with running(left, right):
                path = await left.connect_path(1000, Endpoint(there, 2000))
                assert path == Path(Endpoint(here, 1000), Endpoint(there, 2000))
                payloads = [quic(n, 13 + n) for n in range(200)]
                await send(left, [(data, path) for data in payloads])
                got = await receive(right, 200)
                assert [data for data, _, _ in got] == payloads
                back = got[0][1]
                assert back == Path(Endpoint(there, 2000), Endpoint(here, 1000))
                assert all(each is back and ecn == 0 for _, each, ecn in got)
                await send(right, [(data, back) for data in payloads])
                assert [(d, p) for d, p, _ in await receive(left, 200)] == [
                    (data, path) for data in payloads
                ]
            total = sum(map(len, payloads))
            for link in (left, right):
                statistics = link.statistics()
                for way in ("rx", "tx"):
                    assert statistics[f"{way}_datagrams"] == 200
                    assert statistics[f"{way}_bytes"] == total

    trio.run(main)


@pytest.mark.parametrize("family", FAMILIES)
def test_kernel_socket_verifies_checksums(veth_pair: VethPair, family: str) -> None:
    a, b = veth_pair.a, veth_pair.b
    here, there = getattr(a, family), getattr(b, family)
    for side in (a, b):
        with side.inside():
            run("ethtool", "-K", side.ifname, "tx", "off", "rx", "off")

    async def main() -> None:
        with opened(a) as link, kernel_socket(b, there, 2000) as peer:
            open_port(link, a, here)
            async with running(link):
                path = await link.connect_path(PORT, Endpoint(there, 2000))
                # That the kernel looks: a wrong checksum does not arrive.
                with packet_socket(a) as raw:
                    raw.send(hand_made(SHORT, a, b, family, PORT, 2000, is_sum_right=False))
                    raw.send(hand_made(b"right", a, b, family, PORT, 2000))
                assert (await peer.recvfrom(2048))[0] == b"right"
                sizes = [0, 1, 2, 13, 99, 100, link.max_datagram_bytes(path)]
                for size in sizes:
                    payload = bytes(range(256)) * 6
                    assert link.send([(payload[:size], path)]) == 1
                    data, address = await peer.recvfrom(2048)
                    assert data == payload[:size]
                    assert address[:2] == (here, PORT)
                await peer.sendto(SHORT, (here, PORT))
                assert await receive(link, 1) == [(SHORT, path, 0)]

    trio.run(main)


def test_unfinished_checksums_are_taken(veth_pair: VethPair) -> None:
    """A stack on the same machine leaves checksums to the card, and veth has none."""

    async def main() -> None:
        with opened(veth_pair.a) as link, kernel_socket(veth_pair.b, "10.77.0.2", 2000) as peer:
            open_port(link, veth_pair.a, "0.0.0.0")
            async with running(link):
                await peer.sendto(SHORT, ("10.77.0.1", PORT))
                ((data, path, _),) = await receive(link, 1)
                assert data == SHORT
                assert path.local == Endpoint("10.77.0.1", PORT)

    trio.run(main)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tags", [[(CTAG, 5)], [(STAG, 7), (CTAG, 6)]], ids=["one", "two"])
def test_vlan_tags_go_back(veth_pair: VethPair, family: str, tags: list[tuple[int, int]]) -> None:
    a, b = veth_pair.a, veth_pair.b

    async def main() -> None:
        with opened(a) as link, packet_socket(b) as raw:
            open_port(link, a, getattr(a, family))
            async with running(link):
                with_priority = [(tpid, 0xE000 | vlan) for tpid, vlan in tags]
                raw.send(hand_made(SHORT, b, a, family, 2000, PORT, tags=with_priority))
                ((data, path, _),) = await receive(link, 1)
                assert data == SHORT
                assert path.remote == Endpoint(getattr(b, family), 2000)
                # More than what is sent before a route is asked for.
                for number in range(40):
                    assert link.send([(quic(number), path)]) == 1
                    frame = await next_frame(raw)
                    assert (
                        frame[: 12 + 4 * len(tags)]
                        == hand_made(b"", a, b, family, PORT, 2000, tags=tags)[: 12 + 4 * len(tags)]
                    )
                    assert frame.endswith(quic(number))

    trio.run(main)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mtu_bytes", [1500, 3490])
def test_largest_datagram(
    make_veth_pair: Callable[..., VethPair], mtu_bytes: int, family: str
) -> None:
    pair = make_veth_pair(mtu_bytes=mtu_bytes)
    here, there = getattr(pair.a, family), getattr(pair.b, family)

    async def main() -> None:
        with opened(pair.a) as left, opened(pair.b) as right:
            open_port(left, pair.a, here)
            open_port(right, pair.b, there)
            async with running(left, right):
                path = await left.connect_path(PORT, Endpoint(there, PORT))
                most = left.max_datagram_bytes(path)
                assert most == mtu_bytes - {"ipv4": 28, "ipv6": 48}[family]
                burst = [(quic(n, most + n % 2), path) for n in range(10)]
                assert left.send(burst) == 10
                got = await receive(right, 5)
                assert [data for data, _, _ in got] == [data for data, _ in burst[::2]]
                statistics = left.statistics()
                assert (statistics["tx_datagrams"], statistics["tx_too_large"]) == (5, 5)

    trio.run(main)


def test_two_queues(make_veth_pair: Callable[..., VethPair]) -> None:
    pair = make_veth_pair(queues=2)

    async def main() -> None:
        with opened(pair.a, "native") as link, ExitStack() as undo:
            open_port(link, pair.a, pair.a.ipv4)
            peers = [undo.enter_context(kernel_socket(pair.b, pair.b.ipv4, 0)) for _ in range(64)]
            async with running(link):
                for number, peer in enumerate(peers):
                    await peer.sendto(quic(number), (pair.a.ipv4, PORT))
                got = await receive(link, 64)
                assert sorted(data for data, _, _ in got) == [quic(n) for n in range(64)]
                # Of both queues, in turn: what is left waits for neither.
                with pair.a.inside():
                    shown = run("ethtool", "-S", pair.a.ifname)
                for queue in (0, 1):
                    assert f"rx_queue_{queue}_xdp_packets: 0\n" not in shown, shown
                await send(link, [(data, path) for data, path, _ in got])
                for number, peer in enumerate(peers):
                    assert (await peer.recvfrom(2048))[0] == quic(number)

    trio.run(main)


def test_wildcard_port_takes_what_is_for_this_machine(veth_pair: VethPair) -> None:
    a, b = veth_pair.a, veth_pair.b

    async def main() -> None:
        with opened(a) as link, packet_socket(b) as raw:
            assert open_port(link, a, "0.0.0.0") == Endpoint("0.0.0.0", PORT)
            async with running(link):
                hosts = (b.ipv4, "192.0.2.9")
                raw.send(udp_frame(SHORT, macs=a.mac + b.mac, hosts=hosts, ports=(2000, PORT)))
                other_mac = hand_made(SHORT, b, a, "ipv4", 2000, PORT)
                raw.send(b"\x02" + bytes(5) + other_mac[6:])
                raw.send(hand_made(SHORT, b, a, "ipv4", 2000, PORT))
                ((_, path, _),) = await receive(link, 1)
                assert path.local == Endpoint(a.ipv4, PORT)
                statistics = link.statistics()
                assert statistics["rx_not_for_us"] == 2
                assert statistics["rx_datagrams"] == 1

    trio.run(main)


def test_strangers_use_nothing_up(veth_pair: VethPair) -> None:
    """More frames than the UMEM has: to other addresses, from forged ones, and broken ones."""
    a, b = veth_pair.a, veth_pair.b
    macs = a.mac + b.mac
    rng = random.Random(7)
    total = 12_000

    def frame(number: int) -> bytes:
        forged = f"10.{77 + number % 7}.{number % 200 + 1}.{number % 250 + 3}"
        to = a.ipv4 if number % 3 else "192.0.2.9"
        ports = (1 + number, PORT)
        made = bytearray(udp_frame(SHORT, macs=macs, hosts=(forged, to), ports=ports))
        if number % 4 == 3:
            made[rng.randrange(12, 50)] = rng.randrange(256)
        return bytes(made)

    async def main() -> None:
        with opened(a) as link, packet_socket(b) as raw:
            open_port(link, a, "0.0.0.0")
            got = 0
            async with running(link):
                for number in range(total):
                    raw.send(frame(number))
                    if number % 500 == 499:
                        while burst := link.receive():
                            got += len(burst)
                raw.send(hand_made(b"\x40" + b"last" * 10, b, a, "ipv4", 2000, PORT))
                (last,) = await receive(link, 1)
                assert last[0].endswith(b"last")
                assert link.send([(SHORT, last[1])]) == 1
            statistics = link.statistics()
            assert statistics["rx_datagrams"] == got + 1
            assert got > total // 2
            assert statistics["rx_not_for_us"] > total // 5
            assert statistics["xsk_rx_dropped"] == statistics["xsk_rx_ring_full"] == 0

    trio.run(main)


def test_closed_port_goes_to_the_kernel(veth_pair: VethPair) -> None:
    a, b = veth_pair.a, veth_pair.b

    async def main() -> None:
        with opened(a) as link, kernel_socket(b, b.ipv4, 2000) as peer:
            endpoint = open_port(link, a, a.ipv4)
            link.close_port(endpoint)
            link.close_port(endpoint)
            with kernel_socket(a, a.ipv4, PORT) as kernel:
                async with running(link):
                    await peer.sendto(SHORT, (a.ipv4, PORT))
                    assert (await kernel.recvfrom(100))[0] == SHORT

    trio.run(main)


def test_burst_larger_than_the_ring(veth_pair: VethPair) -> None:
    """An interface that is down keeps its TX ring; what finds no room is offered again."""
    a, b = veth_pair.a, veth_pair.b
    total = 3000

    async def main() -> None:
        with opened(a) as left, opened(b) as right:
            open_port(left, a, a.ipv4)
            open_port(right, b, b.ipv4)
            async with running(left, right):
                ask = await right.connect_path(PORT, Endpoint(a.ipv4, PORT))
                assert right.send([(SHORT, ask)]) == 1
                ((_, path, _),) = await receive(left, 1)
                most = left.max_datagram_bytes(path)
                # Every tenth is too large: those are taken, and counted once.
                burst = [(quic(n, most + 1 if n % 10 == 5 else 100), path) for n in range(total)]
                a.ip("link", "set", a.ifname, "down")
                taken = left.send(burst)
                assert 2000 < taken < total
                assert left.send(burst[taken:]) == 0
                a.ip("link", "set", a.ifname, "up")
                # The kernel sends half a ring before it calls the socket writable. What has come
                # is taken away before more is sent: the receiver's ring holds no more either.
                await left.wait_writable()
                got: list[Received] = []
                while more := right.receive():
                    got += more
                assert 0 < len(got) < total * 9 // 10
                await send(left, burst[taken:])
                got += await receive(right, total * 9 // 10 - len(got))
                assert [data for data, _, _ in got] == [d for d, _ in burst if len(d) == 100]
                statistics = left.statistics()
                assert statistics["tx_too_large"] == total // 10
                assert statistics["tx_datagrams"] == total * 9 // 10
                assert statistics["tx_enetdown"] > 0

    trio.run(main)


# --- what goes wrong ---


@contextmanager
def refused(number: int, *words: str) -> Iterator[None]:
    """A LinkError with that errno, in one line that has these words."""
    with pytest.raises(LinkError) as caught:
        yield
    assert caught.value.errno == number, caught.value
    line = caught.value.strerror
    assert line
    assert "\n" not in line
    for word in words:
        assert word in line


def test_port_in_use(veth_pair: VethPair) -> None:
    a = veth_pair.a
    with opened(a) as link, a.inside(), socket.socket(type=socket.SOCK_DGRAM) as holder:
        holder.bind((a.ipv4, PORT))
        with refused(errno.EADDRINUSE, str(PORT), "ss -ulpn"):
            link.open_port(Endpoint(a.ipv4, PORT))
        taken = link.open_port(Endpoint(a.ipv4, 0))
        with refused(errno.EADDRINUSE, str(taken.port)):
            link.open_port(taken)
        assert steering_of(link).ports() == [taken]


def test_foreign_address(veth_pair: VethPair) -> None:
    with opened(veth_pair.a) as link, veth_pair.a.inside():
        with refused(errno.EADDRNOTAVAIL, "192.0.2.1", "ip address"):
            link.open_port(Endpoint("192.0.2.1", PORT))
        assert steering_of(link).ports() == []


def test_foreign_program(veth_pair: VethPair) -> None:
    a = veth_pair.a
    code = files("pyxdp").joinpath("count.bpf.o").read_bytes()
    with a.inside(), pyxdp.Program.load(code) as program:
        program.attach(a.ifname)
        with refused(errno.EBUSY, a.ifname):
            AfXdpLink.open(a.ifname)
        assert [each.program_id for each in pyxdp.attached_programs(a.ifname)] == [program.id]


def test_opened_twice(veth_pair: VethPair) -> None:
    a = veth_pair.a
    with opened(a) as link, a.inside():
        with refused(errno.EBUSY, a.ifname):
            AfXdpLink.open(a.ifname)
        assert [each.program_id for each in pyxdp.attached_programs(a.ifname)] == [
            steering_of(link).program_id
        ]


def test_interfaces_that_do_not_serve(make_veth_pair: Callable[..., VethPair]) -> None:
    a = make_veth_pair(mtu_bytes=9000).a
    descriptors = open_descriptors()
    with a.inside():
        with refused(errno.ENODEV, "nowhere0"):
            AfXdpLink.open("nowhere0")
        with refused(errno.ENOTSUP, "lo"):
            AfXdpLink.open("lo")
        with refused(errno.EMSGSIZE, "9000", f"ip link set {a.ifname} mtu 3"):
            AfXdpLink.open(a.ifname)
        assert pyxdp.attached_programs(a.ifname) == []
    assert open_descriptors() == descriptors


def test_no_route(veth_pair: VethPair) -> None:
    async def main() -> None:
        with opened(veth_pair.a) as link:
            async with running(link):
                with refused(errno.ENETUNREACH, "192.0.2.1"):
                    await link.connect_path(PORT, Endpoint("192.0.2.1", 1))
                with refused(errno.ENETUNREACH, "192.0.2.1"):
                    link.local_endpoint_for(Endpoint("192.0.2.1", 1))
                with refused(errno.ENETUNREACH, "192.0.2.1"):
                    link.path_from(Endpoint(veth_pair.a.ipv4, PORT), Endpoint("192.0.2.1", 1))

    trio.run(main)


def test_close_leaves_nothing(veth_pair: VethPair) -> None:
    a = veth_pair.a
    descriptors = open_descriptors()
    for _ in range(3):
        with opened(a) as link:
            open_port(link, a, a.ipv4)
            with a.inside():
                assert len(pyxdp.attached_programs(a.ifname)) == 1
        link.close()
        with a.inside(), socket.socket(type=socket.SOCK_DGRAM) as port:
            port.bind((a.ipv4, PORT))
    assert open_descriptors() == descriptors


CHILD = """
import sys, time
from hoststack.link.xdp.link import AfXdpLink
from hoststack.link.base import Endpoint
link = AfXdpLink.open(sys.argv[1])
link.open_port(Endpoint(sys.argv[2], 4433))
print("open", flush=True)
time.sleep(60)
"""


def test_killed_process_leaves_nothing(veth_pair: VethPair) -> None:
    a = veth_pair.a
    command = a.command(sys.executable, "-c", CHILD, a.ifname, a.ipv4)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "open\n"
            with a.inside():
                assert len(pyxdp.attached_programs(a.ifname)) == 1
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
    with a.inside():
        assert pyxdp.attached_programs(a.ifname) == []
    with opened(a) as link:
        open_port(link, a, a.ipv4)


# --- sockets of the other side ---


@contextmanager
def kernel_socket(side: Side, host: str, port: int) -> Iterator[Any]:
    """A UDP socket of trio's in a side's namespace."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with side.inside():
        plain = socket.socket(family, socket.SOCK_DGRAM)
    with trio.socket.from_stdlib_socket(plain) as made:
        plain.bind((host, port))
        yield made


@contextmanager
def packet_socket(side: Side) -> Iterator[socket.socket]:
    """A socket that sends and receives a side's frames."""
    with side.inside():
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))  # ETH_P_ALL
        raw.bind((side.ifname, 3))
    with raw:
        raw.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        raw.setblocking(False)
        yield raw


async def next_frame(raw: socket.socket) -> bytes:
    """The next frame with QUIC's fixed bit and our source port; its VLAN tag where it was."""
    while True:
        await trio.lowlevel.wait_readable(raw)
        frame, control, _, (_, _, kind, *_) = raw.recvmsg(4096, 128)
        if kind == socket.PACKET_OUTGOING or PORT.to_bytes(2, "big") not in frame:
            continue
        for level, what, data in control:
            if (level, what) == (SOL_PACKET, PACKET_AUXDATA):
                # struct tpacket_auxdata; the kernel takes the outer tag out of the frame.
                status = int.from_bytes(data[:4], sys.byteorder)
                if status & TP_STATUS_VLAN_VALID:
                    tci = int.from_bytes(data[16:18], sys.byteorder)
                    tpid = int.from_bytes(data[18:20], sys.byteorder)
                    tag = tpid.to_bytes(2, "big") + tci.to_bytes(2, "big")
                    frame = frame[:12] + tag + frame[12:]
        return frame


def hand_made(
    payload: bytes,
    source: Side,
    to: Side,
    family: str,
    source_port: int,
    port: int,
    *,
    tags: Sequence[tuple[int, int]] = (),
    is_sum_right: bool = True,
) -> bytes:
    """A frame from one side to the other."""
    return udp_frame(
        payload,
        macs=to.mac + source.mac,
        hosts=(getattr(source, family), getattr(to, family)),
        ports=(source_port, port),
        tags=tags,
        is_sum_right=is_sum_right,
    )


def open_descriptors() -> set[str]:
    """What this process has open, by descriptor and kind."""
    found = set()
    for each in FilePath("/proc/self/fd").iterdir():
        try:
            found.add(f"{each.name} {os.readlink(each).partition(':')[0]}")
        except FileNotFoundError:  # that of the listing itself
            continue
    return found
