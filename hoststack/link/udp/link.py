"""The link over the kernel's UDP sockets: needs no privilege, and uses any interface.

One system call moves a burst (hoststack/native/wire/sockets.h).
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Final

import trio

from hoststack.link.base import (
    BURST,
    Endpoint,
    LinkError,
    Outgoing,
    Path,
    PortSource,
    Received,
    SocketSource,
    Wire,
    ignore_trouble,
)
from hoststack.link.kernel.sockets import OwnSockets, bind_error
from hoststack.link.udp.wire import UdpWire
from hoststack.link.zones import socket_address, without_zone, zoned
from hoststack.native.wire._wire import lib

#: What a socket can buffer while the engine is busy: some bursts of full datagrams.
_SOCKET_BUFFER_BYTES: Final = 4 * 1024 * 1024

#: How long the size of a local address is not asked again: pyroute2 takes milliseconds.
_SIZE_HOLDS_S: Final = 1.0
_MAX_OWN_SIZES: Final = 256

# asm-generic/socket.h
_SO_BUSY_POLL: Final = 46


def unbound_socket(endpoint: Endpoint) -> socket.socket:
    """Return a socket with all options set, for an endpoint's family; raises OSError."""
    version = ip_address(endpoint.host).version
    made = socket.socket(
        socket.AF_INET if version == 4 else socket.AF_INET6,
        socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
    )
    try:
        failed = lib.hs_udp_prepare(made.fileno(), version)
        if failed:
            raise OSError(-failed, os.strerror(-failed))
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            _set_buffer(made, option)
    except BaseException:
        made.close()
        raise
    return made


def bind(made: socket.socket, endpoint: Endpoint) -> None:
    """Bind a socket; raises OSError."""
    made.bind(socket_address(endpoint))


def _set_buffer(made: socket.socket, option: int) -> None:
    forced = {socket.SO_RCVBUF: 33, socket.SO_SNDBUF: 32}[option]  # SO_*BUFFORCE
    try:
        made.setsockopt(socket.SOL_SOCKET, forced, _SOCKET_BUFFER_BYTES)
    except PermissionError:
        # Without CAP_NET_ADMIN net.core.rmem_max and wmem_max are the limit.
        made.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER_BYTES)


class _UdpSocket:
    """A bound socket."""

    def __init__(self, endpoint: Endpoint, bound: socket.socket) -> None:
        self.socket = bound
        self.endpoint = Endpoint(endpoint.host, bound.getsockname()[1])

    @classmethod
    def open(cls, endpoint: Endpoint) -> _UdpSocket:
        """Open and bind a socket; raises LinkError."""
        try:
            made = unbound_socket(endpoint)
            try:
                bind(made, endpoint)
            except BaseException:
                made.close()
                raise
        except OSError as error:
            raise bind_error(error, endpoint) from None
        return cls(endpoint, made)


