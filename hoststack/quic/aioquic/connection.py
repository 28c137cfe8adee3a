"""An aioquic connection with our connection IDs, our FIFOs, and additional checks.

aioquic's QuicConnection implements the protocol; this subclass decides what aioquic does not: which
connection IDs are issued, where stream data lies, when the windows move, and how to answer unusual
peers. tests/quic/test_aioquic_internals.py lists the private members of aioquic that are used here,
and aioquic is pinned to 1.7 because of them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

from aioquic._buffer import Buffer
from aioquic.buffer import UINT_VAR_MAX
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import (
    QuicConnectionError,
    QuicConnectionId,
    QuicConnectionState,
    QuicReceiveContext,
    stream_is_unidirectional,
)
from aioquic.quic.events import ConnectionTerminated, QuicEvent
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicFrameType,
)
from aioquic.quic.stream import FinalSizeError, QuicStream
from aioquic.tls import Epoch

from hoststack.link.base import Path
from hoststack.native.memory.fifo import Fifo
from hoststack.quic.aioquic.accept import Listener
from hoststack.quic.aioquic.handshake import GuardedConnection
from hoststack.quic.aioquic.host_stream import HostStream
from hoststack.quic.aioquic.recovery import Recovery
from hoststack.quic.aioquic.sized import SizedConnection
from hoststack.quic.aioquic.stream import FifoReceiver
from hoststack.quic.aioquic.windows import ReceiveWindows
from hoststack.quic.seam import CloseInfo, ConnectionIds, EventKind, Fifos, Handshake, QuicConfig


class HostConnection(ReceiveWindows, GuardedConnection, SizedConnection):
    """One connection. `make_fifos` is EngineOwner's `make_stream_fifos`."""

    #: It supports no datagrams, so it has no FIFOs of its own.
    rx: Fifo | None = None
    tx: Fifo | None = None

    # All of its streams are adopted when they are created, and its recovery is ours.
    _streams: dict[int, HostStream]  # type: ignore[assignment]
    _loss: Recovery
    _close_event: ConnectionTerminated | None
    _QuicConnection__frame_handlers: dict[int, tuple[Callable[..., None], Any]]

    def __init__(
        self,
        *,
        configuration: QuicConfiguration,
        config: QuicConfig,
        listener: Listener | None,
        path: Path,
        new_cid: Callable[[], bytes],
        make_fifos: Callable[..., Fifos],
        reset_token: Callable[[bytes], bytes],
        **options: Any,
    ) -> None:
        super().__init__(configuration=configuration, **options)
        self.session = -1
        self.config = config
        self.listener = listener
        self.alpn: str | None = None
        self.handshake = Handshake()
        self.is_established = False
        self.has_reported_close = False
        self.handshake_deadline: float | None = None
        self.timer_at: float | None = None
        self.initial_dcid: bytes | None = None
        self.make_fifos = make_fifos
        self.first_path = path
        """The path on which it began."""
        self._new_cid = new_cid
        self._reset_token = reset_token
        cid = new_cid()
        self._host_cids[0].cid = cid
        if not self._is_client:
            self._host_cids[0].stateless_reset_token = reset_token(cid)
        self.host_cid = cid
        self._local_initial_source_connection_id = cid
        bidi, uni = self._local_max_streams_bidi, self._local_max_streams_uni
        bidi.value = bidi.sent = config.max_streams_bidi
        uni.value = uni.sent = config.max_streams_uni
        self._loss = Recovery(
            congestion_control_algorithm=configuration.congestion_control_algorithm,
            initial_rtt=configuration.initial_rtt,
            size=self._begin_size(config, path),
            peer_completed_address_validation=not self._is_client,
            send_probe=self._send_probe,
            logger=self._logger,
        )
        self._begin_windows(config)
        self.send_queue: dict[HostStream, None] = {}
        """Streams with something to send, in the order in which they send."""
        self.control_queue: dict[HostStream, None] = {}
        """Streams with a RESET_STREAM or STOP_SENDING that is not acknowledged yet."""
        self.unacked_packets = 0
        """Ack-eliciting packets received since the last ACK was sent."""
        self.opened: list[HostStream] = []
        """Streams that the peer opened since the engine last checked."""
        self.readable: dict[HostStream, None] = {}
        """Streams whose rx FIFO received something since the engine last checked."""
        self.moved: dict[HostStream, None] = {}
        """Streams whose sending or receiving state may have changed since then."""
        self.resets: list[tuple[HostStream, EventKind, int]] = []
        """RESET_STREAM and STOP_SENDING received since then."""
        self.has_new_stream_limits = False
        self.key_update_at = config.packets_per_key
        """The packet number at which the next key update is due."""
        self.key_updates = 0
        self._peer_closed = False
        self._close_datagrams: list[tuple[bytes, Path]] = []
        self._came_while_closing = 0

    # --- connection IDs ----------------------------------------------------------------------

    def _replenish_connection_ids(self) -> None:
        while len(self._host_cids) < min(8, self._remote_active_connection_id_limit):
            cid = self._new_cid()
            self._host_cids.append(
                QuicConnectionId(
                    cid=cid,
                    sequence_number=self._host_cid_seq,
                    stateless_reset_token=self._reset_token(cid),
                )
            )
            self._host_cid_seq += 1

    # --- what the peer's parameters mean -----------------------------------------------------

    def _idle_timeout(self) -> float:
        # RFC 9000 section 10.1: "Each endpoint advertises a max_idle_timeout, but the effective
        # value [...] is computed as the minimum of the two advertised values (or the sole
        # advertised value, if only one endpoint advertises a non-zero value)." aioquic takes a
        # peer's 0 for an immediate timeout.
        advertised = (self._configuration.idle_timeout, self._remote_max_idle_timeout)
        return max(
            min((seconds for seconds in advertised if seconds), default=math.inf),
            3 * self._loss.get_probe_timeout(),
        )

    # --- streams -----------------------------------------------------------------------------

    def _adopt(self, stream: QuicStream, fifos: Fifos | None, *, is_local: bool) -> HostStream:
        adopted = HostStream(self, stream, is_local, fifos)
        self._streams[adopted.stream_id] = adopted
        for blocked in (self._streams_blocked_bidi, self._streams_blocked_uni):
            if stream in blocked:
                blocked[blocked.index(stream)] = adopted
        # Only aioquic's writer uses its queue; `send_queue` is ours.
        self._streams_queue.remove(stream)
        return adopted

    def _get_or_create_stream(self, frame_type: int, stream_id: int) -> HostStream:
        stream = self._streams.get(stream_id)
        if stream is not None:
            return stream
        super()._get_or_create_stream(frame_type, stream_id)
        # Opening a stream opens all lower-numbered ones of its type too (RFC 9000 section 2.1).
        for created in list(self._streams_queue):
            if not isinstance(created, HostStream):
                self._adopt_peers(created)
        return self._streams[stream_id]

    def _adopt_peers(self, created: QuicStream) -> None:
        """Adopt a stream that the peer opened, or refuse it if there is no room for it."""
        assert created.stream_id is not None
        has_tx = not stream_is_unidirectional(created.stream_id)
        fifos = None
        with contextlib.suppress(OSError, MemoryError):
            fifos = self.make_fifos(self, has_rx=True, has_tx=has_tx, is_peers=True)
        stream = self._adopt(created, fifos, is_local=False)
        if fifos is not None:
            self.opened.append(stream)
            return
        if has_tx:
            self.reset_stream_sending(stream, 0)
        self.stop_stream_receiving(stream, 0)

    def open_stream(self, unidirectional: bool) -> HostStream | None:
        """Open a stream of ours; None while the peer's limit forbids it."""
        limit = self._remote_max_streams_uni if unidirectional else self._remote_max_streams_bidi
        stream_id = self.get_next_available_stream_id(is_unidirectional=unidirectional)
        if stream_id // 4 >= limit:
            return None
        fifos = self.make_fifos(self, has_rx=not unidirectional, has_tx=True, is_peers=False)
        created = self._get_or_create_stream_for_send(stream_id)
        return self._adopt(created, fifos, is_local=True)

    def discard_stream(self, stream: HostStream) -> None:
        """Forget a stream that is finished in both directions."""
        del self._streams[stream.stream_id]
        self.send_queue.pop(stream, None)
        self.control_queue.pop(stream, None)
        self._limits_due.pop(stream, None)
        stream.let_go()

    def allow_stream(self, unidirectional: bool) -> None:
        """Let the peer open one more stream (RFC 9000 section 4.6)."""
        self._stream_limit(2 * unidirectional).value += 1

    def _handle_max_streams_bidi_frame(self, *arguments: Any) -> None:
        super()._handle_max_streams_bidi_frame(*arguments)
        self.has_new_stream_limits = True

    def _handle_max_streams_uni_frame(self, *arguments: Any) -> None:
        super()._handle_max_streams_uni_frame(*arguments)
        self.has_new_stream_limits = True

    def _handle_stream_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        stream_id = buf.pull_uint_var()
        offset = buf.pull_uint_var() if frame_type & 4 else 0
        length = buf.pull_uint_var() if frame_type & 2 else buf.capacity - buf.tell()
        self.take_stream_data(frame_type, stream_id, offset, buf.pull_bytes(length))

    def take_stream_data(
        self, frame_type: int, stream_id: int, offset: int, data: bytes | memoryview
    ) -> None:
        """Handle a STREAM frame (RFC 9000 section 19.8), checked against every limit."""
        end = offset + len(data)
        if end > UINT_VAR_MAX:
            raise QuicConnectionError(
                QuicErrorCode.FRAME_ENCODING_ERROR, frame_type, "offset + length exceed 2^62 - 1"
            )
        stream = self._streams.get(stream_id)
        if stream is None:
            self._assert_stream_can_receive(frame_type, stream_id)
            stream = self._get_or_create_stream(frame_type, stream_id)
        receiver = stream.receiver
        if not isinstance(receiver, FifoReceiver):
            self._assert_stream_can_receive(frame_type, stream_id)
            return
        newly_received = end - receiver.highest_offset
        if newly_received > 0:
            if end > stream.max_stream_data_local:
                raise QuicConnectionError(
                    QuicErrorCode.FLOW_CONTROL_ERROR, frame_type, "Over stream data limit"
                )
            if self._local_max_data.used + newly_received > self._local_max_data.value:
                raise QuicConnectionError(
                    QuicErrorCode.FLOW_CONTROL_ERROR, frame_type, "Over connection data limit"
                )
        try:
            is_news = receiver.put(offset, data, bool(frame_type & 1))
        except FinalSizeError as error:
            raise QuicConnectionError(
                QuicErrorCode.FINAL_SIZE_ERROR, frame_type, str(error)
            ) from None
        if newly_received > 0:
            self._local_max_data.used += newly_received
        if is_news:
            self.readable[stream] = None
            self._widen_if_used(stream, receiver)
        if receiver.is_discarding:
            self.credit(stream, receiver.highest_offset)
            self.moved[stream] = None
        elif is_news and receiver.final_size is not None:
            # The FIN may arrive after all bytes were read: then no read will follow.
            receiver.note_consumed()
            if receiver.is_finished:
                self.moved[stream] = None

    def _handle_reset_stream_frame(self, *arguments: Any) -> None:
        super()._handle_reset_stream_frame(*arguments)
        for stream in [s for s in self._streams.values() if s.receiver.is_finished]:
            if isinstance(stream.receiver, FifoReceiver) and stream.receiver.final_size is not None:
                self.credit(stream, stream.receiver.final_size)
                self.moved[stream] = None

    def _handle_stop_sending_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        start = buf.tell()
        stream_id = buf.pull_uint_var()
        buf.seek(start)
        super()._handle_stop_sending_frame(context, frame_type, buf)
        stream = self._streams[stream_id]
        self.send_queue.pop(stream, None)
        self.control_queue[stream] = None

    def reset_stream_sending(self, stream: HostStream, code: int) -> None:
        """Stop sending, with a RESET_STREAM."""
        stream.sender.reset(code)
        self.send_queue.pop(stream, None)
        self.control_queue[stream] = None

    def stop_stream_receiving(self, stream: HostStream, code: int) -> None:
        """Stop receiving; sends STOP_SENDING unless the peer has sent everything."""
        receiver = stream.receiver
        if not isinstance(receiver, FifoReceiver) or receiver.is_finished:
            return
        if receiver.discard():
            receiver.stop(code)
            self.control_queue[stream] = None
        self.credit(stream, receiver.highest_offset)
        self.moved[stream] = None

    # --- send windows ------------------------------------------------------------------------

    def _handle_max_data_frame(self, *arguments: Any) -> None:
        super()._handle_max_data_frame(*arguments)
        for stream in self._streams.values():
            if not stream.sender.buffer_is_empty:
                self.send_queue[stream] = None

    def _handle_max_stream_data_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        start = buf.tell()
        stream_id = buf.pull_uint_var()
        buf.seek(start)
        super()._handle_max_stream_data_frame(context, frame_type, buf)
        stream = self._streams[stream_id]
        if not stream.sender.buffer_is_empty:
            self.send_queue[stream] = None

    # --- sending -----------------------------------------------------------------------------

    def has_control_due(self) -> bool:
        """Return whether aioquic's writer has frames other than stream data and ACK to write."""
        path = self._network_paths[0]
        return bool(
            self._close_pending
            or self._handshake_done_pending
            or self._probe_pending
            or self._ping_pending
            or self._retire_connection_ids
            or path.remote_challenges
            or len(self._network_paths) > 1
            or not self._crypto_streams[Epoch.ONE_RTT].sender.buffer_is_empty
            or self._streams_blocked_pending
            or self.has_limits_due
            or self._control_streams()
            or not all(cid.was_sent for cid in self._host_cids)
        )

    def _control_streams(self) -> list[HostStream]:
        return [
            stream
            for stream in self.control_queue
            if (stream.sender.reset_pending or stream.receiver.stop_pending)
            and not stream.is_finished
        ]

    def write_control(self, now: float, with_streams: bool) -> list[tuple[bytes, Path]]:
        """Return what aioquic's writer has to send; stream data too if `with_streams`."""
        queue = dict.fromkeys(self._control_streams())
        if with_streams:
            queue |= self.send_queue
        # The engine discards finished streams; aioquic's writer would remove them on its own.
        self._streams_queue = [stream for stream in queue if not stream.is_finished]
        is_close = self._close_pending
        datagrams: list[tuple[bytes, Path]] = self.datagrams_to_send(now)
        if not self.is_established and datagrams:
            # Datagrams of the handshake are padded.
            self._loss.size.on_sent(max(len(data) for data, _ in datagrams), now)
        self._streams_queue = []
        if is_close:
            self._close_datagrams = datagrams
        if self._spaces[Epoch.ONE_RTT].ack_at is None:
            self.unacked_packets = 0
        for stream in [s for s in self.send_queue if s.sender.buffer_is_empty]:
            del self.send_queue[stream]
        return datagrams

    def begin_key_update(self) -> None:
        """Have aioquic's writer, which writes next, update the keys (RFC 9001 section 6)."""
        self.key_update_at = self._packet_number + self.config.packets_per_key
        self.key_updates += 1
        self.request_key_update()

    def frame_handler(self, frame_type: int) -> Callable[..., None] | None:
        """Return aioquic's handler of a frame in 1-RTT packets."""
        found = self._QuicConnection__frame_handlers.get(frame_type)
        return found[0] if found is not None else None

    def _find_preferred_address(self) -> None:
        """Ignore a server's preferred address: migrations are not supported here."""

    # --- closing -----------------------------------------------------------------------------

    def _handle_connection_close_frame(self, *arguments: Any) -> None:
        was_closing = self._close_event is not None
        super()._handle_connection_close_frame(*arguments)
        self._peer_closed = self._peer_closed or not was_closing

    @property
    def is_over(self) -> bool:
        """Whether the closing period is over as well."""
        return self._state is QuicConnectionState.TERMINATED

    def give_up(self, reason: str, code: int = QuicErrorCode.NO_ERROR) -> None:
        """End at once without a packet to the peer."""
        self._close_event = ConnectionTerminated(
            error_code=code,
            frame_type=QuicFrameType.PADDING,
            reason_phrase=reason,
        )
        self._close_end()

    @property
    def peer_reset_token(self) -> bytes:
        """The token of the peer's stateless resets; b"" if it is unknown."""
        return self._peer_cid.stateless_reset_token or b""

    def be_reset(self) -> None:
        """End: the peer has lost this connection (RFC 9000 section 10.3)."""
        self._peer_closed = True
        self.give_up("Stateless reset", QuicErrorCode.INTERNAL_ERROR)

    def dispose(self) -> None:
        """Free memory at once; for a connection that is no longer used.

        Its parts refer to each other. A flood of forged Initials would fill the memory before the
        garbage collector runs, and FIFOs of applications in other processes would stay mapped.
        """
        for stream in self._streams.values():
            stream.let_go()
        path = self._path
        vars(self).clear()
        # What remaining references may still read.
        self._state = QuicConnectionState.TERMINATED
        self._network_paths, self.first_path = [], path
        self.timer_at = None

    def close_info(self) -> CloseInfo:
        """Why the connection ended."""
        event = self._close_event
        assert event is not None, "called only for a connection that has ended"
        return CloseInfo(
            code=int(event.error_code),
            is_application=event.frame_type is None,
            reason=event.reason_phrase,
            by_peer=self._peer_closed,
        )

    def answer_while_closing(self, count: int) -> list[tuple[bytes, Path]]:
        """Send our CONNECTION_CLOSE again for `count` datagrams that arrived after it.

        RFC 9000 section 10.2.1: "An endpoint SHOULD limit the rate at which it generates packets
        in the closing state. For instance, an endpoint could wait for a progressively increasing
        number of received packets": here powers of two.
        """
        before = self._came_while_closing
        self._came_while_closing += count
        if self._state is not QuicConnectionState.CLOSING:
            return []
        return self._close_datagrams if before.bit_length() < (before + count).bit_length() else []

    # --- for the engine ----------------------------------------------------------------------

    @property
    def local(self) -> tuple[str, int]:
        return self._path.local

    @property
    def remote(self) -> tuple[str, int]:
        return self._path.remote

    @property
    def _path(self) -> Path:
        return self._network_paths[0].addr if self._network_paths else self.first_path

    def connection_ids(self) -> ConnectionIds:
        """See ConnectionContext."""
        if self.is_over:
            return ConnectionIds()
        return ConnectionIds(tuple(self.all_cids()), self._peer_cid.cid)

    def statistics(self) -> dict[str, int | float]:
        loss = self._loss
        ssthresh = loss._cc.ssthresh
        return {
            **({} if ssthresh is None else {"ssthresh_bytes": int(ssthresh)}),
            "rtt_s": loss._rtt_smoothed,
            "rtt_min_s": loss._rtt_min if loss._rtt_initialized else 0.0,
            "rtt_latest_s": loss._rtt_latest,
            "rtt_variance_s": loss._rtt_variance,
            "cwnd_bytes": loss.congestion_window,
            "in_flight_bytes": loss.bytes_in_flight,
            "acked_bytes": loss.bytes_acked,
            "packets_sent": self._packet_number,
            "packets_lost": loss.packets_lost,
            "streams": len(self._streams),
            "datagram_bytes": self._max_datagram_size,
        }

    def take_events(self) -> list[QuicEvent]:
        """Return aioquic's events since the last call."""
        taken = list(self._events)
        self._events.clear()
        return taken

    @property
    def is_unreadable(self) -> bool:
        """Whether the packet that started this connection of a client was invalid."""
        return (
            self.listener is not None
            and self._close_event is None
            and all(space.largest_received_packet < 0 for space in self._spaces.values())
        )

    def all_cids(self) -> list[bytes]:
        """Return all our connection IDs of this connection."""
        cids = [cid.cid for cid in self._host_cids]
        return [*cids, self.initial_dcid] if self.initial_dcid is not None else cids

    def next_timer(self) -> float | None:
        """When the connection has to run even if nothing arrives."""
        if self.is_over:
            return None
        at = math.inf
        if self._network_paths and self._close_at is not None:
            at = self.get_timer() or math.inf
        if self.handshake_deadline is not None:
            at = min(at, self.handshake_deadline)
        return None if at == math.inf else at
