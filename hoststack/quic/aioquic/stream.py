"""aioquic's streams over FIFOs, without buffers of their own.

Positions of a FIFO are stream offsets. Data to send stays in the tx FIFO until it is acknowledged,
and is read from there whenever it is sent; received data is put into the rx FIFO at its offset, in
any order.
"""

from __future__ import annotations

from collections.abc import Callable

from aioquic.quic import events
from aioquic.quic.packet import QuicErrorCode, QuicStreamFrame
from aioquic.quic.packet_builder import QuicDeliveryState
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.stream import (
    FinalSizeError,
    QuicStreamReceiver,
    QuicStreamSender,
)

from hoststack.native.memory.fifo import Fifo


class UnstorableError(Exception):
    """Data arrived in more pieces than the FIFO can track: treat the packet as lost."""


def _tell_nobody() -> None:
    """The stream is over."""


class FifoReceiver(QuicStreamReceiver):
    """The receiving part of a stream.

    It is finished when the application has consumed all of it (only then may the peer get the
    stream's credit back, or unread streams could accumulate without limit), or when either side
    aborted it.
    """

    def __init__(self, stream_id: int, rx: Fifo) -> None:
        super().__init__(stream_id=stream_id, readable=True)
        self.rx = rx
        self._has_all = False
        self.is_discarding = False
        """The application stopped reading; data is counted and discarded."""
        self.credited = 0
        """Bytes that were returned to the connection's window."""

    @property
    def final_size(self) -> int | None:
        return self._final_size

    def put(self, offset: int, data: bytes | memoryview, fin: bool) -> bool:
        """Store a frame; return whether the application can read something new (bytes or the end).

        The caller has checked the flow-control limits. Raises FinalSizeError (RFC 9000 section
        4.5) and UnstorableError.
        """
        end = offset + len(data)
        if self._final_size is not None:
            if end > self._final_size or (fin and end != self._final_size):
                raise FinalSizeError("Data received beyond final size")
        elif fin and end < self.highest_offset:
            raise FinalSizeError("Data received beyond final size")
        if self.is_finished:
            return False
        advanced = 0
        if not self.is_discarding and data:
            advanced = self.rx.put(offset, data)
            if advanced < 0:
                raise UnstorableError
        if end > self.highest_offset:
            self.highest_offset = end
        if fin:
            self._final_size = end
        if self._final_size is not None:
            if self.is_discarding:
                self.is_finished = True
            elif self.rx.filled_to == self._final_size and not self._has_all:
                self._has_all = True
                self.rx.set_eof()
                return True
        return advanced > 0

    def handle_frame(self, frame: QuicStreamFrame) -> None:
        """Refuse aioquic's call; the connection detects readable streams only through `put`."""
        raise NotImplementedError("STREAM frames go through HostConnection._handle_stream_frame")

    def handle_reset(
        self, *, final_size: int, error_code: int = QuicErrorCode.NO_ERROR
    ) -> events.StreamReset | None:
        # RFC 9000 section 3.2: "Data Recvd" streams have all their data; a reset changes nothing.
        if self._has_all and self._final_size == final_size:
            return None
        return super().handle_reset(final_size=final_size, error_code=error_code)

    def note_consumed(self) -> None:
        """Check whether the application has read everything."""
        if self._final_size is not None and self.rx.head == self._final_size:
            self.is_finished = True

    def discard(self) -> bool:
        """Discard stored and future data; return whether the peer must be notified."""
        self.is_discarding = True
        if self._final_size is not None:
            self.is_finished = True
        return not self.is_finished


