"""Ethernet frames by hand, and what the steering program should make of any frame.

`expected` is the rules of bpf/steer.h and bpf/steer.bpf.c written a second time, plainly, so that
the program can be held against it for packets that nobody thought of.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from hoststack.native.wire._wire import lib

ETH: Final = bytes.fromhex("020000000001 020000000002")
IPV4, IPV6, ARP = 0x0800, 0x86DD, 0x0806
PORT: Final = 4433
TO4: Final = bytes((10, 0, 0, 1))
TO6: Final = bytes.fromhex("fd00") + bytes(13) + b"\1"
HOST, ROTATION, OLD_ROTATION, WORKERS = 0x1234, 3, 2, 2

HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION, UDP = 0, 43, 44, 60, 17


def cid(worker: int = 0, *, host: int = HOST, rotation: int = ROTATION) -> bytes:
    return bytes((rotation << 5 | 11, host >> 8, host & 0xFF, worker)) + b"randomly"


def long_header(dcid: bytes, *, version: int = 1, first: int = 0xC0) -> bytes:
    return bytes((first,)) + struct.pack("!I", version) + bytes((len(dcid),)) + dcid + bytes(30)


def short_header(dcid: bytes, *, first: int = 0x40) -> bytes:
    return bytes((first,)) + dcid + bytes(30)


def udp(payload: bytes, *, port: int = PORT, length: int | None = None) -> bytes:
    total = 8 + len(payload) if length is None else length
    return struct.pack("!HHHH", 50000, port, total, 0) + payload


def ipv4(
    inner: bytes,
    *,
    to: bytes = TO4,
    options: bytes = b"",
    protocol: int = UDP,
    fragment: int = 0,
    ihl: int | None = None,
    total: int | None = None,
    version: int = 4,
) -> bytes:
    words = 5 + len(options) // 4 if ihl is None else ihl
    length = 20 + len(options) + len(inner) if total is None else total
    first = version << 4 | words
    header = struct.pack("!BBHHHBBH", first, 0, length, 0, fragment, 64, protocol, 0)
    return header + bytes((10, 0, 0, 9)) + to + options + inner


def extension(follows: int, size: int = 8, *, segments_left: int = 0) -> bytes:
    return bytes((follows, size // 8 - 1, 0, segments_left)) + bytes(size - 4)


def ipv6(
    inner: bytes,
    *,
    to: bytes = TO6,
    follows: int = UDP,
    length: int | None = None,
    version: int = 6,
) -> bytes:
    size = len(inner) if length is None else length
    return struct.pack("!IHBB", version << 28, size, follows, 64) + bytes(15) + b"\x09" + to + inner


def ethernet(inner: bytes, kind: int = IPV4, tags: tuple[int, ...] = ()) -> bytes:
    chain = b"".join(struct.pack("!HH", tpid, 100) for tpid in tags)
    return ETH + chain + struct.pack("!H", kind) + inner


@dataclass(frozen=True)
class Steered:
    """What should become of a frame: the counter, and the index in hs_sockets if it is steered."""

    counter: str
    index: int | None = None

    @property
    def is_dropped(self) -> bool:
        return self.counter.startswith("dropped")


class _CutShortError(Exception):
    """The frame ends too early."""


def _take(data: bytes, count: int) -> tuple[bytes, bytes]:
    if len(data) < count:
        raise _CutShortError
    return data[:count], data[count:]


def expected(frame: bytes, *, queue: int = 0, any_address: bool = False) -> Steered:
    """What should become of a frame on a queue; the port is open on TO4 and TO6, or on all."""
    try:
        return _expected(frame, queue, any_address)
    except _CutShortError:
        return Steered("passed_malformed")


def _expected(frame: bytes, queue: int, any_address: bool) -> Steered:
    header, rest = _take(frame, 14)
    (kind,) = struct.unpack("!H", header[12:])
    for _ in range(lib.HS_STEER_VLAN_TAGS):
        if kind in (0x8100, 0x88A8):
            tag, rest = _take(rest, 4)
            (kind,) = struct.unpack("!H", tag[2:])
    if kind == IPV4:
        found = _ipv4(rest)
    elif kind == IPV6:
        found = _ipv6(rest)
    else:
        return Steered("passed_not_ip")
    if isinstance(found, Steered):
        return found
    to, left, rest = found
    header, rest = _take(rest, 8)
    _, port, length, _ = struct.unpack("!HHHH", header)
    if port != PORT or not (any_address or to in (TO4, TO6)):
        return Steered("passed_other_port")
    if frame[0] & 1:
        return Steered("passed_group")
    if length < 8 or length > left or length - 8 > len(rest):
        return Steered("passed_malformed")
    return _quic(rest[: length - 8], queue)


def _ipv4(data: bytes) -> Steered | tuple[bytes, int, bytes]:
    header, _ = _take(data, 20)
    size = (header[0] & 15) * 4
    total, fragment = struct.unpack("!H2xH", header[2:8])
    if header[0] >> 4 != 4 or size < 20 or total < size:
        return Steered("passed_malformed")
    if fragment & 0x3FFF:
        return Steered("passed_fragment")
    if header[9] != UDP:
        return Steered("passed_not_udp")
    _, rest = _take(data, size)
    return header[16:20], total - size, rest


def _ipv6(data: bytes) -> Steered | tuple[bytes, int, bytes]:
    header, rest = _take(data, 40)
    if header[0] >> 4 != 6:
        return Steered("passed_malformed")
    left, follows = struct.unpack("!HB", header[4:7])
    for _ in range(lib.HS_STEER_EXTENSION_HEADERS + 1):
        if follows == UDP:
            return header[24:40], left, rest
        if follows == FRAGMENT:
            return Steered("passed_fragment")
        if follows not in (HOP_BY_HOP, ROUTING, DESTINATION):
            return Steered("passed_not_udp")
        start, _ = _take(rest, 4)
        if follows == ROUTING and start[3]:
            return Steered("passed_extension")
        size = (start[1] + 1) * 8
        if size > left:
            return Steered("passed_malformed")
        _, rest = _take(rest, size)
        left -= size
        follows = start[0]
    return Steered("passed_extension")


def _quic(payload: bytes, queue: int) -> Steered:
    if not payload:
        return Steered("dropped_empty")
    if payload[0] & 0x80:
        if len(payload) < 6:
            return Steered("dropped_too_short")
        size = payload[5]
        if size > 20:
            return Steered("dropped_long_cid")
        if len(payload) < 6 + size:
            return Steered("dropped_too_short")
        dcid = payload[6 : 6 + size]
    elif not payload[0] & 0x40:
        return Steered("dropped_not_quic")
    elif len(payload) < 13:
        return Steered("dropped_too_short")
    else:
        dcid = payload[1:13]
    is_ours = (
        len(dcid) == 12
        and dcid[0] & 31 == 11
        and dcid[0] >> 5 in (ROTATION, OLD_ROTATION)
        and int.from_bytes(dcid[1:3], "big") == HOST
        and dcid[3] < WORKERS
    )
    if is_ours:
        return Steered("redirected_by_cid", queue * WORKERS + dcid[3])
    return Steered("redirected_as_new", queue * WORKERS + queue % WORKERS)
