"""The local UDP ports that the sessions of a worker use.

A listener holds its port, and so does every connection accepted on it; the link gets the port back
when the last of them is gone. Client connections share one port for each local address, since
connection IDs distinguish them; it stays open as long as the stack.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from typing import Final, Literal, NamedTuple

from hoststack.boundary.user_shares import Process, UserShares
from hoststack.link.base import Endpoint, Link, LinkError

#: RFC 9000 section 14: "QUIC MUST NOT be used if the network path cannot support a maximum datagram
#: size of at least 1200 bytes."
_LEAST_DATAGRAM_BYTES: Final = 1200


def check_size(datagram_bytes: int, what: str) -> None:
    """Raise LinkError (EMSGSIZE) if datagrams are smaller than QUIC needs; `what` is the path or
    interface for the message."""
    if datagram_bytes < _LEAST_DATAGRAM_BYTES:
        raise LinkError(
            errno.EMSGSIZE,
            f"{what} carries datagrams of {datagram_bytes} bytes, and QUIC needs "
            f"{_LEAST_DATAGRAM_BYTES} (RFC 9000 section 14): raise the MTU of the interface "
            "(`ip link set DEV mtu 1500`), or of the route, if `ip route` shows one",
        )


class PortInUse(NamedTuple):
    """A local port and its use."""

    local: Endpoint
    use: Literal["listener", "connections", "client"]
    """ "connections": accepted by a listener that is gone; "client": client connections."""
    holders: int
    """Number of listeners and accepted connections; 0 for client connections."""


class PortTable:
    """Ports in use on one link."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.most = link.max_ports
        """Most ports that may be open."""
        self._shares = UserShares("UDP ports")
        self._charged: dict[Endpoint, Callable[[], None]] = {}
        """What ends the charge for each open port."""
        self._holders: dict[Endpoint, int] = {}
        self._listening: set[Endpoint] = set()
        self._client: dict[str, Endpoint] = {}
        self._beside: dict[Endpoint, list[Endpoint]] = {}

    def _open(self, local: Endpoint, process: Process | None) -> Endpoint:
        """Open a port, and charge a process for it. Raises LinkError: EMFILE if that has its share
        of all ports."""
        refusal = self._shares.refusal(process, max(0, self.most - len(self._shares)))
        if refusal is not None:
            raise LinkError(errno.EMFILE, refusal)
        local = self._link.open_port(local)
        self._charged[local] = self._shares.add(process)
        return local

    def _close(self, local: Endpoint) -> None:
        self._charged.pop(local)()
        self._link.close_port(local)

    def open_for_listener(self, local: Endpoint, process: Process | None) -> Endpoint:
        """Open a port for a listener of a process; raises LinkError (EADDRINUSE, ...)."""
        if local in self._listening:
            raise LinkError(
                errno.EADDRINUSE,
                f"{local.host} port {local.port} has a listener of this stack already: "
                "close that one first, or use another port",
            )
        if local not in self._holders:
            local = self._open(local, process)
        # Otherwise connections of a closed listener still hold the port.
        self._listening.add(local)
        self.hold(local)
        return local

    def close_listener(self, local: Endpoint) -> None:
        """Release a port for its listener; accepted connections may still hold it."""
        self._listening.discard(local)
        self.release(local)

    def open_for_client(self, remote: Endpoint) -> Endpoint:
        """Return the shared port for client connections to `remote`, and open it on first use.
        Raises LinkError."""
        local = self._link.local_endpoint_for(remote)
        if local.host not in self._client:
            self._client[local.host] = self._open(local, None)  # it is everybody's
        return self._client[local.host]

    def in_use(self) -> list[PortInUse]:
        """Return all ports except those of `open_for_one`."""
        found = [
            PortInUse(local, "listener" if local in self._listening else "connections", holders)
            for local, holders in self._holders.items()
        ]
        return found + [PortInUse(local, "client", 0) for local in self._client.values()]

    def open_beside(
        self, local: Endpoint, others: Iterable[Endpoint], process: Process | None
    ) -> None:
        """Open ports that a listener's connections may move to; they stay open as long as the
        listener's own. Raises LinkError."""
        for other in others:
            if _covers(local, other):
                continue
            if other not in self._holders:
                self._open(other, process)
            self.hold(other)
            self._beside.setdefault(local, []).append(other)

    def open_for_one(self, local: Endpoint, process: Process | None) -> Endpoint:
        """Open a port for a single client connection; `close_of_one` closes it. Raises
        LinkError."""
        return self._open(local, process)

    def close_of_one(self, local: Endpoint) -> None:
        """Close a port of `open_for_one`."""
        self._close(local)

    def hold(self, local: Endpoint) -> None:
        """Add a holder of a port: a listener, or a connection accepted on it."""
        self._holders[local] = self._holders.get(local, 0) + 1

    def release(self, local: Endpoint) -> None:
        """Remove a holder of a port, and close the port after the last one."""
        self._holders[local] -= 1
        if not self._holders[local]:
            del self._holders[local]
            self._close(local)
            for other in self._beside.pop(local, ()):
                self.release(other)


def _covers(local: Endpoint, other: Endpoint) -> bool:
    """Return whether a port on `local` also receives packets for `other`."""
    here, there = ip_address(local.host), ip_address(other.host)
    is_same_kind = here.version == there.version and local.port == other.port
    return is_same_kind and (here == there or here.is_unspecified)
