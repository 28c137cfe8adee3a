"""Packets in files: pcapng written, pcap and pcapng read; Ethernet only.

Formats: draft-ietf-opsawg-pcap and draft-ietf-opsawg-pcapng.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from typing import BinaryIO, Final, Literal, NamedTuple

from pyxdp.errors import PyxdpError

_ETHERNET: Final = 1  # LINKTYPE_ETHERNET
_MOST_PACKET_BYTES: Final = 1 << 18  # as in libpcap
_MOST_BLOCK_BYTES: Final = 1 << 24

# pcap: magic number, and nanoseconds in a unit of its fractions
_PCAP_UNITS_NS: Final = {0xA1B2C3D4: 1000, 0xA1B23C4D: 1}
_PCAP_HEADER_BYTES: Final = 24

# pcapng: block types, options
_SECTION: Final = 0x0A0D0D0A
_INTERFACE: Final = 1
_SIMPLE_PACKET: Final = 3
_STATISTICS: Final = 5
_ENHANCED_PACKET: Final = 6
_BYTE_ORDER: Final = 0x1A2B3C4D
_IF_NAME: Final = 2
_IF_TSRESOL: Final = 9
_ISB_DROPPED: Final = 7  # isb_osdrop
_NANOSECONDS: Final = 9  # of if_tsresol: 10 ** -9 s
_BLOCK_OVERHEAD_BYTES: Final = 12

_Order = Literal["<", ">"]


class CaptureFileError(PyxdpError):
    """A file is no capture, or is broken; the message says where."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EBADMSG, message)


class Packet(NamedTuple):
    """An Ethernet frame: when it came (since 1970), its bytes, and how many it had on the wire.

    `flow_key` is what `describe_flow` reads; only captured packets have it.
    """

    time_ns: int
    data: bytes
    length_bytes: int
    flow_key: bytes = b""


# --- writing ---


class PcapngWriter:
    """Writes packets of one interface to a binary file, which stays the caller's."""

    def __init__(self, file: BinaryIO, interface: str, snap_bytes: int = 0) -> None:
        """Write the header. `snap_bytes` is the most of a packet, 0 for no limit."""
        self._file = file
        self._block(_SECTION, struct.pack("=IHHq", _BYTE_ORDER, 1, 0, -1))
        options = _option(_IF_NAME, interface.encode()) + _option(_IF_TSRESOL, b"\x09")
        self._block(_INTERFACE, struct.pack("=HHI", _ETHERNET, 0, snap_bytes) + options + bytes(4))

    def write(self, packet: Packet) -> None:
        """Write a packet."""
        high, low = packet.time_ns >> 32, packet.time_ns & 0xFFFFFFFF
        head = struct.pack("=5I", 0, high, low, len(packet.data), packet.length_bytes)
        self._block(_ENHANCED_PACKET, head + _padded(packet.data))

    def write_statistics(self, time_ns: int, lost: int) -> None:
        """Write how many packets were lost, at the end."""
        head = struct.pack("=3I", 0, time_ns >> 32, time_ns & 0xFFFFFFFF)
        dropped = _option(_ISB_DROPPED, struct.pack("=Q", lost))
        self._block(_STATISTICS, head + dropped + bytes(4))

    def _block(self, kind: int, body: bytes) -> None:
        total = len(body) + _BLOCK_OVERHEAD_BYTES
        self._file.write(struct.pack("=II", kind, total) + body + struct.pack("=I", total))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("=HH", code, len(value)) + _padded(value)


# --- reading ---


def read_packets(file: BinaryIO, name: str = "the file") -> Iterator[Packet]:
    """Yield the packets of a pcap or pcapng file. Raises CaptureFileError, which names the file."""
    reader = _Reader(file, name)
    magic = reader.take(4)
    if magic == _SECTION.to_bytes(4, "little"):  # the same in both byte orders
        return _pcapng(reader)
    for order in _orders():
        if (number := struct.unpack(f"{order}I", magic)[0]) in _PCAP_UNITS_NS:
            return _pcap(reader, order, _PCAP_UNITS_NS[number])
    raise CaptureFileError(f"{name} is neither pcap nor pcapng")


def _orders() -> tuple[_Order, _Order]:
    return "<", ">"


