"""Frame headers: what is built is parsed again, and nothing a frame holds leads astray."""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hoststack.native.wire._wire import ffi, lib

FRAME_BYTES = 2048


class Parsed(NamedTuple):
    drop: int
    ecn: int
    payload: bytes
    flow: Any


def parse(frame: bytes, *, addr: int = 0, length: int | None = None) -> Parsed:
    """Parse one frame that lies in a UMEM of its own."""
    umem = frame or b"\0"
    descs = ffi.new("struct hs_frame_desc[1]")
    descs[0].addr = addr
    descs[0].len = len(frame) if length is None else length
    out = ffi.new("struct hs_datagram[1]")
    good = lib.hs_frames_parse(ffi.from_buffer("uint8_t[]", umem), len(frame), descs, 1, out)
    assert good == (out[0].drop == lib.HS_FRAME_GOOD)
    start = out[0].payload
    payload = frame[start : start + out[0].payload_bytes] if good else b""
    return Parsed(out[0].drop, out[0].ecn, payload, out[0].flow)


def flow(version: int, tags: int = 0) -> Any:
    made = ffi.new("struct hs_frame_flow *")
    made.ip_version, made.vlan_tags = version, tags
    for tag in range(tags):
        made.vlan_tpid[tag], made.vlan_id[tag] = (0x88A8, 0x8100)[tag], 100 + tag
    made.local_port, made.remote_port = 4433, 51000
    made.local_mac, made.remote_mac = b"\x02\0\0\0\0\1", b"\x02\0\0\0\0\2"
    size = 4 if version == 4 else 16
    made.local_ip = bytes(range(1, size + 1)).ljust(16, b"\0")
    made.remote_ip = bytes(range(21, 21 + size)).ljust(16, b"\0")
    return made


def build(of: Any, payloads: list[bytes], *, ecn: int = 0) -> list[bytes]:
    header = ffi.new("struct hs_frame_header *")
    assert lib.hs_frame_header_init(header, of, 64, ecn) == 0
    frames = []
    for payload in payloads:
        frame = ffi.new("uint8_t[]", bytes(header.header_bytes) + payload)
        lib.hs_frame_finish(frame + header.header_bytes, header, len(payload), 0)
        frames.append(bytes(ffi.buffer(frame))[:-1])
    return frames


def ones_complement(data: bytes) -> int:
    """RFC 1071, the plain way."""
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@given(
    version=st.sampled_from([4, 6]),
    tags=st.integers(0, 2),
    ecn=st.integers(0, 3),
    payloads=st.lists(st.binary(max_size=1500), min_size=1, max_size=8),
)
def test_a_built_frame_is_parsed_to_what_it_was_made_of(
    version: int, tags: int, ecn: int, payloads: list[bytes]
) -> None:
    sent = flow(version, tags)
    for frame, payload in zip(build(sent, payloads, ecn=ecn), payloads, strict=True):
        got = parse(frame + b"\xee" * 3)  # padding is no part of it
        assert got.drop == lib.HS_FRAME_GOOD
        assert (got.payload, got.ecn) == (payload, ecn)
        assert bytes(got.flow.local_ip) == bytes(sent.remote_ip)
        assert bytes(got.flow.remote_ip) == bytes(sent.local_ip)
        assert (got.flow.local_port, got.flow.remote_port) == (51000, 4433)
        assert bytes(got.flow.local_mac) == bytes(sent.remote_mac)
        assert list(got.flow.vlan_id)[:tags] == [100, 101][:tags]
        assert got.flow.vlan_tags == tags


@given(version=st.sampled_from([4, 6]), payload=st.binary(max_size=1500))
def test_checksums_are_complete(version: int, payload: bytes) -> None:
    (frame,) = build(flow(version), [payload])
    packet = frame[14:]
    if version == 4:
        assert ones_complement(packet[:20]) == 0xFFFF
        addresses, segment = packet[12:20], packet[20:]
    else:
        addresses, segment = packet[8:40], packet[40:]
    pseudo = addresses + struct.pack("!II", len(segment), socket.IPPROTO_UDP)
    assert ones_complement(pseudo + segment) == 0xFFFF
    assert segment[6:8] != b"\0\0"


