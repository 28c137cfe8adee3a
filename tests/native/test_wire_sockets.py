"""The wire over the kernel's UDP sockets, on the loopback."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address
from typing import Any

import pytest

from tests.support.wires import BURST, FAMILIES, WireCalls, extension, payloads

PATIENCE_S = 60
LOOPBACK = {"ipv4": "127.0.0.1", "ipv6": "::1"}
# linux/udp.h, asm-generic/socket.h: Python's socket module lacks them.
UDP_GRO = 104
SO_NO_CHECK = 11


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


@pytest.mark.parametrize("segments", [True, False], ids=["segments", "single"])
@pytest.mark.parametrize("family", FAMILIES)
def test_both_ways(sockets: Sockets, family: str, segments: bool) -> None:
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


def test_what_came_together_is_given_out_by_budgets(sockets: Sockets) -> None:
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


def test_messages_are_of_one_path_size_and_mark(sockets: Sockets) -> None:
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
def test_sizes(sockets: Sockets, size: int) -> None:
    left, right = sockets.port(), sockets.port()
    near, far = sockets.wire(left), sockets.wire(right)
    path = way(near, left, right)
    data = os.urandom(size)
    for _ in range(3):
        assert near.write(path, data)
        assert near.flush() == 0
        assert [each.payload for each in receive_all(far)] == [data]


def test_room_is_honest(sockets: Sockets) -> None:
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
def test_ecn(sockets: Sockets, family: str, ecn: int) -> None:
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


def test_unknown_paths_have_their_key(sockets: Sockets) -> None:
    left, right = sockets.port(), sockets.port()
    far = sockets.wire(right)
    left.socket.sendto(b"hello", ("127.0.0.1", right.number))
    (got,) = receive_all(far)
    assert not got.path
    assert got.key == right.key_from(left)
    path = far.path(got.key)
    left.socket.sendto(b"again", ("127.0.0.1", right.number))
    assert [each.path for each in receive_all(far)] == [path]


def test_sockets_take_turns(sockets: Sockets) -> None:
    ports, peer = [sockets.port() for _ in range(4)], sockets.port()
    wire = sockets.wire(*ports, segments=False)
    for port in ports:
        for _ in range(40):
            peer.socket.sendto(b"x", ("127.0.0.1", port.number))
    turns = [{each.key for each in wire.receive()} for _ in range(4)]
    assert turns == [{port.key_from(peer)} for port in ports]


def test_a_removed_socket_is_used_no_more(sockets: Sockets) -> None:
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


def test_what_a_removed_socket_left_has_no_way_back(sockets: Sockets) -> None:
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


def test_a_path_of_a_removed_socket_is_not_that_of_another_on_its_port(
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


def test_drops_are_counted(sockets: Sockets) -> None:
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


def test_without_gso_datagrams_go_one_by_one(sockets: Sockets) -> None:
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
