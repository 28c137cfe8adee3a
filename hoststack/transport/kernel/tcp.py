"""TCP as a transport beside the engine: kernel sockets behind the same FIFOs and events.

A connection has one stream: the client opens it, the listener's side accepts it. The connection
ends when both directions have, as any TCP connection. A close with a code or a reason is a reset;
otherwise written data is still sent, for LINGER_S at most.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable
from typing import Final

import trio

from hoststack.boundary.application import Application
from hoststack.boundary.fifo_pool import FifoSize
from hoststack.boundary.protocols import TcpConfig
from hoststack.native.memory.fifo import Fifo, FifoCorruptError
from hoststack.quic.seam import (
    CloseInfo,
    ConnectionIds,
    EventKind,
    Handshake,
)
from hoststack.transport.kernel.udp import Address, address_of

#: Reports an event to the session layer.
Tell = Callable[["TcpConnection | TcpStream", EventKind, "CloseInfo | int | None"], None]

#: How long a closed connection may take to send written data, in seconds.
LINGER_S: Final = 10.0
#: Most bytes that one call reads from a socket or a FIFO.
_CHUNK_BYTES: Final = 256 << 10

#: After a minute of silence, four probes at intervals of 15 seconds (tcp(7)).
_KEEP_ALIVE: Final = (
    (socket.TCP_KEEPIDLE, 60),
    (socket.TCP_KEEPINTVL, 15),
    (socket.TCP_KEEPCNT, 4),
)
#: FIN_WAIT1, LAST_ACK and CLOSING (include/net/tcp_states.h).
_FIN_UNDER_WAY: Final = (4, 9, 11)


class TcpListener:
    """A listening socket; it is the engine seam's ListenerContext."""

    def __init__(
        self,
        sock: trio.socket.SocketType,
        local: Address,
        config: TcpConfig,
        release: Callable[[], None],
    ) -> None:
        """`release` is called by the code that closes the socket: it is charged for no more."""
        self.session = -1
        self.release = release
        self.local = local
        self.config = config
        self.socket = sock
        self.scope = trio.CancelScope()


class TcpStream:
    """The stream of a connection; it is the engine seam's StreamContext."""

    stream_id = 0

    def __init__(self, connection: TcpConnection, rx: Fifo, tx: Fifo) -> None:
        self.session = -1
        self.connection = connection
        self.rx = rx
        self.tx = tx


