"""Wires in C: the one over sockets on the loopback, the one over AF_XDP on rings made of Python."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from pathlib import Path as FilePath
from typing import Any

import pytest

from tests.support.checksummed import checksum, udp_frame
from tests.support.wires import EXTRA_FLAGS, WireCalls, extension

BURST = 64
FRAME_BYTES = 2048
PATIENCE_S = 10
LOOPBACK = {"ipv4": "127.0.0.1", "ipv6": "::1"}
FAMILIES = ["ipv4", "ipv6"]
# linux/udp.h, asm-generic/socket.h: Python's socket module lacks them.
UDP_GRO = 104
SO_NO_CHECK = 11


# --- over sockets ---


class Port:
    """A socket on the loopback, ready for a wire."""

    def __init__(self, host: str, *, is_prepared: bool = True) -> None:
        _, lib = extension()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_DGRAM)
        self.socket.settimeout(PATIENCE_S)
        if is_prepared:
            assert lib.hs_udp_prepare(self.socket.fileno(), ip_address(host).version) == 0
        # What a test sends fits: the kernel counts each datagram with its overhead.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self.socket.bind((host, 0))
        self.fd = self.socket.fileno()
        self.host, self.number = host, self.socket.getsockname()[1]

    def flow_to(self, other: Port) -> Any:
        """struct hs_udp_flow *."""
        ffi, _ = extension()
        flow = ffi.new("struct hs_udp_flow *")
        flow.ip_version = ip_address(self.host).version
        flow.remote_port = other.number
        flow.remote_ip = ip_address(other.host).packed.ljust(16, b"\0")
        flow.local_ip = ip_address(self.host).packed.ljust(16, b"\0")
        return flow

    def key_from(self, other: Port) -> bytes:
        """The key of the datagrams that come from there."""
        ffi, _ = extension()
        flow = bytes(ffi.buffer(self.flow_to(other)))
        return (flow + self.number.to_bytes(2, sys.byteorder)).ljust(64, b"\0")


class Sockets:
    """What a test opens, and closes at its end."""

    def __init__(self, undo: ExitStack) -> None:
        self._undo = undo

    def port(self, host: str = "127.0.0.1", *, is_prepared: bool = True) -> Port:
        """A socket that no wire has yet."""
        port = Port(host, is_prepared=is_prepared)
        self._undo.callback(port.socket.close)
        return port

    def wire(self, *ports: Port, segments: bool = True) -> WireCalls:
        """A wire over these."""
        _, lib = extension()
        calls = WireCalls(lib.hs_wire_udp_new(256, segments))
        self._undo.callback(calls.free)
        for port in ports:
            assert lib.hs_wire_udp_add(calls.wire, port.fd, port.number) == 0
        return calls


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    with ExitStack() as undo:
        yield Sockets(undo)


def way(wire: WireCalls, here: Port, there: Port) -> Any:
    """A path between two ports, for sending and receiving."""
    path = wire.path(here.key_from(there))
    path.fd = here.fd
    path.flow = here.flow_to(there)[0]
    path.max_datagram_bytes = 65507
    return path


def receive_all(wire: WireCalls) -> list[Any]:
    """Everything that has come; the loopback delivers at once."""
    got: list[Any] = []
    while burst := wire.receive():
        got += burst
    return got


def payloads(count: int, size: int) -> list[bytes]:
    return [number.to_bytes(4, "big").ljust(size, b"\x5a") for number in range(count)]


@pytest.mark.parametrize("segments", [True, False], ids=["segments", "single"])
@pytest.mark.parametrize("family", FAMILIES)
def test_udp_both_ways(sockets: Sockets, family: str, segments: bool) -> None:
    left, right = sockets.port(LOOPBACK[family]), sockets.port(LOOPBACK[family])
    near, far = sockets.wire(left, segments=segments), sockets.wire(right, segments=segments)
    to_right, to_left = way(near, left, right), way(far, right, left)
    sent = [*payloads(40, 1200), b"shorter", *payloads(20, 900), *payloads(3, 1200)]
    for data in sent:
        assert near.write(to_right, data)
    assert near.flush() == 0
    got = receive_all(far)
    assert [each.payload for each in got] == sent
    assert all((each.path, each.key) == (to_left, right.key_from(left)) for each in got)
    assert far.write(to_left, b"back")
    assert far.flush() == 0
    assert [each.payload for each in receive_all(near)] == [b"back"]
    counters = near.wire.counters
    assert (counters.tx_datagrams, counters.tx_bytes) == (64, sum(map(len, sent)))
    assert (counters.rx_datagrams, counters.rx_bytes) == (1, 4)
    assert near.dropped("hs_wire_udp_drop") == far.dropped("hs_wire_udp_drop") == {}


def test_udp_what_came_together_is_given_out_by_budgets(sockets: Sockets) -> None:
    left, right = sockets.port(), sockets.port()
    near, far = sockets.wire(left), sockets.wire(right)
    path = way(near, left, right)
    sent = payloads(100, 500)
    for data in sent:
        assert near.write(path, data)
    assert near.flush() == 0
    budgets = [10, 1, 0, BURST, 7, BURST, BURST]
    bursts = [[each.payload for each in far.receive(budget)] for budget in budgets]
    assert [data for burst in bursts for data in burst] == sent
    assert all(len(burst) <= budget for burst, budget in zip(bursts, budgets, strict=True))


def message_sizes(port: Port, datagrams: int) -> list[int]:
    """How many bytes each message has that a socket with GRO takes."""
    sizes: list[int] = []
    left = datagrams
    while left > 0:
        data, control, _, _ = port.socket.recvmsg(65536, 256)
        size = len(data)
        for level, kind, value in control:
            if (level, kind) == (socket.IPPROTO_UDP, UDP_GRO):
                size = int.from_bytes(value[:4], sys.byteorder)
        left -= -(-len(data) // size)
        sizes.append(len(data))
    return sizes


def test_udp_messages_are_of_one_path_size_and_mark(sockets: Sockets) -> None:
    left, right = sockets.port(), sockets.port()
    right.socket.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    near = sockets.wire(left)
    path = way(near, left, right)
    for size, ecn in [(1000, 0), (1000, 0), (700, 0), (700, 1), (700, 1), (800, 1), (800, 2)]:
        assert near.write(path, bytes(size), ecn)
    assert near.flush() == 0
    # A shorter one ends a message, another mark or a longer one begins the next.
    assert message_sizes(right, 7) == [2700, 1400, 800, 800]
    for _ in range(70):
        assert near.write(path, bytes(1400))
    assert near.flush() == 0
    assert message_sizes(right, 70) == [46 * 1400, 24 * 1400]  # 65,000 bytes at most


@pytest.mark.parametrize("size", [0, 1, 20_000, 65507])
def test_udp_sizes(sockets: Sockets, size: int) -> None:
    left, right = sockets.port(), sockets.port()
    near, far = sockets.wire(left), sockets.wire(right)
    path = way(near, left, right)
    data = os.urandom(size)
    for _ in range(3):
        assert near.write(path, data)
        assert near.flush() == 0
        assert [each.payload for each in receive_all(far)] == [data]


def test_udp_room_is_honest(sockets: Sockets) -> None:
    """As many as fit the buffer, and after the flush it is there again."""
    left, right = sockets.port(), sockets.port()
    near = sockets.wire(left)
    path = way(near, left, right)
    for _ in range(2):
        written = 0
        while near.room():
            assert near.room() == 65527
            assert near.write(path, bytes(60_000))
            written += 1
        assert 30 < written < 2 * BURST
        assert not near.write(path, b"x")
        assert near.wire.counters.tx_full > 0
        assert near.flush() == 0


@pytest.mark.parametrize("ecn", [0, 1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_udp_ecn(sockets: Sockets, family: str, ecn: int) -> None:
    left, right = sockets.port(LOOPBACK[family]), sockets.port(LOOPBACK[family])
    near, far = sockets.wire(left), sockets.wire(right)
    path = way(near, left, right)
    for data in (b"one", b"two", b"3"):
        assert near.write(path, data, ecn)
    assert near.flush() == 0
    assert [(each.payload, each.ecn) for each in receive_all(far)] == [
        (b"one", ecn),
        (b"two", ecn),
        (b"3", ecn),
    ]


def test_udp_unknown_paths_have_their_key(sockets: Sockets) -> None:
    left, right = sockets.port(), sockets.port()
    far = sockets.wire(right)
    left.socket.sendto(b"hello", ("127.0.0.1", right.number))
    (got,) = receive_all(far)
    assert not got.path
    assert got.key == right.key_from(left)
    path = far.path(got.key)
    left.socket.sendto(b"again", ("127.0.0.1", right.number))
    assert [each.path for each in receive_all(far)] == [path]


def test_udp_sockets_take_turns(sockets: Sockets) -> None:
    ports, peer = [sockets.port() for _ in range(4)], sockets.port()
    wire = sockets.wire(*ports, segments=False)
    for port in ports:
        for _ in range(40):
            peer.socket.sendto(b"x", ("127.0.0.1", port.number))
    turns = [{each.key for each in wire.receive()} for _ in range(4)]
    assert turns == [{port.key_from(peer)} for port in ports]


def test_udp_a_removed_socket_is_used_no_more(sockets: Sockets) -> None:
    _, lib = extension()
    left, other, right = sockets.port(), sockets.port(), sockets.port()
    near, far = sockets.wire(left, other), sockets.wire(right)
    path, stays = way(near, left, right), way(near, other, right)
    assert near.write(path, b"committed before")
    lib.hs_wire_udp_remove(near.wire, left.fd)
    assert path.fd == -1
    assert near.write(path, b"after")
    assert near.write(stays, b"goes")
    assert near.flush() == 0
    assert [each.payload for each in receive_all(far)] == [b"goes"]
    assert near.dropped("hs_wire_udp_drop") == {"HS_WIRE_UDP_TX_EBADF": 2}
    right.socket.sendto(b"x", ("127.0.0.1", left.number))
    assert near.receive() == []


def test_udp_what_a_removed_socket_left_has_no_way_back(sockets: Sockets) -> None:
    """Its number may be another file's by then."""
    _, lib = extension()
    left, right = sockets.port(), sockets.port()
    near, far = sockets.wire(left), sockets.wire(right)
    path = way(near, left, right)
    for data in payloads(2, 500):  # one message
        assert near.write(path, data)
    assert near.flush() == 0
    (first,) = far.receive(1)
    back = far.answer_path(first.key)
    assert back.fd == right.fd
    assert far.write(back, b"answer")
    assert far.flush() == 0
    assert [each.payload for each in near.receive()] == [b"answer"]
    lib.hs_wire_udp_remove(far.wire, right.fd)
    (second,) = far.receive(1)
    assert far.write(far.answer_path(second.key), b"answer")
    assert far.flush() == 0
    assert far.dropped("hs_wire_udp_drop") == {"HS_WIRE_UDP_TX_EBADF": 1}


