"""The aioquic engine: bursts of datagrams in, bursts out, for all connections of a worker.

It runs everywhere, and is the reference for the native engine. aioquic implements the protocol of
each connection (connection.py). This module finds connections by connection ID, accepts new ones,
runs the timers, and shares the link fairly between connections.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
from collections.abc import Sequence
from typing import cast

from aioquic.quic import events as aio
from aioquic.quic.packet import QuicErrorCode

from hoststack.link.base import BURST, Link, Outgoing, Path, Received
from hoststack.quic.aioquic.accept import (
    CIPHERS,
    CONGESTION_CONTROLS,
    Acceptor,
    Admitted,
    Listener,
    client_configuration,
    plain_credentials,
)
from hoststack.quic.aioquic.begin import accepted_connection, has_read_hello, is_0rtt, is_known
from hoststack.quic.aioquic.connection import HostConnection
from hoststack.quic.aioquic.guards import TooManyPiecesError
from hoststack.quic.aioquic.half_open import HeldPackets, RefusedError
from hoststack.quic.aioquic.host_stream import HostStream
from hoststack.quic.aioquic.presenting import own_certificate, peers_chain
from hoststack.quic.aioquic.resets import StatelessResets
from hoststack.quic.aioquic.resume import resume
from hoststack.quic.cid import CID_BYTES, CidGenerator
from hoststack.quic.seam import (
    NO_ANSWER,
    CidConfig,
    ConnectionContext,
    Credentials,
    EngineCounters,
    EngineOwner,
    Event,
    EventKind,
    Handshake,
    ListenerContext,
    QuicConfig,
    StreamContext,
    Turn,
)
from hoststack.quic.session_cache import ServerSessions

logger = logging.getLogger(__name__)
# aioquic logs a line for each handshake; without this, logging's last resort would print them.
logging.getLogger("quic").addHandler(logging.NullHandler())

#: aioquic's loss timer is due at sent time plus delay, and then compares with now minus delay: a
#: rounding error would make it fire for ever on a clock that jumps. Far below the timer granularity
#: of RFC 9002 section 6.1.2, far above a double's error.
_TIMER_ROUNDING_S = 1e-6


class AioquicEngine:
    """A worker's engine over one link; hoststack/quic/seam.py defines the interface."""

    name = "aioquic"
    can_spin = False
    congestion_controls: tuple[str, ...] = CONGESTION_CONTROLS

    def __init__(self, link: Link, owner: EngineOwner, cid: CidConfig, secret: bytes) -> None:
        self.counters = EngineCounters()
        self._link = link
        self._owner = owner
        self._new_cid = CidGenerator(cid)
        self._resets = StatelessResets(secret, self._new_cid.prefix)
        self._acceptor = Acceptor(link, self.counters, secret, self._new_cid)
        self._held = HeldPackets(self.counters)
        self._by_cid: dict[bytes, HostConnection] = {}
        self._connections: dict[HostConnection, None] = {}
        self._starting: list[tuple[HostConnection, Path]] = []
        self._due: dict[HostConnection, None] = {}
        """Connections that may have something to send."""
        self._over: list[HostConnection] = []
        """Connections removed in this turn, which may still have events."""
        self._outbox: list[Outgoing] = []
        self._reset_by_peer: list[HostConnection] = []
        self._timers: list[tuple[float, int, HostConnection]] = []
        self._order = itertools.count()

    # --- calls -------------------------------------------------------------------------------

    find_credentials = load_credentials = staticmethod(plain_credentials)

    def listen(
        self, local: tuple[str, int], credentials: Credentials, config: QuicConfig
    ) -> ListenerContext:
        return self._acceptor.listen(local, credentials, config)

    def replace_tls(self, listener: ListenerContext, credentials: Credentials) -> None:
        cast(Listener, listener).replace_tls(credentials)

    def unlisten(self, listener: ListenerContext) -> None:
        self._acceptor.unlisten(cast(Listener, listener))

    def connect(
        self,
        path: object,
        server_name: str,
        credentials: Credentials,
        config: QuicConfig,
        sessions: ServerSessions | None = None,
    ) -> ConnectionContext:
        way = cast(Path, path)
        size = self._link.max_datagram_bytes(way)
        configuration = client_configuration(credentials, server_name, config, size)
        options = {} if sessions is None else resume(configuration, sessions)
        connection = HostConnection(
            configuration=configuration,
            config=config,
            listener=None,
            path=way,
            new_cid=self._new_cid,
            owner=self._owner,
            reset_token=self._resets.token,
            **options,
        )
        # The handshake begins in the next turn, which knows the time.
        self._starting.append((connection, way))
        self._resets.add(connection, way)
        return connection

    def open_stream(
        self, connection: ConnectionContext, *, unidirectional: bool
    ) -> StreamContext | None:
        return cast(HostConnection, connection).open_stream(unidirectional)

    def openings(self, connection: ConnectionContext, *, unidirectional: bool) -> int:
        return cast(HostConnection, connection).openings(unidirectional)

    def send_ready(self, stream: StreamContext) -> None:
        self._use(cast(HostStream, stream))

    def consumed(self, stream: StreamContext) -> None:
        self._use(cast(HostStream, stream))

    def _use(self, stream: HostStream) -> None:
        stream.connection.used[stream] = None
        self._due[stream.connection] = None

    def allow_stream(self, connection: ConnectionContext, *, unidirectional: bool) -> None:
        allowing = cast(HostConnection, connection)
        allowing.allow_stream(unidirectional)
        self._due[allowing] = None

    def send_datagrams(self, connection: ConnectionContext) -> None:
        self._due[cast(HostConnection, connection)] = None

    def reset_stream(self, stream: StreamContext, code: int) -> None:
        opened = cast(HostStream, stream)
        opened.connection.abort_sending(opened, code)
        self._due[opened.connection] = None

    def stop_sending(self, stream: StreamContext, code: int) -> None:
        opened = cast(HostStream, stream)
        opened.connection.abort_receiving(opened, code)
        self._due[opened.connection] = None

    def update_key(self, connection: ConnectionContext) -> None:
        updating = cast(HostConnection, connection)
        if updating.is_established and updating._close_event is None:
            updating.key_update_at = 0
            self._due[updating] = None

    def migrate(self, connection: ConnectionContext, path: object) -> None:
        raise ValueError("the aioquic engine can't move a connection: use the native one")

    def stay(self, connection: ConnectionContext) -> None:
        """Do nothing: there are no migrations to cancel."""

    def close(self, connection: ConnectionContext, code: int, reason: str) -> None:
        closing = cast(HostConnection, connection)
        closing.close(error_code=code, frame_type=None, reason_phrase=reason)
        self._due[closing] = None

    def connections(self) -> Sequence[ConnectionContext]:
        return list(self._connections)

    def shutdown(self, code: int, reason: str) -> None:
        self._acceptor.close()
        for connection in self._connections:
            self.close(connection, code, reason)

    @property
    def next_deadline(self) -> float | None:
        while self._timers:
            at, _, connection = self._timers[0]
            if connection.timer_at == at:
                return at
            heapq.heappop(self._timers)
        return None

    # --- the turn ----------------------------------------------------------------------------

    def turn(self, now: float, spin_s: float = 0.0) -> Turn:
        for connection in self._over:
            self._due.pop(connection, None)  # added by late calls
            connection.dispose()
        self._over.clear()
        received = self._link.receive(BURST)
        self._held.expire(now)
        touched: dict[HostConnection, None] = {}
        self._start_handshakes(now, touched)
        for connection, burst in self._sort(received, now).items():
            if self._receive(connection, burst, now):
                touched[connection] = None
                if self._held:
                    self._give_held(connection, now)
        self._heed_resets(touched)
        self._fire_timers(now, touched)
        touched.update(self._due)
        self._due = touched
        sent = self._transmit(now)
        events: list[Event] = []
        for connection in touched:
            self._collect(connection, events)
            self._set_timer(connection)
        self._count(received, sent)
        return Turn(
            events=events,
            more=len(received) == BURST
            or bool(self._over)
            or (bool(self._due) and not self._outbox),
            blocked=bool(self._outbox),
            received=len(received),
            sent=sent,
        )

    def _heed_resets(self, touched: dict[HostConnection, None]) -> None:
        """Close connections that received stateless resets, after reading earlier datagrams."""
        for connection in self._reset_by_peer:
            if connection._close_event is None:
                connection.be_reset()
                touched[connection] = None
        self._reset_by_peer.clear()

    def _start_handshakes(self, now: float, touched: dict[HostConnection, None]) -> None:
        for connection, path in self._starting:
            if connection._close_event is None:
                try:
                    connection.connect(path, now)
                except Exception:
                    # For example a server name that aioquic can't encode.
                    logger.exception("a handshake could not begin")
                    self.counters.drop("broke_connection")
                    connection.give_up("internal error")
                connection.handshake_deadline = now + connection.config.handshake_timeout_s
            self._add(connection)
            touched[connection] = None
        self._starting.clear()

    def _add(self, connection: HostConnection) -> None:
        self._connections[connection] = None
        self._by_cid[connection.host_cid] = connection

    def _sort(
        self, received: Sequence[Received], now: float
    ) -> dict[HostConnection, list[tuple[bytes, Path]]]:
        """Sort datagrams by connection, including new connections."""
        by_cid = self._by_cid
        bursts: dict[HostConnection, list[tuple[bytes, Path]]] = {}
        for data, path, _ in received:
            if len(data) < 1 + CID_BYTES:
                self.counters.drop("malformed")
                continue
            if data[0] & 0x80:
                connection = self._long_header(data, path, now)
            else:
                connection = by_cid.get(data[1 : 1 + CID_BYTES])
                if connection is None:
                    self._unknown(data, path, now)
            if connection is not None:
                burst = bursts.get(connection)
                if burst is None:
                    bursts[connection] = [(data, path)]
                else:
                    burst.append((data, path))
        return bursts

    def _unknown(self, data: bytes, path: Path, now: float) -> None:
        """Handle a short header with an unknown connection ID."""
        connection = self._resets.find(data, path, now)
        if connection is not None:
            self._reset_by_peer.append(connection)
            return
        self.counters.drop("unknown_cid")
        if (answer := self._resets.answer(data, now)) is not None:
            self._outbox.append((answer, path))
            self.counters.stateless_resets += 1

    def after_events(self) -> None:
        """See Engine: Python frees them."""

    def _long_header(self, data: bytes, path: Path, now: float) -> HostConnection | None:
        length = data[5]
        dcid = data[6 : 6 + length]
        known = self._by_cid.get(dcid)
        if known is not None:
            is_waiting = known in self._acceptor.half_open and not has_read_hello(known)
            if is_waiting and is_0rtt(data):
                self._held.add(dcid, data, path, now)
                return None
            return known
        if is_0rtt(data) and self._acceptor.is_listening:
            self._held.add(dcid, data, path, now)
            return None
        answer = self._acceptor.examine(data, path, len(self._connections), now)
        if isinstance(answer, bytes):
            self._outbox.append((answer, path))
        elif answer is not None:
            return self._accept(answer, dcid, path, now)
        return None

    def _accept(
        self, admitted: Admitted, dcid: bytes, path: Path, now: float
    ) -> HostConnection | None:
        """Accept a peer's connection, replacing an older handshake if needed."""
        config = admitted.listener.config
        try:
            older = self._acceptor.half_open.make_room(
                path.remote,
                is_proven=admitted.is_proven,
                per_source=config.half_open_per_source,
                is_full=len(self._connections) >= config.max_connections,
                now=now,
            )
        except RefusedError:
            self.counters.drop("refused")
            return None
        if older is not None:
            self._give_up(older)
        connection = accepted_connection(
            admitted,
            dcid,
            path,
            now,
            link=self._link,
            new_cid=self._new_cid,
            owner=self._owner,
            reset_token=self._resets.token,
        )
        # A client's first flight uses the connection ID that the client chose.
        self._by_cid[dcid] = connection
        self._acceptor.half_open.begin(connection, is_proven=admitted.is_proven, now=now)
        self._add(connection)
        return connection

    def _give_up(self, connection: HostConnection) -> None:
        """Close a handshake to make room for another one."""
        self.counters.drop("replaced")
        self._acceptor.half_open.end(connection)
        connection.give_up("Too many handshakes at once")
        connection.timer_at = None
        self._due[connection] = None

    def _give_held(self, connection: HostConnection, now: float) -> None:
        """Pass held packets to a connection, once it has read its ClientHello."""
        if connection.initial_dcid is None or not has_read_hello(connection):
            return
        taken = self._held.take(connection.initial_dcid)
        if taken:
            self._receive(connection, taken, now)

    def _receive(
        self, connection: HostConnection, burst: list[tuple[bytes, Path]], now: float
    ) -> bool:
        """Pass datagrams to a connection; False if it turns out to be no valid connection."""
        if connection._close_event is not None:
            self._outbox.extend(connection.answer_while_closing(len(burst)))
            return True
        try:
            for data, path in burst:
                with contextlib.suppress(TooManyPiecesError):
                    connection.receive_datagram(data, path, now)
            connection.follow_aioquic()
        except Exception:
            # Whatever input makes aioquic fail may only cost that peer's connection.
            logger.exception("a datagram broke its connection")
            self.counters.drop("broke_connection")
            connection.close(QuicErrorCode.INTERNAL_ERROR, 0, "internal error")
            return True
        if connection.undecryptable:
            self.counters.drop("undecryptable", connection.undecryptable)
            connection.undecryptable = 0
        if connection.is_unreadable:
            # No packet of the first flight could be decrypted: this is no connection.
            self._acceptor.count_unreadable()
            self._forget(connection)
            connection.dispose()
            return False
        return True

    def _fire_timers(self, now: float, touched: dict[HostConnection, None]) -> None:
        while self._timers and self._timers[0][0] <= now:
            at, _, connection = heapq.heappop(self._timers)
            if connection.timer_at != at:
                continue
            connection.timer_at = None
            self._fire_timer(connection, now)
            touched[connection] = None

    def _fire_timer(self, connection: HostConnection, now: float) -> None:
        if connection.handshake_deadline is not None and connection.handshake_deadline <= now:
            connection.give_up(NO_ANSWER)
            return
        try:
            connection.handle_timer(now + _TIMER_ROUNDING_S)
        except Exception:
            logger.exception("a connection's timer failed")
            self.counters.drop("broke_connection")
            connection.give_up("internal error")

    def _transmit(self, now: float) -> int:
        """Send; return how many datagrams were sent. What a turn has no time for is due again."""
        sent = self._flush()
        waiting, self._due = self._due, {}
        written = 0
        for connection in waiting:
            if self._outbox or written >= BURST:
                self._due[connection] = None
                continue
            self._outbox += self._write(connection, now)
            written += len(self._outbox)
            sent += self._flush()
        return sent

    def _write(self, connection: HostConnection, now: float) -> list[Outgoing]:
        if connection.is_over or not connection._network_paths:
            return []
        try:
            self.counters.black_holes += connection.check_size(now)
            updates = connection.key_updates
            datagrams = connection.write(now)
            self.counters.key_updates += connection.key_updates - updates
            return datagrams
        except Exception:
            logger.exception("a connection could not write")
            self.counters.drop("broke_connection")
            connection.give_up("internal error")
            return []

    def _flush(self) -> int:
        """Pass the outbox to the link, as much as it accepts."""
        if not self._outbox:
            return 0
        taken = self._link.send(self._outbox)
        del self._outbox[:taken]
        return taken

    # --- events ------------------------------------------------------------------------------

    def _collect(self, connection: HostConnection, events: list[Event]) -> None:
        """Collect a connection's events for the session layer, after transmitting."""
        for event in connection.news:
            self._on_aioquic_event(connection, event, events)
        connection.news.clear()
        is_news = not connection.has_reported_close
        if is_news:
            self._collect_streams(connection, events)
            self._collect_datagrams(connection, events)
        if is_news and connection._close_event is not None:
            connection.has_reported_close = True
            self.counters.closed += 1
            if is_known(connection):
                events.append(Event(EventKind.CLOSED, connection, connection.close_info()))
        if connection.is_over:
            self._forget(connection)
            self._over.append(connection)

    def _on_aioquic_event(
        self, connection: HostConnection, event: aio.QuicEvent, events: list[Event]
    ) -> None:
        if isinstance(event, aio.ConnectionIdIssued):
            self._by_cid[event.connection_id] = connection
        elif isinstance(event, aio.ConnectionIdRetired):
            self._by_cid.pop(event.connection_id, None)
        elif isinstance(event, aio.HandshakeCompleted):
            connection.alpn = event.alpn_protocol
            is_early = connection.handshake.early_data == "pending"
            schedule = connection.tls.key_schedule
            assert schedule is not None
            connection.handshake = Handshake(
                "accepted" if is_early else "none",
                event.session_resumed,
                peers_chain(connection.tls),
                CIPHERS[schedule.cipher_suite],
                connection.server_name,
                own_certificate(connection.tls, is_resumed=event.session_resumed),
            )
            connection.is_established = True
            connection.handshake_deadline = None
            connection._loss.size.on_acked(connection._max_datagram_size)
            self._collect_limit(connection, events)
            if connection.listener is None:
                self.counters.connected += 1
                events.append(Event(EventKind.CONNECTED, connection))
            else:
                self.counters.accepted += 1
                self._acceptor.half_open.end(connection)
                if is_early:
                    events.append(Event(EventKind.HANDSHAKE_DONE, connection))
                else:
                    events.append(Event(EventKind.ACCEPTED, connection))

    def _collect_streams(self, connection: HostConnection, events: list[Event]) -> None:
        is_early = connection.handshake.early_data == "pending"
        if connection.opened and not connection.is_established and not is_early:
            # Only early data arrive before the handshake is complete.
            connection.alpn = connection.tls.alpn_negotiated
            connection.handshake = Handshake("pending", server_name=connection.server_name)
            events.append(Event(EventKind.ACCEPTED, connection))
        for stream in connection.opened:
            events.append(Event(EventKind.STREAM_OPENED, stream))
        connection.opened.clear()
        for stream in connection.readable:
            events.append(Event(EventKind.READABLE, stream))
        connection.readable.clear()
        for stream, kind, code in connection.resets:
            events.append(Event(kind, stream, code))
        connection.resets.clear()
        for stream in connection.writable:
            events.append(Event(EventKind.WRITABLE, stream))
        connection.writable.clear()
        for stream in connection.moved:
            self._collect_moved(connection, stream, events)
        connection.moved.clear()
        if connection.take_new_stream_limits():
            events.append(Event(EventKind.STREAMS_AVAILABLE, connection))

    def _collect_datagrams(self, connection: HostConnection, events: list[Event]) -> None:
        self._collect_limit(connection, events)
        if connection.has_new_datagrams:
            events.append(Event(EventKind.READABLE, connection))
        if connection.has_datagram_room:
            events.append(Event(EventKind.WRITABLE, connection))
        connection.has_new_datagrams = connection.has_datagram_room = False

    def _collect_limit(self, connection: HostConnection, events: list[Event]) -> None:
        if connection.has_new_largest():
            largest = connection.largest_datagram
            events.append(Event(EventKind.DATAGRAMS_READY, connection, largest))

    def _collect_moved(
        self, connection: HostConnection, stream: HostStream, events: list[Event]
    ) -> None:
        if stream.stream.sender.is_finished and not stream.has_told_send_finished:
            stream.has_told_send_finished = True
            stream.drop_sent()
            events.append(Event(EventKind.SEND_FINISHED, stream))
        if stream.is_finished and stream.stream_id in connection.streams:
            connection.forget_stream(stream)
            if stream.is_refused:
                self.allow_stream(connection, unidirectional=stream.is_unidirectional)
            else:
                events.append(Event(EventKind.STREAM_CLOSED, stream))

    def _set_timer(self, connection: HostConnection) -> None:
        if connection not in self._connections:
            return
        at = connection.next_timer()
        if at != connection.timer_at:
            connection.timer_at = at
            if at is not None:
                heapq.heappush(self._timers, (at, next(self._order), connection))

    def _forget(self, connection: HostConnection) -> None:
        if self._connections.pop(connection, connection) is connection:
            return
        connection.timer_at = None
        self._due.pop(connection, None)
        self._resets.remove(connection, connection.first_path)
        for cid in connection.all_cids():
            if self._by_cid.get(cid) is connection:
                del self._by_cid[cid]
        self._acceptor.half_open.end(connection)

    def _count(self, received: Sequence[Received], sent: int) -> None:
        counters = self.counters
        counters.turns += 1
        counters.rx_datagrams += len(received)
        counters.tx_datagrams += sent
        counters.connections = len(self._connections)
        counters.half_open = len(self._acceptor.half_open)
        if not received and not sent:
            counters.empty_turns += 1
