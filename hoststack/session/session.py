"""Sessions of listeners and connections. Streams are sessions as well, in the plane: streams.py.

`TRANSITIONS` is the table of a session's states. A session is in the SessionTable from its creation
to its last event. Its index is reused only after many others, so that a late message about a closed
session does not reach its successor.
"""

from __future__ import annotations

import enum
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, TypeVar

from hoststack.boundary.application import Application
from hoststack.boundary.handle import index_of, make_handle, worker_of
from hoststack.boundary.user_shares import UserShares
from hoststack.native.wire._wire import lib
from hoststack.quic.seam import ConnectionContext, ListenerContext


class SessionState(enum.Enum):
    LISTENING = "listening"
    CONNECTING = "connecting"
    """A client connection during its handshake."""
    READY = "ready"
    CLOSING = "closing"
    """The application closed it; the transport has not finished yet."""
    CLOSED = "closed"


S = SessionState
TRANSITIONS: dict[SessionState, frozenset[SessionState]] = {
    S.LISTENING: frozenset({S.CLOSED}),
    S.CONNECTING: frozenset({S.READY, S.CLOSING, S.CLOSED}),
    S.READY: frozenset({S.CLOSING, S.CLOSED}),
    S.CLOSING: frozenset({S.CLOSED}),
    S.CLOSED: frozenset(),
}


@dataclass(slots=True, eq=False)
class Session:
    """Base of all sessions. `handle` is set when the session is added to the table."""

    application: Application
    state: SessionState
    handle: int = field(default=-1, init=False)
    is_untaken: bool = field(default=False, init=False)
    """Whether a peer opened it and the application's program has not accepted it yet."""

    def move_to(self, state: SessionState) -> None:
        """Change the state. An AssertionError is a bug here; no peer can cause it."""
        assert state in TRANSITIONS[self.state], f"session {self.handle}: {self.state} -> {state}"
        self.state = state


@dataclass(slots=True, eq=False, weakref_slot=True)
class ListenerSession(Session):
    context: ListenerContext
    untaken: int = 0
    """Connections that its application was notified of and its program has not accepted yet."""
    is_counting: bool = field(default=True, init=False)
    """Whether these are counted."""
    has_room: Callable[[], None] = field(default=lambda: None, init=False)
    """Called when the program accepted one of them."""

    @property
    def is_full(self) -> bool:
        """Whether the queue of unaccepted connections is full, like the backlog of listen(2)."""
        return self.untaken >= MOST_UNTAKEN


@dataclass(slots=True, eq=False)
class ConnectionSession(Session):
    context: ConnectionContext
    listener: ListenerSession | None = None
    """The listener that accepted it; None for a client connection."""
    is_unnoted: bool = False
    """Whether its application has not read the last PathChanged or DatagramsReady yet."""
    has_new_path: bool = False
    """Whether a PathChanged follows when it has."""
    new_datagram_limit: int | None = None


#: Listeners and connections of a worker that its applications share: each may need a path of its
#: own.
MOST_CONNECTIONS: Final = int(lib.HS_MAX_PATHS)
#: Most connections that wait for the program's accept at one listener; more are refused.
MOST_UNTAKEN: Final = 1024

AnySession = ListenerSession | ConnectionSession
T = TypeVar("T", ListenerSession, ConnectionSession)


def chain(session: AnySession) -> Iterator[AnySession]:
    """Yield a session and the one that it belongs to: connection, listener."""
    yield session
    if isinstance(session, ConnectionSession) and session.listener is not None:
        yield session.listener


def no_room(application: Application) -> str:
    """Return why an application may have no more sessions, as a line for the user."""
    return (
        f"the application has the {application.max_sessions} sessions that it may have: close "
        "some, or raise max-sessions"
    )


class SessionTable:
    """The listeners and connections of one worker, by index."""

    #: Number of freed indices that are kept unused before the oldest is reused.
    REUSE_DISTANCE = 1024

    def __init__(self, worker: int, first: int = 0) -> None:
        """Create an empty table; `first` is the first index that it uses, an even number. The odd
        ones are for streams (streams.py)."""
        self._worker = worker
        self._by_index: dict[int, AnySession] = {}
        self._untaken: dict[int, AnySession] = {}
        """Closed sessions that the program has not accepted: their notices still use memory."""
        self._free: deque[int] = deque()
        self._next = first
        self._shares = UserShares("connections")
        self._charged: dict[int, Callable[[], None]] = {}
        self.refused: Counter[str] = Counter()
        """Refusals to applications and their peers, by reason. "faults" counts exceptions while
        serving a request or an event."""

    def is_full_for(self, application: Application) -> bool:
        """Return whether an application may have no more sessions."""
        most = application.max_sessions
        return most is not None and application.sessions_in_use >= most

    def refusal(self, application: Application) -> str | None:
        """Return why an application may have no more sessions, and count that; None if it may."""
        if self.is_full_for(application):
            refusal: str | None = no_room(application)
        else:
            left = max(0, MOST_CONNECTIONS - len(self._charged))
            refusal = self._shares.refusal(application.process, left)
        if refusal is not None:
            self.refused["max_sessions"] += 1
        return refusal

    def add(self, session: T) -> T:
        """Add a session; set its handle, and that of its context."""
        if len(self._free) > self.REUSE_DISTANCE:
            index = self._free.popleft()
        else:
            index = self._next
            self._next += 2
        self._by_index[index] = session
        session.application.count_sessions(1)
        self._charged[index] = self._shares.add(session.application.process)
        session.handle = session.context.session = make_handle(self._worker, index)
        if isinstance(session, ConnectionSession) and session.listener is not None:
            session.is_untaken = session.listener.is_counting
            session.listener.untaken += session.is_untaken
        return session

    def take(self, application: Application, handle: int) -> AnySession | None:
        """Mark a session that a peer opened as accepted by the program, and return it; None if it
        is unknown or was accepted already."""
        session = self.get(handle) or self._untaken.get(handle)
        if session is None or session.application is not application or not session.is_untaken:
            return None
        if self._untaken.pop(handle, None) is not None:
            self._give_back(session)
        session.is_untaken = False
        if isinstance(session, ConnectionSession) and session.listener is not None:
            session.listener.untaken -= 1
            session.listener.has_room()
        return session

    def forget_untaken(self, application: Application) -> None:
        """Mark all sessions of an application that is gone as accepted."""
        for session in list(self._untaken.values()):
            if session.application is application:
                self.take(application, session.handle)
        for session in self:
            if session.application is application:
                session.is_untaken = False

    def get(self, handle: int) -> AnySession | None:
        """Return the session of a handle; None if it is closed or another worker's."""
        if handle < 0 or worker_of(handle) != self._worker:
            return None
        return self._by_index.get(index_of(handle))

    def owned(self, application: Application, handle: int, type_: type[T]) -> T | None:
        """Return the session of a handle if it has this type and belongs to this application."""
        session = self.get(handle)
        if isinstance(session, type_) and session.application is application:
            return session
        return None

    def remove(self, session: AnySession) -> None:
        """Remove a session; its context's `session` becomes -1."""
        session.move_to(SessionState.CLOSED)
        session.context.session = -1
        index = index_of(session.handle)
        del self._by_index[index]
        if session.is_untaken:
            self._untaken[session.handle] = session
        else:
            self._give_back(session)

    def _give_back(self, session: AnySession) -> None:
        session.application.count_sessions(-1)
        self._charged.pop(index_of(session.handle))()
        self._free.append(index_of(session.handle))

    def __iter__(self) -> Iterator[AnySession]:
        return iter(list(self._by_index.values()))

    def __len__(self) -> int:
        return len(self._by_index)
