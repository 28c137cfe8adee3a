"""Opening streams at an application's request, as soon as the peer's limits allow it."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

from hoststack.boundary import messages as m
from hoststack.boundary.application import Application
from hoststack.native.memory.fifo import Fifo
from hoststack.quic.seam import ConnectionContext, StreamContext, Transport
from hoststack.session.connector import error_text
from hoststack.session.session import ConnectionSession, SessionState, SessionTable

NO_ROOM: Final = (
    "the application's FIFOs use all the memory that they may: close streams, or raise "
    "fifo-memory-bytes in the daemon's settings"
)
#: Errors of memfd_create(2), mmap(2) and the limits on an application's FIFOs.
_NO_MEMORY: Final = (errno.ENOMEM, errno.EMFILE, errno.ENFILE)
_CLOSED: Final = "the connection is closed"

#: The fields of m.StreamReady without its token.
About = tuple[int, int, int, Fifo | None, Fifo | None]


class StreamOpener:
    """Requests for streams, until they are open."""

    def __init__(
        self,
        sessions: SessionTable,
        transport_of: Callable[[ConnectionContext], Transport],
        add_stream: Callable[[ConnectionSession, StreamContext], About],
    ) -> None:
        self._sessions = sessions
        self._transport_of = transport_of
        self._add_stream = add_stream
        self._waiting: dict[ConnectionSession, list[m.OpenStream]] = {}

    def start(self, application: Application, request: m.OpenStream) -> None:
        """Open a stream now, or queue the request until the peer allows it."""
        session = self._sessions.owned(application, request.connection, ConnectionSession)
        if session is None or session.state is not SessionState.READY:
            application.notify(m.Failed(request.token, errno.ENOTCONN, _CLOSED))
        else:
            self._waiting.setdefault(session, []).append(request)
            self.on_available(session)

    def cancel(self, application: Application, request: m.Cancel) -> None:
        """Cancel a queued request."""
        for session, waiting in self._waiting.items():
            if session.application is application:
                waiting[:] = [w for w in waiting if w.token != request.token]

    def on_closed(self, session: ConnectionSession) -> None:
        """Fail the queued requests of a connection that is closed."""
        for request in self._waiting.pop(session, []):
            session.application.notify(m.Failed(request.token, errno.ENOTCONN, _CLOSED))

    def on_available(self, session: ConnectionSession) -> None:
        """Open as many queued streams as the peer's limits allow, in order for each direction."""
        blocked = {False: False, True: False}
        still_waiting: list[m.OpenStream] = []
        for request in self._waiting.pop(session, []):
            stream = None
            if not blocked[request.unidirectional]:
                try:
                    stream = self._open(session, request.unidirectional)
                except OSError as error:
                    failed = m.Failed(request.token, error.errno or 0, error_text(error))
                    session.application.notify(failed)
                    continue
            if stream is not None:
                about = self._add_stream(session, stream)
                session.application.notify(m.StreamReady(request.token, *about))
            else:
                blocked[request.unidirectional] = True
                still_waiting.append(request)
        if still_waiting:
            self._waiting[session] = still_waiting

    def _open(self, session: ConnectionSession, unidirectional: bool) -> StreamContext | None:
        """Open a stream; see Transport. Raises OSError if the application has no room for it."""
        refusal = self._sessions.refusal(session.application)
        if refusal is not None:
            raise OSError(errno.EMFILE, refusal)
        transport = self._transport_of(session.context)
        try:
            return transport.open_stream(session.context, unidirectional=unidirectional)
        except (OSError, MemoryError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_MEMORY:
                raise
            self._sessions.refused["fifo_memory"] += 1
            raise OSError(errno.ENOMEM, NO_ROOM) from None
