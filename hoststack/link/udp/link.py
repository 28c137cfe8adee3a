"""The link over the kernel's UDP sockets: needs no privilege, and uses any interface.

One system call moves a burst (hoststack/native/wire/udp.h).
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import time
from array import array
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from struct import Struct
from typing import TYPE_CHECKING, Any, Final, cast

import trio

from hoststack.link.base import (
    BURST,
    UNSPECIFIED,
    Endpoint,
    LinkError,
    Outgoing,
    Path,
    PortSource,
    Received,
    SocketSource,
    Wire,
    WireRoute,
    ignore_trouble,
)
from hoststack.link.kernel.sockets import OwnSockets, bind_error
from hoststack.link.zones import scope_of, socket_address, without_zone, zoned
from hoststack.native.wire._wire import ffi, lib

if TYPE_CHECKING:
    from hoststack.link.udp.wire import UdpWire

#: struct hs_udp_datagram and struct hs_udp_flow (hoststack/native/wire/udp.h).
_DATAGRAM: Final = Struct("=IBBxx40s")
_FLOW: Final = Struct("=BxHI16s16s")
_SLOT_BYTES: Final = int(lib.HS_UDP_SLOT_BYTES)
_MAX_BURST: Final = int(lib.HS_UDP_BURST)

#: The loopback interface carries 64 KiB, but one lost datagram should not cost that much. Above
#: this size the cost of a single datagram hardly matters.
_MAX_DATAGRAM_BYTES: Final = 16 * 1024

#: What a socket can buffer while the engine is busy: some bursts of full datagrams.
_SOCKET_BUFFER_BYTES: Final = 4 * 1024 * 1024

#: Paths in the table. Anyone can make us see many, by forging sources.
_MAX_PATHS: Final = 16384
#: How long the size of a local address is not asked again: pyroute2 takes milliseconds.
_SIZE_HOLDS_S: Final = 1.0
_MAX_OWN_SIZES: Final = 256

#: The size assumed for a path without a route: QUIC works on none that carries less
#: (RFC 9000 section 14).
_LEAST_DATAGRAM_BYTES: Final = 1200

_HEADER_BYTES: Final = {4: 28, 6: 48}  # IP and UDP

# linux/in.h, linux/in6.h: Python's socket module lacks them.
_IP_MTU: Final = 14
_IPV6_MTU: Final = 24
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
    """A bound socket, and the paths over it by their flow."""

    def __init__(self, endpoint: Endpoint, bound: socket.socket) -> None:
        self.socket = bound
        self.paths: dict[bytes, Path] = {}
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


class _Way:
    """A path's `link_data`: the socket and the addresses of its datagrams."""

    __slots__ = ("asked", "flow", "max_datagram_bytes", "socket")

    def __init__(self, udp_socket: _UdpSocket, flow: bytes) -> None:
        self.socket = udp_socket
        self.flow = flow
        self.max_datagram_bytes = _LEAST_DATAGRAM_BYTES
        self.asked = -1
        """UdpLink._generation when the kernel was last asked for the size."""


