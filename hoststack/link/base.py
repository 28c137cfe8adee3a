"""What a link is: where datagrams come from and go to.

A link moves whole bursts: one call takes all datagrams that have come, one call hands over all
that are to go. It knows endpoints, paths and datagram sizes; it knows nothing of QUIC.
`af_xdp`, `udp` and `memory` implement it; an engine drives it.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Final, Literal, NamedTuple, Protocol

#: Datagrams that one turn takes from, or gives to, a link.
BURST = 64

#: Any address of this machine: of IPv4, and of IPv6. `UNSPECIFIED[":" in host]` is a host's kind.
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
        """From "10.0.0.1:1234" or "[fd00::1]:1234"; with a default port also an address alone.

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

    Two paths are equal when their endpoints are. Links intern them, so that on the hot way an
    identity check is enough. `link_data` is the link's own: a socket, a prepared header.
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


#: A datagram that came: its UDP payload, the path (local is ours), and its ECN bits (0 to 3).
Received = tuple[bytes, Path, int]

#: A datagram to send: its UDP payload and the path.
Outgoing = tuple[bytes, Path]


class WireRoute(NamedTuple):
    """What C code needs to send along a path."""

    max_datagram_bytes: int
    header: bytes | None = None
    """struct hs_frame_header, or None while no next hop is known."""
    fd: int = -1
    flow: bytes | None = None
    """struct hs_udp_flow, for a socket."""


class Wire(Protocol):
    """A link's bursts for an engine in C (hoststack/native/wire/wire.h). Paths are decided here."""

    @property
    def address(self) -> int:
        """Where struct hs_wire lies. It is the engine's to free."""

    @property
    def generation(self) -> int:
        """Changes when routes have to be asked for anew."""

    def admit(self, key: bytes) -> Path | None:
        """The path of datagrams with this key; None if they are not for this machine."""

    def route(self, path: Path) -> WireRoute:
        """How datagrams go along a path now."""

    def note_sent(self, path: Path, count: int) -> bool:
        """So many datagrams were sent since the last call; whether to ask for the route anew."""

    def after_turn(self) -> None:
        """A turn is over: whatever the link has to do about it."""


#: What the kernel carries beside QUIC.
KernelProtocol = Literal["tcp", "udp"]


class SocketSource(Protocol):
    """Who opens the kernel's own sockets, for what is not QUIC."""

    def open_socket(self, protocol: KernelProtocol, endpoint: Endpoint) -> socket.socket:
        """A socket bound to an endpoint, non-blocking; port 0 picks a free one, and "::" is IPv6
        alone, as with ports of a link. What comes for one of UDP may come past the kernel
        (`Link.datagrams`). The socket is the caller's. Raises LinkError."""

    def close_socket(self, protocol: KernelProtocol, endpoint: Endpoint) -> None:
        """The owner is about to close a socket of `open_socket`."""


class DatagramWay(Protocol):
    """Plain UDP datagrams past the kernel, of sockets that `open_socket` opened. The kernel still
    carries what this can't: to this machine itself, larger than the MTU, by other interfaces."""

    def take(self) -> Sequence[Received]:
        """What has come since the last call; never blocks."""

    def path(self, local: Endpoint, remote: Endpoint, payload_bytes: int) -> Path | None:
        """From a port to a peer; None if the kernel has to send a datagram of that size now. With
        an unspecified local address it goes out from the one that the route gives."""

    def send(self, burst: Sequence[Outgoing]) -> int:
        """As Link.send."""


class PortSource(SocketSource, Protocol):
    """Who opens ports for a worker's link where the worker itself may not."""

    def open_port(self, endpoint: Endpoint) -> tuple[Endpoint, int]:
        """As Link.open_port; with the worker's socket for a link over sockets, else -1."""

    def close_port(self, endpoint: Endpoint) -> None: ...

    def use_neighbour(self, host: str) -> None:
        """Have the kernel look for a neighbour, or confirm it, for a link past the kernel.

        It needs CAP_NET_ADMIN. Raises LinkError.
        """