class TcpConnection:
    """A connected socket; it is the engine seam's ConnectionContext."""

    protocol: Final = "tcp"
    alpn = None
    handshake = Handshake()
    rx = None
    tx = None

    def __init__(
        self,
        sock: trio.socket.SocketType,
        application: Application,
        config: TcpConfig,
        tell: Tell,
        release: Callable[[], None],
        listener: TcpListener | None = None,
    ) -> None:
        """`release` is called when the socket is closed: it is charged for no more."""
        self.session = -1
        self.application = application
        self.config = config
        self.listener = listener
        self.local = address_of(sock.getsockname())
        self.remote = address_of(sock.getpeername())
        self.stream: TcpStream | None = None
        """None before it is opened and after the connection's task ended."""
        self._had_stream = False
        self._socket = sock
        self._tell = tell
        self._release = release
        self._scope = trio.CancelScope()
        self._room = trio.Event()
        self._bytes = trio.Event()
        self._is_told_closed = False
        self._discards = False
        self._has_sent_all = False
        self._moved = {"rx_bytes": 0, "tx_bytes": 0}
        # RFC 896's delay would not help: data that belongs together is written at once.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Without probes, a peer that vanished would hold its session forever (tcp(7)).
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEP_ALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        # Until everything is sent, closing the socket is a reset, even if the kernel closes it
        # because this process died: a FIN would make cut-off data look complete.
        self._set_reset_on_close(True)

    def connection_ids(self) -> ConnectionIds:
        """Return no IDs: a TCP connection is identified by its addresses."""
        return ConnectionIds()

    def statistics(self) -> dict[str, int | float]:
        """Return the bytes of each direction, and figures from TCP_INFO (tcp(7))."""
        figures: dict[str, int | float] = dict(self._moved)
        with contextlib.suppress(OSError):
            info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
            # struct tcp_info: 8 octets, then u32s; rtt and rttvar in us, snd_cwnd in segments.
            rtt_us, rttvar_us, _, cwnd = struct.unpack_from("=4I", info, 8 + 15 * 4)
            figures |= {"rtt_s": rtt_us / 1e6, "rtt_variance_s": rttvar_us / 1e6, "cwnd": cwnd}
        return figures

    # --- from the session layer --------------------------------------------------------------

    def open_stream(self) -> TcpStream:
        """Open the only stream; raises OSError for a second one, and if there is no memory."""
        if self._had_stream:
            raise OSError(errno.ENOTSUP, "a TCP connection has one stream")
        config = self.config
        sizes = (
            FifoSize(config.rx_fifo_bytes, config.least_rx_bytes),
            FifoSize(config.tx_fifo_bytes, config.least_tx_bytes),
        )
        try:
            rx, tx = self.application.make_fifos(sizes, None if self.listener is None else self)
        except MemoryError:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from None
        self._had_stream = True
        self.stream = TcpStream(self, rx, tx)
        return self.stream

    def sent(self) -> None:
        """Wake the sending task: the tx FIFO has bytes, or its end."""
        self._bytes.set()

    def consumed(self) -> None:
        """Wake the receiving task: the rx FIFO has room."""
        self._room.set()

    def discard(self) -> None:
        """Discard all further received data."""
        self._discards = True
        self._room.set()
        self._end_soon()

    def _end_soon(self) -> None:
        """Set a deadline once this side neither reads nor sends: until then it waits for the
        peer's end, or for the acknowledgement of all sent data."""
        if self._discards and self._has_sent_all:
            deadline = trio.current_time() + LINGER_S
            self._scope.deadline = min(self._scope.deadline, deadline)

    def close(self, info: CloseInfo) -> None:
        """Close the connection for the application, gracefully without code and reason."""
        if self._is_told_closed:
            return
        self._told_closed(info)
        if info.code or info.reason or self.stream is None:
            self.abort()
        else:
            self._discards = True
            self.stream.tx.set_eof()
            self._scope.deadline = trio.current_time() + LINGER_S
            self._room.set()
            self._bytes.set()

    def abort(self) -> None:
        """Close the connection at once, with a reset if possible."""
        self._set_reset_on_close(True)
        self._scope.cancel()
        if self.stream is None:
            self._close_socket()

    def _close_socket(self) -> None:
        self._socket.close()
        self._release()

    def _set_reset_on_close(self, is_on: bool) -> None:
        with contextlib.suppress(OSError):
            linger = struct.pack("ii", is_on, 0)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    def _told_closed(self, info: CloseInfo) -> None:
        if not self._is_told_closed:
            self._is_told_closed = True
            self._tell(self, EventKind.CLOSED, info)

    # --- its task ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Move bytes in both directions until both have ended; the stream must be open."""
        assert self.stream is not None
        info = CloseInfo(0, True, "", by_peer=True)
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._receive, self.stream)
                    nursery.start_soon(self._send, self.stream)
        except* FifoCorruptError as group:
            self.abort()
            self.application.on_fault(group.exceptions[0])
        except* OSError as group:
            number = _errno_of(group)
            info = CloseInfo(number, False, os.strerror(number), by_peer=True)
        finally:
            self._close_socket()
            self._tell(self.stream, EventKind.STREAM_CLOSED, None)
            self._told_closed(info)
            # Break the reference cycle, which would hold the FIFOs until a garbage collection.
            self.stream = None

    async def _receive(self, stream: TcpStream) -> None:
        while True:
            room = await self._wait_for_room(stream.rx)
            data = await self._socket.recv(min(room, _CHUNK_BYTES))
            self._moved["rx_bytes"] += len(data)
            if data and not self._discards:
                stream.rx.write(data)
            elif not data:
                stream.rx.set_eof()
            self._tell(stream, EventKind.READABLE, None)
            if not data:
                return
            if self._discards and self._has_sent_all and self._peer_has_all():
                # Closing the socket answers a peer that still sends with a reset.
                self._scope.cancel()

    def _peer_has_all(self) -> bool:
        """Return whether our FIN is acknowledged. A reset before that would lose data in flight."""
        # The first octet of struct tcp_info is the state.
        (state,) = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
        return state not in _FIN_UNDER_WAY

    async def _wait_for_room(self, rx: Fifo) -> int:
        while not self._discards:
            self._room = trio.Event()
            # Arm before the check, so that no later read is missed.
            rx.arm_write()
            if room := rx.writable:
                return room
            await self._room.wait()
        return _CHUNK_BYTES

    async def _send(self, stream: TcpStream) -> None:
        while data := await self._wait_for_bytes(stream.tx):
            self._tell(stream, EventKind.WRITABLE, None)
            view = memoryview(data)
            while view:
                count = await self._socket.send(view)
                self._moved["tx_bytes"] += count
                view = view[count:]
        self._socket.shutdown(socket.SHUT_WR)
        self._has_sent_all = True
        self._set_reset_on_close(False)
        self._end_soon()
        self._tell(stream, EventKind.SEND_FINISHED, None)

    async def _wait_for_bytes(self, tx: Fifo) -> bytes:
        """Wait for bytes in the tx FIFO, and return some; empty only at the end."""
        while True:
            self._bytes = trio.Event()
            tx.arm_read()
            if tx.readable or tx.eof:
                return tx.read(_CHUNK_BYTES)
            await self._bytes.wait()


def _errno_of(group: BaseExceptionGroup[OSError]) -> int:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, OSError)
    return error.errno or errno.EIO