class UdpLink:
    """Datagrams over UDP sockets, one for each open port. Implements Link."""

    name = "udp"
    interface_name: Final = None

    def __init__(self, *, segments: bool = True, ports: PortSource | None = None) -> None:
        """`segments` lets an engine in C put several datagrams into one message (GSO and GRO).

        With `ports` the sockets come from there: this is the link of one worker of several.
        """
        self.trouble = ""
        self.on_trouble: Callable[[str], None] = ignore_trouble
        self._segments = segments
        self._ports = ports
        self._busy_poll_us = 0
        self._generation = 0
        """Changes when paths may carry less than before."""
        self._own_sizes: dict[str, tuple[float, int]] = {}
        """By local address: when the kernel was asked, and what its interface carries."""
        self._sockets: dict[Endpoint, _UdpSocket] = {}
        self._by_fd: dict[int, _UdpSocket] = {}
        self._epoll = select.epoll()
        self._blocked: socket.socket | None = None
        self._receiver: Any = ffi.gc(
            lib.hs_udp_receiver_new(), lib.hs_udp_receiver_free, _MAX_BURST * _SLOT_BYTES
        )
        if not self._receiver:
            raise MemoryError("no memory for the receive buffers of a UDP link")
        self._slots = memoryview(
            ffi.buffer(lib.hs_udp_slots(self._receiver), _MAX_BURST * _SLOT_BYTES)
        )
        self._datagrams: Any = ffi.new("struct hs_udp_datagram[]", _MAX_BURST)
        self._infos = memoryview(ffi.buffer(self._datagrams))
        self._refused: Any = ffi.new("int *")
        self._refused_bytes: Any = ffi.new("size_t *")
        self._reason: Any = ffi.new("int *")
        self._rx_datagrams = 0
        self._rx_bytes = 0
        self._tx_datagrams = 0
        self._tx_bytes = 0
        self._drops: dict[str, int] = {}
        self._wire: UdpWire | None = None

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
        if self._wire is not None:
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
        if self._wire is not None:
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
                path = self._path(found, _flow(local.host, remote))
                self._ask_for_size(path, cast("_Way", path.link_data))
                return path
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
        way = cast("_Way", path.link_data)
        if way.asked != self._generation:
            # The peer may be unreachable: the kernel then refuses to send there.
            with contextlib.suppress(LinkError):
                self._ask_for_size(path, way)
        return way.max_datagram_bytes

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
            return _MAX_DATAGRAM_BYTES
        return min(mtu_bytes - _HEADER_BYTES[address.version], _MAX_DATAGRAM_BYTES)

    def _ask_for_size(self, path: Path, way: _Way) -> None:
        """Read a path's size from the kernel; raises LinkError where there is no route."""
        way.max_datagram_bytes = _max_datagram_bytes(path.remote)
        way.asked = self._generation

    def _forget_sizes(self) -> None:
        self._generation += 1

    def _path(self, udp_socket: _UdpSocket, flow: bytes) -> Path:
        path = udp_socket.paths.get(flow)
        if path is None:
            if len(udp_socket.paths) >= _MAX_PATHS:
                udp_socket.paths.clear()
            local, remote = _endpoints(flow, udp_socket.endpoint.port)
            if without_zone(udp_socket.endpoint.host) == without_zone(local.host):
                local = udp_socket.endpoint
            path = udp_socket.paths[flow] = Path(local, remote, _Way(udp_socket, flow))
        return path

    # --- bursts ---

    def wire(self) -> Wire:
        """See Link."""
        from hoststack.link.udp.wire import UdpWire

        self._wire = UdpWire(self._admit, self._route, self._forget_sizes, segments=self._segments)
        for fd, opened in self._by_fd.items():
            self._wire.add(fd, opened.endpoint.port)
        return self._wire

    def _admit(self, flow: bytes, local_port: int) -> Path | None:
        version = flow[0]
        local = _endpoints(flow, local_port)[0].host
        wildcard: _UdpSocket | None = None
        for opened in self._by_fd.values():
            host = opened.endpoint.host
            is_kind = (":" in host) == (version == 6)
            if opened.endpoint.port == local_port and is_kind:
                if host == local or without_zone(host) == local:
                    return self._path(opened, flow)
                if host in UNSPECIFIED:
                    wildcard = opened
        return self._path(wildcard, flow) if wildcard is not None else None

    def _route(self, path: Path) -> WireRoute:
        way = cast("_Way", path.link_data)
        return WireRoute(
            self.max_datagram_bytes(path), fd=way.socket.socket.fileno(), flow=way.flow
        )

    def receive(self, budget: int = BURST) -> list[Received]:
        """See Link."""
        received: list[Received] = []
        if len(self._by_fd) == 1:
            for udp_socket in self._by_fd.values():
                self._receive_from(udp_socket, budget, received)
        elif self._by_fd:
            # epoll moves a reported socket to the end of its list: asking for one at a time
            # serves all of them.
            for _ in self._by_fd:
                ready = self._epoll.poll(0, 1) if len(received) < budget else []
                if not ready:
                    break
                self._receive_from(self._by_fd[ready[0][0]], budget - len(received), received)
        return received

    def _receive_from(self, udp_socket: _UdpSocket, budget: int, received: list[Received]) -> None:
        count = lib.hs_udp_receive(
            self._receiver, udp_socket.socket.fileno(), budget, self._datagrams
        )
        if count <= 0:
            if count not in (0, -errno.EAGAIN, -errno.EINTR):
                self._drop(f"rx_{errno.errorcode.get(-count, 'error').lower()}")
            return
        slots = self._slots
        paths = udp_socket.paths
        start = 0
        for length, ecn, is_good, flow in _DATAGRAM.iter_unpack(
            self._infos[: count * _DATAGRAM.size]
        ):
            if is_good:
                path = paths.get(flow) or self._path(udp_socket, flow)
                received.append((slots[start : start + length].tobytes(), path, ecn))
                self._rx_datagrams += 1
                self._rx_bytes += length
            else:
                self._drop("rx_truncated")
            start += _SLOT_BYTES

    def send(self, burst: Sequence[Outgoing]) -> int:
        """See Link."""
        taken = 0
        while taken < len(burst):
            ways: list[_Way] = []
            payloads: list[bytes] = []
            for data, path in burst[taken : taken + _MAX_BURST]:
                way = cast("_Way", path.link_data)
                if ways and way.socket is not ways[0].socket:
                    break
                ways.append(way)
                payloads.append(data)
            count = self._send_through(ways[0].socket, ways, payloads)
            taken += count
            if count < len(payloads):
                break
        return taken

    def _send_through(self, udp_socket: _UdpSocket, ways: list[_Way], payloads: list[bytes]) -> int:
        blob = b"".join(payloads)
        taken: int = lib.hs_udp_send(
            udp_socket.socket.fileno(),
            len(payloads),
            ffi.from_buffer(blob),
            len(blob),
            ffi.from_buffer("uint32_t[]", array("I", map(len, payloads))),
            ffi.from_buffer("struct hs_udp_flow[]", b"".join([way.flow for way in ways])),
            self._refused,
            self._refused_bytes,
            self._reason,
        )
        if taken < len(payloads):
            self._blocked = udp_socket.socket
        refused: int = self._refused[0]
        if refused:
            if self._reason[0] == errno.EMSGSIZE:
                self._forget_sizes()
            self._drop(f"tx_{errno.errorcode.get(self._reason[0], 'error').lower()}", refused)
        self._tx_datagrams += taken - refused
        taken_bytes = len(blob) if taken == len(payloads) else sum(map(len, payloads[:taken]))
        self._tx_bytes += taken_bytes - self._refused_bytes[0]
        return taken

    def _drop(self, reason: str, count: int = 1) -> None:
        self._drops[reason] = self._drops.get(reason, 0) + count

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
        if self._wire is not None and self._wire.blocked_fd in self._by_fd:
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
        return {
            "rx_datagrams": self._rx_datagrams,
            "rx_bytes": self._rx_bytes,
            "tx_datagrams": self._tx_datagrams,
            "tx_bytes": self._tx_bytes,
            **self._drops,
            **(self._wire.statistics() if self._wire is not None else {}),
        }

    def close(self) -> None:
        """See Link."""
        for endpoint in list(self._sockets):
            self.close_port(endpoint)
        if self._wire is not None:
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


def _max_datagram_bytes(remote: Endpoint) -> int:
    version = ip_address(remote.host).version
    with _probe(remote) as probe:
        if version == 4:
            mtu_bytes = probe.getsockopt(socket.IPPROTO_IP, _IP_MTU)
        else:
            mtu_bytes = probe.getsockopt(socket.IPPROTO_IPV6, _IPV6_MTU)
    return min(mtu_bytes - _HEADER_BYTES[version], _MAX_DATAGRAM_BYTES)


def _flow(source: str, remote: Endpoint) -> bytes:
    """Pack a struct hs_udp_flow; Python's struct pads addresses with zeros."""
    address = ip_address(remote.host)
    return _FLOW.pack(
        address.version,
        remote.port,
        scope_of(remote.host),
        address.packed,
        ip_address(source).packed,
    )


def _endpoints(flow: bytes, local_port: int) -> tuple[Endpoint, Endpoint]:
    version, remote_port, scope, remote_ip, local_ip = _FLOW.unpack(flow)
    size = 4 if version == 4 else 16
    local, remote = (zoned(str(ip_address(ip[:size])), scope) for ip in (local_ip, remote_ip))
    return Endpoint(local, local_port), Endpoint(remote, remote_port)
