"""Ports of a daemon: the supervisor opens them, as workers lack the privilege.

A worker sends its request over a socket pair of its own and blocks until the answer, because
`Link.open_port` is synchronous: the supervisor takes some 100 us.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import ip_address
from typing import Final, NamedTuple, Protocol

import trio

from hoststack.boundary.containment import fault_text
from hoststack.boundary.silence import TICK_S, Silence, peer_pid
from hoststack.daemon import orders
from hoststack.link.base import Endpoint, KernelProtocol, LinkError
from hoststack.link.zones import scope_of, without_zone
from hoststack.session.spent_time import blocked
from hoststack.transport.kernel.open_files import most_ports

logger = logging.getLogger("hoststack.daemon")

#: A supervisor that has not answered in so much time in which it could have counts as hanging.
_PATIENCE_S: Final = 10.0
_MOST_BYTES: Final = 4096
#: Most kernel sockets of one worker; its limit of open files is lower.
_MOST_SOCKETS: Final = 1 << 16
#: How long a dead worker's ports stay open for its replacement.
_STRAGGLERS_S: Final = 10.0


class PortOwner(Protocol):
    """A link's part in the supervisor, which can open ports."""

    @property
    def sockets_of_port(self) -> int:
        """How many descriptors an open port uses here."""

    def open_port(self, endpoint: Endpoint) -> Endpoint:
        """Open a port for all workers; raises LinkError."""

    def close_port(self, endpoint: Endpoint) -> None: ...

    def open_socket(
        self, protocol: KernelProtocol, endpoint: Endpoint, worker: int
    ) -> socket.socket:
        """See SocketSource (link/base.py); datagrams that bypass the kernel go to the worker."""

    def close_socket(self, protocol: KernelProtocol, endpoint: Endpoint) -> None: ...

    def use_neighbour(self, host: str) -> None:
        """See PortSource (link/base.py)."""

    def socket_of(self, worker: int, endpoint: Endpoint) -> int:
        """Return a worker's socket on an open port, or -1 for a link without sockets."""


class PortChannel(NamedTuple):
    """A socket pair over which one worker requests ports."""

    theirs: socket.socket
    """The worker's end."""
    serve: Callable[[], Awaitable[str]]
    """Serves requests until the worker is gone; returns its violation of the protocol, or ""."""


