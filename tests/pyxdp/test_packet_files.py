"""pcap and pcapng: what is written is read again, and broken files are refused in one line."""

from __future__ import annotations

import io
import struct

import pytest

from pyxdp.tools import CaptureFileError, Packet, PcapngWriter, read_packets

PACKETS = [
    Packet(1_700_000_000_123_456_789, bytes(range(60)), 60),
    Packet(1_700_000_001_000_000_000, b"x" * 61, 1500),
    Packet(0, b"y" * 14, 14),
]


def pcapng() -> bytes:
    file = io.BytesIO()
    writer = PcapngWriter(file, "eth0", 64)
    for packet in PACKETS:
        writer.write(packet)
    writer.write_statistics(PACKETS[1].time_ns, 3)
    return file.getvalue()


def pcap(order: str = "<", *, has_ns: bool = True, link_type: int = 1) -> bytes:
    magic, unit_ns = (0xA1B23C4D, 1) if has_ns else (0xA1B2C3D4, 1000)
    data = struct.pack(f"{order}IHHiIII", magic, 2, 4, 0, 0, 65535, link_type)
    for packet in PACKETS:
        seconds, rest_ns = divmod(packet.time_ns, 10**9)
        head = (seconds, rest_ns // unit_ns, len(packet.data), packet.length_bytes)
        data += struct.pack(f"{order}4I", *head) + packet.data
    return data


def block(order: str, kind: int, body: bytes) -> bytes:
    total = struct.pack(f"{order}I", len(body) + 12)
    return struct.pack(f"{order}I", kind) + total + body + total


def foreign_pcapng(order: str) -> bytes:
    """As other programs write it: microseconds, options, unknown blocks, a simple packet."""
    section = struct.pack(f"{order}IHHq", 0x1A2B3C4D, 1, 0, -1)
    interface = struct.pack(f"{order}HHI", 1, 0, 20)
    packet = struct.pack(f"{order}5I", 0, 0, 5, 14, 14) + bytes(14) + b"\0\0"
    return (
        block(order, 0x0A0D0D0A, section)
        + block(order, 0x0BAD, b"what is this")
        + block(order, 1, interface)
        + block(order, 6, packet + struct.pack(f"{order}HH", 1, 3) + b"abc\0" + bytes(4))
        + block(order, 3, struct.pack(f"{order}I", 1500) + bytes(20))
    )


def read(data: bytes) -> list[Packet]:
    return list(read_packets(io.BytesIO(data), "some.pcap"))


def test_pcapng_is_read_as_it_was_written() -> None:
    assert read(pcapng()) == PACKETS


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("has_ns", [True, False])
def test_pcap(order: str, has_ns: bool) -> None:
    unit_ns = 1 if has_ns else 1000
    expected = [each._replace(time_ns=each.time_ns // unit_ns * unit_ns) for each in PACKETS]
    assert read(pcap(order, has_ns=has_ns)) == expected


@pytest.mark.parametrize("order", "<>")
def test_pcapng_of_other_programs(order: str) -> None:
    expected = [Packet(5000, bytes(14), 14), Packet(0, bytes(20), 1500)]
    assert read(foreign_pcapng(order)) == expected
    assert read(foreign_pcapng(order) + pcapng()) == expected + PACKETS


@pytest.mark.parametrize("whole", [pcapng(), pcap(), foreign_pcapng(">")], ids=["ng", "pcap", "be"])
def test_broken_files_are_refused(whole: bytes) -> None:
    """A prefix, and one changed byte anywhere: packets, or an error that names the file."""
    broken = [whole[:size] for size in range(len(whole))]
    for at in range(len(whole)):
        for value in (0, 1, 0x7F, 0xFF):
            broken.append(whole[:at] + bytes([value]) + whole[at + 1 :])
    said: list[str] = []
    for data in broken:
        try:
            read(data)
        except CaptureFileError as error:
            said.append(str(error))
    assert len(said) > len(whole) // 2
    assert all("some.pcap" in text and "\n" not in text for text in said)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "cut off"),
        (b"#!/bin/sh\n", "neither pcap nor pcapng"),
        (pcap(link_type=113), "link type 113, and only Ethernet"),
        (pcapng()[:-30], "cut off"),
        (pcapng()[:28] + block("=", 6, bytes(20)), "interface 0, which the file does not have"),
    ],
    ids=["empty", "script", "sll", "short", "interface"],
)
def test_errors(data: bytes, says: str) -> None:
    with pytest.raises(CaptureFileError, match=says):
        read(data)


def test_options_that_others_read() -> None:
    """Name, resolution, and how many packets were lost."""
    data = pcapng()
    assert struct.pack("=HH", 2, 4) + b"eth0" in data
    assert struct.pack("=HH", 9, 1) + b"\x09\0\0\0" in data
    assert struct.pack("=HHQ", 7, 8, 3) in data
