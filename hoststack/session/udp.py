"""UDP, as a transport beside the engine: the kernel's sockets behind FIFOs of messages.

An endpoint is one of three. A connected one talks to one peer. A listener makes a connection of
each peer that sends to it. An unconnected one talks to anybody, so each of its messages begins with
the peer's address (`pack_address`). What finds no room in a FIFO is lost, as UDP is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections import deque
from collections.abc import Callable
from ipaddress import ip_address
from typing import Final

import trio

from hoststack.native.fifo import Fifo, FifoCorruptError
from hoststack.quic.seam import CloseInfo, ConnectionIds, EventKind, Handshake, QuicConfig
from hoststack.session.application import Application

Address = tuple[str, int]
Tell = Callable[["UdpConnection", EventKind, "CloseInfo | int | None"], None]

#: RFC 768: what the length field of IPv4 leaves.
MAX_DATAGRAM_BYTES: Final = 65507
#: For messages each way, where `QuicConfig.datagram_fifo_bytes` says nothing.
_FIFO_BYTES: Final = 1 << 20
#: Datagrams that one endpoint receives before others have their turn.
_BURST: Final = 64
#: The address in front of a message: an IPv6 address, IPv4 mapped into it, and the port.
ADDRESS_BYTES: Final = 18
_MAPPED: Final = bytes(10) + b"\xff\xff"


def pack_address(host: str, port: int) -> bytes:
    """What a message of an unconnected endpoint begins with; raises ValueError."""
    address = ip_address(host)
    packed = address.packed if address.version == 6 else _MAPPED + address.packed
    return packed + port.to_bytes(2, "big")


def unpack_address(message: bytes) -> Address:
    """The peer of a message; raises ValueError for one that is too short."""
    if len(message) < ADDRESS_BYTES:
        raise ValueError("a message without an address")
    packed = message[:16]
    host = ip_address(packed[12:] if packed.startswith(_MAPPED) else packed)
    return str(host), int.from_bytes(message[16:ADDRESS_BYTES], "big")


def open_socket(local: Address) -> socket.socket:
    """A socket on an address; raises OSError."""
    family = socket.AF_INET6 if ":" in local[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.bind(local)
    except OSError:
        sock.close()
        raise
    return sock


class UdpConnection:
    """An endpoint; it is the engine seam's ConnectionContext. `remote` has port 0 where it is
    unconnected."""

    protocol: Final = "udp"
    alpn = None
    handshake = Handshake()

    def __init__(
        self,
        port: UdpPort,
        remote: Address,
        application: Application,
        config: QuicConfig,
        listener: UdpListener | None = None,
    ) -> None:
        """Raises OSError where the application has no room for its FIFOs."""
        self.session = -1
        self.application = application
        self.config = config
        self.listener = listener
        self.local = port.local
        self.remote = remote
        size = config.datagram_fifo_bytes or _FIFO_BYTES
        if not application.has_room_for(size, size):
            raise OSError(errno.ENOMEM, "the application's FIFOs take all that they may")
        self.rx: Fifo = application.make_fifo(size)
        self.tx: Fifo = application.make_fifo(size)
        self._port = port
        self._held: tuple[bytes, Address] | None = None
        self._counts = {
            "rx_datagrams": 0,
            "tx_datagrams": 0,
            "rx_dropped_datagrams": 0,
            "tx_dropped_datagrams": 0,
        }

    @property
    def is_connected(self) -> bool:
        return self.remote[1] != 0

    @property
    def max_datagram_bytes(self) -> int:
        """What one message carries, its address not counted."""
        own = 0 if self.is_connected else ADDRESS_BYTES
        return min(MAX_DATAGRAM_BYTES, self.tx.max_message_bytes - own)

    def connection_ids(self) -> ConnectionIds:
        """None: it is known by its addresses."""
        return ConnectionIds()

    def statistics(self) -> dict[str, int | float]:
        """Datagrams, those that found no room among them."""
        return dict(self._counts)

    def put(self, data: bytes, peer: Address) -> None:
        """A datagram came."""
        self._counts["rx_datagrams"] += 1
        message = data if self.is_connected else pack_address(*peer) + data
        if not self.rx.write_message(message):
            self._counts["rx_dropped_datagrams"] += 1

    def take(self) -> tuple[bytes, Address] | None:
        """The next datagram to send, and where to; None if there is none."""
        if self._held is not None:
            held, self._held = self._held, None
            return held
        message = self.tx.read_message()
        if message is None:
            return None
        if self.is_connected:
            return message, self.remote
        try:
            return message[ADDRESS_BYTES:], unpack_address(message)
        except ValueError:
            self.dropped()
            return self.take()

    def hold(self, taken: tuple[bytes, Address]) -> None:
        """It could not be sent now: `take` gives it again."""
        self._held = taken

    def sent(self) -> None:
        self._counts["tx_datagrams"] += 1

    def dropped(self) -> None:
        """What was to be sent could not be."""
        self._counts["tx_dropped_datagrams"] += 1

    def send_ready(self) -> None:
        """There is something in the tx FIFO."""
        self._port.send_soon(self)

    def close(self) -> None:
        """Nobody wants it any more."""
        self._port.forget(self)


class UdpListener:
    """A port that makes connections; it is the engine seam's ListenerContext."""

    def __init__(self, port: UdpPort, config: QuicConfig) -> None:
        self.session = -1
        self.port = port
        self.config = config

    @property
    def local(self) -> Address:
        return self.port.local


