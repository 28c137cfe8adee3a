"""Zones of IPv6 addresses: the interface by which a link-local address is reached (RFC 4007).

Hosts carry their zone as "fe80::1%eth0", with the interface's name, from URIs to the peer addresses
that are shown. Nothing here queries DNS.
"""

from __future__ import annotations

import errno
import re
import socket
from ipaddress import ip_address
from typing import Final

from hoststack.link.base import Endpoint, LinkError

#: IFNAMSIZ without its NUL; net/core/dev.c, dev_valid_name.
_ZONE: Final = re.compile(r"[!-$&-.0-9;-~]{1,15}")


def is_zone(text: str) -> bool:
    """Return whether a text may be the name, or the index, of an interface."""
    return _ZONE.fullmatch(text) is not None and text not in (".", "..")


def without_zone(host: str) -> str:
    """Return the address without its zone."""
    return host.partition("%")[0]


def scope_of(host: str) -> int:
    """Return the index of the interface in a host's zone, 0 without one; raises LinkError."""
    zone = host.partition("%")[2]
    if not zone:
        return 0
    try:
        if zone.isdecimal():
            index = int(zone)
            socket.if_indextoname(index)
            return index
        return socket.if_nametoindex(zone)
    except (OSError, OverflowError, ValueError):
        raise LinkError(
            errno.ENODEV,
            f"{host}: there is no interface {zone!r}: use one that `ip link` shows",
        ) from None


def zoned(host: str, scope: int) -> str:
    """Add an interface's zone to a numeric address, if it is link-local; index 0 is none."""
    if not scope or not ip_address(host).is_link_local:
        return host
    try:
        return f"{host}%{socket.if_indextoname(scope)}"
    except OSError:
        return f"{host}%{scope}"


def canonical(host: str, interface: str | None = None) -> str:
    """Return a numeric address in its internal form: if link-local, with its interface's name.

    Without a zone that is `interface`. Raises LinkError for an interface that does not exist, and
    for a link-local address whose interface is unknown.
    """
    scope, address = scope_of(host), ip_address(without_zone(host))
    if address.version == 4 or not address.is_link_local:
        return str(address)
    if scope:
        return zoned(str(address), scope)
    if interface is None:
        raise LinkError(
            errno.EINVAL,
            f"{address} is a link-local address, which each interface may have: name the "
            f"interface, as in {address}%eth0",
        )
    return f"{address}%{interface}"


def on_interface(host: str, interface: str | None) -> str:
    """Return the host as `canonical` does, for a link on one interface (None: all of them)."""
    found = canonical(host, interface)
    zone = found.partition("%")[2]
    if interface is not None and zone and zone != interface:
        raise LinkError(
            errno.ENETUNREACH,
            f"{host} is at the interface {zone}, and this stack uses {interface} alone: use "
            f"{without_zone(host)}%{interface}, or a stack on {zone}",
        )
    return found


def socket_address(
    endpoint: Endpoint | tuple[str, int],
) -> tuple[str, int] | tuple[str, int, int, int]:
    """Return the address as the socket module wants it; raises LinkError."""
    host, port = endpoint
    scope = scope_of(host)
    return (without_zone(host), port, 0, scope) if scope else (host, port)