def ignore_trouble(reason: str) -> None:
    """What a link does about its trouble until it is told better."""


class Link(Protocol):
    """One worker's access to the network: its receive queues and one transmit queue."""

    #: "af_xdp", "udp" or "memory".
    name: str
    #: Why no packet comes or goes now, in one line; "" while the link works.
    trouble: str
    #: Called with that line when it begins: what is under way is cut off.
    on_trouble: Callable[[str], None]

    @property
    def interface_name(self) -> str | None:
        """The interface that it has alone; None where it has any."""

    def open_port(self, endpoint: Endpoint) -> Endpoint:
        """Take a local UDP endpoint, so that its datagrams come to this link.

        Port 0 picks a free one; the host may be the unspecified address ("0.0.0.0", "::").
        Returns the endpoint that was taken. Raises LinkError with errno EADDRINUSE where it is
        taken, EADDRNOTAVAIL where the address is not this machine's, EACCES without privilege.
        """

    def close_port(self, endpoint: Endpoint) -> None:
        """Give back an endpoint that `open_port` returned."""

    async def connect_path(self, local_port: int, remote: Endpoint) -> Path:
        """A path from this machine to `remote`, with the route and the next hop known.

        Raises LinkError with errno ENETUNREACH (no route) or EHOSTUNREACH (no neighbour).
        """

    def path_from(self, local: Endpoint, remote: Endpoint) -> Path:
        """The path between an open local endpoint, with an address of its own, and `remote`.

        It is there at once: a next hop that is not known yet is looked for meanwhile. Raises
        LinkError where there is no route, or the endpoint is not open.
        """

    def local_endpoint_for(self, remote: Endpoint) -> Endpoint:
        """The local address that the route to `remote` gives, with port 0; raises LinkError."""

    def max_datagram_bytes(self, path: Path) -> int:
        """The largest UDP payload that the interface's MTU carries on this path."""

    def max_datagram_bytes_of(self, local: Endpoint) -> int:
        """The largest UDP payload that goes out from a local address along any path, as far as its
        interface tells; of an unspecified address the largest that UDP has."""

    @property
    def sockets(self) -> SocketSource:
        """Where sockets of the kernel's come from."""

    def datagrams(self) -> DatagramWay | None:
        """The way of plain UDP datagrams past the kernel, once for each link; None if there is
        none."""

    def wire(self) -> Wire | None:
        """The way past Python, once for each link; None if there is none. Who takes it calls
        neither `receive` nor `send`."""

    def busy_poll(self, microseconds: int) -> str:
        """Have the kernel poll the driver when there is nothing to receive, up to so long.

        For a worker that spins. Returns one line that says why it does not, or "".
        """

    def receive(self, budget: int = BURST) -> list[Received]:
        """All datagrams that have come, at most `budget`; never blocks."""

    def send(self, burst: Sequence[Outgoing]) -> int:
        """Send datagrams from the front of `burst`; never blocks.

        Returns how many were taken: fewer than all when the way out is full, and the caller then
        keeps the rest and waits for `wait_writable`. A datagram that can never go (too large, no
        next hop) is counted as an error, dropped, and reported as taken.
        """

    async def wait_readable(self) -> None:
        """Return when `receive` may have something."""

    async def wait_writable(self) -> None:
        """Return when `send` may take something again, or `receive` may have something: peers go on
        to acknowledge while the way out is full."""

    async def run(self) -> None:
        """The link's own upkeep: runs until cancelled, beside whoever drives the link.

        `connect_path` may need it to be running.
        """

    def statistics(self) -> dict[str, int]:
        """Counters by name: rx_datagrams, tx_datagrams, rx_bytes, tx_bytes, and drops by reason.

        With an engine in C also `tx_full`: how often it found no room on the way out."""

    def close(self) -> None:
        """Give everything back; idempotent."""