@given(
    version=st.sampled_from([4, 6]),
    tags=st.integers(0, 2),
    ecn=st.integers(0, 3),
    payload=st.binary(max_size=1500),
)
def test_a_frame_finished_in_place_is_the_built_one(
    version: int, tags: int, ecn: int, payload: bytes
) -> None:
    header = ffi.new("struct hs_frame_header *")
    assert lib.hs_frame_header_init(header, flow(version, tags), 64, 0) == 0
    umem = bytearray(b"\xee" * FRAME_BYTES)
    place = lib.HS_FRAME_MAX_HEADER_BYTES
    umem[place : place + len(payload)] = payload
    start, end = place - header.header_bytes, place + len(payload)
    at = ffi.from_buffer("uint8_t[]", umem)
    lib.hs_frame_finish(at + place, header, len(payload), ecn)
    assert [bytes(umem[start:end])] == build(flow(version, tags), [payload], ecn=ecn)
    assert not umem[:start].strip(b"\xee")
    assert not umem[end:].strip(b"\xee")


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("tags", [0, 1, 2])
def test_a_frame_cut_at_any_byte_is_dropped(version: int, tags: int) -> None:
    (frame,) = build(flow(version, tags), [b"0123456789"])
    for end in range(len(frame)):
        assert parse(frame[:end]).drop == lib.HS_FRAME_TRUNCATED, end


@given(frame=st.binary(max_size=200))
def test_rubbish_is_parsed_within_its_bounds(frame: bytes) -> None:
    got = parse(frame)
    assert got.drop < lib.HS_FRAME_DROPS


@given(data=st.data())
def test_a_changed_frame_is_parsed_within_its_bounds(data: st.DataObject) -> None:
    version = data.draw(st.sampled_from([4, 6]))
    (frame,) = build(flow(version, data.draw(st.integers(0, 2))), [b"x" * 64])
    changed = bytearray(frame)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    got = parse(bytes(changed))
    if got.drop == lib.HS_FRAME_GOOD:
        assert len(got.payload) <= len(frame)


@pytest.mark.parametrize(("addr", "length"), [(1000, 10), (0, 1000), (1 << 63, 64), (60, 64)])
def test_a_descriptor_outside_the_umem_is_refused(addr: int, length: int) -> None:
    assert parse(bytes(64), addr=addr, length=length).drop == lib.HS_FRAME_OUTSIDE_UMEM


def with_ipv4(**changes: int) -> bytes:
    (frame,) = build(flow(4), [b"x" * 32])
    changed = bytearray(frame)
    for field, value in changes.items():
        place, layout = {
            "first": (14, "!B"),
            "total": (16, "!H"),
            "fragment": (20, "!H"),
            "protocol": (23, "!B"),
            "udp_length": (38, "!H"),
        }[field]
        struct.pack_into(layout, changed, place, value)
    return bytes(changed)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"first": 0x44}, "HS_FRAME_BAD_IP"),
        ({"first": 0x65}, "HS_FRAME_BAD_IP"),
        ({"total": 19}, "HS_FRAME_BAD_IP"),
        ({"total": 0xFFFF}, "HS_FRAME_TRUNCATED"),
        ({"total": 24}, "HS_FRAME_TRUNCATED"),
        ({"fragment": 0x2000}, "HS_FRAME_FRAGMENT"),
        ({"fragment": 0x0001}, "HS_FRAME_FRAGMENT"),
        ({"protocol": 6}, "HS_FRAME_NOT_UDP"),
        ({"udp_length": 7}, "HS_FRAME_BAD_UDP"),
        ({"udp_length": 0xFFFF}, "HS_FRAME_BAD_UDP"),
    ],
)
def test_headers_that_lie_are_found_out(changes: dict[str, int], why: str) -> None:
    assert parse(with_ipv4(**changes)).drop == getattr(lib, why)


@pytest.mark.parametrize(
    ("source", "is_martian"),
    [
        ("0.1.2.3", True),
        ("127.0.0.1", True),
        ("224.0.0.1", True),
        ("239.255.255.255", True),
        ("240.0.0.1", True),
        ("255.255.255.255", True),
        ("1.2.3.4", True),  # the receiver itself
        ("1.0.0.1", False),
        ("126.1.2.3", False),
        ("128.0.0.1", False),
        ("223.255.255.255", False),
        ("::", True),
        ("::1", True),
        ("::10.0.0.1", True),
        ("::ffff:10.0.0.1", True),
        ("ff02::1", True),
        ("0102:0304:0506:0708:090a:0b0c:0d0e:0f10", True),  # the receiver itself
        ("fe80::1", False),
        ("fd00::1", False),
        ("::1:0:0:1", False),
        ("64:ff9b::10.0.0.1", False),
    ],
)
def test_sources_that_are_no_host_are_dropped(source: str, is_martian: bool) -> None:
    address = ip_address(source)
    of = flow(address.version)
    of.remote_ip = address.packed.ljust(16, b"\0")
    # It is built as its sender does, from the other side.
    of.local_ip, of.remote_ip = bytes(of.remote_ip), bytes(of.local_ip)
    (frame,) = build(of, [b"hello"])
    drop = parse(frame).drop
    assert drop == (lib.HS_FRAME_MARTIAN if is_martian else lib.HS_FRAME_GOOD)


