"""Next hops: which local address, which link-layer address and which MTU lead to a remote host.

AF_XDP bypasses the kernel's IP layer, so this module does what that layer does for a packet, with
the kernel's own tables: it requests routes, has the kernel find and confirm neighbours (ARP, RFC
826; Neighbor Discovery, RFC 4861), and follows its notifications of changes.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import math
import time
from collections.abc import Callable
from typing import Final, NamedTuple
from weakref import WeakValueDictionary

import trio

from hoststack.link.base import LinkError
from hoststack.link.kernel.route_request import Route
from hoststack.link.kernel.rtnetlink import (
    NUD_FAILED,
    NUD_NONE,
    NUD_STALE,
    NUD_VALID,
    ChangesLost,
    Interface,
    InterfaceChange,
    LocalPrefix,
    NeighbourChange,
    RoutesChanged,
    Rtnetlink,
)

logger = logging.getLogger(__name__)

#: How often neighbours in use are checked. The kernel marks an entry stale after half a minute
#: without traffic of its own, and may drop it a minute later.
_CONFIRM_INTERVAL_S: Final = 1.0

#: How long `resolve` waits. The kernel gives up a missing neighbour after three probes, a second
#: apart (sysctl net.ipv4.neigh.*.mcast_solicit).
_RESOLVE_TIMEOUT_S: Final = 5.0

#: Routes in the cache. Anyone can make us send to many hosts, so it is bounded.
_MAX_ROUTES: Final = 4096


class Neighbour:
    """A host on the interface's own link, kept current by NextHops."""

    __slots__ = ("__weakref__", "asked", "changed", "host", "is_used", "mac", "state")

    def __init__(self, host: str) -> None:
        self.host = host
        self.mac = b""
        """Its 6-byte address while that is usable, else empty."""
        self.state = NUD_NONE
        self.is_used = True
        """Set by senders to it: a neighbour in use is resolved again and confirmed."""
        self.asked = -math.inf
        """When `look_for` last had the kernel resolve it, by time.monotonic()."""
        self.changed = trio.Event()
        """Set at the next change, and replaced by a new one."""

    def __repr__(self) -> str:
        return f"Neighbour({self.host}, {self.mac.hex(':')}, state={self.state:#x})"


class NextHop(NamedTuple):
    """The next hop to a remote host."""

    source: str
    """The local address that the kernel would send from."""
    neighbour: Neighbour
    mtu_bytes: int
    """The largest IP packet: the interface's MTU, or the route's where that is smaller."""


def ethernet_interface(kernel: Rtnetlink, name: str) -> Interface:
    """Return the interface of that name; raises LinkError: ENODEV, ENOTSUP without Ethernet."""
    interface = kernel.interface(name)
    if not any(interface.mac):
        raise LinkError(errno.ENOTSUP, f"{name} has no Ethernet address: use an Ethernet interface")
    return interface