class UdpPort:
    """A socket, and the endpoints on it. `accept(peer)` gives the endpoint of a peer that has none,
    or None if it is to have none."""

    def __init__(
        self,
        sock: socket.socket,
        tell: Tell,
        accept: Callable[[Address], UdpConnection | None] = lambda peer: None,
    ) -> None:
        self.local: Address = sock.getsockname()[:2]
        self.is_listening = True
        """Whether peers that have no endpoint get one."""
        self._socket = sock
        self._tell = tell
        self._accept = accept
        self._by_peer: dict[Address, UdpConnection] = {}
        self._only: UdpConnection | None = None
        self._ready: deque[UdpConnection] = deque()
        self._wakes = trio.Event()
        self._scope = trio.CancelScope()

    def add(self, connection: UdpConnection, *, is_only: bool = False) -> None:
        """An endpoint on this socket; the only one, if all that comes is for it."""
        if is_only:
            self._only = connection
        else:
            self._by_peer[connection.remote] = connection

    def forget(self, connection: UdpConnection) -> None:
        """An endpoint goes, after what it has still to send."""
        with contextlib.suppress(OSError, FifoCorruptError):
            self._send_all_of(connection)
        self._by_peer.pop(connection.remote, None)
        if connection is self._only:
            self._only = None
            self.is_listening = False
        self.close_if_unused()

    def close_if_unused(self) -> None:
        """Nobody listens, and there is no endpoint left."""
        if self.is_listening or self._by_peer or self._only or self._socket.fileno() < 0:
            return
        # At once: whoever hears of the end may have the port the next moment.
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()
        self._scope.cancel()

    def send_soon(self, connection: UdpConnection) -> None:
        self._ready.append(connection)
        self._wakes.set()

    async def run(self) -> None:
        """Until nobody needs the socket."""
        if self._socket.fileno() < 0:
            return
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._send)
                    nursery.start_soon(self._receive)
        except* trio.ClosedResourceError:
            pass
        finally:
            self._socket.close()

    # --- in ----------------------------------------------------------------------------------

    async def _receive(self) -> None:
        while True:
            # A socket that was closed meanwhile is nothing to wait for.
            await trio.lowlevel.checkpoint_if_cancelled()
            await trio.lowlevel.wait_readable(self._socket)
            touched: dict[UdpConnection, None] = {}
            for _ in range(_BURST if self._socket.fileno() >= 0 else 0):
                try:
                    data, address = self._socket.recvfrom(MAX_DATAGRAM_BYTES)
                except BlockingIOError:
                    break
                except OSError as error:
                    # An ICMP message about what was sent: only a connected socket hears of it.
                    self._fail(error)
                    break
                connection = self._only or self._endpoint_of(address[:2])
                if connection is not None and self._put(connection, data, address[:2]):
                    touched[connection] = None
            for connection in touched:
                self._tell(connection, EventKind.READABLE, None)
            await trio.lowlevel.checkpoint()

    def _endpoint_of(self, peer: Address) -> UdpConnection | None:
        found = self._by_peer.get(peer)
        if found is None and self.is_listening:
            found = self._accept(peer)
            if found is not None:
                self._by_peer[peer] = found
        return found

    def _put(self, connection: UdpConnection, data: bytes, peer: Address) -> bool:
        try:
            connection.put(data, peer)
        except FifoCorruptError as error:
            connection.application.on_fault(error)
            return False
        return True

    def _fail(self, error: OSError) -> None:
        if self._only is not None and self._only.is_connected:
            number = error.errno or errno.EIO
            info = CloseInfo(number, False, os.strerror(number), by_peer=True)
            self._tell(self._only, EventKind.CLOSED, info)
            self._only = None
            self.is_listening = False
            self.close_if_unused()

    # --- out ---------------------------------------------------------------------------------

    async def _send(self) -> None:
        while True:
            while self._ready:
                connection = self._ready.popleft()
                while not self._send_some(connection):
                    await trio.lowlevel.checkpoint_if_cancelled()
                    await trio.lowlevel.wait_writable(self._socket)
                await trio.lowlevel.checkpoint()
            self._wakes = trio.Event()
            await self._wakes.wait()

    def _send_some(self, connection: UdpConnection) -> bool:
        """Whether all that it has is sent; else the socket takes no more now."""
        try:
            self._send_all_of(connection)
        except BlockingIOError:
            return False
        except FifoCorruptError as error:
            connection.application.on_fault(error)
        return True

    def _send_all_of(self, connection: UdpConnection) -> None:
        """Raises BlockingIOError where the kernel's queue is full."""
        has_sent = False
        connection.tx.arm_read()
        while (taken := connection.take()) is not None:
            data, peer = taken
            try:
                if connection is self._only and connection.is_connected:
                    self._socket.send(data)
                else:
                    self._socket.sendto(data, peer)
                connection.sent()
            except BlockingIOError:
                connection.hold(taken)
                raise
            except ConnectionRefusedError as error:
                connection.dropped()
                self._fail(error)
                return
            except OSError:  # too large for the path, no route, a firewall
                connection.dropped()
            has_sent = True
        if has_sent:
            self._tell(connection, EventKind.WRITABLE, None)