class FifoSender(QuicStreamSender):
    """The sending part of a stream. `tx.dropped_to` ends the contiguous acknowledged data."""

    def __init__(
        self,
        stream_id: int,
        tx: Fifo,
        on_pending: Callable[[], None],
        on_progress: Callable[[], None],
    ) -> None:
        super().__init__(stream_id=stream_id, writable=True)
        self.tx = tx
        self._on_pending = on_pending
        self._on_progress = on_progress
        self._lost = RangeSet()
        self._has_lost = False
        self._fin_offset: int | None = None
        self._is_fin_due = False
        self.made_room = False
        """Whether `tx.dropped_to` has moved since the connection last checked."""

    def let_go(self) -> None:
        """Drop the callbacks for pending data and progress."""
        self._on_pending = self._on_progress = _tell_nobody

    def look(self) -> None:
        """Check what the application has written to the FIFO."""
        if self._reset_error_code is not None or self.is_finished:
            return
        # Read the end flag first: bytes that are written before it is set are then in `tail`.
        if self._fin_offset is None and self.tx.eof:
            self._fin_offset = self.tx.tail
            self._is_fin_due = True
        self._note_pending()

    def _note_pending(self) -> None:
        self.buffer_is_empty = not (
            self._is_fin_due or self._has_lost or self.highest_offset < self.tx.tail
        )
        if not self.buffer_is_empty:
            self._on_pending()

    @property
    def next_offset(self) -> int:
        """The offset of the next chunk."""
        return self._lost[0].start if self._has_lost else self.highest_offset

    def next_chunk(self, room: int, max_offset: int) -> tuple[int, bytes, bool] | None:
        """Return the next (offset, data, fin) of at most `room` bytes, before `max_offset`.

        None if there is nothing to send or flow control forbids it. Lost data comes first.
        """
        if self._has_lost:
            lost = self._lost[0]
            start = lost.start
            data = self.tx.peek(start, min(room, lost.stop - start))
            self._lost.subtract(start, start + len(data))
            self._has_lost = bool(len(self._lost))
        else:
            start = self.highest_offset
            room = min(room, max_offset - start)
            data = self.tx.peek(start, room) if room > 0 else b""
        stop = start + len(data)
        if stop > self.highest_offset:
            self.highest_offset = stop
        fin = False
        if self._is_fin_due and stop == self._fin_offset and not self._has_lost:
            fin = True
            self._is_fin_due = False
        self.buffer_is_empty = not (
            self._is_fin_due or self._has_lost or self.highest_offset < self.tx.tail
        )
        return (start, data, fin) if data or fin else None

    def new_bytes(self, max_offset: int) -> int:
        """Return how many bytes may be sent for the first time; 0 while lost ones wait."""
        return 0 if self._has_lost else min(self.tx.tail, max_offset) - self.highest_offset

    def sent_to(self, offset: int) -> None:
        """Note that the bytes up to an offset were sent for the first time."""
        self.highest_offset = offset
        self.buffer_is_empty = not (self._is_fin_due or offset < self.tx.tail)

    def get_frame(self, max_size: int, max_offset: int | None = None) -> QuicStreamFrame | None:
        if max_size < 0 or max_offset is None:
            return None
        chunk = self.next_chunk(max_size, max_offset)
        if chunk is None:
            return None
        offset, data, fin = chunk
        return QuicStreamFrame(data=data, fin=fin, offset=offset)

    def on_data_delivery(
        self, delivery: QuicDeliveryState, start: int, stop: int, fin: bool
    ) -> None:
        if self._reset_error_code is not None or self.is_finished:
            return
        if delivery is QuicDeliveryState.LOST:
            self._on_lost(start, stop, fin)
            return
        head = self.tx.dropped_to
        if stop > start:
            if start <= head:
                head = max(head, stop)
                while len(self._acked) and self._acked[0].start <= head:
                    head = max(head, self._acked.shift().stop)
                self.tx.drop_to(head)
                self.made_room = True
                self._on_progress()
            else:
                self._acked.add(start, stop)
        if fin:
            self._acked_fin = True
        if self._acked_fin and head == self._fin_offset:
            self.is_finished = True
            self._on_progress()

    def on_reset_delivery(self, delivery: QuicDeliveryState) -> None:
        super().on_reset_delivery(delivery)
        self._on_progress()

    def _on_lost(self, start: int, stop: int, fin: bool) -> None:
        start = max(start, self.tx.dropped_to)
        if stop > start:
            self._lost.add(start, stop)
            for acked in self._acked:
                self._lost.subtract(acked.start, acked.stop)
            self._has_lost = bool(len(self._lost))
        if fin:
            self._is_fin_due = True
        self._note_pending()

    def write(self, data: bytes, end_stream: bool = False) -> None:
        raise NotImplementedError("the application writes into the tx FIFO")
