"""UDP ports: a kernel socket, the link's kernel bypass beside it, and the endpoints that use both.

Datagrams bypass the kernel if the link supports that (`Link.datagrams`). The socket sends the rest:
datagrams that are larger than the MTU, to this machine itself, over another interface, or to a
neighbour that the kernel has yet to resolve.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import socket
from collections.abc import Callable
from typing import Final

import trio

from hoststack.link.base import (
    BURST,
    UNSPECIFIED,
    DatagramWay,
    Endpoint,
    Outgoing,
    Path,
    SocketSource,
)
from hoststack.link.zones import scope_of, socket_address, without_zone, zoned
from hoststack.native.memory.fifo import FifoCorruptError
from hoststack.quic.seam import CloseInfo, EventKind
from hoststack.transport.kernel import udp_socket
from hoststack.transport.kernel.udp import MAX_DATAGRAM_BYTES, Address, UdpConnection, address_of

Tell = Callable[[UdpConnection, EventKind, "CloseInfo | int | None"], None]

#: Most datagrams that one endpoint sends at a time, and all endpoints in one turn of the worker.
_MOST_OF_ONE: Final = 8 * BURST
_MOST_IN_TURN: Final = 16 * BURST
#: Most peers for which the port remembers the local address that they sent to.
_MOST_HEARD: Final = 4096
#: Shortest interval between checks for idle endpoints: each check visits all of them.
_LEAST_IDLE_S: Final = 1.0
#: Close reason of an idle endpoint, the same as the native engine's.
_IDLE: Final = "Idle timeout"


class _Left(enum.Enum):
    """Why not all of an endpoint's datagrams went out."""

    NOTHING = enum.auto()
    KERNEL_IS_FULL = enum.auto()
    WAY_IS_FULL = enum.auto()
    OTHERS_TURN = enum.auto()


def _accept_none(local: Address, peer: Address) -> None:
    """Refuse every new peer."""


def _allow_all(peer: Address) -> bool:
    return True


