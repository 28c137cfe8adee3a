"""AF_XDP rings made of Python, and the wire over them (hoststack/native/wire/xdp.h)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any

from tests.support.checksummed import checksum, udp_frame
from tests.support.wires import WireCalls, extension

MACS = bytes.fromhex("0200000000aa"), bytes.fromhex("0200000000bb")  # theirs, ours
HOSTS = {"ipv4": ("10.0.0.1", "10.0.0.2"), "ipv6": ("fd00::1", "fd00::2")}
PORTS = (5000, 4433)
FRAME_BYTES = 2048


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


def others_key(key: bytes, port: int) -> bytes:
    """The key of a datagram from another port of the same peer (struct hs_frame_flow)."""
    return key[:12] + port.to_bytes(2, sys.byteorder) + key[14:]


def came_from(wire: WireCalls, rings: Rings, ports: list[int]) -> list[Any]:
    """One burst, with a datagram from each port."""
    for port in ports:
        rings.arrive(frame_in(b"x", port=port))
    got = wire.receive()
    assert len(got) == len(ports)
    return got