class PortKeeper:
    """Which workers have which ports open. A port that several workers request is opened once."""

    def __init__(self, owner: PortOwner) -> None:
        self._owner = owner
        self._holders: dict[Endpoint, set[int]] = {}
        self._left: dict[int, set[Endpoint]] = {}
        self._socket_counts: Counter[int] = Counter()
        self._sockets: dict[tuple[KernelProtocol, Endpoint], int] = {}
        """The current owner of each socket. A late close by the previous owner is ignored."""

    def open(self, worker: int, endpoint: Endpoint) -> tuple[Endpoint, int]:
        """Open a port for a worker; raises LinkError. The descriptor stays the owner's."""
        if endpoint in self._holders:
            is_left = endpoint in self._left.get(worker, ())
            if worker in self._holders[endpoint] and not is_left:
                raise LinkError(errno.EADDRINUSE, f"this worker has port {endpoint.port} already")
            if is_left:
                self._left[worker].discard(endpoint)
        else:
            self._make_room()
            endpoint = self._owner.open_port(endpoint)
            self._holders[endpoint] = set()
        self._holders[endpoint].add(worker)
        return endpoint, self._owner.socket_of(worker, endpoint)

    def _make_room(self) -> None:
        """Close ports of dead workers if needed; raises LinkError where that is not enough."""
        most = most_ports(self._owner.sockets_of_port)
        for worker in list(self._left):
            if len(self._holders) < most:
                return
            self._close_all_left(worker)
        if len(self._holders) >= most:
            raise LinkError(
                errno.EMFILE,
                f"{most} ports are open, and the daemon's limit of open files allows no more: "
                "close some, or raise the limit (`ulimit -n`, LimitNOFILE=)",
            )

    def close(self, worker: int, endpoint: Endpoint) -> None:
        """Close a worker's port; no effect if the worker has not opened it."""
        holders = self._holders.get(endpoint, set())
        if worker in holders:
            holders.discard(worker)
            if not holders:
                del self._holders[endpoint]
                self._owner.close_port(endpoint)

    @contextmanager
    def channel(self, worker: int) -> Iterator[PortChannel]:
        """Provide a worker's socket pair for as long as the worker lives.

        Its ports then stay open for a while: its replacement takes them over, and answers the
        packets of the dead worker's connections. Raises OSError.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            try:
                yield PortChannel(theirs, partial(self._serve, worker, ours))
            finally:
                # Sockets that the worker opened for itself ended with it.
                for key in [key for key, holder in self._sockets.items() if holder == worker]:
                    self._close_socket(worker, key)
                mine = {e for e, holders in self._holders.items() if worker in holders}
                self._left[worker] = mine

    async def _serve(self, worker: int, end: socket.socket) -> str:
        """Serve requests until the worker is gone; return its violation of the protocol, or ""."""
        end.setblocking(False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._close_left, worker)
            try:
                while True:
                    await trio.lowlevel.wait_readable(end)
                    data = end.recv(_MOST_BYTES)
                    if not data:
                        return ""  # its ports stay open until it ends
                    self._serve_one(worker, end, data)
            except orders.ReportError as error:
                fault = f"it sent an invalid port request: {error}"
            except BlockingIOError:
                fault = "it does not read the answers to its port requests"
            except OSError:  # it died with unread answers
                return ""
            # The next worker inherits the ports that are due to be closed.
            nursery.cancel_scope.cancel()
        return fault

    def _serve_one(self, worker: int, end: socket.socket, data: bytes) -> None:
        """Serve one request; raises ReportError if it is invalid, OSError if no answer fits."""
        request = orders.decode_port_request(data)
        answer, fd, opened = self._answer(worker, request)
        try:
            if answer is not None:
                # Never blocks: the answer is small, and the worker waits for it.
                socket.send_fds(end, [orders.encode(answer)], [fd] if fd >= 0 else [])
        finally:
            if opened is not None:
                opened.close()  # the worker has it now

    async def _close_left(self, worker: int) -> None:
        await trio.sleep(_STRAGGLERS_S)
        self._close_all_left(worker)

    def _close_all_left(self, worker: int) -> None:
        for endpoint in self._left.pop(worker, set()):
            self.close(worker, endpoint)

    def _answer(
        self, worker: int, request: orders.PortRequest
    ) -> tuple[orders.PortAnswer | None, int, socket.socket | None]:
        """Return the answer, the descriptor to send with it, and the socket to close after."""
        try:
            match request:
                case orders.UseNeighbour(host=host):
                    self._owner.use_neighbour(_address(host))
                    return orders.NeighbourUsed(), -1, None
                case orders.OpenPort():
                    opened, fd = self.open(worker, _endpoint(request))
                    return orders.PortOpened(*opened), fd, None
                case orders.ClosePort():
                    self.close(worker, _endpoint(request))
                case orders.OpenSocket():
                    endpoint, made = self._open_socket(worker, request)
                    return orders.PortOpened(*endpoint), made.fileno(), made
                case orders.CloseSocket():
                    self._close_socket(worker, (request.protocol, _endpoint(request)))
        except OSError as error:
            refusal = orders.PortRefused(error.errno or errno.EIO, error.strerror or str(error))
            return refusal, -1, None
        except ValueError as error:
            return orders.PortRefused(errno.EINVAL, str(error)), -1, None
        except Exception as error:
            # No request of a worker may end the supervisor.
            logger.exception("a request of worker %d failed", worker)
            return orders.PortRefused(errno.EIO, fault_text(error)), -1, None
        return None, -1, None

    def _open_socket(
        self, worker: int, request: orders.OpenSocket
    ) -> tuple[Endpoint, socket.socket]:
        endpoint = _endpoint(request)
        if self._socket_counts[worker] >= _MOST_SOCKETS:
            raise LinkError(errno.EMFILE, f"a worker has {_MOST_SOCKETS} sockets at most")
        made = self._owner.open_socket(request.protocol, endpoint, worker)
        endpoint = Endpoint(endpoint.host, made.getsockname()[1])
        key = (request.protocol, endpoint)
        self._forget_socket(key)
        self._sockets[key] = worker
        self._socket_counts[worker] += 1
        return endpoint, made

    def _forget_socket(self, key: tuple[KernelProtocol, Endpoint]) -> None:
        holder = self._sockets.pop(key, None)
        if holder is not None:
            self._socket_counts[holder] -= 1

    def _close_socket(self, worker: int, key: tuple[KernelProtocol, Endpoint]) -> None:
        """Close a socket; no effect if it is not the worker's."""
        if self._sockets.get(key) == worker:
            self._forget_socket(key)
            self._owner.close_socket(*key)


def _address(host: str) -> str:
    """Check a numeric address; a name would cause a lookup. Its zone is the index of an interface.
    Raises ValueError."""
    address, percent, zone = host.partition("%")
    if not percent:
        return str(ip_address(address))
    if ip_address(address).version == 4 or not (zone.isascii() and zone.isdecimal()):
        raise ValueError("the zone of the address is not an interface index")
    return f"{ip_address(address)}%{int(zone)}"


def _by_index(endpoint: Endpoint) -> Endpoint:
    """Return the form that the supervisor expects; raises LinkError for an unknown interface."""
    scope = scope_of(endpoint.host)
    host = without_zone(endpoint.host)
    return Endpoint(f"{host}%{scope}" if scope else host, endpoint.port)


