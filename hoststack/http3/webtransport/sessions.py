"""The sessions of a connection: whose a stream or a datagram is, and what is kept for sessions that
have not begun."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

from hoststack.http3.errors import ErrorCode, ProtocolError
from hoststack.http3.webtransport import streams, wire
from hoststack.http3.webtransport.session import Session
from hoststack.http3.webtransport.wire import WebTransportCode

if TYPE_CHECKING:
    from hoststack.http3.about_connection import AboutHttp3Connection
    from hoststack.http3.about_server import Request
    from hoststack.http3.exchange import Exchange

#: Kept of a connection, for sessions whose request has not arrived.
_MAX_EARLY_STREAMS: Final = 16
_MAX_EARLY_DATAGRAMS: Final = 16
#: Streams that a peer may open in vain before it begins another session.
_MAX_REFUSED: Final = 1024
#: Sessions and requests that have ended, and are remembered.
_MAX_ENDED: Final = 256


class Sessions:
    """Routes streams and datagrams. What comes for a session before its request is kept, as far as
    it is little; what comes after its end is refused."""

    def __init__(self, http: AboutHttp3Connection) -> None:
        self._http = http
        self._sessions: dict[int, Session] = {}
        self._early_streams: deque[tuple[int, Any]] = deque()
        self._early_datagrams: deque[tuple[int, bytes]] = deque()
        self._ended: deque[int] = deque(maxlen=_MAX_ENDED)
        self._refused = 0
        """Streams since the last session began."""

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def open_count(self) -> int:
        """Of sessions that neither side has ended; others end with the peer's FIN."""
        return sum(not session._is_over for session in self._sessions.values())

    def add(self, exchange: Exchange) -> Session:
        """Make the session of a request, with what came before it."""
        session = self._sessions[exchange.stream_id] = Session(exchange)
        exchange._session = session
        self._refused = 0
        for stream in self._take(self._early_streams, session.session_id):
            session._on_stream(stream)
        for datagram in self._take(self._early_datagrams, session.session_id):
            exchange._on_datagram(datagram)
        return session

    def admit(self, request: Request) -> int:
        """Look at a request of a server, and make its session if it asks for one. Returns 0, or the
        status to refuse it with; or resets it."""
        config = self._http.config
        if request.method != b"CONNECT" or request.protocol not in wire.PROTOCOLS:
            self._refuse_early(request.stream_id)
            return 0
        origins = config.webtransport_origins
        if origins is not None and request.header(b"origin") not in origins:
            self._refuse_early(request.stream_id)
            return 403
        most = config.webtransport_sessions
        if request.protocol == wire.PROTOCOL_15:
            most = min(most, wire.most_sessions_now(self._http._settings or {}))
        if self.open_count >= most:
            self._refuse_early(request.stream_id)
            return 429
        self.add(request)
        return 0

    def on_stream(self, stream: Any, session_id: int) -> None:
        """Give a stream to its session."""
        session = self._sessions.get(session_id)
        if session_id & 3:
            self._http._fail(ProtocolError.of(ErrorCode.ID_ERROR, "no valid session ID"))
        elif session is not None and not session._is_over:
            session._on_stream(stream)
        elif session is not None or session_id in self._ended:
            self._refuse(stream, WebTransportCode.SESSION_GONE)
        elif len(self._early_streams) >= _MAX_EARLY_STREAMS:
            self._refuse(stream, WebTransportCode.BUFFERED_STREAM_REJECTED)
        else:
            self._early_streams.append((session_id, stream))

    def _refuse(self, stream: Any, code: int) -> None:
        streams.refuse(stream, code)
        self._refused += 1
        if self._refused > _MAX_REFUSED:
            self._http._fail(
                ProtocolError.of(ErrorCode.EXCESSIVE_LOAD, "too many streams without a session")
            )

    def on_early_datagram(self, session_id: int, data: bytes) -> None:
        """Keep a datagram of a request that has not arrived."""
        is_full = len(self._early_datagrams) >= _MAX_EARLY_DATAGRAMS
        if not is_full and session_id not in self._ended:
            self._early_datagrams.append((session_id, data))

    def forget(self, stream_id: int) -> None:
        """Take leave of a request that was closed, and of its session."""
        self._ended.append(stream_id)
        session = self._sessions.pop(stream_id, None)
        if session is not None:
            session._finish(None)
            self._http._changed.unpark_all()
        else:
            self._refuse_early(stream_id)

    def on_end(self) -> None:
        """Wake all tasks: the connection has ended."""
        for session in list(self._sessions.values()):
            session._wake()

    def _refuse_early(self, session_id: int) -> None:
        for stream in self._take(self._early_streams, session_id):
            streams.refuse(stream, WebTransportCode.SESSION_GONE)
        self._take(self._early_datagrams, session_id)

    @staticmethod
    def _take(kept: deque[tuple[int, Any]], session_id: int) -> list[Any]:
        found = [each for known, each in kept if known == session_id]
        if found:
            others = [each for each in kept if each[0] != session_id]
            kept.clear()
            kept.extend(others)
        return found
