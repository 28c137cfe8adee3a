"""Ethernet frames, made as tests want them."""

from __future__ import annotations

import ipaddress
import struct

MACS = bytes.fromhex("020000000002 020000000001")


def ethernet(ethertype: int, body: bytes, *tags: int) -> bytes:
    """A frame of 60 bytes at least, with VLAN tags of those IDs."""
    head = MACS + b"".join(struct.pack(">HH", 0x8100, tag) for tag in tags)
    return (head + struct.pack(">H", ethertype) + body).ljust(60, b"\0")


def ports(source: int, destination: int, payload: bytes = b"") -> bytes:
    """A UDP header without a checksum; of TCP and SCTP only its first four bytes have a meaning."""
    return struct.pack(">HHHH", source, destination, 8 + len(payload), 0) + payload


def ipv4(
    source: str, destination: str, protocol: int, body: bytes, *, fragment: int = 0, words: int = 5
) -> bytes:
    """An IPv4 packet without a checksum; `fragment` is its offset in 8 bytes, `words` its IHL."""
    size = words * 4 + len(body)
    head = struct.pack(">BBHHHBBH", 0x40 | words, 0, size, 1, fragment, 64, protocol, 0)
    addresses = ipaddress.IPv4Address(source).packed + ipaddress.IPv4Address(destination).packed
    return head + addresses + bytes(4 * (words - 5)) + body


def ipv6(source: str, destination: str, next_header: int, body: bytes) -> bytes:
    """An IPv6 packet."""
    head = struct.pack(">IHBB", 6 << 28, len(body), next_header, 64)
    addresses = ipaddress.IPv6Address(source).packed + ipaddress.IPv6Address(destination).packed
    return head + addresses + body


def udp4(source_port: int = 1000, destination_port: int = 4433, payload: bytes = b"") -> bytes:
    """10.0.0.1 to 10.0.0.2."""
    body = ipv4("10.0.0.1", "10.0.0.2", 17, ports(source_port, destination_port, payload))
    return ethernet(0x0800, body)
