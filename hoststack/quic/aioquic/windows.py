"""Flow control of an aioquic connection: its window, those of its streams, and stream limits."""

from __future__ import annotations

from typing import Any

from aioquic.quic.connection import (
    CONNECTION_LIMIT_FRAME_CAPACITY,
    MAX_STREAM_DATA_FRAME_CAPACITY,
    QuicConnection,
)
from aioquic.quic.packet import QuicFrameType
from aioquic.quic.packet_builder import QuicDeliveryState, QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream

from hoststack.native.memory.fifo import Fifo
from hoststack.quic.aioquic.host_stream import HostStream
from hoststack.quic.aioquic.stream import FifoReceiver
from hoststack.quic.seam import QuicConfig

#: Announce a window when less than this part of it is left, or that much can be added.
_WINDOW_FRACTION = 4


class ReceiveWindows(QuicConnection):
    """The part of HostConnection that grants flow-control credit."""

    moved: dict[HostStream, None]

    def _begin_windows(self, config: QuicConfig) -> None:
        self._window_bytes = config.connection_window_bytes
        self._first_window_bytes = Fifo.rounded_up(config.least_rx_bytes)
        self._windows = (
            (self._local_max_data, config.connection_window_bytes),
            (self._local_max_streams_bidi, config.max_streams_bidi),
            (self._local_max_streams_uni, config.max_streams_uni),
        )
        self._credited = 0
        self._limits_due: dict[HostStream, None] = {}

    def consumed(self, stream: HostStream) -> None:
        """Move the stream's window, and the connection's: the application read."""
        receiver = stream.receiver
        if not isinstance(receiver, FifoReceiver):
            return
        receiver.note_consumed()
        head = receiver.rx.head
        self.credit(stream, head)
        stream.max_stream_data_local = max(stream.max_stream_data_local, head + receiver.rx.size)
        if receiver.is_finished:
            self.moved[stream] = None
        elif receiver.final_size is None and _is_due(
            stream.max_stream_data_local,
            stream.max_stream_data_local_sent,
            receiver.highest_offset,
            receiver.rx.size,
        ):
            self._limits_due[stream] = None

    def _widen_if_used(self, stream: HostStream, receiver: FifoReceiver) -> None:
        """Open a stream's window to the whole FIFO once the peer uses it.

        It starts small, and grows within the peer's first flight, so that the peer never waits for
        it."""
        size = receiver.rx.size
        if (
            stream.max_stream_data_local < size
            and receiver.final_size is None
            and receiver.highest_offset >= self._first_window_bytes // _WINDOW_FRACTION
        ):
            stream.max_stream_data_local = size
            self._limits_due[stream] = None

    def credit(self, stream: HostStream, offset: int) -> None:
        """Return credit to the connection's window for bytes that a stream no longer holds."""
        receiver = stream.receiver
        assert isinstance(receiver, FifoReceiver)
        if offset > receiver.credited:
            self._credited += offset - receiver.credited
            receiver.credited = offset
            self._local_max_data.value = max(
                self._local_max_data.value, self._credited + self._window_bytes
            )

    @property
    def has_limits_due(self) -> bool:
        """Whether a MAX_DATA, MAX_STREAM_DATA or MAX_STREAMS frame is due."""
        return bool(self._limits_due) or any(
            _is_due(limit.value, limit.sent, limit.used, window) for limit, window in self._windows
        )

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        for limit, window in self._windows:
            if _is_due(limit.value, limit.sent, limit.used, window):
                self._write_limit(builder, limit)
        for stream in list(self._limits_due):
            buf = builder.start_frame(
                QuicFrameType.MAX_STREAM_DATA,
                capacity=MAX_STREAM_DATA_FRAME_CAPACITY,
                handler=self._on_max_stream_data_delivery,
                handler_args=(stream,),
            )
            buf.push_uint_var(stream.stream_id)
            buf.push_uint_var(stream.max_stream_data_local)
            stream.max_stream_data_local_sent = stream.max_stream_data_local
            del self._limits_due[stream]

    def _write_limit(self, builder: QuicPacketBuilder, limit: Any) -> None:
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
        """Do nothing: aioquic calls it for every stream in every packet, and
        `_write_connection_limits` has written the frames."""

    def _on_max_stream_data_delivery(self, delivery: QuicDeliveryState, stream: QuicStream) -> None:
        if delivery is QuicDeliveryState.LOST and stream.stream_id in self._streams:
            assert isinstance(stream, HostStream)
            self._limits_due[stream] = None


def _is_due(value: int, sent: int, used: int, window: int) -> bool:
    """Return whether to announce a window: much can be added, or little is left."""
    step = max(1, window // _WINDOW_FRACTION)
    return value > sent and (value - sent >= step or sent - used < step)
