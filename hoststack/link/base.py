"""The interface of a link: where datagrams come from and go to.

A link moves whole bursts: one call returns all datagrams that have arrived, one call sends all
that are queued. It knows endpoints, paths and datagram sizes, and nothing of QUIC.
`af_xdp`, `udp` and `memory` implement it; an engine drives it.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Final, Literal, NamedTuple, Protocol

#: The most datagrams that one run of the engine receives from a link, or sends to it.
BURST = 64

#: The unspecified addresses of IPv4 and IPv6: `UNSPECIFIED[":" in host]` is of a host's family.
UNSPECIFIED: Final = ("0.0.0.0", "::")

_ENDPOINT: Final = re.compile(r"(?:\[([^\]]+)\]|([^:]+))(?::([0-9]{1,5}))?")


class LinkError(OSError):
    """A link cannot do what was asked; the message says what to do next."""


class Endpoint(NamedTuple):
    """One side of a path. `host` is a numeric IPv4 or IPv6 address in its canonical text form, a
    link-local one with its zone (link/zones.py)."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, default_port: int | None = None) -> Endpoint:
        """Parse "10.0.0.1:1234" or "[fd00::1]:1234"; with a default port also an address alone.

        Raises ValueError with a line for the user.
        """
        found = _ENDPOINT.fullmatch(text)
        host = (found[1] or found[2]) if found else text
        port = found[3] if found and found[3] else default_port
        try:
            address = ip_address(host)
        except ValueError:
            address = None
        if address is None or port is None or int(port) > 65535:
            raise ValueError(
                f"{text!r} is no address with a port: write it as 10.0.0.1:1234 or [fd00::1]:1234"
            )
        return cls(str(address), int(port))


class Path:
    """The two endpoints that a datagram travels between (RFC 9000 section 9).

    Two paths are equal when their endpoints are. `link_data` is private to the link.
    """

    __slots__ = ("_hash", "link_data", "local", "remote")

    def __init__(self, local: Endpoint, remote: Endpoint, link_data: object = None) -> None:
        self.local = local
        self.remote = remote
        self.link_data = link_data
        self._hash = hash((local, remote))

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Path):
            return NotImplemented
        return self.local == other.local and self.remote == other.remote

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"Path({self.local.host}:{self.local.port} -> {self.remote.host}:{self.remote.port})"


#: A received datagram: its UDP payload, its path (local is ours), and its ECN bits (0 to 3).
Received = tuple[bytes, Path, int]

#: A datagram to send: its UDP payload and the path.
Outgoing = tuple[bytes, Path]


class Wire(Protocol):
    """A link's bursts and paths for an engine in C (hoststack/native/wire/wire.h)."""

    #: The most bursts that one turn may receive and send.
    bursts: int

    @property
    def address(self) -> int:
        """The address of struct hs_wire, which the engine owns and frees from then on."""

    def number(self, path: Path) -> int:
        """Return the number of one of the link's paths, which stays as long as `path` exists."""

    def endpoints(self, number: int) -> tuple[Endpoint, Endpoint] | None:
        """Return the local and the remote endpoint of a path that is in use; None once the link
        is closed."""

    def before_turn(self, now_ns: int) -> int:
        """Do the link's own work before an engine's turn; return how many datagrams were handed
        over, if the wire does not receive by itself."""

    def after_turn(self) -> bool:
        """Do the link's own work after a turn; return whether datagrams are still queued."""


#: The protocols beside QUIC, which the kernel carries.
KernelProtocol = Literal["tcp", "udp"]


class SocketSource(Protocol):
    """Opens the kernel's own sockets, for traffic that is not QUIC."""

    def open_socket(self, protocol: KernelProtocol, endpoint: Endpoint) -> socket.socket:
        """Return a non-blocking socket bound to an endpoint; the caller owns it.

        Port 0 picks a free one, and "::" means IPv6 only, as with ports of a link. A UDP socket's
        datagrams may bypass the kernel (`Link.datagrams`). Raises LinkError.
        """

    def close_socket(self, protocol: KernelProtocol, endpoint: Endpoint) -> None:
        """Forget a socket of `open_socket`; its owner is about to close it."""


class DatagramWay(Protocol):
    """Plain UDP datagrams that bypass the kernel, for sockets that `open_socket` returned. The
    kernel still carries those to this machine itself, above the MTU, or by other interfaces."""

    def take(self) -> Sequence[Received]:
        """Return what has arrived since the last call; never blocks."""

    def path(self, local: Endpoint, remote: Endpoint, payload_bytes: int) -> Path | None:
        """Return the path from a port to a peer; None if the kernel has to send a datagram of that
        size now. An unspecified local address is replaced by the one that the route names."""

    def send(self, burst: Sequence[Outgoing]) -> int:
        """Send datagrams as Link.send does."""