def test_udp_a_path_of_a_removed_socket_is_not_that_of_another_on_its_port(
    sockets: Sockets,
) -> None:
    ffi, lib = extension()
    port, peer = sockets.port(), sockets.port()
    near = sockets.wire(port)
    path = way(near, port, peer)
    for known in (path, ffi.NULL):
        peer.socket.sendto(b"x", ("127.0.0.1", port.number))
        (came,) = near.receive()
        assert came.key == port.key_from(peer)
        assert came.path == known
        lib.hs_wire_udp_remove(near.wire, port.fd)
        lib.hs_wire_udp_add(near.wire, port.fd, port.number)


def test_udp_drops_are_counted(sockets: Sockets) -> None:
    left, right, bare = sockets.port(), sockets.port(), sockets.port(is_prepared=False)
    near = sockets.wire(left, bare)
    path = way(near, left, right)
    path.max_datagram_bytes = 1000
    assert near.write(path, bytes(1001))
    nowhere = way(near, left, bare)
    nowhere.flow.remote_port = 0
    for _ in range(3):
        assert near.write(nowhere, b"to no port")
    right.socket.sendto(b"without a local address", ("127.0.0.1", bare.number))
    assert near.flush() == 0
    assert near.receive() == []
    assert near.dropped("hs_wire_udp_drop") == {
        "HS_WIRE_UDP_TX_EMSGSIZE": 1,
        "HS_WIRE_UDP_TX_EINVAL": 3,
        "HS_WIRE_UDP_RX_TRUNCATED": 1,
    }
    # That was not for being several in a message: others are.
    right.socket.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    for _ in range(3):
        assert near.write(path, bytes(500))
    assert near.flush() == 0
    assert message_sizes(right, 3) == [1500]


