"""Which local UDP ports the sessions of a worker use, and when they can be given back.

A listener holds its port, and so does every connection that came in on it: a port goes back to
the link when the last of them is gone. Connections of ours share one port for each local address,
since connection IDs tell them apart; it stays as long as the stack does.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Final, Literal, NamedTuple

from hoststack.link.base import Endpoint, Link, LinkError

#: RFC 9000 section 14: "QUIC MUST NOT be used if the network path cannot support a maximum datagram
#: size of at least 1200 bytes."
_LEAST_DATAGRAM_BYTES: Final = 1200


def check_size(datagram_bytes: int, what: str) -> None:
    """Raises LinkError (EMSGSIZE) for what carries less than QUIC needs."""
    if datagram_bytes < _LEAST_DATAGRAM_BYTES:
        raise LinkError(
            errno.EMSGSIZE,
            f"{what} carries datagrams of {datagram_bytes} bytes, and QUIC needs "
            f"{_LEAST_DATAGRAM_BYTES} (RFC 9000 section 14): raise the MTU of the interface "
            "(`ip link set DEV mtu 1500`), or of the route, if `ip route` shows one",
        )


class PortInUse(NamedTuple):
    """A local port, and what it is for."""

    local: Endpoint
    use: Literal["listener", "connections", "client"]
    """ "connections": those of a listener that is gone; "client": connections of ours."""
    holders: int
    """A listener, and the connections that came in there; 0 for connections of ours."""


class PortTable:
    """Ports in use over one link."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._holders: dict[Endpoint, int] = {}
        self._listening: set[Endpoint] = set()
        self._client: dict[str, Endpoint] = {}
        self._beside: dict[Endpoint, list[Endpoint]] = {}

    def open_for_listener(self, local: Endpoint) -> Endpoint:
        """Take a port for a listener; raises LinkError (EADDRINUSE, ...)."""
        if local in self._listening:
            raise LinkError(
                errno.EADDRINUSE,
                f"{local.host} port {local.port} has a listener of this stack already: "
                "close that one first, or take another port",
            )
        if local not in self._holders:
            local = self._link.open_port(local)
        # Else the port is still held by connections of a listener that is gone.
        self._listening.add(local)
        self.hold(local)
        return local

    def close_listener(self, local: Endpoint) -> None:
        """The listener on a port is gone; its connections may still hold the port."""
        self._listening.discard(local)
        self.release(local)

    def open_for_client(self, remote: Endpoint) -> Endpoint:
        """The port for connections to `remote`, taken on first use; raises LinkError."""
        local = self._link.local_endpoint_for(remote)
        if local.host not in self._client:
            self._client[local.host] = self._link.open_port(local)
        return self._client[local.host]

    def in_use(self) -> list[PortInUse]:
        """All ports but those of single connections."""
        found = [
            PortInUse(local, "listener" if local in self._listening else "connections", holders)
            for local, holders in self._holders.items()
        ]
        return found + [PortInUse(local, "client", 0) for local in self._client.values()]

    def open_beside(self, local: Endpoint, others: Iterable[Endpoint]) -> None:
        """Take ports that a listener's connections may move to, for as long as its own is held;
        raises LinkError."""
        for other in others:
            if _covers(local, other):
                continue
            if other not in self._holders:
                self._link.open_port(other)
            self.hold(other)
            self._beside.setdefault(local, []).append(other)

    def open_for_one(self, local: Endpoint) -> Endpoint:
        """Take a port for one connection of ours alone; `close_of_one` gives it back."""
        return self._link.open_port(local)

    def close_of_one(self, local: Endpoint) -> None:
        self._link.close_port(local)

    def hold(self, local: Endpoint) -> None:
        """A connection came in on a port."""
        self._holders[local] = self._holders.get(local, 0) + 1

    def release(self, local: Endpoint) -> None:
        """A holder of a port is gone; the last one gives the port back."""
        self._holders[local] -= 1
        if not self._holders[local]:
            del self._holders[local]
            self._link.close_port(local)
            for other in self._beside.pop(local, ()):
                self.release(other)


def _covers(local: Endpoint, other: Endpoint) -> bool:
    """Whether what comes to `other` comes to `local`."""
    here, there = ip_address(local.host), ip_address(other.host)
    is_same_kind = here.version == there.version and local.port == other.port
    return is_same_kind and (here == there or here.is_unspecified)
