"""Flow control of an aioquic connection: its window, those of its streams, and stream limits.

aioquic doubles a window when half of it is used. Here windows move as the application reads, and
the peer may open another stream when the application is done with one.
"""

from __future__ import annotations

from typing import Final

from aioquic.quic.connection import (
    CONNECTION_LIMIT_FRAME_CAPACITY,
    MAX_STREAM_DATA_FRAME_CAPACITY,
    Limit,
    QuicConnection,
)
from aioquic.quic.packet import QuicFrameType
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream

from hoststack.native.memory.fifo import Fifo
from hoststack.quic.aioquic.host_stream import HostStream
from hoststack.quic.seam import QuicConfig

#: Announce a window when less than this part of it is left, or that much can be added.
_WINDOW_FRACTION: Final = 4


class ReceiveWindows(QuicConnection):
    """The part of HostConnection that grants flow-control credit."""

    streams: dict[int, HostStream]

    def _begin_windows(self, config: QuicConfig) -> None:
        self._window_bytes = config.connection_window_bytes
        self._first_window_bytes = Fifo.rounded_up(config.least_rx_bytes)
        self._most_streams = [config.max_streams_bidi, config.max_streams_uni]
        """How many streams the peer may open in all, bidirectional and unidirectional ones."""
        self._windows = (
            (self._local_max_data, config.connection_window_bytes),
            (self._local_max_streams_bidi, config.max_streams_bidi),
            (self._local_max_streams_uni, config.max_streams_uni),
        )
        self._credited = 0
        self.limit_streams()
        for limit, _ in self._windows:
            limit.sent = limit.value

    def limit_streams(self) -> None:
        """Set the stream limits: aioquic raises its own when it has forgotten a stream, which the
        application may not even have accepted."""
        bidi, uni = self._most_streams
        self._local_max_streams_bidi.value = bidi
        self._local_max_streams_uni.value = uni

    def allow_stream(self, unidirectional: bool) -> None:
        """Let the peer open one more stream (RFC 9000 section 4.6)."""
        self._most_streams[unidirectional] += 1
        self.limit_streams()

    def note_consumed(self, stream: HostStream) -> None:
        """Move the stream's window, and the connection's, to where the application has read."""
        rx = stream.rx
        if rx is None or stream.is_received or stream.is_discarding:
            return
        head = rx.head
        self.credit(stream, head)
        # It starts small, and grows with what the application reads of the peer's first flight.
        first_bytes = min(self._first_window_bytes, rx.size)
        window_bytes = rx.size if head >= first_bytes // _WINDOW_FRACTION else first_bytes
        window = stream.stream
        window.max_stream_data_local = max(window.max_stream_data_local, head + window_bytes)
        stream.is_received = stream.has_end and head == stream.received

    def credit(self, stream: HostStream, offset: int) -> None:
        """Return credit to the connection's window for bytes that a stream no longer holds."""
        if offset > stream.credited:
            self._credited += offset - stream.credited
            stream.credited = offset
            self._local_max_data.value = max(
                self._local_max_data.value, self._credited + self._window_bytes
            )

    # --- in place of aioquic's -----------------------------------------------------------------

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        self.limit_streams()
        for limit, window in self._windows:
            if _is_due(limit.value, limit.sent, limit.used, window):
                self._write_limit(builder, limit)

    def _write_limit(self, builder: QuicPacketBuilder, limit: Limit) -> None:
        buf = builder.start_frame(
            limit.frame_type,
            capacity=CONNECTION_LIMIT_FRAME_CAPACITY,
            handler=self._on_connection_limit_delivery,
            handler_args=(limit,),
        )
        buf.push_uint_var(limit.value)
        limit.sent = limit.value

    def _write_stream_limits(
        self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream
    ) -> None:
        value = stream.max_stream_data_local
        if value == stream.max_stream_data_local_sent or stream.receiver.is_finished:
            return
        host = self.streams.get(stream.stream_id or 0)
        if host is None or host.rx is None or host.is_discarding:
            return
        sent, used = stream.max_stream_data_local_sent, stream.receiver.highest_offset
        if not _is_due(value, sent, used, host.rx.size):
            return
        buf = builder.start_frame(
            QuicFrameType.MAX_STREAM_DATA,
            capacity=MAX_STREAM_DATA_FRAME_CAPACITY,
            handler=self._on_max_stream_data_delivery,
            handler_args=(stream,),
        )
        buf.push_uint_var(host.stream_id)
        buf.push_uint_var(value)
        stream.max_stream_data_local_sent = value


def _is_due(value: int, sent: int, used: int, window: int) -> bool:
    """Return whether to announce a window: much can be added, or little is left."""
    step = max(1, window // _WINDOW_FRACTION)
    return value > sent and (value - sent >= step or sent - used < step)
