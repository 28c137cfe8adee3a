"""Requests of applications in other processes to open streams, until the peer's limits allow it."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field

from hoststack.boundary import messages as m
from hoststack.boundary.application import Application
from hoststack.session.connector import error_text
from hoststack.session.session import ConnectionSession, SessionState, SessionTable
from hoststack.session.streams import CLOSED, Streams


@dataclass(slots=True)
class _Waiting:
    """A connection's requests, by token, oldest first; for each direction."""

    bidirectional: dict[int, None] = field(default_factory=dict)
    unidirectional: dict[int, None] = field(default_factory=dict)

    def of(self, *, unidirectional: bool) -> dict[int, None]:
        return self.unidirectional if unidirectional else self.bidirectional


class StreamOpener:
    """Requests for streams. One that waits counts as a session of its application."""

    def __init__(self, sessions: SessionTable, streams: Streams) -> None:
        self._sessions = sessions
        self._streams = streams
        self._waiting: dict[ConnectionSession, _Waiting] = {}
        self._by_token: dict[tuple[Application, int], tuple[ConnectionSession, bool]] = {}

    def start(self, application: Application, request: m.OpenStream) -> None:
        """Open a stream now, or queue the request until the peer allows it."""
        session = self._sessions.owned(application, request.connection, ConnectionSession)
        if session is None or session.state is not SessionState.READY:
            application.notify(m.Failed(request.token, errno.ENOTCONN, CLOSED))
            return
        waiting = self._waiting.get(session)
        others = waiting.of(unidirectional=request.unidirectional) if waiting is not None else ()
        if others or not self._open(session, request.token, request.unidirectional):
            self._wait(session, request)

    def _wait(self, session: ConnectionSession, request: m.OpenStream) -> None:
        application = session.application
        refusal = self._sessions.refusal(application)
        key = application, request.token
        if refusal is not None or key in self._by_token:
            text = refusal or "its token is in use"
            application.notify(m.Failed(request.token, errno.EMFILE, text))
            return
        application.count_sessions(1)
        waiting = self._waiting.setdefault(session, _Waiting())
        waiting.of(unidirectional=request.unidirectional)[request.token] = None
        self._by_token[key] = session, request.unidirectional

    def _forget(self, session: ConnectionSession, token: int, unidirectional: bool) -> None:
        del self._by_token[session.application, token]
        del self._waiting[session].of(unidirectional=unidirectional)[token]
        session.application.count_sessions(-1)

    def cancel(self, application: Application, request: m.Cancel) -> None:
        """Cancel a queued request."""
        found = self._by_token.get((application, request.token))
        if found is not None:
            session, unidirectional = found
            self._forget(session, request.token, unidirectional)

    def on_closed(self, session: ConnectionSession) -> None:
        """Fail the queued requests of a connection that is closed."""
        waiting = self._waiting.get(session)
        if waiting is None:
            return
        for unidirectional in (False, True):
            for token in list(waiting.of(unidirectional=unidirectional)):
                self._forget(session, token, unidirectional)
                session.application.notify(m.Failed(token, errno.ENOTCONN, CLOSED))
        del self._waiting[session]

    def on_available(self, session: ConnectionSession) -> None:
        """Open as many queued streams as the peer's limits allow, in order for each direction."""
        waiting = self._waiting.get(session)
        if waiting is None:
            return
        for unidirectional in (False, True):
            queued = waiting.of(unidirectional=unidirectional)
            while queued:
                token = next(iter(queued))
                # The place of the request becomes the stream's.
                session.application.count_sessions(-1)
                is_open = self._open(session, token, unidirectional)
                session.application.count_sessions(1)
                if not is_open:
                    break
                self._forget(session, token, unidirectional)
        if not waiting.bidirectional and not waiting.unidirectional:
            del self._waiting[session]

    def _open(self, session: ConnectionSession, token: int, unidirectional: bool) -> bool:
        """Open a stream and answer; return False while the peer's limit forbids it."""
        try:
            opened = self._streams.open_remote(session, unidirectional=unidirectional)
        except OSError as error:
            failed = m.Failed(token, error.errno or 0, error_text(error))
            session.application.notify(failed)
            return True
        if opened is None:
            return False
        handle, stream_id, fifos = opened
        session.application.notify(m.StreamReady(token, session.handle, handle, stream_id, *fifos))
        return True