def test_udp_without_gso_datagrams_go_one_by_one(sockets: Sockets) -> None:
    left, right = sockets.port(), sockets.port()
    left.socket.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)  # the kernel refuses GSO then
    right.socket.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    near = sockets.wire(left)
    path = way(near, left, right)
    for _ in range(2):
        for data in (bytes(300), bytes(300), bytes(200), bytes(300)):
            assert near.write(path, data)
        assert near.flush() == 0
        assert message_sizes(right, 4) == [300, 300, 200, 300]
    assert near.dropped("hs_wire_udp_drop") == {}


# --- over AF_XDP ---

MACS = bytes.fromhex("0200000000aa"), bytes.fromhex("0200000000bb")  # theirs, ours
HOSTS = {"ipv4": ("10.0.0.1", "10.0.0.2"), "ipv6": ("fd00::1", "fd00::2")}
PORTS = (5000, 4433)


class Rings:
    """pyxdp's verbs over lists: a UMEM, receive queues, and one TX ring that has `tx_room`."""

    def __init__(self, queues: int = 1, frames: int = 256) -> None:
        self.ffi, _ = extension()
        self.umem = bytearray(frames * FRAME_BYTES)
        self.free = [number * FRAME_BYTES for number in range(frames)]
        self.arrived: list[list[tuple[int, int]]] = [[] for _ in range(queues)]
        self.taken: list[list[int]] = [[] for _ in range(queues)]
        self.tx_ring: list[bytes] = []
        self.tx_room = 1 << 16
        self.kick_result = 0
        self.kicks = 0
        verbs = {
            "rx_burst": self._rx_burst,
            "rx_release": self._rx_release,
            "tx_reserve": self._tx_reserve,
            "tx_submit": self._tx_submit,
            "kick": self._kick,
        }
        kinds = {field: each.type for field, each in self.ffi.typeof("struct pyxdp_verbs").fields}
        self._held = {name: self.ffi.callback(kinds[name], verb) for name, verb in verbs.items()}
        self.verbs: Any = self.ffi.new("struct pyxdp_verbs *", self._held)

    def arrive(self, frame: bytes, queue: int = 0, *, headroom: int = 256) -> None:
        """The kernel puts a frame into the UMEM."""
        start = self.free.pop() + headroom
        self.umem[start : start + len(frame)] = frame
        self.arrived[queue].append((start, len(frame)))

    def _queue(self, address: Any) -> int:
        # A wire hands on what it was given, and looks at nothing there.
        return int(self.ffi.cast("uintptr_t", address)) - 1

    def _rx_burst(self, address: Any, out: Any, budget: int) -> int:
        queue = self._queue(address)
        burst = self.arrived[queue][:budget]
        del self.arrived[queue][:budget]
        for index, (start, length) in enumerate(burst):
            out[index] = (start, length, 0)
            self.taken[queue].append(start)
        return len(burst)

    def _rx_release(self, address: Any, descs: Any, count: int) -> int:
        queue = self._queue(address)
        for desc in descs[0:count]:
            self.taken[queue].remove(desc.addr)
            self.free.append(desc.addr & ~(FRAME_BYTES - 1))
        return count

    def _tx_reserve(self, address: Any, out: Any, count: int) -> int:
        given = min(count, len(self.free))
        for index in range(given):
            out[index] = (self.free.pop(), FRAME_BYTES, 0)
        return given

    def _tx_submit(self, address: Any, descs: Any, count: int) -> int:
        if self.tx_room < 0:
            return self.tx_room
        taken = min(count, self.tx_room)
        for desc in descs[0:taken]:
            self.tx_ring.append(bytes(self.umem[desc.addr : desc.addr + desc.len]))
            self.free.append(desc.addr & ~(FRAME_BYTES - 1))
        self.tx_room -= taken
        return taken

    def _kick(self, address: Any) -> int:
        self.kicks += 1
        return self.kick_result