class UdpPort:
    """One port. `accept(local, peer)` returns the endpoint for a new peer, or None to refuse it;
    `allows(peer)` returns whether the only endpoint may exchange datagrams with a peer. Endpoints
    of peers end after `idle_s` to twice `idle_s` seconds of silence; 0 means never."""

    def __init__(
        self,
        ports: UdpPorts,
        sock: socket.socket,
        release: Callable[[], None],
        idle_s: float,
        accept: Callable[[Address, Address], UdpConnection | None],
        allows: Callable[[Address], bool],
    ) -> None:
        """Use `UdpPorts.open`."""
        self.local = address_of(sock.getsockname())
        self.is_listening = True
        """Whether new peers get an endpoint."""
        self._ports = ports
        self._socket = sock
        self._release = release
        self._tell = ports.tell
        self._idle_s = max(idle_s, _LEAST_IDLE_S) if idle_s else 0
        self._accept = accept
        self._allows = allows
        self._by_peer: dict[Address, UdpConnection] = {}
        self._only: UdpConnection | None = None
        self._ready: dict[UdpConnection, None] = {}
        self._wakes = trio.Event()
        self._scope = trio.CancelScope()
        self._is_anywhere = self.local[0] in UNSPECIFIED
        if self._is_anywhere:
            udp_socket.want_destinations(sock)
        self._heard: dict[Address, tuple[str, int]] = {}
        """The local address that each peer sent to, and the zone of link-local peers, which are
        reachable only over the interface that they sent from."""

    def add(self, connection: UdpConnection, *, is_only: bool = False) -> None:
        """Add an endpoint; the only one of the port if it receives all datagrams."""
        if is_only:
            self._only = connection
        else:
            self._by_peer[connection.remote] = connection

    def forget(self, connection: UdpConnection) -> None:
        """Send what an endpoint still has, and remove it."""
        if self._socket.fileno() >= 0:
            with contextlib.suppress(FifoCorruptError):
                self._send_all_of(connection)
        self._by_peer.pop(connection.remote, None)
        self._heard.pop(connection.remote, None)
        self._ready.pop(connection, None)
        self._ports.stop_waiting(connection)
        connection.left()
        if connection is self._only:
            self._only = None
            self.is_listening = False
        self.close_if_unused()

    def close_if_unused(self) -> None:
        """Close the port if it is not listening and has no endpoint left."""
        if not (self.is_listening or self._by_peer or self._only or self._socket.fileno() < 0):
            self.close()

    def close(self) -> None:
        """Close the port at once, since the application may reuse its number immediately.
        Idempotent."""
        if self._socket.fileno() >= 0:
            self._ports.forget(self)
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
            self._release()
            self._scope.cancel()
            # Break reference cycles, which would hold an application's memory until a garbage
            # collection.
            self._accept, self._allows = _accept_none, _allow_all

    async def run(self) -> None:
        """Send and receive on the socket until the port is closed."""
        if self._socket.fileno() < 0:
            return
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._send_rest)
                    nursery.start_soon(self._receive)
                    if self._idle_s:
                        nursery.start_soon(self._end_idle)
        except* trio.ClosedResourceError:
            pass
        finally:
            self.close()

    async def _end_idle(self) -> None:
        while True:
            await trio.sleep(self._idle_s)
            for connection in list(self._by_peer.values()):
                if not connection.is_used:
                    self.forget(connection)
                    info = CloseInfo(0, False, _IDLE, by_peer=False)
                    self._tell(connection, EventKind.CLOSED, info)
                connection.is_used = False

    # --- in ----------------------------------------------------------------------------------

    def receive_from(self, peer: Address, to: str, data: bytes) -> UdpConnection | None:
        """Deliver a datagram that bypassed the kernel, and return its endpoint; None if there is
        none."""
        if self._only is not None and self._only.is_connected and self._only.remote != peer:
            return None  # as the kernel does for a connected socket
        zone = scope_of(peer[0])
        if self._only is not None and not self._only.is_connected:
            peer = without_zone(peer[0]), peer[1]
        return self._deliver(peer, to, zone, data)

    async def _receive(self) -> None:
        while True:
            # The socket may have been closed meanwhile.
            await trio.lowlevel.checkpoint_if_cancelled()
            await trio.lowlevel.wait_readable(self._socket)
            touched: dict[UdpConnection, None] = {}
            for _ in range(BURST if self._socket.fileno() >= 0 else 0):
                try:
                    data, name, to = udp_socket.receive(self._socket, MAX_DATAGRAM_BYTES)
                except BlockingIOError:
                    break
                except OSError as error:
                    # An ICMP error about a sent datagram; only connected sockets report these.
                    self._fail(error)
                    break
                zone = name[3] if len(name) == 4 else 0
                peer = address_of(name)
                if self._only is not None and not self._only.is_connected:
                    # The address prefix of a message has no zone (udp.pack_address).
                    peer = without_zone(peer[0]), peer[1]
                here = self.local[0] if to is None else zoned(to, zone)
                connection = self._deliver(peer, here, zone, data)
                if connection is not None:
                    touched[connection] = None
            for connection in touched:
                self._tell(connection, EventKind.READABLE, None)
            await trio.lowlevel.checkpoint()

    def _deliver(self, peer: Address, to: str, zone: int, data: bytes) -> UdpConnection | None:
        connection = self._only or self._endpoint_of(peer, to)
        if connection is not None and self._allows(peer):
            if self._is_anywhere or zone:
                if connection is self._only and len(self._heard) >= _MOST_HEARD:
                    self._heard.clear()
                self._heard[peer] = without_zone(to), zone
            try:
                connection.put(data, peer)
            except FifoCorruptError as error:
                connection.application.on_fault(error)
                return None
            return connection
        return None

    def _endpoint_of(self, peer: Address, to: str) -> UdpConnection | None:
        found = self._by_peer.get(peer)
        # Port 0 cannot be answered.
        if found is None and self.is_listening and peer[1]:
            found = self._accept((to, self.local[1]), peer)
            if found is not None:
                self._by_peer[peer] = found
        return found

    def _fail(self, error: OSError) -> None:
        if self._only is not None and self._only.is_connected:
            number = error.errno or errno.EIO
            info = CloseInfo(number, False, os.strerror(number), by_peer=True)
            self._tell(self._only, EventKind.CLOSED, info)
            self._only = None
            self.is_listening = False
            self.close_if_unused()

    # --- out ---------------------------------------------------------------------------------

    def send(self, connection: UdpConnection) -> None:
        """Send an endpoint's messages, now or as soon as there is room."""
        is_waiting = connection in self._ready or self._ports.is_waiting(connection)
        if is_waiting or self._socket.fileno() < 0:
            return
        try:
            left = self._send_all_of(connection)
        except FifoCorruptError as error:
            connection.application.on_fault(error)
            return
        if left is _Left.KERNEL_IS_FULL:
            self._ready[connection] = None
            self._wakes.set()
        elif left is not _Left.NOTHING:
            self._ports.wait(self, connection, for_way=left is _Left.WAY_IS_FULL)

    async def _send_rest(self) -> None:
        while True:
            while self._ready:
                # The socket may have been closed meanwhile.
                await trio.lowlevel.checkpoint_if_cancelled()
                await trio.lowlevel.wait_writable(self._socket)
                # The endpoint may have gone while this waited.
                connection = next(iter(self._ready), None)
                if connection is not None:
                    del self._ready[connection]
                    self.send(connection)
                await trio.lowlevel.checkpoint()
            self._wakes = trio.Event()
            await self._wakes.wait()

    def _send_all_of(self, connection: UdpConnection) -> _Left:
        left, has_sent, total = _Left.NOTHING, False, 0
        # Arm before the reads, so that no later write is missed.
        connection.tx.arm_read()
        while left is _Left.NOTHING:
            most = min(BURST, _MOST_OF_ONE - total, self._ports.left_in_turn)
            batch, looked_at = connection.take(most)
            total += looked_at
            self._ports.left_in_turn -= looked_at
            allowed = [each for each in batch if self._allows(each[1])]
            connection.dropped(len(batch) - len(allowed))
            count, left = self._send_batch(connection, allowed)
            has_sent = has_sent or count > 0
            if left is not _Left.NOTHING:
                connection.hold(allowed[count:])
            elif most == 0:
                left = _Left.OTHERS_TURN
            elif looked_at < most:
                break
        if has_sent:
            self._tell(connection, EventKind.WRITABLE, None)
        return left

    def _send_batch(
        self, connection: UdpConnection, batch: list[tuple[bytes, Address]]
    ) -> tuple[int, _Left]:
        """Send datagrams in order; return how many were sent or dropped, and why it stopped."""
        done = 0
        run: list[Outgoing] = []
        for index, (data, peer) in enumerate(batch):
            path = self._ports.path_past_kernel(self._local_for(peer), peer, len(data))
            if path is not None:
                run.append((data, path))
                continue
            # Send the earlier ones first.
            done += self._send_run(connection, run)
            if done < index:
                return done, _Left.WAY_IS_FULL
            if not self._send_by_kernel(connection, data, peer):
                return done, _Left.KERNEL_IS_FULL
            done, run = done + 1, []
        done += self._send_run(connection, run)
        return done, _Left.NOTHING if done == len(batch) else _Left.WAY_IS_FULL

    def _send_run(self, connection: UdpConnection, run: list[Outgoing]) -> int:
        """Send datagrams past the kernel; return how many were sent."""
        count = self._ports.send_past_kernel(run) if run else 0
        connection.sent(count)
        return count

    def _local_for(self, peer: Address) -> Endpoint:
        """Return the source address for a peer: the one that it sent to."""
        host, port = self.local
        heard_at, zone = self._heard.get(peer, (host, 0))
        return Endpoint(zoned(heard_at, zone), port)

    def _send_by_kernel(self, connection: UdpConnection, data: bytes, peer: Address) -> bool:
        """Send a datagram with the socket; return False if that is full now."""
        try:
            if connection is self._only and connection.is_connected:
                self._socket.send(data)
            else:
                host, zone = self._heard.get(peer, ("", 0))
                to = (without_zone(peer[0]), peer[1], 0, zone) if zone else peer
                if host and host not in UNSPECIFIED:
                    udp_socket.send_from(self._socket, host, data, to)
                else:
                    self._socket.sendto(data, to)
            connection.sent()
        except BlockingIOError:
            return False
        except ConnectionRefusedError as error:
            connection.dropped()
            self._fail(error)
        except OSError:  # too large for the path, no route, a firewall, or just closed
            connection.dropped()
        return True