def _endpoint(
    request: orders.OpenPort | orders.ClosePort | orders.OpenSocket | orders.CloseSocket,
) -> Endpoint:
    """Return the endpoint in a request; raises ValueError if it is invalid."""
    if not 0 <= request.port <= 65535:
        raise ValueError(f"there is no port {request.port}")
    return Endpoint(_address(request.host), request.port)


class PortClient:
    """The worker's side: implements PortSource (link/base.py)."""

    def __init__(self, end: socket.socket) -> None:
        end.settimeout(TICK_S)
        self._end = end
        self._supervisor = peer_pid(end)
        self._late: deque[orders.PortRequest] = deque()
        """Requests that were given up, and whose answers may still arrive, oldest first."""
        self._by_index: dict[Endpoint, Endpoint] = {}
        """Endpoints with a zone, in the supervisor's form, even when their interface is gone."""

    def open_port(self, endpoint: Endpoint) -> tuple[Endpoint, int]:
        """See PortSource."""
        answer, fds = self._ask(orders.OpenPort(*_by_index(endpoint)))
        assert isinstance(answer, orders.PortOpened)
        opened = self._note(endpoint, answer)
        for fd in fds:
            os.set_inheritable(fd, False)
        return opened, fds[0] if fds else -1

    def close_port(self, endpoint: Endpoint) -> None:
        """See PortSource."""
        self._tell(orders.ClosePort(*self._by_index.get(endpoint, endpoint)))

    def open_socket(self, protocol: KernelProtocol, endpoint: Endpoint) -> socket.socket:
        """See SocketSource."""
        answer, fds = self._ask(orders.OpenSocket(protocol, *_by_index(endpoint)))
        assert isinstance(answer, orders.PortOpened)
        local = self._note(endpoint, answer)
        if not fds:
            # The kernel discards a descriptor that exceeds the limit (unix(7)).
            self.close_socket(protocol, local)
            raise LinkError(errno.EMFILE, "this worker has reached its limit of open files")
        opened = socket.socket(fileno=fds[0])
        opened.setblocking(False)
        return opened

    def close_socket(self, protocol: KernelProtocol, endpoint: Endpoint) -> None:
        """See SocketSource."""
        self._tell(orders.CloseSocket(protocol, *self._by_index.get(endpoint, endpoint)))

    def _note(self, wanted: Endpoint, answer: orders.PortOpened) -> Endpoint:
        """Return what was opened, with its interface's name, and remember the supervisor's form."""
        opened = Endpoint(wanted.host, answer.port)
        if "%" in opened.host:
            self._by_index[opened] = Endpoint(answer.host, answer.port)
        return opened

    def use_neighbour(self, host: str) -> None:
        """See PortSource."""
        self._ask(orders.UseNeighbour(host))

    def _tell(self, request: orders.PortRequest) -> None:
        """Send a request that has no answer."""
        try:
            self._end.send(orders.encode(request))
        except OSError:
            return  # the supervisor is gone, and the port with it

    def _ask(self, request: orders.PortRequest) -> tuple[orders.PortAnswer, list[int]]:
        """Send a request and wait for its answer and descriptors; raises LinkError if refused."""
        try:
            with blocked():
                self._end.send(orders.encode(request))
                while self._late:
                    self._undo(self._late[0], *self._receive(request))
                    self._late.popleft()
                answer, fds = self._receive(request)
        except OSError as error:
            if isinstance(error, LinkError):
                raise
            raise LinkError(errno.EPIPE, f"can't ask the supervisor: {error}") from None
        if isinstance(answer, orders.PortRefused):
            raise LinkError(answer.errno, answer.text)
        return answer, fds

    def _receive(self, request: orders.PortRequest) -> tuple[orders.PortAnswer, list[int]]:
        """Wait for the next answer. Raises OSError; LinkError, after which `request` is a late one,
        if the supervisor hangs."""
        silence: Silence | None = None
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self._end, _MOST_BYTES, 1)
                break
            except TimeoutError:
                # Measured from now on: looking at a process costs more than most answers.
                silence = silence or Silence(self._supervisor, time.monotonic)
            silence.tick()
            if silence.silent_s >= _PATIENCE_S:
                self._late.append(request)
                raise LinkError(
                    errno.ETIMEDOUT,
                    f"the supervisor did not answer in {_PATIENCE_S:.0f} s in which it could have: "
                    "it is stopped or hangs. Try again, or restart the daemon",
                )
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, "it closed the connection")
        return orders.decode_port_answer(data), fds

    def _undo(self, request: orders.PortRequest, answer: orders.PortAnswer, fds: list[int]) -> None:
        """Close what a late answer brings: the caller has been told that it failed."""
        for fd in fds:
            os.close(fd)
        if not isinstance(answer, orders.PortOpened):
            return
        if isinstance(request, orders.OpenSocket):
            self._tell(orders.CloseSocket(request.protocol, answer.host, answer.port))
        else:
            self._tell(orders.ClosePort(answer.host, answer.port))