def set_interface(wire: WireCalls, mac: bytes | None = None, mtu_bytes: int = 1500) -> None:
    """Tell it its interface, and the hosts of HOSTS as this machine's."""
    _, lib = extension()
    own = [ip_address(hosts[1]) for hosts in HOSTS.values()]
    prefixes = [(each.version, each.max_prefixlen, 0, each.packed.ljust(16, b"\0")) for each in own]
    prefixes.append((4, 32, 1, ip_address("10.0.0.255").packed.ljust(16, b"\0")))
    assert not lib.hs_wire_xdp_set_interface(
        wire.wire, mac or MACS[1], 7, mtu_bytes, prefixes, len(prefixes)
    )


@contextmanager
def over(rings: Rings, max_paths: int = 256) -> Iterator[WireCalls]:
    """A wire over them, with the hosts of HOSTS as its own."""
    ffi, lib = extension()
    queues = len(rings.arrived)
    calls = WireCalls(
        lib.hs_wire_xdp_new(
            rings.verbs,
            list(range(1, queues + 1)),
            queues,
            ffi.from_buffer(rings.umem),
            len(rings.umem),
            FRAME_BYTES,
            max_paths,
        )
    )
    set_interface(calls)
    try:
        yield calls
    finally:
        calls.free()


def frame_in(
    payload: bytes, family: str = "ipv4", port: int = PORTS[0], *, tags: Any = ()
) -> bytes:
    """A frame from the peer."""
    return udp_frame(
        payload,
        macs=MACS[1] + MACS[0],
        hosts=HOSTS[family],
        ports=(port, PORTS[1]),
        tags=tags,
    )


def xdp_way(wire: WireCalls, family: str = "ipv4", tags: Any = ()) -> Any:
    """A path back to the peer: its key and its header."""
    ffi, lib = extension()
    there, here = (ip_address(host) for host in HOSTS[family])
    flow = ffi.new("struct hs_frame_flow *")
    flow.ip_version = here.version
    flow.vlan_tags = len(tags)
    for index, (tpid, vlan_id) in enumerate(tags):
        flow.vlan_tpid[index], flow.vlan_id[index] = tpid, vlan_id
    flow.remote_port, flow.local_port = PORTS
    flow.remote_mac, flow.local_mac = MACS
    flow.local_ip = here.packed.ljust(16, b"\0")
    flow.remote_ip = there.packed.ljust(16, b"\0")
    path = wire.path(bytes(ffi.buffer(flow)))
    assert lib.hs_frame_header_init(ffi.addressof(path, "header"), flow, 64, 0) == 0
    path.has_header = 1
    path.max_datagram_bytes = 1472
    return path


@pytest.mark.parametrize("tags", [(), ((0x8100, 7),), ((0x88A8, 5), (0x8100, 7))])
@pytest.mark.parametrize("family", FAMILIES)
def test_xdp_both_ways(family: str, tags: Any) -> None:
    rings = Rings()
    frames = len(rings.free)
    with over(rings) as wire:
        path = xdp_way(wire, family, tags)
        for data in payloads(3, 100):
            rings.arrive(frame_in(data, family, tags=tags))
        got = wire.receive()
        assert [(each.payload, each.path, each.ecn) for each in got] == [
            (data, path, 0) for data in payloads(3, 100)
        ]
        assert len(rings.free) == frames
        sent = [os.urandom(size) for size in (1, 21, 1200, 1472)]
        for ecn, data in enumerate(sent):
            assert wire.write(path, data, ecn)
        assert wire.flush() == 0
        assert rings.kicks == 1
        assert_frames(rings.tx_ring, path.header, sent)
        counters = wire.wire.counters
        assert (counters.rx_datagrams, counters.rx_bytes) == (3, 300)
        assert (counters.tx_datagrams, counters.tx_bytes) == (4, sum(map(len, sent)))


def assert_frames(frames: list[bytes], header: Any, sent: list[bytes]) -> None:
    """The frames hold what was sent, with the ECN bits 0, 1, 2, 3 and right checksums."""
    ffi, lib = extension()
    for ecn, (frame, data) in enumerate(zip(frames, sent, strict=True)):
        made = ffi.new("struct hs_datagram *")
        desc = ffi.new("struct hs_frame_desc *", {"len": len(frame)})
        assert lib.hs_frames_parse(frame, len(frame), desc, 1, made) == 1
        assert frame[made.payload : made.payload + made.payload_bytes] == data
        assert (made.ecn, len(frame)) == (ecn, header.header_bytes + len(data))
        addresses = 8 if header.ip_version == 4 else 32
        if header.ip_version == 4:
            assert checksum(frame[header.ip_offset :][:20]) == 0
        segment = frame[header.header_bytes - 8 :]
        before = frame[header.header_bytes - 8 - addresses : header.header_bytes - 8]
        pseudo = before + len(segment).to_bytes(4, "big") + bytes((0, 0, 0, 17))
        assert checksum(pseudo + segment) == 0


