"""Plain datagrams beside the engine's, in the wire over AF_XDP."""

from __future__ import annotations

import struct
from ipaddress import ip_address

from tests.support.rings import FRAME_BYTES, HOSTS, PORTS, Rings, frame_in, over, xdp_way
from tests.support.wires import FAMILIES, WireCalls, extension


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


def test_plain_datagrams_are_put_aside() -> None:
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


def test_plain_datagrams_that_nobody_takes_are_counted() -> None:
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


def test_plain_datagrams_are_sent_between_turns() -> None:
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
