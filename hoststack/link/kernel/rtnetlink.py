"""The kernel's links, routes and neighbours: requests, and notifications of changes.

A thin layer over pyroute2: it turns rtnetlink messages (man 7 rtnetlink) into small tuples. It
works in the network namespace of the thread that creates it. The kernel answers requests
inside the system call, so they are plain calls (about 0.3 ms); changes are read without blocking.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from pyroute2 import IPRoute
from pyroute2.netlink import rtnl
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from hoststack.link.base import LinkError
from hoststack.link.kernel.route_request import Route, RouteRequests

# Neighbour states (linux/neighbour.h).
NUD_INCOMPLETE: Final = 0x01
NUD_REACHABLE: Final = 0x02
NUD_STALE: Final = 0x04
NUD_DELAY: Final = 0x08
NUD_PROBE: Final = 0x10
NUD_FAILED: Final = 0x20
NUD_NOARP: Final = 0x40
NUD_PERMANENT: Final = 0x80
NUD_NONE: Final = 0x00
#: The states in which the link-layer address may be used (the kernel's NUD_VALID).
NUD_VALID: Final = NUD_PERMANENT | NUD_NOARP | NUD_REACHABLE | NUD_PROBE | NUD_STALE | NUD_DELAY
_NTF_USE: Final = 0x01  # linux/neighbour.h: something is about to send to this neighbour

_RTN_LOCAL: Final = 2  # linux/rtnetlink.h
_RTN_BROADCAST: Final = 3
_RT_TABLE_LOCAL: Final = 255

_IFF_UP: Final = 0x1  # linux/if.h
_IFF_LOWER_UP: Final = 0x10000

_GROUPS: Final = (
    rtnl.RTMGRP_LINK
    | rtnl.RTMGRP_NEIGH
    | rtnl.RTMGRP_IPV4_IFADDR
    | rtnl.RTMGRP_IPV6_IFADDR
    | rtnl.RTMGRP_IPV4_ROUTE
    | rtnl.RTMGRP_IPV6_ROUTE
    | rtnl.RTMGRP_IPV4_RULE
)
_ROUTE_CHANGES: Final = frozenset(
    (
        rtnl.RTM_NEWROUTE,
        rtnl.RTM_DELROUTE,
        rtnl.RTM_NEWADDR,
        rtnl.RTM_DELADDR,
        rtnl.RTM_NEWRULE,
        rtnl.RTM_DELRULE,
    )
)
_RTNLGRP_IPV6_RULE: Final = 19  # linux/rtnetlink.h; beyond what old group masks name
_NETLINK_ADD_MEMBERSHIP: Final = 1  # linux/netlink.h
_SOL_NETLINK: Final = 270
_READ_BYTES: Final = 1 << 16
_RECEIVE_BUFFER_BYTES: Final = 1 << 20


class Interface(NamedTuple):
    """A network interface."""

    ifindex: int
    name: str
    mac: bytes
    """Its 6-byte Ethernet address; empty for an interface that has none."""
    mtu_bytes: int
    """The largest IP packet."""
    is_up: bool
    """Whether the administrator has set it up, and it has a carrier."""


class LocalPrefix(NamedTuple):
    """Addresses that this machine has, or a broadcast address of one of its networks."""

    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    bits: int
    is_broadcast: bool


class NeighbourChange(NamedTuple):
    """A neighbour's new state. A removed one has the state NUD_NONE and no address."""

    ifindex: int
    host: str
    mac: bytes
    state: int


class InterfaceChange(NamedTuple):
    """An interface as it is now; `interface` is None if it was removed."""

    ifindex: int
    interface: Interface | None


class RoutesChanged(NamedTuple):
    """A route, rule or address was added or removed: earlier results of `route` may be wrong."""


class ChangesLost(NamedTuple):
    """More changed than the socket's buffer holds: request everything again."""


Change = NeighbourChange | InterfaceChange | RoutesChanged | ChangesLost


