"""Cut-through: connections between two applications of one stack, over FIFOs that both share.

There are no packets. One application writes into a stream's FIFO and the other reads from it; this
module turns the signals of one into events for the other, as an engine would. Nothing needs to be
encrypted, acknowledged or retransmitted: bytes have arrived when they are in the FIFO. Streams
behave as over the wire: IDs, limits, resets, and a stream becomes known to the other side with its
first data.

An application may be in another process and write invalid data into the shared memory. This module
reads only the end flag and the positions of a FIFO, and wrong values affect only these two
applications.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, cast

from hoststack.boundary.fifo_pool import FifoSize
from hoststack.native.memory.fifo import Fifo
from hoststack.quic.seam import (
    CloseInfo,
    ConnectionContext,
    ConnectionIds,
    Event,
    EventKind,
    Handshake,
    QuicConfig,
    StreamContext,
)

#: CRYPTO_ERROR with the TLS alert no_application_protocol (RFC 9001 section 4.8).
NO_APPLICATION_PROTOCOL: Final = 0x178

Address = tuple[str, int]


class CutListener:
    """A listening endpoint of local scope; it is the engine seam's ListenerContext."""

    def __init__(self, local: Address, alpn: Sequence[str], config: QuicConfig) -> None:
        self.session = -1
        self.local = local
        self.alpn = tuple(alpn)
        self.config = config


#: Upper bound for byte counts in statistics, beyond what any stream carries.
_MOST_BYTES: Final = 1 << 50


class CutConnection:
    """One side of a connection; it is the engine seam's ConnectionContext."""

    def __init__(
        self,
        local: Address,
        remote: Address,
        alpn: str | None,
        config: QuicConfig,
        listener: CutListener | None = None,
    ) -> None:
        self.session = -1
        self.local = local
        self.remote = remote
        self.alpn = alpn
        self.config = config
        self.listener = listener
        self.handshake = Handshake()
        self.rx: Fifo | None = None
        self.tx: Fifo | None = None
        self.peer: CutConnection | None = None
        """The other side; None once the connection is closed."""
        self.streams: set[CutStream] = set()
        self.opened = {False: 0, True: 0}
        """Number of streams that this side opened, by whether they are unidirectional."""
        self.allowed = {False: 0, True: 0}
        """The peer's limit on the number of streams that this side opens."""
        self.is_waiting = False
        """Whether the limit forbade a stream."""
        self.untold = {False: deque[CutStream](), True: deque[CutStream]()}
        """Streams of this side that the peer does not know yet, oldest first."""
        self.over_bytes = {"rx_bytes": 0, "tx_bytes": 0}
        """Bytes of closed streams."""

    def connection_ids(self) -> ConnectionIds:
        """Return no IDs: there are no packets."""
        return ConnectionIds()

    def statistics(self) -> dict[str, int | float]:
        """Return the bytes of streams in each direction; there are no network figures."""
        figures = dict(self.over_bytes)
        for stream in self.streams:
            for name, count in stream.moved_bytes().items():
                figures[name] += count
        return {"cut_through": 1, "streams": len(self.streams), **figures}

    def let_go(self) -> None:
        """Drop the FIFOs of a closed connection; see CutStream.let_go."""
        self.rx = self.tx = None

    def forget_untold(self) -> None:
        """Drop the FIFOs of streams that the peer will never know: nothing else does."""
        for untold in self.untold.values():
            while untold:
                untold.popleft().peer.let_go()


class CutStream:
    """One end of a stream; it is the engine seam's StreamContext.

    `rx` is the other end's `tx`.
    """

    def __init__(
        self, connection: CutConnection, stream_id: int, rx: Fifo | None, tx: Fifo | None
    ) -> None:
        self.session = -1
        self.connection = connection
        self.stream_id = stream_id
        self.rx = rx
        self.tx = tx
        self.peer: CutStream
        self.is_sending = tx is not None
        """True until the end was set, or the direction was reset or stopped."""
        self.is_receiving = rx is not None
        """True until everything was read, or the direction was reset or stopped."""

    @property
    def is_unidirectional(self) -> bool:
        # RFC 9000 section 2.1: the second bit of the stream ID.
        return bool(self.stream_id & 2)

    @property
    def is_local(self) -> bool:
        """Whether this end's side opened the stream: the first bit is the server's."""
        return bool(self.stream_id & 1) == (self.connection.listener is not None)

    def let_go(self) -> None:
        """Drop the FIFOs of an end that is no longer used. Both ends form a reference cycle, which
        would hold the FIFOs until a garbage collection."""
        self.rx = self.tx = None

    def moved_bytes(self) -> dict[str, int]:
        """Return the number of bytes written into the FIFO of each direction."""
        return {"rx_bytes": _tail_of(self.rx), "tx_bytes": _tail_of(self.tx)}


def _tail_of(fifo: Fifo | None) -> int:
    """Return the write position, bounded: a malicious writer may set any value, and the result must
    fit into a message."""
    return min(fifo.positions[1], _MOST_BYTES) if fifo is not None else 0