def with_options(options: bytes) -> bytes:
    """An IPv4 frame whose header has them, padded."""
    (frame,) = build(flow(4), [b"hello"])
    padded = options.ljust(-(-len(options) // 4) * 4, b"\0")
    header = bytearray(frame[14:34] + padded)
    header[0] = 0x40 | len(header) // 4
    struct.pack_into("!H", header, 2, len(header) + len(frame) - 34)
    header[10:12] = bytes(2)
    struct.pack_into("!H", header, 10, ~ones_complement(bytes(header)) & 0xFFFF)
    return frame[:14] + bytes(header) + frame[34:]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (b"\x01\x01\x01\x00", "HS_FRAME_GOOD"),
        (b"\x94\x04\0\0", "HS_FRAME_GOOD"),  # router alert
        (b"\x00\xff\xff\xff", "HS_FRAME_GOOD"),  # what follows the end means nothing
        (b"\x83\x07\x04\x0a\0\0\1", "HS_FRAME_BAD_IP"),  # loose source route
        (b"\x01\x89\x07\x04\x0a\0\0\1", "HS_FRAME_BAD_IP"),  # strict
        (b"\x07\x01\0\0", "HS_FRAME_BAD_IP"),  # lengths that lie
        (b"\x07\x05\0\0", "HS_FRAME_BAD_IP"),
        (b"\x01\x01\x01\x07", "HS_FRAME_BAD_IP"),
    ],
)
def test_options(options: bytes, why: str) -> None:
    frame = with_options(options)
    assert parse(frame).drop == getattr(lib, why)
    if why == "HS_FRAME_GOOD":
        assert sums_hold(frame)


def sums_hold(frame: bytes) -> bool:
    descs = ffi.new("struct hs_frame_desc[1]")
    descs[0].len = len(frame)
    out = ffi.new("struct hs_datagram[1]")
    umem = ffi.from_buffer("uint8_t[]", frame)
    assert lib.hs_frames_parse(umem, len(frame), descs, 1, out) == 1
    return bool(lib.hs_frame_sums_hold(umem, out))


@given(
    version=st.sampled_from([4, 6]),
    payload=st.binary(max_size=1500),
    padding=st.integers(0, 46),
    bit=st.integers(min_value=0),
)
def test_one_changed_bit_is_found(version: int, payload: bytes, padding: int, bit: int) -> None:
    (frame,) = build(flow(version), [payload])
    assert sums_hold(frame + bytes(padding))
    udp_at = 14 + {4: 20, 6: 40}[version]
    # Of the UDP datagram; its length is compared with IP's before.
    at = bit // 8 % (len(frame) - udp_at)
    if at not in (4, 5):
        changed = bytearray(frame)
        changed[udp_at + at] ^= 1 << bit % 8
        has_none = version == 4 and changed[udp_at + 6 : udp_at + 8] == b"\0\0"
        assert sums_hold(bytes(changed)) == has_none


@pytest.mark.parametrize("version", [4, 6])
def test_sums_that_are_not_there_or_not_finished(version: int) -> None:
    (frame,) = build(flow(version), [b"hello"])
    udp_at = 14 + {4: 20, 6: 40}[version]
    addresses = frame[udp_at - {4: 8, 6: 32}[version] : udp_at]

    def with_sum(value: int) -> bytes:
        changed = bytearray(frame)
        struct.pack_into("!H", changed, udp_at + 6, value)
        return bytes(changed)

    assert sums_hold(with_sum(0)) == (version == 4)
    # CHECKSUM_PARTIAL: the sum of the pseudo header, which the card is to go on with.
    pseudo = ones_complement(addresses + struct.pack("!IBBBB", 8 + 5, 0, 0, 0, 17))
    assert sums_hold(with_sum(pseudo))
    assert not sums_hold(with_sum(pseudo ^ 0x8000))
    assert not sums_hold(with_sum(~pseudo & 0xFFFF))


def test_the_ipv4_headers_sum() -> None:
    (frame,) = build(flow(4), [b"hello"])
    changed = bytearray(frame)
    changed[14 + 8] -= 1  # a hop
    assert not sums_hold(bytes(changed))


@pytest.mark.parametrize(("count", "why"), [(8, "HS_FRAME_GOOD"), (9, "HS_FRAME_BAD_EXTENSION")])
def test_extension_headers_are_bounded(count: int, why: str) -> None:
    (frame,) = build(flow(6), [b"hello"])
    udp = frame[54:]
    options = b"".join(bytes((60 if left else 17, 0)) + bytes(6) for left in reversed(range(count)))
    header = bytearray(frame[:54])
    header[14 + 6] = 60
    struct.pack_into("!H", header, 14 + 4, len(options) + len(udp))
    got = parse(bytes(header) + options + udp)
    assert got.drop == getattr(lib, why)
    assert got.payload == (b"hello" if why == "HS_FRAME_GOOD" else b"")
