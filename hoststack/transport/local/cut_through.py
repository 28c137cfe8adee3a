"""Cut-through: connections between two applications of one stack, by FIFOs that both share.

There are no packets. What one application writes into a stream's FIFO the other one reads from
it; this module passes on what the two have to tell each other, as the events that an engine would
report. So there is nothing to encrypt, to acknowledge or to lose: bytes have arrived when they are
in the FIFO. Streams are as they are over the wire: their numbers, their limits, resets, and that a
stream exists for the other side from the first word about it on.

An application may be in another process and write rubbish into what it shares. Nothing here reads
more of a FIFO than its end and how far both sides are, and a lie about these harms the two alone.
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


#: What no stream has ever carried.
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
        """The other side; None once the connection is over."""
        self.streams: set[CutStream] = set()
        self.opened = {False: 0, True: 0}
        """Streams that this side opened, by whether they are unidirectional."""
        self.allowed = {False: 0, True: 0}
        """Streams that this side may have opened, as the peer allows it."""
        self.is_waiting = False
        """There was no leave for another stream."""
        self.untold = {False: deque[CutStream](), True: deque[CutStream]()}
        """Streams of this side that the peer does not know yet, oldest first."""
        self.over_bytes = {"rx_bytes": 0, "tx_bytes": 0}
        """Of streams that are over."""

    def connection_ids(self) -> ConnectionIds:
        """None: there are no packets."""
        return ConnectionIds()

    def statistics(self) -> dict[str, int | float]:
        """Bytes of streams in each direction; nothing of a network."""
        figures = dict(self.over_bytes)
        for stream in self.streams:
            for name, count in stream.moved_bytes().items():
                figures[name] += count
        return {"cut_through": 1, "streams": len(self.streams), **figures}

    def let_go(self) -> None:
        """It is over, and nobody asks for it any more; see CutStream."""
        self.rx = self.tx = None

    def forget_untold(self) -> None:
        """The peer will never know these, so nobody lets go of its ends."""
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
        """Until the end was set, or the direction was given up."""
        self.is_receiving = rx is not None
        """Until everything was read, or the direction was given up."""

    @property
    def is_unidirectional(self) -> bool:
        # RFC 9000 section 2.1: the second bit of the number.
        return bool(self.stream_id & 2)

    @property
    def is_local(self) -> bool:
        """Whether this end's side opened the stream: the first bit is the server's."""
        return bool(self.stream_id & 1) == (self.connection.listener is not None)

    def let_go(self) -> None:
        """Nobody asks for this end any more. Its FIFOs may go at once: ends are cycles, which are
        collected some time or other."""
        self.rx = self.tx = None

    def moved_bytes(self) -> dict[str, int]:
        """How much came into the FIFO of each direction."""
        return {"rx_bytes": _tail_of(self.rx), "tx_bytes": _tail_of(self.tx)}


def _tail_of(fifo: Fifo | None) -> int:
    """What the writer says, who may be evil: at least a number that fits into an answer."""
    return min(fifo.positions[1], _MOST_BYTES) if fifo is not None else 0


#: Makes FIFOs between two sides of a connection, all or none; the first of the two asks for them.
#: Raises OSError and MemoryError.
MakeFifos = Callable[[CutConnection, CutConnection, Sequence[FifoSize]], list[Fifo]]


class CutThrough:
    """All cut-through connections of one worker: a transport beside the engine."""

    name = "cut-through"

    def __init__(self, make_fifos: MakeFifos) -> None:
        self._make_fifos = make_fifos
        self._events: list[Event] = []
        self._clients: set[CutConnection] = set()

    def take_events(self) -> list[Event]:
        """What has happened since the last call, oldest first."""
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
        """All live connections, each side by itself."""
        return [side for ours in self._clients for side in (ours, ours.peer) if side is not None]

    def update_key(self, connection: ConnectionContext) -> None:
        """There are no keys."""

    # --- streams -----------------------------------------------------------------------------

    def open_stream(
        self, connection: ConnectionContext, *, unidirectional: bool
    ) -> CutStream | None:
        """Open a stream; None while the peer's limit forbids it (STREAMS_AVAILABLE tells when to
        try again). Raises OSError where there is no memory to share."""
        side = cast(CutConnection, connection)
        peer, count = side.peer, side.opened[unidirectional]
        if peer is None or count >= side.allowed[unidirectional]:
            side.is_waiting = True
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
        # The first bytes, or the end, are how the peer learns of the stream.
        tx.arm_read()
        return ours

    def send_ready(self, stream: StreamContext) -> None:
        """The application wrote into the tx FIFO, or set its end."""
        end = cast(CutStream, stream)
        if end.tx is None or not end.is_sending:
            return
        self._announce(end)
        if end.peer.is_receiving:
            self._tell(EventKind.READABLE, end.peer)
        if end.tx.eof:
            self._end_sending(end)
            # From here on what is of interest is when the last byte was read. Arm, then look.
            end.tx.arm_write()
            self._end_if_read(end.peer)

    def consumed(self, stream: StreamContext) -> None:
        """The application read from the rx FIFO."""
        end = cast(CutStream, stream)
        if not end.is_receiving:
            return
        if end.peer.is_sending:
            self._tell(EventKind.WRITABLE, end.peer)
        elif end.rx is not None:
            # Some is left perhaps: hear of the next read, too. Arm, then look.
            end.rx.arm_write()
            self._end_if_read(end)

    def reset_stream(self, stream: StreamContext, code: int) -> None:
        """Give up sending; what the peer's application has not read yet it still can."""
        end = cast(CutStream, stream)
        # RFC 9000 section 3.2: where all data have arrived a reset changes nothing.
        if not end.is_sending:
            return
        self._announce(end)
        if end.peer.is_receiving:
            self._tell(EventKind.RESET, end.peer, code)
        self._end_sending(end)
        self._end_receiving(end.peer)

    def stop_sending(self, stream: StreamContext, code: int) -> None:
        """Give up receiving; the peer is told unless it has sent everything."""
        end = cast(CutStream, stream)
        if not end.is_receiving:
            return
        self._announce(end)
        if end.peer.is_sending:
            self._tell(EventKind.STOPPED, end.peer, code)
            self._end_sending(end.peer)
        self._end_receiving(end)

    def _announce(self, stream: CutStream) -> None:
        """Tell the peer of a stream that this side opened.

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
        """The end of what comes is known: the application may have read all of it."""
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
        """A direction is over: tell if it was the last one."""
        if stream.is_sending or stream.is_receiving:
            return
        self._tell(EventKind.STREAM_CLOSED, stream)
        connection = stream.connection
        connection.streams.discard(stream)
        for name, count in stream.moved_bytes().items():
            connection.over_bytes[name] += count

    def allow_stream(self, connection: ConnectionContext, *, unidirectional: bool) -> None:
        """Let the peer open another one."""
        peer = cast(CutConnection, connection).peer
        if peer is not None:
            peer.allowed[unidirectional] += 1
            if peer.is_waiting:
                peer.is_waiting = False
                self._tell(EventKind.STREAMS_AVAILABLE, peer)

    # --- datagrams ---------------------------------------------------------------------------

    def send_datagrams(self, connection: ConnectionContext) -> None:
        """The application wrote a message into the connection's tx FIFO."""
        peer = cast(CutConnection, connection).peer
        if peer is not None:
            self._tell(EventKind.READABLE, peer)

    def datagrams_consumed(self, connection: CutConnection) -> None:
        """The application read messages from the connection's rx FIFO: one that waits may fit."""
        if connection.peer is not None:
            self._tell(EventKind.WRITABLE, connection.peer)

    def offer_datagrams(self, side: CutConnection) -> int | None:
        """Make the FIFOs of messages if one of the sides offers datagrams (RFC 9221).

        Returns the largest that this side may send, 0 where the peer takes none; None if this side
        offers none. Raises OSError as `open_stream`.
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
    """Whether its events come from cut-through: then the other application has taken the flag that
    says who waits, and the one to be woken may have armed anew since."""
    return isinstance(context, CutStream | CutConnection)
