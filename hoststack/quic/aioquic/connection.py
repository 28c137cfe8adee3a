"""An aioquic connection with our connection IDs, over our FIFOs.

aioquic's QuicConnection implements the protocol; this subclass and its parts decide what aioquic
does not: which connection IDs are issued, when the windows move (windows.py), what peers may send
(guards.py), how large UDP datagrams are (sized.py), when keys are updated (keys.py), and when
DATAGRAM frames are sent (datagrams.py). tests/quic/test_aioquic_internals.py checks the private
members of aioquic that are used, for each version that pyproject.toml allows.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnectionId, QuicConnectionState
from aioquic.quic.events import (
    ConnectionTerminated,
    DatagramFrameReceived,
    HandshakeCompleted,
    QuicEvent,
    StopSendingReceived,
    StreamDataReceived,
    StreamReset,
)
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicFrameType,
)

from hoststack.link.base import Outgoing, Path
from hoststack.quic.aioquic.accept import Listener
from hoststack.quic.aioquic.datagrams import DatagramConnection
from hoststack.quic.aioquic.guards import GuardedConnection
from hoststack.quic.aioquic.host_stream import HostStream
from hoststack.quic.aioquic.keys import KeyUpdates
from hoststack.quic.aioquic.presenting import choose_certificate
from hoststack.quic.aioquic.sized import SizedConnection
from hoststack.quic.aioquic.windows import ReceiveWindows
from hoststack.quic.seam import (
    CloseInfo,
    ConnectionIds,
    EngineOwner,
    EventKind,
    Fifos,
    Handshake,
    QuicConfig,
)


class HostConnection(
    ReceiveWindows, KeyUpdates, GuardedConnection, DatagramConnection, SizedConnection
):
    """One connection."""

    _close_event: ConnectionTerminated | None

    def __init__(
        self,
        *,
        configuration: QuicConfiguration,
        config: QuicConfig,
        listener: Listener | None,
        path: Path,
        new_cid: Callable[[], bytes],
        owner: EngineOwner,
        reset_token: Callable[[bytes], bytes],
        **options: Any,
    ) -> None:
        super().__init__(configuration=configuration, **options)
        self.session = -1
        self.config = config
        self.listener = listener
        self.alpn: str | None = None
        self.handshake = Handshake()
        self.server_name = configuration.server_name
        """What the client asks for."""
        self.is_established = False
        self.has_reported_close = False
        self.handshake_deadline: float | None = None
        self.timer_at: float | None = None
        self.initial_dcid: bytes | None = None
        self._owner = owner
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
        self._begin_size(config, path)
        self._begin_windows(config)
        self._begin_keys(config)
        self.streams: dict[int, HostStream] = {}
        self._adopted = [0, 0]
        """How many streams the peer has opened, bidirectional and unidirectional ones."""
        self.news: list[QuicEvent] = []
        """aioquic's events that are not about streams, since the engine last checked."""
        self.used: dict[HostStream, None] = {}
        """Streams whose application wrote or read since the last turn."""
        self.sending: dict[HostStream, None] = {}
        """Streams with something that is not acknowledged."""
        self.opened: list[HostStream] = []
        """Streams that the peer opened since the engine last checked."""
        self.readable: dict[HostStream, None] = {}
        """Streams whose rx FIFO received something since the engine last checked."""
        self.writable: dict[HostStream, None] = {}
        """Streams whose tx FIFO got room since then."""
        self.moved: dict[HostStream, None] = {}
        """Streams that may be finished in a direction since then."""
        self.resets: list[tuple[HostStream, EventKind, int]] = []
        """RESET_STREAM and STOP_SENDING received since then."""
        self._known_stream_limits = (0, 0)
        self._peer_closed = False
        self._close_datagrams: list[Outgoing] = []
        self._came_while_closing = 0

    # --- TLS ---------------------------------------------------------------------------------

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        if self.listener is not None:
            choose_certificate(
                self.tls, self.listener.presented, self.first_path.local[0], self._on_name
            )

    def _on_name(self, name: str | None) -> None:
        self.server_name = name

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

    def open_stream(self, unidirectional: bool) -> HostStream | None:
        """Open a stream of ours; None while the peer's limit forbids it."""
        if not self.openings(unidirectional):
            return None
        stream_id = self.get_next_available_stream_id(is_unidirectional=unidirectional)
        fifos = self._owner.make_stream_fifos(
            self, has_rx=not unidirectional, has_tx=True, is_peers=False
        )
        self.send_stream_data(stream_id, b"")
        return self._add_stream(stream_id, is_local=True, fifos=fifos)

    def openings(self, unidirectional: bool) -> int:
        """How many more streams the peer allows."""
        stream_id = self.get_next_available_stream_id(is_unidirectional=unidirectional)
        return max(0, self._stream_limits[unidirectional] - stream_id // 4)

    def _add_stream(self, stream_id: int, *, is_local: bool, fifos: Fifos | None) -> HostStream:
        stream = HostStream(self, self._streams[stream_id], is_local, fifos)
        self.streams[stream_id] = stream
        return stream

    def _adopt_peers(self) -> None:
        """Make FIFOs for the streams that the peer has opened, or refuse those without room.

        A stream opens all lower-numbered ones of its type too (RFC 9000 section 2.1).
        """
        limits = self._local_max_streams_bidi, self._local_max_streams_uni
        for unidirectional, limit in enumerate(limits):
            while self._adopted[unidirectional] < limit.used:
                stream_id = 4 * self._adopted[unidirectional] + 2 * unidirectional + self._is_client
                self._adopted[unidirectional] += 1
                fifos = None
                with contextlib.suppress(OSError, MemoryError):
                    fifos = self._owner.make_stream_fifos(
                        self, has_rx=True, has_tx=not unidirectional, is_peers=True
                    )
                stream = self._add_stream(stream_id, is_local=False, fifos=fifos)
                if fifos is None:
                    self.abort_sending(stream, 0)
                    self.abort_receiving(stream, 0)
                else:
                    self.opened.append(stream)

    def abort_sending(self, stream: HostStream, code: int) -> None:
        """Stop sending, with a RESET_STREAM."""
        if not stream.is_reset and not stream.stream.sender.is_finished:
            stream.is_reset = True
            self.sending[stream] = None
            self.reset_stream(stream.stream_id, code)

    def abort_receiving(self, stream: HostStream, code: int) -> None:
        """Stop receiving; sends STOP_SENDING unless the peer has sent everything."""
        if stream.is_received or stream.is_discarding:
            return
        stream.is_discarding = True
        if stream.stream.receiver.is_finished:
            self._end_receiving(stream)
        else:
            self.stop_stream(stream.stream_id, code)
            self.credit(stream, stream.received)

    def _end_receiving(self, stream: HostStream) -> None:
        """Note that the rest of a stream will not come, or not be read."""
        stream.is_received = True
        self.moved[stream] = None
        self.credit(stream, stream.stream.receiver.highest_offset)

    def follow_applications(self) -> None:
        """Pass on what applications wrote, and return credit for what they read.

        Raises FifoCorruptError and FifoOverflowError, as HostStream's methods.
        """
        for stream in self.used:
            stream.send()
            self.note_consumed(stream)
            self.moved[stream] = None
        self.used.clear()

    def follow_aioquic(self) -> None:
        """Store what was received, and note what happened.

        Call it after receiving, since aioquic forgets finished streams when it writes, and after
        writing. Raises as `follow_applications`.
        """
        self._adopt_peers()
        while (event := self.next_event()) is not None:
            if isinstance(event, StreamDataReceived):
                self._on_data(self.streams[event.stream_id], event.data, event.end_stream)
            elif isinstance(event, StreamReset):
                stream = self.streams[event.stream_id]
                self.resets.append((stream, EventKind.RESET, event.error_code))
                self._end_receiving(stream)
            elif isinstance(event, StopSendingReceived):
                self._on_stop(self.streams.get(event.stream_id), event.error_code)
            elif isinstance(event, DatagramFrameReceived):
                self.receive_datagram_frame(event.data)
            else:
                if isinstance(event, HandshakeCompleted):
                    self._known_stream_limits = self._stream_limits
                    self.open_datagrams(self._owner.make_datagram_fifos)
                self.news.append(event)

    def _on_data(self, stream: HostStream, data: bytes, is_end: bool) -> None:
        stream.receive(data, is_end)
        if stream.is_discarding:
            self.credit(stream, stream.received)
            if is_end:
                self._end_receiving(stream)
            return
        self.readable[stream] = None
        if is_end:
            # It may arrive after all bytes were read: then no read will follow.
            self.note_consumed(stream)
            self.moved[stream] = None

    def _follow_acknowledgements(self) -> None:
        for stream in list(self.sending):
            if stream.drop_acked():
                self.writable[stream] = None
            if stream.stream.sender.is_finished:
                del self.sending[stream]
                self.moved[stream] = None

    def _on_stop(self, stream: HostStream | None, code: int) -> None:
        """Handle a STOP_SENDING, for which aioquic has reset the stream."""
        if stream is None or stream.is_stopped or stream.stream.sender.is_finished:
            return
        stream.is_stopped = stream.is_reset = True
        self.sending[stream] = None
        self.resets.append((stream, EventKind.STOPPED, code))

    def forget_stream(self, stream: HostStream) -> None:
        """Forget a stream that is finished in both directions."""
        del self.streams[stream.stream_id]
        self.used.pop(stream, None)

    @property
    def _stream_limits(self) -> tuple[int, int]:
        """How many streams we may open, bidirectional and unidirectional ones."""
        return self._remote_max_streams_bidi, self._remote_max_streams_uni

    def take_new_stream_limits(self) -> bool:
        """Return whether the peer has allowed more streams since the last call."""
        known, self._known_stream_limits = self._known_stream_limits, self._stream_limits
        return self.is_established and known != self._known_stream_limits

    # --- sending -----------------------------------------------------------------------------

    def write(self, now: float) -> list[Outgoing]:
        """Return the datagrams to send."""
        self.follow_applications()
        self.feed_datagrams()
        self._update_key_if_due(now)
        is_close = self._close_pending
        datagrams: list[Outgoing] = self.datagrams_to_send(now)
        # aioquic has raised the limits for streams that it forgot.
        self.limit_streams()
        self.follow_aioquic()
        self._follow_acknowledgements()
        if is_close:
            self._close_datagrams = datagrams
        if not self.is_established and datagrams:
            # Datagrams of the handshake are padded.
            self._loss.size.on_sent(max(len(data) for data, _ in datagrams), now)
        return datagrams + self.probe_size(now)

    # --- closing -----------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Whether the closing period has ended as well."""
        return self._state is QuicConnectionState.TERMINATED

    def give_up(self, reason: str) -> None:
        """End at once without a packet to the peer. The application sees an error, not a clean
        close."""
        self._close_event = ConnectionTerminated(
            error_code=QuicErrorCode.INTERNAL_ERROR,
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
        self.give_up("Stateless reset")

    def dispose(self) -> None:
        """Free memory at once; for a connection that is no longer used.

        Its parts refer to each other. A flood of forged Initials would fill the memory before the
        garbage collector runs, and FIFOs of applications in other processes would stay mapped.
        """
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
            by_peer=self._peer_closed or self._state is QuicConnectionState.DRAINING,
        )

    def answer_while_closing(self, count: int) -> list[Outgoing]:
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
            "streams": len(self.streams),
            "datagram_bytes": self._max_datagram_size,
            **self.datagram_frames,
        }

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
