"""Local addresses of datagrams on a wildcard UDP socket: the destination of a received one, and the
source of a sent one (ip(7), ipv6(7))."""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address
from typing import Any, Final

#: linux/in.h; the socket module has it from Python 3.14 on.
_IP_PKTINFO: Final = 8
#: struct in_pktinfo: interface, local address, destination in the header; struct in6_pktinfo:
#: address, interface.
_V4: Final = struct.Struct("=i4s4s")
_V6: Final = struct.Struct("=16sI")
_CONTROL_BYTES: Final = socket.CMSG_SPACE(max(_V4.size, _V6.size))


def want_destinations(sock: socket.socket) -> None:
    """Enable destination addresses; call this before `receive`."""
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)


def receive(sock: socket.socket, most_bytes: int) -> tuple[bytes, Any, str | None]:
    """Receive a datagram; return it with its source and its destination address, which is None if
    it is multicast or unknown. Raises OSError as recvmsg."""
    data, control, _, name = sock.recvmsg(most_bytes, _CONTROL_BYTES)
    to = None
    for level, kind, value in control:
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            to = ip_address(_V4.unpack(value)[1])
        elif (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            to = ip_address(_V6.unpack(value)[0])
    return data, name, None if to is None or to.is_multicast else str(to)


def send_from(sock: socket.socket, host: str, data: bytes, to: tuple[Any, ...]) -> None:
    """Send a datagram from an address of this machine. Raises OSError as sendmsg."""
    packed = ip_address(host).packed
    if sock.family == socket.AF_INET:
        about = socket.IPPROTO_IP, _IP_PKTINFO, _V4.pack(0, packed, bytes(4))
    else:
        about = socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _V6.pack(packed, 0)
    sock.sendmsg([data], [about], 0, to)
