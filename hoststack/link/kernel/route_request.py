"""`ip route get`: one request over a netlink socket of its own, some 20 us (man 7 rtnetlink).

Whoever sends from forged addresses can have a route requested for each; pyroute2 takes 600 us.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator
from typing import Final, NamedTuple

from hoststack.link.base import LinkError

_NLMSG_ERROR: Final = 2  # linux/netlink.h
_NLM_F_REQUEST: Final = 1
_RTM_NEWROUTE: Final = 24  # linux/rtnetlink.h
_RTM_GETROUTE: Final = 26
_RTA_DST: Final = 1
_RTA_SRC: Final = 2
_RTA_OIF: Final = 4
_RTA_GATEWAY: Final = 5
_RTA_PREFSRC: Final = 7
_RTA_METRICS: Final = 8
_RTA_VIA: Final = 18
_RTAX_MTU: Final = 2
_TYPE_BITS: Final = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_RTN_UNICAST: Final = 1
_RTN_LOCAL: Final = 2

#: struct nlmsghdr: length, type, flags, sequence number, port.
_HEADER: Final = struct.Struct("=IHHII")
#: struct rtmsg: family, bits of destination and source, TOS, table, protocol, scope, type, flags.
_ROUTE: Final = struct.Struct("=8BI")
#: struct rtattr: length, type.
_ATTRIBUTE: Final = struct.Struct("=HH")
_NUMBER: Final = struct.Struct("=I")
_ERROR: Final = struct.Struct("=i")
_MOST_BYTES: Final = 1 << 16


class Route(NamedTuple):
    """The kernel's answer to "how would you send to this address" (`ip route get`)."""

    source: str
    """The local address that the kernel would send from; empty if it names none."""
    next_hop: str
    """The gateway, or the address itself where it is on the link."""
    ifindex: int
    is_local: bool
    """Whether the address is this machine's own."""
    is_unicast: bool
    mtu_bytes: int | None
    """The route's own MTU, where it has one."""


class RouteRequests:
    """A socket for them, in the network namespace of the thread that creates it."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        self._sequence = 0

    def close(self) -> None:
        """Close the socket; idempotent."""
        self._socket.close()

    def route(self, remote: str, source: str | None, oif: int | None) -> Route:
        """See Rtnetlink.route."""
        answer = self._ask(_request(remote, source, oif))
        if len(answer) < _ROUTE.size:
            raise LinkError(errno.EPROTO, f"the kernel's route to {remote} is cut off")
        family, kind = answer[0], answer[7]
        found = dict(_attributes(answer, _ROUTE.size))
        via = found.get(_RTA_VIA)  # an IPv4 route through an IPv6 gateway (RFC 5549)
        gateway = found.get(_RTA_GATEWAY)
        metrics = dict(_attributes(found.get(_RTA_METRICS, b""), 0))
        if gateway is not None:
            next_hop = socket.inet_ntop(family, gateway)
        elif via is not None:
            next_hop = socket.inet_ntop(int.from_bytes(via[:2], sys.byteorder), via[2:])
        else:
            next_hop = remote
        own = found.get(_RTA_PREFSRC)
        return Route(
            source="" if own is None else socket.inet_ntop(family, own),
            next_hop=next_hop,
            ifindex=_number(found.get(_RTA_OIF)) or 0,
            is_local=kind == _RTN_LOCAL,
            is_unicast=kind == _RTN_UNICAST,
            mtu_bytes=_number(metrics.get(_RTAX_MTU)),
        )

    def _ask(self, request: bytes) -> bytes:
        """Return a struct rtmsg and its attributes; raises OSError with the kernel's errno."""
        self._sequence = self._sequence + 1 & 0xFFFFFFFF
        length = _HEADER.size + len(request)
        header = _HEADER.pack(length, _RTM_GETROUTE, _NLM_F_REQUEST, self._sequence, 0)
        self._socket.sendto(header + request, (0, 0))
        while True:
            data, (sender, _) = self._socket.recvfrom(_MOST_BYTES)
            if sender != 0 or len(data) < _HEADER.size:  # not the kernel
                continue
            length, kind, _, sequence, _ = _HEADER.unpack_from(data)
            if sequence != self._sequence:
                continue
            payload = data[_HEADER.size : length]
            if kind == _RTM_NEWROUTE:
                return payload
            if kind == _NLMSG_ERROR:
                number = -_ERROR.unpack_from(payload)[0] or errno.EPROTO
                raise OSError(number, os.strerror(number))


def _request(remote: str, source: str | None, oif: int | None) -> bytes:
    family = socket.AF_INET6 if ":" in remote else socket.AF_INET
    destination = socket.inet_pton(family, remote)
    bits = 8 * len(destination)
    request = _ROUTE.pack(family, bits, bits if source else 0, 0, 0, 0, 0, 0, 0)
    request += _attribute(_RTA_DST, destination)
    if source is not None:
        request += _attribute(_RTA_SRC, socket.inet_pton(family, source))
    if oif is not None:
        request += _attribute(_RTA_OIF, _NUMBER.pack(oif))
    return request


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value  # all are multiples of 4


def _attributes(data: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    """Yield types and values; one that is cut off ends them."""
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if not _ATTRIBUTE.size <= length <= len(data) - offset:
            return
        yield kind & _TYPE_BITS, data[offset + _ATTRIBUTE.size : offset + length]
        offset += -(-length // 4) * 4


def _number(value: bytes | None) -> int | None:
    return _NUMBER.unpack(value)[0] if value is not None and len(value) == 4 else None