def test_xdp_queues_take_turns_and_get_their_frames_back() -> None:
    rings = Rings(queues=3)
    frames = len(rings.free)
    with over(rings) as wire:
        for queue, count in enumerate((100, 10, 30)):
            for _ in range(count):
                rings.arrive(frame_in(b"x", port=1000 + queue), queue)
        bursts = [[each.key[10:14] for each in wire.receive()] for _ in range(4)]
        assert [len(burst) for burst in bursts] == [64, 64, 12, 0]
        # The first queue filled a burst alone, so the others go before it the next time.
        assert len(set(bursts[0])) == 1
        assert len(set(bursts[1])) == 3
        assert rings.taken == [[], [], []]
        assert len(rings.free) == frames


def test_xdp_an_idle_queue_ends_no_burst() -> None:
    rings = Rings(queues=2)
    with over(rings) as wire:
        for _ in range(2 * BURST):
            rings.arrive(frame_in(b"x"), 0)
        assert [len(wire.receive()) for _ in range(3)] == [BURST, BURST, 0]


def test_xdp_drops_are_counted_and_their_frames_go_back() -> None:
    rings = Rings()
    frames = len(rings.free)
    good = frame_in(b"good")
    with over(rings) as wire:
        for frame in (good[:30], b"\xff" * 60, good[:23] + b"\x06" + good[24:]):
            rings.arrive(frame)
        assert wire.receive() == []  # at once, for who gets nothing releases nothing
        assert (rings.taken, len(rings.free)) == ([[]], frames)
        rings.arrive(b"\xff" * 60)
        rings.arrive(good)
        assert [each.payload for each in wire.receive()] == [b"good"]
        rings.free.pop()
        rings.arrived[0].append((len(rings.umem) - 10, 60))
        assert wire.receive() == []
        assert wire.dropped("hs_frame_drop") == {
            "HS_FRAME_TRUNCATED": 1,
            "HS_FRAME_NOT_IP": 2,
            "HS_FRAME_NOT_UDP": 1,
            "HS_FRAME_OUTSIDE_UMEM": 1,
        }


def test_xdp_what_can_not_go_is_dropped_and_its_frame_used_again() -> None:
    rings = Rings(frames=1)
    with over(rings) as wire:
        path = xdp_way(wire)
        assert wire.room() == FRAME_BYTES - 70
        assert wire.write(path, bytes(1473))
        path.has_header = 0
        assert wire.write(path, b"no way")
        path.has_header = 1
        assert wire.write(path, b"goes")
        assert not wire.write(path, b"no frame")
        assert wire.flush() == 0
        assert [frame[-4:] for frame in rings.tx_ring] == [b"goes"]
        assert wire.dropped("hs_wire_xdp_drop") == {
            "HS_WIRE_XDP_TX_TOO_LARGE": 1,
            "HS_WIRE_XDP_TX_NO_NEXT_HOP": 1,
        }
        assert wire.wire.counters.tx_full == 1


def test_xdp_a_full_ring_is_a_backlog() -> None:
    rings = Rings()
    frames = len(rings.free)
    sent = payloads(150, 100)
    with over(rings) as wire:
        path = xdp_way(wire)
        rings.tx_room = 50
        written = 0
        while wire.write(path, sent[written]):
            written += 1
        assert written == 2 * BURST  # a burst, and answers without a connection
        assert wire.flush() == written - 50
        assert not wire.room()
        rings.tx_room = 10
        assert wire.flush() == written - 60
        assert not wire.write(path, b"x")
        rings.tx_room = 1000
        assert wire.flush() == 0
        for data in sent[written:]:
            assert wire.write(path, data)
        assert wire.flush() == 0
        assert [frame[-100:] for frame in rings.tx_ring] == sent
        # What was taken and not used is kept for the next turn: no more than a burst.
        assert frames - len(rings.free) <= BURST
        assert wire.dropped("hs_wire_xdp_drop") == {}


def test_xdp_kicks_that_fail_or_leave_frames() -> None:
    _, lib = extension()
    rings = Rings()
    with over(rings) as wire:
        path = xdp_way(wire)
        assert wire.flush() == 0
        assert rings.kicks == 0
        for result in (7, -errno.ENETDOWN, -errno.ENXIO, 9):
            rings.kick_result = result
            assert wire.write(path, b"x")
            assert wire.flush() == 0
            assert lib.hs_wire_xdp_left(wire.wire) == max(result, 0)
            assert lib.hs_wire_xdp_left(wire.wire) == 0
        assert wire.dropped("hs_wire_xdp_drop") == {
            "HS_WIRE_XDP_TX_ENETDOWN": 1,
            "HS_WIRE_XDP_TX_ERROR": 1,
        }


def test_xdp_frames_that_the_ring_refuses_block_nothing() -> None:
    rings = Rings()
    with over(rings) as wire:
        path = xdp_way(wire)
        assert wire.write(path, b"lost")
        rings.tx_room = -errno.EPROTO
        assert wire.flush() == 0
        rings.tx_room = 1
        assert wire.write(path, b"goes")
        assert wire.flush() == 0
        assert [frame[-4:] for frame in rings.tx_ring] == [b"goes"]
        assert wire.dropped("hs_wire_xdp_drop") == {"HS_WIRE_XDP_TX_ERROR": 1}


