"""A VCL worker: one thread's sessions, and its connection to the daemon.

There is no background thread. Messages of the stack are read when a call blocks, or would block; a
call that finds its bytes in the FIFO makes no system call at all.
"""

from __future__ import annotations

import errno
import itertools
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from hoststack.api.daemon_client import DaemonClient, hello_of
from hoststack.boundary import messages as m
from hoststack.boundary.codec import CodecError
from hoststack.boundary.protocols import PROTOCOLS, Protocol
from hoststack.native.session._session import ffi, lib
from hoststack.quic.seam import ABORTED_CODE
from hoststack.vcl.closing import abort, close
from hoststack.vcl.config import VclConfig
from hoststack.vcl.epoll import EpollSet
from hoststack.vcl.errors import errno_of, error
from hoststack.vcl.session import Kind, State, VclSession
from hoststack.vcl.stream import ByteStream

#: As in VPP, the upper bits of a session's number are its worker's.
_WORKER_SHIFT: Final = 24
_MOST_SESSIONS: Final = 1 << _WORKER_SHIFT
#: Wake-ups that are taken with one call.
_WAKES: Final = 256


class VclWorker:
    """Sessions of one thread."""

    #: How long a close waits until the streams' data is acknowledged.
    LINGER_S: Final = 10.0

    def __init__(self, index: int, config: VclConfig, name: str) -> None:
        """Attach to the daemon; raises AttachError."""
        self.index = index
        self.config = config
        # Shared listeners, so that each thread may listen.
        hello = hello_of(name, config.namespace, config.secret, config.scopes, True)
        self.client = DaemonClient(config.api_socket_name, hello)
        self.client.start()
        self.side = self.client.workers
        self._sessions: dict[int, VclSession] = {}
        self.epolls: dict[int, EpollSet] = {}
        self._by_handle: dict[int, VclSession] = {}
        self._calls: dict[int, VclSession] = {}
        self._early: dict[int, m.DatagramsReady] = {}
        self._lingering: dict[VclSession, float] = {}
        self._numbers = itertools.count()
        # Read but not handled yet: a signal handler may raise in between.
        self._notices: deque[m.Notice] = deque()
        # About connections whose listener's own notice has not arrived yet; the handles of those
        # connections and of their streams.
        self._early_notices: list[m.Notice] = []
        self._early_handles: set[int] = set()
        self._tokens = itertools.count(1)
        self._handlers: dict[type, Callable[[Any], None]] = {
            m.Failed: self._on_failed,
            m.Listening: self._on_listening,
            m.Connected: self._on_connected,
            m.Accepted: self._on_accepted,
            m.ListenerLost: self._on_listener_lost,
            m.DatagramsReady: self._on_datagrams_ready,
            m.PathChanged: self._on_path_changed,
            m.Closed: self._on_closed,
        }
        self._keys = ffi.new("uint64_t[]", _WAKES)
        self._accepted = ffi.new("struct hs_accepted *")

    # --- the table ---------------------------------------------------------------------------

    def add(self, protocol: Protocol, *, kind: Kind = Kind.NEW) -> VclSession:
        """Create a session. Raises EMFILE."""
        if len(self._sessions) >= _MOST_SESSIONS:
            raise error(errno.EMFILE)
        sh = self._next_number()
        while sh in self._sessions:
            sh = self._next_number()
        session = VclSession(sh, protocol, kind=kind)
        self._sessions[session.sh] = session
        return session

    def _next_number(self) -> int:
        return self.index << _WORKER_SHIFT | next(self._numbers) % _MOST_SESSIONS

    @staticmethod
    def adopt(parent: VclSession, session: VclSession) -> None:
        """Make a stream the child of its connection, or a connection of its listener."""
        session.parent = parent
        parent.children[session] = None

    @staticmethod
    def disown(session: VclSession) -> None:
        """Remove a session from its parent. Idempotent."""
        if session.parent is not None:
            del session.parent.children[session]
            session.parent.n_accepted -= session.is_counted
        session.parent, session.is_counted = None, False

    def get(self, sh: int) -> VclSession:
        """Return a session; raises EBADFD if the number is none of this worker's sessions."""
        found = self._sessions.get(sh) if isinstance(sh, int) else None
        if found is None:
            raise error(errno.EBADFD)
        return found

    def get_open(self, sh: int) -> VclSession:
        """Return a session as `get` does, but raise EBADFD for an epoll session as well."""
        session = self.get(sh)
        if session.kind is Kind.EPOLL:
            raise error(errno.EBADFD)
        return session

    def get_epoll(self, sh: int) -> EpollSet:
        """Return an epoll set; raises EBADFD, and EINVAL for another kind of session."""
        self.get(sh)
        if sh not in self.epolls:
            raise error(errno.EINVAL)
        return self.epolls[sh]

    @property
    def sessions(self) -> list[VclSession]:
        return list(self._sessions.values())

    def remove(self, session: VclSession) -> None:
        """Free a session's number."""
        for each in list(session.sets):
            each.remove(session)
        self._sessions.pop(session.sh, None)
        self.disown(session)
        if session not in self._lingering:
            self.forget_handles(session)
        self._take_call(session.token)

    def forget_handles(self, session: VclSession) -> None:
        """Ignore what the stack reports about a session from now on."""
        for handle in (session.handle, session.stream_handle):
            if self._by_handle.get(handle) is session:
                del self._by_handle[handle]
        session.handle = session.stream_handle = -1

    # --- calls -------------------------------------------------------------------------------

    def call(self, session: VclSession, make_request: Callable[[int], m.Request]) -> None:
        """Send a request whose reply is about a session."""
        session.token = next(self._tokens)
        self._calls[session.token] = session
        self.side.request(make_request(session.token))

    def open_stream(self, session: VclSession, connection: int) -> None:
        """Ask for a stream in a connection; the reply is about the session."""
        session.token = next(self._tokens)
        self._calls[session.token] = session
        self.side.open_stream(connection, False, session.token)

    def give_up(self, session: VclSession) -> None:
        """Cancel a session's request: whatever it still creates is closed."""
        if session.token:
            self.side.request(m.Cancel(session.token))
            self._take_call(session.token)
        is_stream = session.parent is not None and session.parent.kind is Kind.CONNECTION
        if session.handle >= 0 and not is_stream:
            self.side.request(m.CloseConnection(session.handle, 0, ""))

    def wait(self, is_done: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Wait until `is_done`; return False if that takes longer than the timeout."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while not is_done():
            remaining = None if end is None else end - time.monotonic()
            if remaining is not None and remaining <= 0:
                return False
            self.pump(remaining)
        return True

    def pump(self, timeout_s: float | None = 0.0) -> None:
        """Handle the stack's messages; if there are none, wait that long for some."""
        if self._lingering:
            linger_s = max(0.0, min(self._lingering.values()) - time.monotonic())
            timeout_s = linger_s if timeout_s is None else min(timeout_s, linger_s)
        if self.client.is_gone and timeout_s is None and not self.side.has_notices:
            raise error(errno.ECONNRESET, "the daemon has ended")
        try:
            self.client.wait(0.0 if self._notices else timeout_s)
        except CodecError as caught:
            raise error(errno.EPROTO, str(caught)) from None
        self._notices.extend(self.side.take_notices())
        while self._notices:
            notice = self._notices.popleft()
            handler = self._handlers.get(type(notice))
            if self._is_early(notice):
                self._early_notices.append(notice)
            elif handler is not None:  # else VCL has no use for it
                handler(notice)
        for token, handle, _, end in self.side.take_opened():
            self._on_opened(token, handle, end)
        for handle, _ in self.side.take_events():
            self._touch(handle)
        while count := lib.hs_side_take(self.side.side, self._keys, _WAKES):
            for key in ffi.unpack(self._keys, count):
                if key == lib.HS_WAKE_ALL:
                    for handle in list(self._by_handle):
                        self._touch(handle)
                else:
                    self._touch(key >> 2)
        if self.client.is_gone:
            self._end_listeners()
        self._end_lingering(time.monotonic())

    def _touch(self, handle: int) -> None:
        session = self._by_handle.get(handle)
        if session is None:
            return
        if session.state is State.CONNECTING and session.is_offered:
            self._accept_only_stream(session)
        session.touch()

    def _end_listeners(self) -> None:
        """Close the listeners: the daemon has ended, so no more connections arrive."""
        for session in self._sessions.values():
            if session.state is State.LISTENING:
                self._end(session, errno.ECONNRESET, False)

    def linger(self, connection: VclSession) -> None:
        """Keep a closed connection open while some of its streams have data to send."""
        self._lingering[connection] = time.monotonic() + self.LINGER_S
        self._by_handle[connection.handle] = connection

    def _end_lingering(self, now: float) -> None:
        for connection, deadline in list(self._lingering.items()):
            is_over = connection.state is State.CLOSED
            if is_over or not connection.has_unfinished or now >= deadline:
                del self._lingering[connection]
                self._by_handle.pop(connection.handle, None)
                if not is_over:
                    # Data that the peer has not acknowledged by now is discarded.
                    code = ABORTED_CODE if connection.has_unfinished else 0
                    self.side.request(m.CloseConnection(connection.handle, code, ""))

    def close(self, *, aborts: bool = False) -> None:
        """Close all sessions, and detach. Waits until their data is sent, unless they are
        aborted."""
        for session in self.sessions:
            if session.sh in self._sessions:  # not removed with its connection
                session.is_nonblocking = True
                (abort if aborts else close)(self, session)
        self.wait(self._has_said_all, self.LINGER_S)
        self.client.close()

    def _has_said_all(self) -> bool:
        self._end_lingering(time.monotonic())
        return self.client.is_gone or (not self._lingering and self.client.has_said_all())

    # --- notices -----------------------------------------------------------------------------

    def _is_early(self, notice: m.Notice) -> bool:
        """Whether a connection of a listener that is still being opened is concerned: one worker of
        the daemon accepts while another is still asked."""
        handle = getattr(notice, "handle", -1)
        if isinstance(notice, m.Accepted):
            is_early = bool(self._calls) and notice.listener not in self._by_handle
        else:
            is_early = getattr(notice, "connection", handle) in self._early_handles
        if is_early:
            self._early_handles.add(handle)
        return is_early

    def _take_call(self, token: int) -> VclSession | None:
        """Return a call's session, and handle early notices again: the call may have opened their
        listener."""
        self._notices.extendleft(reversed(self._early_notices))
        self._early_notices.clear()
        self._early_handles.clear()
        session = self._calls.pop(token, None)
        if session is not None:
            session.token = 0
        return session

    def _on_failed(self, notice: m.Failed) -> None:
        session = self._take_call(notice.token)
        if session is None:
            return
        session.error = notice.errno or errno.ECONNREFUSED
        if session.handle >= 0 and session.protocol == "tcp":
            self.side.request(m.CloseConnection(session.handle, 0, ""))
            self._by_handle.pop(session.handle, None)
            session.handle = -1
        session.state = State.FAILED
        session.touch()

    def _on_listening(self, notice: m.Listening) -> None:
        session = self._take_call(notice.token)
        if session is None:
            self.side.request(m.Unlisten(notice.handle))
            return
        session.handle, session.local = notice.handle, notice.local
        session.kind, session.state = Kind.LISTENER, State.LISTENING
        self._by_handle[notice.handle] = session

    def _on_connected(self, notice: m.Connected) -> None:
        session = self._take_call(notice.token)
        side = self.side.hold(notice.handle)
        if session is None:
            self._early.pop(notice.handle, None)
            self.side.request(m.CloseConnection(notice.handle, 0, ""))
            return
        session.handle, session.local = notice.handle, notice.local
        session.side = side
        session.remote = notice.remote if notice.remote[1] else session.remote
        self._by_handle[notice.handle] = session
        if session.protocol == "tcp":
            self.open_stream(session, notice.handle)
            return
        session.kind = Kind.CONNECTION
        self._ready(session)

    def _ready(self, session: VclSession) -> None:
        early = self._early.pop(session.handle, None)
        if early is not None:
            self._set_datagrams(session, early)
        session.state = State.READY
        session.touch()

    def _on_opened(self, token: int, handle: int, end: Any) -> None:
        session = self._take_call(token)
        if session is None:
            lib.hs_end_close(end, True, 0)
            return
        self._set_stream(session, handle, ByteStream(end, has_tx=True))
        self._ready(session)

    def _set_stream(self, session: VclSession, handle: int, stream: ByteStream) -> None:
        session.kind = Kind.STREAM
        session.stream_handle = handle
        session.set_stream(stream)
        self._by_handle[handle] = session

    def _accept(self, connection: VclSession) -> tuple[int, ByteStream] | None:
        """Return the handle of the next stream that the peer opened, and the stream; None if there
        is none: the connection is touched when there is."""
        accepted = self._accepted
        if not lib.hs_end_accept(connection.side, accepted):
            return None
        end = self.side.hold_end(accepted.handle, accepted.end)
        return accepted.handle, ByteStream(end, has_tx=bool(accepted.has_tx))

    def accept_stream(self, connection: VclSession) -> VclSession:
        """Return a session for the next stream of a QUIC connection that has one."""
        found = self._accept(connection)
        assert found is not None
        stream = self.add(connection.protocol, kind=Kind.STREAM)
        self.adopt(connection, stream)
        stream.handle = connection.handle
        stream.local, stream.remote = connection.local, connection.remote
        self._set_stream(stream, *found)
        self._ready(stream)
        return stream

    def take(self, session: VclSession) -> None:
        """Tell the stack that a connection was accepted or dropped, so that it may report more."""
        self.side.signal_taken(session.handle)

    def _on_accepted(self, notice: m.Accepted) -> None:
        listener = self._by_handle.get(notice.listener)
        side = self.side.hold(notice.handle)
        if listener is None or not listener.is_listener:
            self.side.signal_taken(notice.handle)
            self.side.request(m.CloseConnection(notice.handle, 0, "the listener is closed"))
            return
        session = self.add(listener.protocol, kind=Kind.CONNECTION)
        self.adopt(listener, session)
        session.is_offered = True
        session.handle, session.local, session.remote = notice.handle, notice.local, notice.remote
        session.side = side
        self._by_handle[notice.handle] = session
        # With TCP the program accepts only the stream, which is reported next.
        if PROTOCOLS[session.protocol].streams != "one":
            self._ready(session)
            self._offer(listener, session)
        else:
            session.state = State.CONNECTING
            self._accept_only_stream(session)

    def _accept_only_stream(self, connection: VclSession) -> None:
        """Offer an accepted TCP connection when its stream is there."""
        found = self._accept(connection)
        if found is not None:
            self._set_stream(connection, *found)
            self._ready(connection)
            assert connection.parent is not None
            self._offer(connection.parent, connection)

    def _on_listener_lost(self, notice: m.ListenerLost) -> None:
        session = self._by_handle.get(notice.handle)
        if session is not None:
            self._end(session, errno.ECONNRESET, False)

    def _offer(self, parent: VclSession, session: VclSession) -> None:
        parent.accepted.append(session)
        parent.touch()

    def _on_datagrams_ready(self, notice: m.DatagramsReady) -> None:
        self.side.signal_noted(notice.handle)
        session = self._by_handle.get(notice.handle)
        if session is None:
            self._early[notice.handle] = notice
        else:
            self._set_datagrams(session, notice)

    def _set_datagrams(self, session: VclSession, notice: m.DatagramsReady) -> None:
        if session.protocol != "udp":
            return  # VCL has no QUIC datagrams
        session.kind = Kind.DATAGRAMS
        session.rx, session.tx = notice.rx, notice.tx
        session.stream_handle = notice.handle
        session.max_datagram_bytes = notice.max_bytes

    def _on_path_changed(self, notice: m.PathChanged) -> None:
        self.side.signal_noted(notice.handle)
        session = self._by_handle.get(notice.handle)
        if session is not None:
            session.local, session.remote = notice.local, notice.remote

    def _on_closed(self, notice: m.Closed) -> None:
        self._early.pop(notice.handle, None)
        connection = self._by_handle.get(notice.handle)
        if connection is None:
            return
        info = notice.info
        if connection.side is not None:
            lib.hs_end_connection_gone(connection.side)
        for session in (connection, *connection.children):
            self._end(session, errno_of(info, session.protocol), info.code == 0)
        if connection in self._lingering:
            connection.state = State.CLOSED

    def end_with_connection(self, stream: VclSession) -> None:
        """End a stream whose connection is closed here; its received data can still be read."""
        if stream.state is State.CONNECTING:
            self.give_up(stream)
        if stream.state is not State.CLOSED:
            self._end(stream, errno.ECONNRESET, False)
        self.forget_handles(stream)
        self.disown(stream)

    def _end(self, session: VclSession, number: int, is_clean: bool) -> None:
        if session.state is State.CONNECTING:
            session.error, session.state = number, State.FAILED
        else:
            session.end_errno, session.ends_clean = number, is_clean
            session.state = State.CLOSED
        session.touch()
