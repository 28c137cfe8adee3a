"""Resolution of a URI's host to addresses, in the order of connection attempts."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from itertools import chain, zip_longest
from typing import Any

import trio

from hoststack.boundary.uri import Uri

Address = tuple[str, int]


async def resolve(
    uri: Uri,
    make_error: Callable[[int, str], OSError],
    look_up: Callable[..., Awaitable[Sequence[tuple[Any, ...]]]] = trio.socket.getaddrinfo,
) -> list[Address]:
    """Return the numeric addresses of a URI, at least one. An address is returned without a lookup.

    Names are looked up in a thread, or by trio's custom resolver; `look_up` is the loop's
    getaddrinfo. Raises the exception that `make_error` returns for an errno and a line for the
    user.
    """
    try:
        return [(ipaddress.ip_address(uri.host).compressed, uri.port)]
    except ValueError:
        pass
    kind = socket.SOCK_STREAM if uri.scheme == "tcp" else socket.SOCK_DGRAM
    try:
        found = await look_up(uri.host, uri.port, type=kind)
    except (OSError, UnicodeError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise make_error(errno.EADDRNOTAVAIL, _unknown(uri, why)) from None
    hosts = in_order(found)
    if not hosts:
        raise make_error(errno.EADDRNOTAVAIL, _unknown(uri, "the resolver found no IP address"))
    return [(host, uri.port) for host in hosts]


def _unknown(uri: Uri, why: str) -> str:
    return (
        f"{uri}: no address is known for {uri.host!r} ({why}): "
        "check the name, or write the address itself"
    )


def in_order(found: Sequence[tuple[Any, ...]]) -> list[str]:
    """Return the hosts of a getaddrinfo(3) result, each once, with the zones of link-local
    addresses. The families alternate, starting with the first one (RFC 8305 section 4)."""
    by_family: dict[int, list[str]] = {}
    for family, _, _, _, name in found:
        if family not in (socket.AF_INET, socket.AF_INET6):
            continue
        hosts = by_family.setdefault(family, [])
        host = _host_of(name)
        if host not in hosts:
            hosts.append(host)
    turns = chain.from_iterable(zip_longest(*by_family.values()))
    return [host for host in turns if host is not None]


def _host_of(name: tuple[Any, ...]) -> str:
    """Return the host of a socket address, with its zone."""
    host, separator, zone = str(name[0]).partition("%")
    if not separator and len(name) == 4 and name[3]:
        try:
            zone = socket.if_indextoname(name[3])
        except OSError:
            zone = str(name[3])
    address = ipaddress.ip_address(f"{host}%{zone}" if zone else host)
    return address.compressed
