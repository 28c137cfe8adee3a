"""Frames by hand that a kernel takes: with checksums."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Final

CTAG: Final = 0x8100
STAG: Final = 0x88A8
_UDP: Final = 17


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    padded = data + bytes(len(data) % 2)
    total = sum(int.from_bytes(padded[at : at + 2], "big") for at in range(0, len(padded), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def udp_frame(
    payload: bytes,
    *,
    macs: bytes,
    hosts: tuple[str, str],
    ports: tuple[int, int],
    tags: Sequence[tuple[int, int]] = (),
    is_sum_right: bool = True,
) -> bytes:
    """An Ethernet frame with a UDP datagram.

    `macs` is destination and source, as on the wire; `hosts` and `ports` are source and
    destination; `tags` are pairs of TPID and TCI, outermost first.
    """
    source, destination = (ip_address(host).packed for host in hosts)
    size = 8 + len(payload)
    header = struct.pack("!HHH", *ports, size)
    pseudo = source + destination + struct.pack("!IHBB", size, 0, 0, _UDP)
    value = checksum(pseudo + header + bytes(2) + payload) or 0xFFFF
    if not is_sum_right:
        value ^= 0x5500
    datagram = header + struct.pack("!H", value) + payload
    if len(source) == 4:
        kind = 0x0800
        head = struct.pack("!BBHIBBH", 0x45, 0, 20 + size, 0, 64, _UDP, 0) + source + destination
        head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    else:
        kind = 0x86DD
        head = struct.pack("!IHBB", 6 << 28, size, _UDP, 64) + source + destination
    vlan = b"".join(struct.pack("!HH", *tag) for tag in tags)
    return macs + vlan + struct.pack("!H", kind) + head + datagram
