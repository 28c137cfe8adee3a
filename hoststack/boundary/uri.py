"""URIs of sessions: `quic://host:port`, likewise `tcp://` and `udp://`, and VPP's older form
`quic://host/port`."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from typing import Final, NamedTuple

from hoststack.boundary.protocols import Protocol
from hoststack.link.zones import is_zone

_NAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?")
_FORM = "write it as quic://ADDRESS:PORT, with an IPv6 address in brackets: quic://[fd00::1]:1234"


class UriError(ValueError):
    """A URI that cannot be used; the message says why and how to write it."""


class Uri(NamedTuple):
    """A parsed URI. `host` is a name or a numeric address, without brackets."""

    scheme: Protocol
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


_QUIC: Final[tuple[Protocol, ...]] = ("quic",)


def parse_uri(text: str, protocols: Collection[Protocol] = _QUIC) -> Uri:
    """Parse `scheme://host:port` or `scheme://host/port`; raises UriError, also for a scheme that
    is not in `protocols`."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        raise UriError(f"{text!r} is not a URI: {_FORM}")
    protocol = next((each for each in protocols if each == scheme), None)
    if protocol is None:
        raise UriError(f"{text!r}: the scheme {scheme!r} is not known here: {_FORM}")
    host, port_text = _split_port(text, rest)
    return Uri(protocol, _checked_host(text, host), _checked_port(text, port_text))


def _split_port(text: str, rest: str) -> tuple[str, str]:
    if rest.startswith("["):
        host, bracket, tail = rest[1:].partition("]")
        if not bracket or tail[:1] not in (":", "/"):
            raise UriError(f"{text!r} has no port behind the bracket: {_FORM}")
        return host, tail[1:]
    host, slash, port = rest.partition("/")
    if slash and port:
        return host, port
    host, colon, port = host.rpartition(":")
    if not colon:
        raise UriError(f"{text!r} has no port: {_FORM}")
    if ":" in host:
        raise UriError(f"{text!r}: an IPv6 address needs brackets: {_FORM}")
    return host, port


def _checked_host(text: str, host: str) -> str:
    address, percent, zone = host.partition("%")
    # RFC 6874: in URIs the percent sign is "%25".
    zone = zone.removeprefix("25") or zone
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        pass
    else:
        if not percent:
            return parsed.compressed
        if parsed.version == 6 and is_zone(zone):
            return f"{parsed.compressed}%{zone}"
        raise UriError(
            f"{text!r}: {zone!r} is no zone: an interface's name follows an IPv6 address, as in "
            "quic://[fe80::1%eth0]:1234"
        )
    if not _NAME.fullmatch(host) or host.replace(".", "").isdigit():
        raise UriError(f"{text!r}: {host!r} is neither an address nor a host name: {_FORM}")
    return host


def _checked_port(text: str, port: str) -> int:
    if not (port.isascii() and port.isdigit()) or int(port[:6]) > 65535:
        raise UriError(f"{text!r}: the port must be a number from 0 to 65535: {_FORM}")
    return int(port)