class UdpPorts:
    """All UDP ports of a worker."""

    def __init__(self, source: SocketSource, way: DatagramWay | None, tell: Tell) -> None:
        self.tell = tell
        self._source = source
        self._way = way
        self.left_in_turn = _MOST_IN_TURN
        """Number of datagrams that may still be sent before the worker's next turn."""
        self._by_local: dict[Address, UdpPort] = {}
        self._waiting: dict[UdpConnection, UdpPort] = {}
        self._is_moving = False
        self._is_way_full = False

    def open(
        self,
        local: Address,
        remote: Address | None = None,
        *,
        charge: Callable[[int], Callable[[], None]],
        idle_s: float = 0,
        accept: Callable[[Address, Address], UdpConnection | None] = _accept_none,
        allows: Callable[[Address], bool] = _allow_all,
    ) -> UdpPort:
        """Open a port, connected if there is a `remote`; port 0 picks a free one. `charge` charges
        for its descriptor and returns what ends that. See UdpPort for the other parameters. Raises
        OSError, and what `charge` raises."""
        sock = self._source.open_socket("udp", Endpoint(*local))
        with contextlib.ExitStack() as undo:
            undo.callback(sock.close)
            opened = Endpoint(*address_of(sock.getsockname()))
            undo.callback(self._source.close_socket, "udp", opened)
            release = charge(sock.fileno())
            undo.callback(release)
            if remote is not None:
                sock.connect(socket_address(remote))
            undo.pop_all()
        port = UdpPort(self, sock, release, idle_s, accept, allows)
        self._by_local[port.local] = port
        return port

    def forget(self, port: UdpPort) -> None:
        """Remove a port that is about to be closed."""
        if self._by_local.pop(port.local, None) is not None:
            self._source.close_socket("udp", Endpoint(*port.local))
            self._waiting = {c: p for c, p in self._waiting.items() if p is not port}

    def move(self) -> bool:
        """Receive datagrams that bypassed the kernel, and send queued ones; called once a turn.
        Return whether some wait until the link is writable."""
        self._is_moving, self._is_way_full = True, False
        try:
            if self._way is not None:
                self._take_all(self._way)
            self._send_waiting()
        finally:
            self._is_moving = False
        return self._is_way_full

    def _take_all(self, way: DatagramWay) -> None:
        touched: dict[UdpConnection, None] = {}
        for data, path, _ in way.take():
            connection = self._take(path.local, path.remote, data)
            if connection is not None:
                touched[connection] = None
        for connection in touched:
            self.tell(connection, EventKind.READABLE, None)

    def _send_waiting(self) -> None:
        self.left_in_turn = _MOST_IN_TURN
        waiting, self._waiting = self._waiting, {}
        while waiting and self.left_in_turn and not self._is_way_full:
            connection = next(iter(waiting))
            waiting.pop(connection).send(connection)
        if waiting:
            if not self._is_way_full:
                next(iter(waiting)).application.worker.wake()
            # Endpoints that have just sent go behind the others.
            self._waiting = waiting | self._waiting

    def wait(self, port: UdpPort, connection: UdpConnection, *, for_way: bool) -> None:
        """Queue an endpoint for the next turn, or for the next in which the link has room."""
        self._waiting[connection] = port
        self._is_way_full = self._is_way_full or for_way
        if not (for_way and self._is_moving):
            connection.application.worker.wake()

    def is_waiting(self, connection: UdpConnection) -> bool:
        """Return whether an endpoint is queued for a later turn."""
        return connection in self._waiting

    def stop_waiting(self, connection: UdpConnection) -> None:
        """Remove an endpoint from the queue."""
        self._waiting.pop(connection, None)

    # --- past the kernel ---------------------------------------------------------------------

    def _take(self, local: Endpoint, remote: Endpoint, data: bytes) -> UdpConnection | None:
        wildcard = UNSPECIFIED[":" in local.host]
        port = self._by_local.get(local) or self._by_local.get((wildcard, local.port))
        return (
            None
            if port is None
            else port.receive_from((remote.host, remote.port), local.host, data)
        )

    def path_past_kernel(self, local: Endpoint, peer: Address, size: int) -> Path | None:
        """Return the path for a datagram of this size; None if the kernel has to send it."""
        return None if self._way is None else self._way.path(local, Endpoint(*peer), size)

    def send_past_kernel(self, burst: list[Outgoing]) -> int:
        """Send a burst past the kernel; see Link.send."""
        assert self._way is not None
        return self._way.send(burst)