#: Allocates FIFOs between two sides of a connection, all or none, at the request of the first.
#: Raises OSError and MemoryError.
MakeFifos = Callable[[CutConnection, CutConnection, Sequence[FifoSize]], list[Fifo]]


class CutThrough:
    """All cut-through connections of one worker: a transport beside the engine."""

    name = "cut-through"

    def __init__(self, make_fifos: MakeFifos) -> None:
        self._make_fifos = make_fifos
        self._events: list[Event] = []
        self._clients: set[CutConnection] = set()

    @property
    def has_events(self) -> bool:
        """Whether `take_events` would return any."""
        return bool(self._events)

    def take_events(self) -> list[Event]:
        """Return the events since the last call, oldest first."""
        events, self._events = self._events, []
        return events

    # --- connections -------------------------------------------------------------------------

    def connect(
        self,
        listener: CutListener,
        local: Address,
        remote: Address,
        alpn: Sequence[str],
        config: QuicConfig,
    ) -> CutConnection:
        """Connect to a listener, with these addresses as the client sees them; CONNECTED or CLOSED
        follows."""
        protocol = next((name for name in listener.alpn if name in alpn), None)
        ours = CutConnection(local, remote, protocol, config)
        if protocol is None:
            info = CloseInfo(NO_APPLICATION_PROTOCOL, False, "No common application protocol", True)
            self._tell(EventKind.CLOSED, ours, info)
            return ours
        theirs = CutConnection(remote, local, protocol, listener.config, listener)
        for side, other in ((ours, theirs), (theirs, ours)):
            side.peer = other
            side.allowed = {
                False: other.config.max_streams_bidi,
                True: other.config.max_streams_uni,
            }
        self._clients.add(ours)
        self._tell(EventKind.ACCEPTED, theirs)
        self._tell(EventKind.CONNECTED, ours)
        return ours

    def close(self, connection: ConnectionContext, code: int, reason: str) -> None:
        """Close at once with the application's code; CLOSED follows on both sides."""
        side = cast(CutConnection, connection)
        peer = side.peer
        if peer is None:
            return
        side.peer = peer.peer = None
        self._clients -= {side, peer}
        side.forget_untold()
        peer.forget_untold()
        self._tell(EventKind.CLOSED, side, CloseInfo(code, True, reason, by_peer=False))
        self._tell(EventKind.CLOSED, peer, CloseInfo(code, True, reason, by_peer=True))

    def shutdown(self, code: int, reason: str) -> None:
        """Close every connection."""
        for connection in list(self._clients):
            self.close(connection, code, reason)

    def connections(self) -> list[CutConnection]:
        """Return all live connections, each side separately."""
        return [side for ours in self._clients for side in (ours, ours.peer) if side is not None]

    def update_key(self, connection: ConnectionContext) -> None:
        """Do nothing: there are no keys."""

    # --- streams -----------------------------------------------------------------------------

    def openings(self, connection: ConnectionContext, *, unidirectional: bool) -> int:
        """Return how many more streams the other side allows; STREAMS_AVAILABLE reports more."""
        side = cast(CutConnection, connection)
        side.is_waiting = True
        return side.allowed[unidirectional] - side.opened[unidirectional] if side.peer else 0

    def open_stream(
        self, connection: ConnectionContext, *, unidirectional: bool
    ) -> CutStream | None:
        """Open a stream; return None while the peer's limit forbids it (STREAMS_AVAILABLE follows).
        Raises OSError if there is no shared memory."""
        side = cast(CutConnection, connection)
        peer, count = side.peer, side.opened[unidirectional]
        if peer is None or not self.openings(side, unidirectional=unidirectional):
            return None
        readers = [peer] if unidirectional else [peer, side]
        sizes = [
            FifoSize(reader.config.rx_fifo_bytes, reader.config.least_rx_bytes)
            for reader in readers
        ]
        made = self._make_fifos(side, peer, sizes)
        tx, rx = made[0], None if unidirectional else made[1]
        side.opened[unidirectional] += 1
        stream_id = count << 2 | unidirectional << 1 | (side.listener is not None)
        ours = CutStream(side, stream_id, rx, tx)
        theirs = CutStream(peer, stream_id, tx, rx)
        ours.peer, theirs.peer = theirs, ours
        side.streams.add(ours)
        side.untold[unidirectional].append(ours)
        # The peer is notified of the stream with its first bytes or its end.
        tx.arm_read()
        return ours

    def send_ready(self, stream: StreamContext) -> None:
        """Notify the peer that the tx FIFO has bytes, or its end."""
        end = cast(CutStream, stream)
        if end.tx is None or not end.is_sending:
            return
        self._announce(end)
        if end.peer.is_receiving:
            self._tell(EventKind.READABLE, end.peer)
        if end.tx.eof:
            self._end_sending(end)
            # From now on only the last read matters. Arm before the check.
            end.tx.arm_write()
            self._end_if_read(end.peer)

    def consumed(self, stream: StreamContext) -> None:
        """Notify the peer that the rx FIFO has room, or end the direction if all was read."""
        end = cast(CutStream, stream)
        if not end.is_receiving:
            return
        if end.peer.is_sending:
            self._tell(EventKind.WRITABLE, end.peer)
        elif end.rx is not None:
            # Bytes may be left: ask for the next read as well. Arm before the check.
            end.rx.arm_write()
            self._end_if_read(end)

    def reset_stream(self, stream: StreamContext, code: int) -> None:
        """Reset the sending direction; the peer's application can still read the FIFO's bytes."""
        end = cast(CutStream, stream)
        # RFC 9000 section 3.2: after all data has arrived, a reset has no effect.
        if not end.is_sending:
            return
        self._announce(end)
        if end.peer.is_receiving:
            self._tell(EventKind.RESET, end.peer, code)
        self._end_sending(end)
        self._end_receiving(end.peer)

    def stop_sending(self, stream: StreamContext, code: int) -> None:
        """Stop receiving; the peer is notified unless it has sent everything."""
        end = cast(CutStream, stream)
        if not end.is_receiving:
            return
        self._announce(end)
        if end.peer.is_sending:
            self._tell(EventKind.STOPPED, end.peer, code)
            self._end_sending(end.peer)
        self._end_receiving(end)

    def _announce(self, stream: CutStream) -> None:
        """Notify the peer of a stream that this side opened, unless it knows it.

        RFC 9000 section 3.2: "Opening a stream causes all lower-numbered streams of the same type
        to be opened."
        """
        if not stream.is_local:
            return
        untold = stream.connection.untold[stream.is_unidirectional]
        while untold and untold[0].stream_id <= stream.stream_id:
            theirs = untold.popleft().peer
            theirs.connection.streams.add(theirs)
            self._tell(EventKind.STREAM_OPENED, theirs)

    def _end_if_read(self, stream: CutStream) -> None:
        """End the receiving direction if the application has read everything; the peer must have
        set its end."""
        if stream.is_receiving and stream.rx is not None:
            head, tail = stream.rx.positions
            if head == tail:
                self._end_receiving(stream)

    def _end_sending(self, stream: CutStream) -> None:
        stream.is_sending = False
        self._tell(EventKind.SEND_FINISHED, stream)
        self._end_if_over(stream)

    def _end_receiving(self, stream: CutStream) -> None:
        if stream.is_receiving:
            stream.is_receiving = False
            self._end_if_over(stream)

    def _end_if_over(self, stream: CutStream) -> None:
        """Report a stream closed if both directions have ended."""
        if stream.is_sending or stream.is_receiving:
            return
        self._tell(EventKind.STREAM_CLOSED, stream)
        connection = stream.connection
        connection.streams.discard(stream)
        for name, count in stream.moved_bytes().items():
            connection.over_bytes[name] += count

    def allow_stream(self, connection: ConnectionContext, *, unidirectional: bool) -> None:
        """Allow the peer one more stream."""
        peer = cast(CutConnection, connection).peer
        if peer is not None:
            peer.allowed[unidirectional] += 1
            if peer.is_waiting:
                peer.is_waiting = False
                self._tell(EventKind.STREAMS_AVAILABLE, peer)

    # --- datagrams ---------------------------------------------------------------------------

    def send_datagrams(self, connection: ConnectionContext) -> None:
        """Notify the peer that the connection's tx FIFO has a message."""
        peer = cast(CutConnection, connection).peer
        if peer is not None:
            self._tell(EventKind.READABLE, peer)

    def datagrams_consumed(self, connection: CutConnection) -> None:
        """Notify the peer that the connection's rx FIFO has room: a waiting message may fit."""
        if connection.peer is not None:
            self._tell(EventKind.WRITABLE, connection.peer)

    def offer_datagrams(self, side: CutConnection) -> int | None:
        """Allocate the FIFOs for datagrams if one of the sides offers these (RFC 9221).

        Returns the largest datagram that this side may send, 0 if the peer accepts none; None if
        this side offers none. Raises OSError as `open_stream`.
        """
        peer = side.peer
        if peer is None:
            return None
        ours, theirs = side.config.datagram_fifo_bytes, peer.config.datagram_fifo_bytes
        if (ours or theirs) and side.tx is None:
            sizes = [FifoSize(size, size) for size in (theirs or ours, ours or theirs)]
            side.tx, side.rx = self._make_fifos(side, peer, sizes)
            peer.rx, peer.tx = side.tx, side.rx
        if not ours or side.tx is None:
            return None
        return side.tx.max_message_bytes if theirs else 0

    def _tell(
        self,
        kind: EventKind,
        context: CutConnection | CutStream,
        info: int | CloseInfo | None = None,
    ) -> None:
        self._events.append(Event(kind, context, info))


def is_cut(context: StreamContext | ConnectionContext) -> bool:
    """Return whether cut-through carries a context. The other application has then cleared the
    armed flag already, and the one to be woken may have set it again since."""
    return isinstance(context, CutStream | CutConnection)
