"""A stream of aioquic's between the two FIFOs of its application, as the session layer sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aioquic.quic.connection import stream_is_unidirectional
from aioquic.quic.stream import QuicStream

from hoststack.quic.seam import Fifos

if TYPE_CHECKING:
    from hoststack.quic.aioquic.connection import HostConnection


class HostStream:
    """A stream; implements the seam's StreamContext.

    What the application writes is copied into aioquic's send buffer, and stays in the tx FIFO until
    it is acknowledged. What aioquic delivers is copied into the rx FIFO. Methods that use a FIFO
    raise FifoCorruptError and FifoOverflowError if its application wrote invalid indices.
    """

    def __init__(
        self, connection: HostConnection, stream: QuicStream, is_local: bool, fifos: Fifos | None
    ) -> None:
        """Without FIFOs the stream is refused: none of its data is stored or sent."""
        assert stream.stream_id is not None, "only aioquic's CRYPTO streams have no ID"
        self.session = -1
        self.connection = connection
        self.stream = stream
        self.stream_id = stream.stream_id
        self.is_refused = fifos is None
        self.rx, self.tx = fifos or Fifos(None, None)
        self.is_received = self.is_unidirectional and is_local
        """Nothing more is received: all was consumed, or either side aborted it, or it only
        sends."""
        self.is_discarding = False
        """The application stopped reading."""
        self.received = 0
        """Bytes that aioquic delivered, in order."""
        self.has_end = False
        self.credited = 0
        """Bytes that were returned to the connection's window."""
        self.is_reset = False
        """Sending was aborted, by either side."""
        self.is_stopped = False
        """The peer sent STOP_SENDING."""
        self._written = 0
        """Bytes that aioquic has."""
        self._has_written_end = False
        self.has_told_send_finished = self.tx is None

    @property
    def is_unidirectional(self) -> bool:
        return stream_is_unidirectional(self.stream_id)

    @property
    def is_finished(self) -> bool:
        """Whether both directions are over."""
        return self.is_received and self.stream.sender.is_finished

    def send(self) -> None:
        """Pass aioquic what the application has written since the last call."""
        tx = self.tx
        if tx is None or self.is_reset or self._has_written_end:
            return
        # Read the end flag first: bytes that are written before it is set are then in `tail`.
        is_end = tx.eof
        data = tx.peek(self._written, tx.tail - self._written)
        if data or is_end:
            self._written += len(data)
            self._has_written_end = is_end
            self.connection.sending[self] = None
            self.connection.send_stream_data(self.stream_id, data, is_end)

    def drop_acked(self) -> bool:
        """Drop what the peer has acknowledged from the tx FIFO; return whether that made room."""
        acked = self.stream.sender._buffer_start
        if self.tx is None or acked <= self.tx.dropped_to:
            return False
        self.tx.drop_to(acked)
        return True

    def drop_sent(self) -> None:
        """Move the tx FIFO's head to the final size of a stream that was reset: the application
        learns from it how much was sent."""
        sent = self.stream.sender.highest_offset
        if self.tx is not None and self.is_reset and sent > self.tx.dropped_to:
            self.tx.drop_to(sent)

    def receive(self, data: bytes, is_end: bool) -> None:
        """Store what aioquic delivers, or discard it."""
        offset = self.received
        self.received += len(data)
        self.has_end = is_end
        if self.rx is None or self.is_discarding:
            return
        self.rx.put(offset, data)
        if is_end:
            self.rx.set_eof()