class _Reader:
    """A file, and how far it was read."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._at = 0
        self.name: Final = name

    def take(self, size_bytes: int) -> bytes:
        """Read so many bytes; raise CaptureFileError if the file has fewer."""
        data = self._file.read(size_bytes)
        self._at += len(data)
        if len(data) < size_bytes:
            raise self.error("it is cut off")
        return data

    def take_or_end(self, size_bytes: int) -> bytes:
        """The same, but b"" at the end of the file."""
        data = self._file.read(size_bytes)
        self._at += len(data)
        return data + self.take(size_bytes - len(data)) if data else b""

    def error(self, what: str) -> CaptureFileError:
        return CaptureFileError(f"{self.name} is broken at byte {self._at}: {what}")


def _check_link_type(reader: _Reader, link_type: int) -> None:
    if link_type != _ETHERNET:
        raise CaptureFileError(
            f"{reader.name} has packets of link type {link_type}, and only Ethernet (1) is known"
        )


def _pcap(reader: _Reader, order: _Order, unit_ns: int) -> Iterator[Packet]:
    header = reader.take(_PCAP_HEADER_BYTES - 4)
    # The upper bits say how long the FCS is.
    _check_link_type(reader, struct.unpack_from(f"{order}I", header, 16)[0] & 0xFFFF)
    while head := reader.take_or_end(16):
        seconds, fraction, captured, length = struct.unpack(f"{order}4I", head)
        if captured > _MOST_PACKET_BYTES:
            raise reader.error(f"a packet of {captured} bytes")
        time_ns = seconds * 10**9 + fraction * unit_ns
        yield Packet(time_ns, reader.take(captured), length)


class _Source(NamedTuple):
    """An interface of a pcapng file."""

    units_per_s: int
    snap_bytes: int


def _pcapng(reader: _Reader) -> Iterator[Packet]:
    """The blocks after the first four bytes."""
    order, sources = _section(reader), list[_Source]()
    while head := reader.take_or_end(4):
        (kind,) = struct.unpack(f"{order}I", head)
        if kind == _SECTION:
            order, sources = _section(reader), []
            continue
        body = _body(reader, order)
        if kind == _INTERFACE:
            sources.append(_source(reader, order, body))
        elif kind == _ENHANCED_PACKET:
            yield _enhanced(reader, order, body, sources)
        elif kind == _SIMPLE_PACKET:
            yield _simple(reader, order, body, sources)


def _section(reader: _Reader) -> _Order:
    """Read the rest of a section's header; return its byte order."""
    raw_length, magic = reader.take(4), reader.take(4)
    for order in _orders():
        if struct.unpack(f"{order}I", magic)[0] == _BYTE_ORDER:
            _rest_of_block(reader, order, struct.unpack(f"{order}I", raw_length)[0], 12)
            return order
    raise reader.error("a section without a byte order")


def _body(reader: _Reader, order: _Order) -> bytes:
    (total,) = struct.unpack(f"{order}I", reader.take(4))
    return _rest_of_block(reader, order, total, 8)


def _rest_of_block(reader: _Reader, order: _Order, total: int, taken: int) -> bytes:
    """Read a block of which the first bytes were taken; return it without its last length."""
    if not taken + 4 <= total <= _MOST_BLOCK_BYTES or total % 4:
        raise reader.error(f"a block of {total} bytes")
    data = reader.take(total - taken)
    if struct.unpack_from(f"{order}I", data, len(data) - 4)[0] != total:
        raise reader.error("a block's two lengths differ")
    return data[:-4]


def _source(reader: _Reader, order: _Order, body: bytes) -> _Source:
    if len(body) < 8:
        raise reader.error("an interface block that is too short")
    link_type, _, snap_bytes = struct.unpack_from(f"{order}HHI", body)
    _check_link_type(reader, link_type)
    resolution = 6
    at = 8
    while at + 4 <= len(body):
        code, size = struct.unpack_from(f"{order}HH", body, at)
        value = body[at + 4 : at + 4 + size]
        if code == _IF_TSRESOL and value:
            resolution = value[0]
        at += 4 + size + -size % 4
    base, exponent = (2, resolution & 0x7F) if resolution & 0x80 else (10, resolution)
    return _Source(base**exponent, snap_bytes)


def _enhanced(reader: _Reader, order: _Order, body: bytes, sources: list[_Source]) -> Packet:
    if len(body) < 20:
        raise reader.error("a packet block that is too short")
    number, high, low, captured, length = struct.unpack_from(f"{order}5I", body)
    if number >= len(sources):
        raise reader.error(f"a packet of interface {number}, which the file does not have")
    if captured > len(body) - 20:
        raise reader.error(f"a packet of {captured} bytes in a block of {len(body)}")
    time_ns = (high << 32 | low) * 10**9 // sources[number].units_per_s
    return Packet(time_ns, body[20 : 20 + captured], length)


def _simple(reader: _Reader, order: _Order, body: bytes, sources: list[_Source]) -> Packet:
    if len(body) < 4 or not sources:
        raise reader.error("a packet block that is too short, or without an interface")
    (length,) = struct.unpack_from(f"{order}I", body)
    captured = min(length, sources[0].snap_bytes or length)
    if captured > len(body) - 4:
        raise reader.error(f"a packet of {captured} bytes in a block of {len(body)}")
    return Packet(0, body[4 : 4 + captured], length)