@contextlib.contextmanager
def _outside_of_loops() -> Iterator[None]:
    """Hide a running asyncio loop, in which trio may be a guest: pyroute2 runs a loop of its own
    for each request, which asyncio forbids within another."""
    running = asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    try:
        yield
    finally:
        asyncio._set_running_loop(running)


class Rtnetlink:
    """One user's view of the kernel's network configuration."""

    @_outside_of_loops()
    def __init__(self, *, follows_changes: bool = True) -> None:
        """Without `follows_changes` it is only for requests."""
        # Open the listening socket first, so that no change after the first answer is missed.
        self._changes = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        try:
            self._changes.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
            if follows_changes:
                self._changes.bind((0, _GROUPS))
                self._changes.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _RTNLGRP_IPV6_RULE)
            self._route_requests = RouteRequests()
            try:
                self._requests = IPRoute()
            except BaseException:
                self._route_requests.close()
                raise
        except BaseException:
            self._changes.close()
            raise
        self._marshal = MarshalRtnl()

    def fileno(self) -> int:
        """Return the descriptor that is readable when `read_changes` has something."""
        return self._changes.fileno()

    @_outside_of_loops()
    def close(self) -> None:
        """Close the sockets; idempotent."""
        self._changes.close()
        self._route_requests.close()
        self._requests.close()

    @_outside_of_loops()
    def interface(self, name: str) -> Interface:
        """Return the interface of that name; raises LinkError with errno ENODEV if none has it."""
        try:
            found = self._requests.link("get", ifname=name)
        except NetlinkError as error:
            _drop_frames(error)
            if error.code not in (errno.ENODEV, errno.EINVAL, errno.ERANGE):
                raise _as_link_error(error, f"cannot look up interface {name!r}") from None
            found = ()
        for message in found:
            return _interface(message)
        names = ", ".join(name for _, name in socket.if_nameindex())
        raise LinkError(
            errno.ENODEV,
            f"there is no interface {name!r} in this network namespace: use one of {names}",
        )

    def route(self, remote: str, source: str | None = None, oif: int | None = None) -> Route:
        """Ask the kernel for the route to a numeric address.

        `source` is the local address to send from, `oif` the index of the output interface.
        Raises LinkError with the kernel's errno: ENETUNREACH, EHOSTUNREACH, EACCES, EINVAL.
        """
        try:
            return self._route_requests.route(remote, source, oif)
        except OSError as error:
            raise LinkError(
                error.errno or errno.EIO,
                f"there is no route to {remote} ({error.strerror}): see `ip route get` and add a "
                "route",
            ) from None

    @_outside_of_loops()
    def own_addresses(self) -> list[LocalPrefix]:
        """Return this machine's addresses and the broadcast addresses of its networks, as the
        kernel's routing table "local" has them."""
        own: list[LocalPrefix] = []
        for family, width in ((socket.AF_INET, 32), (socket.AF_INET6, 128)):
            for message in self._requests.route("dump", family=family, table=_RT_TABLE_LOCAL):
                if message["type"] not in (_RTN_LOCAL, _RTN_BROADCAST):
                    continue
                unspecified = "0.0.0.0" if width == 32 else "::"
                host = ipaddress.ip_address(message.get_attr("RTA_DST") or unspecified)
                is_broadcast = message["type"] == _RTN_BROADCAST
                own.append(LocalPrefix(host, message["dst_len"], is_broadcast))
        return own

    @_outside_of_loops()
    def mtu_of(self, host: str) -> int | None:
        """Return the MTU of the interface that has an address; None if none has it."""
        for message in self._requests.get_addr():
            own = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            if own == host:
                for link in self._requests.link("get", index=message["index"]):
                    return _interface(link).mtu_bytes
        return None

    @_outside_of_loops()
    def neighbour(self, ifindex: int, host: str) -> NeighbourChange | None:
        """Return one neighbour; None if the kernel has no entry for it."""
        try:
            answer = self._requests.neigh("get", dst=host, ifindex=ifindex)
        except NetlinkError as error:
            _drop_frames(error)
            if error.code == errno.ENOENT:
                return None
            raise _as_link_error(error, f"cannot look up neighbour {host}") from None
        return _neighbour(answer[0])

    @_outside_of_loops()
    def use_neighbour(self, ifindex: int, host: str) -> None:
        """Tell the kernel that we send to a neighbour.

        As a packet sent by the kernel would, this makes it look for a missing neighbour, and
        confirm a stale one. Raises LinkError: EPERM without CAP_NET_ADMIN, ENETDOWN, ...
        """
        try:
            self._requests.neigh(
                "replace", dst=host, ifindex=ifindex, flags=_NTF_USE, state=NUD_NONE
            )
        except NetlinkError as error:
            _drop_frames(error)
            raise _as_link_error(error, f"cannot probe the neighbour {host}") from None

    def read_changes(self) -> list[Change]:
        """Return what changed since the last call; never blocks."""
        changes: list[Change] = []
        while True:
            try:
                data, (sender, _) = self._changes.recvfrom(_READ_BYTES)
            except BlockingIOError:
                return changes
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                changes.append(ChangesLost())
                continue
            if sender != 0:  # not the kernel
                continue
            for message in self._marshal.parse(data):
                change = _change(message)
                if change is not None:
                    changes.append(change)