def test_xdp_detached_it_touches_no_socket() -> None:
    _, lib = extension()
    rings = Rings()
    with over(rings) as wire:
        path = xdp_way(wire)
        rings.arrive(frame_in(b"x"))
        assert wire.write(path, b"x")
        lib.hs_wire_xdp_detach(wire.wire)
        assert wire.receive() == []
        assert wire.flush() == 0
        assert (rings.kicks, rings.tx_ring, len(rings.arrived[0])) == (0, [], 1)


# --- plain datagrams beside the engine's ---


def put_aside(wire: WireCalls) -> list[tuple[bytes, int, int]]:
    """What was put aside since the last call: payload, IP version and local port."""
    ffi, lib = extension()
    size = ffi.new("size_t *")
    start = lib.hs_wire_xdp_take_datagrams(wire.wire, size)
    records = bytes(ffi.buffer(start, size[0])) if size[0] else b""
    found = []
    while records:
        (length,) = struct.unpack_from("=I", records)
        flow = ffi.from_buffer("struct hs_frame_flow *", records[8:72])
        found.append((records[72 : 72 + length], flow.ip_version, flow.local_port))
        records = records[72 + (length + 7) // 8 * 8 :]
    return found


def test_xdp_plain_datagrams_are_put_aside() -> None:
    _, lib = extension()
    rings = Rings()
    frames = len(rings.free)
    here = {family: ip_address(HOSTS[family][1]) for family in FAMILIES}
    with over(rings) as wire:
        for family in FAMILIES:
            rings.arrive(frame_in(b"quic", family))
        assert len(wire.receive()) == 2
        assert put_aside(wire) == []
        # An address and a port.
        opened = (here["ipv4"].version, here["ipv4"].packed, PORTS[1])
        for _ in range(2):
            assert lib.hs_wire_xdp_open_datagrams(wire.wire, *opened) == 0
        for payload in (b"", b"1", b"12345678", bytes(1472)):
            rings.arrive(frame_in(payload))
        rings.arrive(frame_in(b"six", "ipv6"))
        assert [each.payload for each in wire.receive()] == [b"six"]
        assert put_aside(wire) == [
            (data, 4, PORTS[1]) for data in (b"", b"1", b"12345678", bytes(1472))
        ]
        assert put_aside(wire) == []
        # Nothing but those came: there is nothing to release.
        rings.arrive(frame_in(b"alone"))
        assert wire.receive() == []
        assert len(rings.free) == frames
        assert put_aside(wire) == [(b"alone", 4, PORTS[1])]
        lib.hs_wire_xdp_close_datagrams(wire.wire, *opened)
        lib.hs_wire_xdp_close_datagrams(wire.wire, *opened)
        # Any address; and ports that fall into the same bucket.
        assert lib.hs_wire_xdp_open_datagrams(wire.wire, 6, bytes(16), PORTS[1]) == 0
        assert lib.hs_wire_xdp_open_datagrams(wire.wire, 6, bytes(16), PORTS[1] + 256) == 0
        rings.arrive(frame_in(b"four"))
        rings.arrive(frame_in(b"six", "ipv6"))
        assert [each.payload for each in wire.receive()] == [b"four"]
        assert put_aside(wire) == [(b"six", 6, PORTS[1])]
        lib.hs_wire_xdp_close_datagrams(wire.wire, 6, bytes(16), PORTS[1] + 256)
        rings.arrive(frame_in(b"six", "ipv6"))
        assert (wire.receive(), len(put_aside(wire))) == ([], 1)
        assert wire.wire.counters.rx_datagrams == 11


def test_xdp_plain_datagrams_that_nobody_takes_are_counted() -> None:
    _, lib = extension()
    rings = Rings()
    frames = len(rings.free)
    room = (1 << 20) // (72 + 1472)
    with over(rings) as wire:
        assert lib.hs_wire_xdp_open_datagrams(wire.wire, 4, bytes(4), PORTS[1]) == 0
        for number in range(room + 10):
            rings.arrive(frame_in(number.to_bytes(4, "big").ljust(1472, b".")))
            assert wire.receive() == []
        assert wire.dropped("hs_wire_xdp_drop") == {"HS_WIRE_XDP_RX_DATAGRAM_NO_ROOM": 10}
        assert [int.from_bytes(data[:4], "big") for data, _, _ in put_aside(wire)] == [*range(room)]
        rings.arrive(frame_in(b"again"))
        assert wire.receive() == []
        assert [data for data, _, _ in put_aside(wire)] == [b"again"]
        assert len(rings.free) == frames


def test_xdp_plain_datagrams_are_sent_between_turns() -> None:
    _, lib = extension()
    rings = Rings(frames=2)
    with over(rings) as wire:
        path = xdp_way(wire)
        path.max_datagram_bytes = FRAME_BYTES

        def send(payload: bytes) -> int:
            return int(lib.hs_wire_send(wire.wire, path.id, payload, len(payload)))

        assert send(b"one") == 1
        assert send(bytes(FRAME_BYTES)) == 1  # larger than a frame
        lib.hs_wire_flush(wire.wire)
        assert [frame[-3:] for frame in rings.tx_ring] == [b"one"]
        assert wire.dropped("hs_wire_xdp_drop") == {"HS_WIRE_XDP_TX_TOO_LARGE": 1}
        # The engine's own go first, and while they wait there is no room.
        rings.tx_room = 0
        assert wire.write(path, b"quic")
        assert wire.flush() == 1
        assert send(b"two") == 0
        rings.tx_room = 8
        assert send(b"two") == 1
        lib.hs_wire_flush(wire.wire)
        assert [frame[-3:] for frame in rings.tx_ring] == [b"one", b"uic", b"two"]


# --- the table of paths ---


def others_key(key: bytes, port: int) -> bytes:
    """The key of a datagram from another port of the same peer (struct hs_frame_flow)."""
    return key[:12] + port.to_bytes(2, sys.byteorder) + key[14:]


def test_a_path_that_a_burst_found_is_not_replaced() -> None:
    """The table is full, and the burst's own datagrams bring new paths."""
    ffi, _ = extension()
    rings = Rings()
    with over(rings, max_paths=4) as wire:
        key = next(iter(came_from(wire, rings, [5000]))).key
        ports = [5000, 5001, 5002, 5003]
        paths = {port: wire.learn(others_key(key, port)) for port in ports}
        assert ffi.NULL not in paths.values()
        burst = came_from(wire, rings, [5000, 5001, 6000, 6001, 6002])
        assert [each.path for each in burst[:2]] == [paths[5000], paths[5001]]
        # Two were not in the burst: they make room. Then there is none.
        assert wire.learn(burst[2].key) == paths[5002]
        assert wire.learn(burst[3].key) == paths[5003]
        assert wire.learn(burst[4].key) == ffi.NULL
        again = came_from(wire, rings, [5000, 5001, 6000, 6001])
        assert [each.path for each in again] == [paths[port] for port in ports]
        # In the next burst those that were unused for longest make room.
        came_from(wire, rings, [6001])
        assert wire.learn(others_key(key, 7000)) == paths[5000]


def came_from(wire: WireCalls, rings: Rings, ports: list[int]) -> list[Any]:
    """One burst, with a datagram from each port."""
    for port in ports:
        rings.arrive(frame_in(b"x", port=port))
    got = wire.receive()
    assert len(got) == len(ports)
    return got


def test_a_path_that_is_held_is_not_replaced() -> None:
    ffi, lib = extension()
    rings = Rings()
    with over(rings, max_paths=2) as wire:
        (first,) = came_from(wire, rings, [5000])
        path = wire.learn(first.key)
        lib.hs_wire_hold_path(wire.wire, path.id)
        for port in range(6000, 6010):
            came_from(wire, rings, [port])
            other = wire.learn(others_key(first.key, port))
            assert other not in (path, ffi.NULL)
        lib.hs_wire_let_go(wire.wire, path.id)
        lib.hs_wire_let_go(wire.wire, path.id)  # once too often
        assert path.references == 0
        for port in range(7000, 7002):
            came_from(wire, rings, [port])
            wire.learn(others_key(first.key, port))
        assert came_from(wire, rings, [5000])[0].path == ffi.NULL


def test_forged_addresses_take_little_of_the_table() -> None:
    """A path without a connection is soon replaced, those of connections are not."""
    _, lib = extension()
    rings = Rings()
    most_unused = 4096  # HS_PATHS_MOST_UNUSED
    with over(rings, max_paths=1 << 16) as wire:
        (first,) = came_from(wire, rings, [5000])
        held = [wire.learn(others_key(first.key, port)) for port in range(1000, 1100)]
        for path in held:
            lib.hs_wire_hold_path(wire.wire, path.id)
        for port in range(6000, 6000 + 2 * most_unused):
            if port % 50 == 0:
                came_from(wire, rings, [5000])
            wire.learn(others_key(first.key, port))
        assert lib.hs_wire_path_count(wire.wire) == len(held) + most_unused
        assert [wire.learn(others_key(first.key, port)) for port in range(1000, 1100)] == held


def test_a_datagram_that_was_handed_over_keeps_its_path_until_it_is_sent() -> None:
    """For links in Python: an answer to one peer must not go to another."""
    ffi, lib = extension()
    calls = WireCalls(lib.hs_wire_handed_new(2))

    def add(port: int) -> int:
        ends = {"ip_version": 4, "local_port": 1, "remote_port": port}
        return int(lib.hs_wire_add_path(calls.wire, ffi.new("struct hs_path_ends *", ends)))

    try:
        numbers = [add(1000), add(1001)]
        data = ffi.new("uint8_t[]", b"x")
        assert add(1002) == -1  # both are of this burst
        assert lib.hs_wire_handed_put(calls.wire, data, 1, 0, numbers[0]) == 0
        (came,) = calls.receive()
        assert add(1002) == numbers[1]
        assert calls.write(came.path, b"answer")
        for port in range(2000, 2010):
            assert lib.hs_wire_handed_put(calls.wire, data, 1, 0, numbers[1]) == 0
            calls.receive()
            assert add(port) == -1  # one is of this burst, and the other's answer waits
        count, taken = ffi.new("uint32_t *"), ffi.new("uint32_t *")
        assert lib.hs_wire_handed_take(calls.wire, 0, count, taken)
        assert taken[0] == numbers[0]
        ends = ffi.new("struct hs_path_ends *")
        assert lib.hs_wire_path_ends(calls.wire, taken[0], ends) == 0
        assert ends.remote_port == 1000
        lib.hs_wire_handed_sent(calls.wire, 1)
        assert add(3000) == numbers[0]
    finally:
        calls.free()


@pytest.mark.parametrize("tags", [(), ((0x8100, 7),)])
@pytest.mark.parametrize("family", FAMILIES)
def test_xdp_answers_go_back_to_where_a_datagram_came_from(family: str, tags: Any) -> None:
    ffi, lib = extension()
    rings = Rings()
    with over(rings) as wire:
        rings.arrive(frame_in(b"hello", family, tags=tags))
        (came,) = wire.receive()
        assert came.path == ffi.NULL
        back = wire.answer_path(came.key)
        assert wire.write(back, b"answer")
        assert wire.flush() == 0
        frame = rings.tx_ring.pop()
        assert (frame[:6], frame[6:12]) == (MACS[0], MACS[1])
        assert_frames([frame], back.header, [b"answer"])
        assert lib.hs_wire_path_count(wire.wire) == 0
        # It was proven; then the peer's router changes.
        path = wire.learn(came.key)
        mac = bytes.fromhex("020000000099")
        start = came.key.index(MACS[0])
        assert wire.learn(came.key[:start] + mac + came.key[start + 6 :]) == path
        assert bytes(path.header.bytes)[:6] == mac
        assert lib.hs_wire_path_count(wire.wire) == 1


def test_xdp_next_hops_are_asked_for_paths_in_use() -> None:
    ffi, lib = extension()
    rings = Rings()
    questions = ffi.new("struct hs_wire_xdp_question[]", 8)
    used, is_over = ffi.new("uint32_t[]", 8), ffi.new("int *")

    def asked() -> list[int]:
        count = lib.hs_wire_xdp_asked(wire.wire, questions, 8)
        return [each.path_id for each in questions[0:count]]

    def reported() -> list[int]:
        count = lib.hs_wire_xdp_used(wire.wire, used, 8, is_over)
        assert is_over[0]
        return list(used[0:count])

    with over(rings) as wire:
        (came,) = came_from(wire, rings, [5000])
        path = wire.learn(came.key)
        tagged = xdp_way(wire, tags=((0x8100, 7),))
        for _ in range(40):  # answers without a connection
            assert wire.write(path, b"x")
            wire.flush()
        assert asked() == reported() == []
        lib.hs_wire_hold_path(wire.wire, path.id)
        lib.hs_wire_hold_path(wire.wire, tagged.id)
        for number in range(40):
            assert asked() == ([path.id] if number == 16 else [])
            assert wire.write(path, b"x")
            assert wire.write(tagged, b"x")  # the kernel has no route by its interface
            wire.flush()
        assert questions[0].ends.remote_port == 5000
        assert reported() == [path.id]
        assert reported() == []
        hop = bytes.fromhex("020000000077")
        lib.hs_wire_xdp_answer(wire.wire, path.id, hop, 1300)
        assert bytes(path.header.bytes)[:6] == hop
        assert lib.hs_wire_path_bytes(wire.wire, path.id) == 1300 - 28
        # Its frames come from elsewhere now; the kernel's route stays.
        start = came.key.index(MACS[0])
        wire.learn(came.key[:start] + bytes(6) + came.key[start + 6 :])
        assert bytes(path.header.bytes)[:6] == hop
        # The interface changes.
        mac = bytes.fromhex("020000000055")
        set_interface(wire, mac, 1400)
        assert asked() == [path.id]
        lib.hs_wire_xdp_answer(wire.wire, path.id, ffi.NULL, 0)
        assert bytes(path.header.bytes)[:12] == bytes(6) + mac
        assert lib.hs_wire_path_bytes(wire.wire, path.id) == 1400 - 28
        lib.hs_wire_xdp_answer(wire.wire, 99, hop, 0)  # none has that number


def test_xdp_datagrams_for_others_and_from_nobody_are_dropped() -> None:
    rings = Rings()
    frames = len(rings.free)

    def arrive(source: str, to: str, macs: bytes = MACS[1] + MACS[0]) -> None:
        rings.arrive(udp_frame(b"x", macs=macs, hosts=(source, to), ports=PORTS))

    with over(rings) as wire:
        arrive("10.0.0.1", "10.0.0.3")
        arrive("10.0.0.1", "10.0.0.255")
        arrive("10.0.0.1", "10.0.0.2", macs=bytes(6) + MACS[0])
        arrive("10.0.0.255", "10.0.0.2")
        arrive("10.0.0.1", "10.0.0.2", macs=MACS[1] + bytes([1, *bytes(5)]))
        assert wire.receive() == []
        assert wire.dropped("hs_wire_xdp_drop") == {"HS_WIRE_XDP_RX_NOT_FOR_US": 3}
        assert wire.dropped("hs_frame_drop") == {"HS_FRAME_MARTIAN": 2}
        assert wire.wire.counters.rx_datagrams == 0
        assert len(rings.free) == frames


# --- all of it again, with sanitizers ---


@pytest.mark.skipif(EXTRA_FLAGS in os.environ, reason="this is that run")
def test_wires_under_sanitizers() -> None:
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("gcc is not installed: scripts/bootstrap.sh installs it")
    asan = subprocess.run(
        [gcc, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not FilePath(asan).is_absolute():
        pytest.skip("gcc has no runtime of the sanitizers")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        env={
            **os.environ,
            EXTRA_FLAGS: "-g -fsanitize=address,undefined -fno-sanitize-recover=all",
            "LD_PRELOAD": asan,
            # The interpreter leaves much behind at its end, which is none of ours.
            "ASAN_OPTIONS": "detect_leaks=0",
        },
        cwd=FilePath(__file__).resolve().parent.parent.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