class NextHops:
    """The next hops through one interface.

    `run` must be running for changes to be noticed, and for `resolve`.
    """

    def __init__(
        self, interface_name: str, *, use_neighbour: Callable[[str], None] | None = None
    ) -> None:
        """`use_neighbour` is for a process without CAP_NET_ADMIN (PortSource); nothing else here
        needs a privilege.

        Raises LinkError: ENODEV for an unknown interface, ENOTSUP for one without Ethernet.
        """
        self._use_neighbour = use_neighbour
        self._kernel = Rtnetlink()
        try:
            self.interface: Interface = ethernet_interface(self._kernel, interface_name)
        except BaseException:
            self._kernel.close()
            raise
        self.gone = ""
        """One line if the interface was removed; `take_again` looks for its replacement."""
        self.interface_changed = trio.Event()
        """Set when an interface changes or disappears, and replaced by a new one."""
        self.generation = 0
        """Incremented when a result of `find` or a neighbour's address may have changed."""
        self._routes: dict[tuple[str, str | None], Route] = {}
        self._own: list[LocalPrefix] | None = None
        # A neighbour is followed for as long as anything refers to it.
        self._neighbours: WeakValueDictionary[str, Neighbour] = WeakValueDictionary()

    def take_again(self, interface_name: str) -> None:
        """Switch to the interface that has this name now; raises LinkError as the constructor."""
        interface = ethernet_interface(self._kernel, interface_name)
        self._forget_routes()
        self._set_interface(interface)
        for neighbour in list(self._neighbours.values()):
            self._refresh(neighbour)

    def close(self) -> None:
        """Close the netlink sockets; idempotent."""
        self._kernel.close()

    def find(self, remote: str, source: str | None = None) -> NextHop:
        """Return the next hop to a numeric address, with its neighbour in its current state.

        With `source` the packets will carry that local address. Raises LinkError: ENETDOWN,
        ENETUNREACH and the like if no route leads there through this interface, and EADDRNOTAVAIL
        for an address of this machine itself.
        """
        interface = self.interface
        if self.gone:
            raise LinkError(errno.ENODEV, self.gone)
        if not interface.is_up:
            raise LinkError(
                errno.ENETDOWN,
                f"{interface.name} is down or has no carrier: "
                f"set it up (`ip link set {interface.name} up`) and check its other end",
            )
        route = self._route(remote, source)
        if route.is_local:
            raise LinkError(
                errno.EADDRNOTAVAIL,
                f"{remote} is this machine itself, which AF_XDP cannot reach: "
                'use link "udp" for it',
            )
        if not route.is_unicast:
            raise LinkError(
                errno.EADDRNOTAVAIL, f"{remote} is not a unicast address: name one host"
            )
        if route.ifindex != interface.ifindex:
            raise LinkError(
                errno.ENETUNREACH,
                f"the route to {remote} does not go out through {interface.name}: "
                f"use the interface that `ip route get {remote}` names",
            )
        # Given a source, the kernel's answer names none.
        local = source or route.source
        if not local:
            raise LinkError(
                errno.EADDRNOTAVAIL,
                f"{interface.name} has no address to reach {remote} from: "
                f"give it one (`ip address add ... dev {interface.name}`)",
            )
        mtu_bytes = min(interface.mtu_bytes, route.mtu_bytes or interface.mtu_bytes)
        return NextHop(local, self._neighbour(route.next_hop), mtu_bytes)

    def own_addresses(self) -> list[LocalPrefix]:
        """Return this machine's addresses and the broadcast addresses of its networks: packets
        are for the first, and no other host sends from any (RFC 1122 section 3.2.1.3)."""
        if self._own is None:
            self._own = self._kernel.own_addresses()
        return self._own

    def look_for(self, remote: str, source: str) -> None:
        """Start to resolve the neighbour if it is unknown, without waiting; raises as `find`."""
        neighbour = self.find(remote, source).neighbour
        # A neighbour that does not answer is probed again when a datagram is sent to it.
        if not neighbour.mac and time.monotonic() - neighbour.asked >= _CONFIRM_INTERVAL_S:
            neighbour.asked = time.monotonic()
            self._probe(neighbour)

    async def resolve(self, remote: str) -> NextHop:
        """Like `find`, but waits until the neighbour is known.

        Raises what `find` raises, and LinkError with errno EHOSTUNREACH if the neighbour does not
        answer, EPERM without CAP_NET_ADMIN.
        """
        with trio.move_on_after(_RESOLVE_TIMEOUT_S):
            hop = self.find(remote)
            neighbour = hop.neighbour
            while not neighbour.mac:
                # Retry a neighbour that failed before, and recreate an entry that was removed.
                self._probe(neighbour)
                self._refresh(neighbour)
                while not neighbour.mac and neighbour.state != NUD_NONE:
                    if neighbour.state & NUD_FAILED:
                        raise self._unreachable(hop, remote)
                    await neighbour.changed.wait()
                await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            return hop
        raise self._unreachable(self.find(remote), remote)

    async def run(self) -> None:
        """Follow the kernel's changes and confirm neighbours in use, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow)
            nursery.start_soon(self._confirm)

    async def _follow(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._kernel)
            self._take_changes()

    async def _confirm(self) -> None:
        while True:
            await trio.sleep(_CONFIRM_INTERVAL_S)
            for neighbour in list(self._neighbours.values()):
                if not neighbour.is_used:
                    continue
                neighbour.is_used = False
                # AF_XDP traffic is invisible to the kernel: without this probe it would neither
                # confirm the entry nor resolve it again.
                if neighbour.state & NUD_STALE or not neighbour.mac:
                    try:
                        self._probe(neighbour)
                    except LinkError as error:
                        logger.warning("%s", error.strerror)

    def _route(self, remote: str, source: str | None) -> Route:
        route = self._routes.get((remote, source))
        if route is None:
            # Only a link-local address needs the interface named: for others that would hide
            # that the kernel prefers another interface, or that the address is our own.
            is_link_local = ipaddress.ip_address(remote).is_link_local
            oif = self.interface.ifindex if is_link_local else None
            route = self._kernel.route(remote, source, oif)
            if len(self._routes) >= _MAX_ROUTES:
                self._routes.clear()
            self._routes[remote, source] = route
        return route

    def _neighbour(self, host: str) -> Neighbour:
        neighbour = self._neighbours.get(host)
        if neighbour is None:
            neighbour = Neighbour(host)
            # No earlier answer refers to it, so this is no new generation.
            generation = self.generation
            self._refresh(neighbour)
            self.generation = generation
            self._neighbours[host] = neighbour
        return neighbour

    def _probe(self, neighbour: Neighbour) -> None:
        """Make the kernel look for a neighbour, or confirm it."""
        if self._use_neighbour is not None:
            self._use_neighbour(neighbour.host)
        else:
            self._kernel.use_neighbour(self.interface.ifindex, neighbour.host)

    def _refresh(self, neighbour: Neighbour) -> None:
        """Read a neighbour's state from the kernel."""
        entry = self._kernel.neighbour(self.interface.ifindex, neighbour.host)
        if entry is None:
            self._update(neighbour, b"", NUD_NONE)
        else:
            self._update(neighbour, entry.mac, entry.state)

    def _update(self, neighbour: Neighbour, mac: bytes, state: int) -> None:
        if not state & NUD_VALID:
            mac = b""
        if mac != neighbour.mac:
            neighbour.mac = mac
            self.generation += 1
        neighbour.state = state
        neighbour.changed.set()
        neighbour.changed = trio.Event()

    def _take_changes(self) -> None:
        for change in self._kernel.read_changes():
            match change:
                case NeighbourChange(ifindex=ifindex, host=host):
                    neighbour = self._neighbours.get(host)
                    if neighbour is not None and ifindex == self.interface.ifindex:
                        self._update(neighbour, change.mac, change.state)
                case InterfaceChange():
                    self._forget_routes()
                    self.interface_changed.set()
                    self.interface_changed = trio.Event()
                    if change.ifindex == self.interface.ifindex:
                        self._set_interface(change.interface)
                case RoutesChanged():
                    self._forget_routes()
                case ChangesLost():
                    self._start_over()

    def _forget_routes(self) -> None:
        self._routes.clear()
        self._own = None
        self.generation += 1

    def _set_interface(self, interface: Interface | None) -> None:
        self.gone = ""
        if interface is None:
            self.gone = (
                f"{self.interface.name} is gone: it was deleted, or moved to another network "
                "namespace; it is used again when it is back"
            )
            interface = self.interface._replace(is_up=False)
        self.interface = interface

    def _start_over(self) -> None:
        """Request everything again that is cached."""
        self._forget_routes()
        try:
            self._set_interface(self._kernel.interface(self.interface.name))
        except LinkError:
            self._set_interface(None)
        for neighbour in list(self._neighbours.values()):
            try:
                self._refresh(neighbour)
            except LinkError:  # the interface is gone
                self._update(neighbour, b"", NUD_NONE)

    def _unreachable(self, hop: NextHop, remote: str) -> LinkError:
        host = hop.neighbour.host
        who = host if host == remote else f"{host}, the gateway to {remote},"
        return LinkError(
            errno.EHOSTUNREACH,
            f"{who} does not answer on {self.interface.name}: check that it is up, "
            "in the same network, and reachable by `ping`",
        )