class UdpLink:
    """Datagrams over UDP sockets, one for each open port. Implements Link."""

    name = "udp"
    interface_name: Final = None
    max_ports: Final = int(lib.HS_WIRE_UDP_MAX_SOCKETS)

    def __init__(self, *, segments: bool = True, ports: PortSource | None = None) -> None:
        """`segments` puts several datagrams into one message where the kernel can (GSO and GRO).

        With `ports` the sockets come from there: this is the link of one worker of several.
        """
        self.trouble = ""
        self.on_trouble: Callable[[str], None] = ignore_trouble
        self._ports = ports
        self._busy_poll_us = 0
        self._own_sizes: dict[str, tuple[float, int]] = {}
        """By local address: when the kernel was asked, and what its interface carries."""
        self._sockets: dict[Endpoint, _UdpSocket] = {}
        self._by_fd: dict[int, _UdpSocket] = {}
        self._epoll = select.epoll()
        self._blocked: socket.socket | None = None
        self._wire = UdpWire(segments=segments)

    @property
    def sockets(self) -> SocketSource:
        """See Link."""
        return OwnSockets() if self._ports is None else self._ports

    def datagrams(self) -> None:
        """See Link; the kernel carries everything here."""

    # --- ports and paths ---

    def open_port(self, endpoint: Endpoint) -> Endpoint:
        """See Link."""
        if self._ports is None:
            opened = _UdpSocket.open(endpoint)
        else:
            endpoint, fd = self._ports.open_port(endpoint)
            if fd < 0:
                # The kernel discards a descriptor that exceeds the limit (unix(7)).
                self._ports.close_port(endpoint)
                raise LinkError(errno.EMFILE, "this worker has reached its limit of open files")
            opened = _UdpSocket(endpoint, socket.socket(fileno=fd))
        fd = opened.socket.fileno()
        if self._busy_poll_us:
            opened.socket.setsockopt(socket.SOL_SOCKET, _SO_BUSY_POLL, self._busy_poll_us)
        try:
            self._wire.add(fd, opened.endpoint.port)
        except LinkError:
            opened.socket.close()
            raise
        self._sockets[opened.endpoint] = opened
        self._by_fd[fd] = opened
        self._epoll.register(fd, select.EPOLLIN)
        return opened.endpoint

    def close_port(self, endpoint: Endpoint) -> None:
        """See Link."""
        closed = self._sockets.pop(endpoint, None)
        if closed is None:
            return
        fd = closed.socket.fileno()
        self._wire.remove(fd)
        self._epoll.unregister(fd)
        del self._by_fd[fd]
        if self._blocked is closed.socket:
            trio.lowlevel.notify_closing(self._epoll.fileno())  # wakes the tasks that wait for it
            self._blocked = None
        closed.socket.close()
        if self._ports is not None:
            self._ports.close_port(endpoint)

    async def connect_path(self, local_port: int, remote: Endpoint) -> Path:
        """See Link."""
        await trio.lowlevel.checkpoint()
        return self.path_from(Endpoint(self.local_endpoint_for(remote).host, local_port), remote)

    def path_from(self, local: Endpoint, remote: Endpoint) -> Path:
        """See Link."""
        wildcard = "0.0.0.0" if ip_address(remote.host).version == 4 else "::"
        for host in (local.host, wildcard):
            found = self._sockets.get(Endpoint(host, local.port))
            if found is not None:
                _probe(remote).close()
                return self._wire.path(local, remote)
        raise LinkError(
            errno.EADDRNOTAVAIL,
            f"UDP port {local.port} is not open on {local.host}: open it first",
        )

    def local_endpoint_for(self, remote: Endpoint) -> Endpoint:
        """See Link."""
        with _probe(remote) as probe:
            name = probe.getsockname()
            scope = name[3] if len(name) == 4 else 0
            return Endpoint(zoned(without_zone(name[0]), scope), 0)

    def max_datagram_bytes(self, path: Path) -> int:
        """See Link."""
        return self._wire.path_bytes(path)

    def max_datagram_bytes_of(self, local: Endpoint) -> int:
        """See Link."""
        asked = self._own_sizes.get(local.host)
        now = time.monotonic()
        if asked is None or now - asked[0] > _SIZE_HOLDS_S:
            if len(self._own_sizes) >= _MAX_OWN_SIZES:
                self._own_sizes.clear()
            asked = self._own_sizes[local.host] = now, self._ask_own_size(local)
        return asked[1]

    @staticmethod
    def _ask_own_size(local: Endpoint) -> int:
        address = ip_address(local.host)
        mtu_bytes = None
        if not address.is_unspecified:
            # pyroute2 takes a sixth of the time that importing Hoststack takes.
            from hoststack.link.kernel.rtnetlink import Rtnetlink

            kernel = Rtnetlink(follows_changes=False)
            try:
                mtu_bytes = kernel.mtu_of(without_zone(local.host))
            finally:
                kernel.close()
        if mtu_bytes is None:
            return int(lib.HS_WIRE_UDP_MOST_BYTES)
        return int(lib.hs_wire_udp_path_bytes(mtu_bytes, address.version))

    # --- bursts ---

    def wire(self) -> Wire:
        """See Link."""
        return self._wire

    def receive(self, budget: int = BURST) -> list[Received]:
        """See Link."""
        received = self._wire.receive(budget)
        more = received
        while more and len(received) < budget:
            more = self._wire.receive(budget - len(received))
            received += more
        return received

    def send(self, burst: Sequence[Outgoing]) -> int:
        """See Link."""
        return self._wire.send(burst)

    # --- waiting, and the rest ---

    def busy_poll(self, microseconds: int) -> str:
        """See Link; also for ports that are opened later."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            for udp_socket in (probe, *(each.socket for each in self._by_fd.values())):
                try:
                    udp_socket.setsockopt(socket.SOL_SOCKET, _SO_BUSY_POLL, microseconds)
                except OSError as error:
                    return f"drivers are not busy-polled: SO_BUSY_POLL: {error.strerror}"
        self._busy_poll_us = microseconds
        return ""

    async def wait_readable(self) -> None:
        """See Link."""
        await trio.lowlevel.wait_readable(self._epoll.fileno())

    async def wait_writable(self) -> None:
        """See Link."""
        if self._wire.blocked_fd in self._by_fd:
            self._blocked = self._by_fd[self._wire.blocked_fd].socket
        if self._blocked is None:
            await trio.lowlevel.checkpoint()
            return
        fd = self._blocked.fileno()
        self._epoll.modify(fd, select.EPOLLIN | select.EPOLLOUT)
        try:
            with contextlib.suppress(trio.ClosedResourceError):
                await trio.lowlevel.wait_readable(self._epoll.fileno())
        finally:
            if fd in self._by_fd:
                self._epoll.modify(fd, select.EPOLLIN)
        self._blocked = None

    async def run(self) -> None:
        """See Link; the kernel needs no help."""
        await trio.sleep_forever()

    def statistics(self) -> dict[str, int]:
        """See Link; drops are named by direction and errno."""
        return self._wire.statistics()

    def close(self) -> None:
        """See Link."""
        for endpoint in list(self._sockets):
            self.close_port(endpoint)
        self._wire.close()
        self._epoll.close()


def _probe(remote: Endpoint) -> socket.socket:
    """Return a connected socket, for which the kernel has looked up the route; sends nothing."""
    version = ip_address(remote.host).version
    probe = socket.socket(
        socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
    )
    try:
        probe.connect(socket_address(remote))
    except LinkError:
        probe.close()
        raise
    except OSError as error:
        probe.close()
        raise LinkError(
            error.errno,
            f"no route to {remote.host}: `ip route get {remote.host}` shows what the kernel "
            f"answers ({error.strerror})",
        ) from None
    return probe