class PortSource(SocketSource, Protocol):
    """Opens ports for the link of a worker that lacks the privilege to do it."""

    def open_port(self, endpoint: Endpoint) -> tuple[Endpoint, int]:
        """Open a port as Link.open_port does.

        Returns the worker's socket as well, for a link over sockets, else -1.
        """

    def close_port(self, endpoint: Endpoint) -> None: ...

    def use_neighbour(self, host: str) -> None:
        """Have the kernel look for a neighbour, or confirm it, for a link that bypasses it.

        It needs CAP_NET_ADMIN. Raises LinkError.
        """


def ignore_trouble(reason: str) -> None:
    """Ignore a link's trouble: the default `on_trouble`."""


class Link(Protocol):
    """One worker's access to the network: its receive queues and one transmit queue."""

    #: "af_xdp", "udp" or "memory".
    name: str
    #: Why packets do not flow now, in one line; "" while the link works.
    trouble: str
    #: Called with that line when trouble begins: everything in progress is cut off.
    on_trouble: Callable[[str], None]

    @property
    def interface_name(self) -> str | None:
        """The only interface that the link uses; None where it uses any."""

    @property
    def max_ports(self) -> int:
        """Most ports that may be open at once."""

    def open_port(self, endpoint: Endpoint) -> Endpoint:
        """Open a local UDP endpoint, so that its datagrams arrive at this link.

        Port 0 picks a free one; the host may be the unspecified address ("0.0.0.0", "::").
        Returns the endpoint as opened. Raises LinkError with errno EADDRINUSE where it is in use,
        EADDRNOTAVAIL where the address is not this machine's, EACCES without privilege.
        """

    def close_port(self, endpoint: Endpoint) -> None:
        """Close an endpoint that `open_port` returned."""

    async def connect_path(self, local_port: int, remote: Endpoint) -> Path:
        """Return a path from this machine to `remote`, its route and next hop resolved.

        Raises LinkError with errno ENETUNREACH (no route) or EHOSTUNREACH (no neighbour).
        """

    def path_from(self, local: Endpoint, remote: Endpoint) -> Path:
        """Return the path between an open local endpoint with a specific address and `remote`.

        It returns at once: an unknown next hop is resolved in the background. Raises LinkError
        where there is no route, or the endpoint is not open.
        """

    def local_endpoint_for(self, remote: Endpoint) -> Endpoint:
        """Return the local address of the route to `remote`, with port 0; raises LinkError."""

    def max_datagram_bytes(self, path: Path) -> int:
        """Return the largest UDP payload that the interface's MTU carries on this path."""

    def max_datagram_bytes_of(self, local: Endpoint) -> int:
        """Return the largest UDP payload from a local address along any path, judging by its
        interface; for an unspecified address, the largest that UDP allows."""

    @property
    def sockets(self) -> SocketSource:
        """The source of the kernel's sockets."""

    def datagrams(self) -> DatagramWay | None:
        """Return the interface for UDP datagrams that bypass the kernel, or None if there is none.

        Call it once for each link.
        """

    def wire(self) -> Wire | None:
        """Return the interface that bypasses Python, or None if there is none; call it once.

        Its user calls neither `receive` nor `send`.
        """

    def busy_poll(self, microseconds: int) -> str:
        """Have the kernel poll the driver, up to so long, when there is nothing to receive.

        For a worker that spins. Returns one line that says why the driver is not polled, or "".
        """

    def receive(self, budget: int = BURST) -> list[Received]:
        """Return all datagrams that have arrived, at most `budget`; never blocks."""

    def send(self, burst: Sequence[Outgoing]) -> int:
        """Send datagrams from the front of `burst`; never blocks.

        Returns how many were taken: fewer than all when the transmit queue is full; the caller
        then keeps the rest and waits for `wait_writable`. A datagram that can never be sent (too
        large, no next hop) is counted as an error, dropped, and reported as taken.
        """

    async def wait_readable(self) -> None:
        """Return when `receive` may return something."""

    async def wait_writable(self) -> None:
        """Return when `send` may accept something again, or `receive` may return something: peers
        continue to acknowledge while the transmit queue is full."""

    async def run(self) -> None:
        """Do the link's upkeep until cancelled, in a task beside the engine's.

        `connect_path` may need it to be running.
        """

    def statistics(self) -> dict[str, int]:
        """Return counters: rx_datagrams, tx_datagrams, rx_bytes, tx_bytes, and drops by reason.

        With an engine in C also `tx_full`: how often it found the transmit queue full."""

    def close(self) -> None:
        """Release everything; idempotent."""