def _drop_frames(error: NetlinkError) -> None:
    """Break a reference cycle: pyroute2's answer holds the exception, and the exception's traceback
    the frame with the answer, and with that all its callers: a connection that was to be sent from,
    for example. A garbage collection may be a long time off."""
    error.__traceback__ = None


def _as_link_error(error: NetlinkError, what: str, advice: str = "") -> LinkError:
    if error.code in (errno.EPERM, errno.EACCES) and not advice:
        advice = "run as root, or with CAP_NET_ADMIN"
    line = f"{what} ({os.strerror(error.code)})"
    return LinkError(error.code, f"{line}: {advice}" if advice else line)


def _mac(text: str | None) -> bytes:
    """Parse a link-layer address; empty unless it is an Ethernet one."""
    if text is None:
        return b""
    with contextlib.suppress(ValueError):
        mac = bytes.fromhex(text.replace(":", ""))
        if len(mac) == 6:
            return mac
    return b""


def _interface(message: Any) -> Interface:
    running = _IFF_UP | _IFF_LOWER_UP
    return Interface(
        ifindex=message["index"],
        name=message.get_attr("IFLA_IFNAME") or "",
        mac=_mac(message.get_attr("IFLA_ADDRESS")),
        mtu_bytes=message.get_attr("IFLA_MTU") or 0,
        is_up=message["flags"] & running == running,
    )


def _neighbour(message: Any) -> NeighbourChange | None:
    host = message.get_attr("NDA_DST")
    if host is None or message["family"] not in (socket.AF_INET, socket.AF_INET6):
        return None
    is_removed = message["header"]["type"] == rtnl.RTM_DELNEIGH
    return NeighbourChange(
        ifindex=message["ifindex"],
        host=host,
        mac=b"" if is_removed else _mac(message.get_attr("NDA_LLADDR")),
        state=NUD_NONE if is_removed else message["state"],
    )


def _change(message: Any) -> Change | None:
    kind = message["header"]["type"]
    if kind in (rtnl.RTM_NEWNEIGH, rtnl.RTM_DELNEIGH):
        return _neighbour(message)
    if kind in (rtnl.RTM_NEWLINK, rtnl.RTM_DELLINK):
        # Bridges report their ports in messages of the same type and another family.
        if message["family"] != socket.AF_UNSPEC:
            return None
        is_removed = kind == rtnl.RTM_DELLINK
        return InterfaceChange(message["index"], None if is_removed else _interface(message))
    return RoutesChanged() if kind in _ROUTE_CHANGES else None
