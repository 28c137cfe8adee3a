"""All workers of a daemon, presented to the application's objects as one.

Requests about a session go to the worker named in its handle. Connects go to the workers round
robin. A listener exists at every worker. When a worker dies, its sessions are reported closed; its
successor gets the listeners again.
"""

from __future__ import annotations

import errno
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from hoststack.boundary import messages as m
from hoststack.boundary.application import Plane, known_sessions
from hoststack.boundary.attached_worker import AttachedWorker, Opened
from hoststack.boundary.handle import worker_of
from hoststack.boundary.protocols import PROTOCOLS
from hoststack.native.session._session import ffi, lib
from hoststack.quic.seam import CloseInfo
from hoststack.quic.session_cache import ServerSessions
from hoststack.quic.tls import TlsConfig

#: First token of requests that this module makes itself. The application's tokens are smaller.
_FIRST_OWN_TOKEN: Final = 1 << 60
#: RFC 9000 section 20.1: INTERNAL_ERROR.
_INTERNAL_ERROR: Final = 1
_GONE: Final = "the worker died"

_WAKES: Final = int(lib.HS_END_WAKES)


@dataclass(slots=True, eq=False)
class _Listener:
    """One listener of the application, at all workers."""

    request: m.Listen
    handle: int | None = None
    """The handle that the application uses: the first worker's."""
    at: dict[int, int] = field(default_factory=dict)
    """Handles by worker."""
    missing: int = 0
    """Workers that have not answered yet."""
    told: dict[int, TlsConfig] = field(default_factory=dict)
    """The certificates with which each worker was told to listen."""
    refused: set[int] = field(default_factory=set)
    """Workers that refused it after another worker had accepted it."""
    is_over: bool = False

    @property
    def is_at_one(self) -> bool:
        """Whether only one worker has it, since a kernel socket has one owner. Another worker gets
        it only when that worker is gone."""
        return PROTOCOLS[self.request.protocol].is_kernels


@dataclass(slots=True, eq=False)
class _Replacement:
    """Other certificates for a listener: one worker shows whether they can be used, then all others
    get them."""

    request: m.ReplaceTls
    listener: _Listener
    is_accepted: bool = False
    missing: int = 0
    """Workers that have not answered yet."""
    failure: m.Failed | None = None


class AttachedWorkers:
    """The application's side of boundary/application.py, for several workers."""

    def __init__(self, engine: str) -> None:
        """Start without workers; `engine` is the name of the engine that all of them run."""
        self.engine = engine
        self.wake_application: Callable[[], None] = lambda: None
        self.side = ffi.gc(lib.hs_side_new(), lib.hs_side_free)
        self.runnable = 0
        self.plane: Plane | None = None
        self._workers: dict[int, AttachedWorker] = {}
        self._next: deque[int] = deque()
        self._absent: set[int] = set()
        """Workers that died. The daemon replaces them unless it ends."""
        self._notices: list[m.Notice] = []
        self._calls: dict[int, int] = {}  # worker by token
        self._connections: dict[int, set[int]] = {}  # handles by worker
        self._sides: dict[int, Any] = {}
        """What `hold` returns of workers that died."""
        self._sessions: dict[int, ServerSessions] = {}  # by the connect's token
        self._connect_tokens: dict[int, int] = {}  # by handle
        self._listeners: list[_Listener] = []
        self._own_calls: dict[int, _Listener] = {}
        self._replacements: dict[int, tuple[int, _Replacement]] = {}
        """Worker and replacement, by the token of a request of this module."""
        self._own_tokens = itertools.count(_FIRST_OWN_TOKEN)

    # --- workers ------------------------------------------------------------------------------

    def add(self, index: int, worker: AttachedWorker) -> None:
        """Add a worker, which may replace one that died."""
        assert index not in self._workers
        self._workers[index] = worker
        worker.join(self.side)
        self._absent.discard(index)
        self._next.append(index)
        self._connections[index] = set()
        worker.wake_application = lambda: self.wake_application()
        for listener in self._listeners:
            if listener.handle is not None and not (listener.is_at_one and listener.at):
                self._listen_at(index, listener)

    def remove(self, index: int) -> None:
        """Remove a worker that died, and report what it said last and the loss of everything that
        it served."""
        self._workers[index].hear_out()
        self._take_all(index, self._workers[index])
        self._sides.update(self._workers.pop(index).take_sides())
        self._absent.add(index)
        self._next.remove(index)
        info = CloseInfo(_INTERNAL_ERROR, False, _GONE, False)
        for handle in self._connections.pop(index):
            self._notices.append(m.Closed(handle, info))
            self._forget_sessions(handle)
        for token, worker in list(self._calls.items()):
            if worker == index:
                self._notices.append(m.Failed(token, errno.ECONNRESET, _GONE))
                del self._calls[token]
                self._sessions.pop(token, None)
        for token, listener in list(self._own_calls.items()):
            if listener.at.get(index) == -token:
                self._on_reply_to_own(m.Failed(token, errno.ECONNRESET, _GONE))
        for listener in self._listeners:
            listener.at.pop(index, None)
            listener.refused.discard(index)
            if listener.is_at_one and not listener.at and listener.handle is not None:
                other = self._pick()
                if other >= 0:
                    self._listen_at(other, listener)
        for token, (worker, _) in list(self._replacements.items()):
            if worker == index:
                self._on_replaced(m.Failed(token, errno.ECONNRESET, _GONE))
        self.wake_application()

    def end(self, why: str = "the daemon has ended") -> None:
        """Report that all listeners are lost: the daemon ended, or detached this application."""
        for listener in list(self._listeners):
            self._lose_listener(listener, why)
        self.wake_application()

    # --- down --------------------------------------------------------------------------------

    def request(self, request: m.Request) -> None:
        match request:
            case m.Listen():
                self._listen(request)
            case m.Unlisten():
                self._unlisten(request)
            case m.ReplaceTls():
                self._replace_tls(request)
            case m.Cancel():
                self._cancel(request)
            case m.Connect():
                self._connect(request)
            case m.Bind():
                self._call(request.token, self._pick(), request)
            case m.Migrate() | m.GetStatistics():
                self._call(request.token, worker_of(request.handle), request)
            case _:
                self._send(worker_of(request.handle), request)

    def signal_sent(self, handle: int) -> None:
        worker = self._workers.get(worker_of(handle))
        if worker is not None:
            worker.signal_sent(handle)

    def signal_consumed(self, handle: int, is_urgent: bool = True) -> None:
        worker = self._workers.get(worker_of(handle))
        if worker is not None:
            worker.signal_consumed(handle, is_urgent)

    def act(self, hints: int) -> None:
        """Do what an operation on a stream asks for (enum hs_end_hint)."""
        if hints & _WAKES:
            self.wake_application()

    def hold(self, handle: int) -> Any:
        """Return the struct hs_end_connection of a new connection."""
        if handle in self._sides:
            return self._sides.pop(handle)
        return self._workers[worker_of(handle)].hold(handle)

    def hold_end(self, handle: int, end: Any) -> Any:
        """Own the struct hs_end of an accepted stream."""
        worker = self._workers.get(worker_of(handle))
        return ffi.gc(end, lib.hs_end_drop) if worker is None else worker.hold_end(handle, end)

    def open_stream(self, connection: int, unidirectional: bool, token: int) -> None:
        """Ask for a stream; `take_opened` or a Failed follows."""
        index = worker_of(connection)
        worker = self._workers.get(index)
        if worker is None:
            self._fail(token)
            return
        self._calls[token] = index
        worker.open_stream(connection, unidirectional, token)

    def take_opened(self) -> list[Opened]:
        """Return the streams opened since the last call."""
        opened: list[Opened] = []
        for worker in self._workers.values():
            opened += worker.take_opened()
        for each in opened:
            self._calls.pop(each.token, None)
        return opened

    def before_sleep(self) -> bool:
        """Return False: the workers were notified of each write."""
        return False

    def signal_taken(self, handle: int) -> None:
        worker = self._workers.get(worker_of(handle))
        if worker is not None:
            worker.signal_taken(handle)

    def signal_noted(self, handle: int) -> None:
        worker = self._workers.get(worker_of(handle))
        if worker is not None:
            worker.signal_noted(handle)

    def _pick(self) -> int:
        """Return the next worker, round robin; -1 if there is none."""
        if not self._next:
            return -1
        self._next.rotate(-1)
        return self._next[-1]

    def _call(self, token: int, index: int, request: m.Request) -> None:
        if index in self._workers:
            self._calls[token] = index
            self._send(index, request)
        else:
            self._fail(token)

    def _connect(self, request: m.Connect) -> None:
        sessions = known_sessions(request, self.engine)
        if sessions is not None and self._next:
            self._sessions[request.token] = sessions
            known = m.Known(sessions.take(), sessions.take_token())
            request = replace(request, known=known)
        self._call(request.token, self._pick(), request)

    def _learn(self, notice: m.Learned) -> None:
        sessions = self._sessions.get(notice.token)
        if sessions is not None and notice.known.ticket is not None:
            sessions.tickets.append(notice.known.ticket)
        if sessions is not None and notice.known.token:
            sessions.keep_token(notice.known.token)

    def _forget_sessions(self, handle: int) -> None:
        token = self._connect_tokens.pop(handle, None)
        if token is not None:
            self._sessions.pop(token, None)

    def _fail(self, token: int) -> None:
        self._notices.append(
            m.Failed(token, errno.ECONNRESET, "the worker is gone: has the daemon ended?")
        )
        self.wake_application()

    def _send(self, index: int, request: m.Request) -> None:
        worker = self._workers.get(index)
        if worker is not None:
            worker.request(request)

    def _cancel(self, request: m.Cancel) -> None:
        for listener in self._listeners:
            if listener.request.token == request.token and listener.handle is None:
                self._give_up(listener)
                return
        index = self._calls.get(request.token)
        worker = None if index is None else self._workers.get(index)
        if worker is not None and not worker.cancel_stream(request.token):
            worker.request(request)

    # --- listeners ---------------------------------------------------------------------------

    def _listen(self, request: m.Listen) -> None:
        """Listen at one worker first: it resolves port 0, and shows whether the endpoint is
        available at all."""
        listener = _Listener(request)
        index = self._pick() if listener.is_at_one else next(iter(self._workers), -1)
        if index < 0:
            self._fail(request.token)
            return
        self._listeners.append(listener)
        self._listen_at(index, listener)

    def _listen_at(self, index: int, listener: _Listener) -> None:
        token = next(self._own_tokens)
        self._own_calls[token] = listener
        listener.missing += 1
        listener.at[index] = -token  # no handle yet
        listener.told[index] = listener.request.tls
        self._send(index, replace(listener.request, token=token))

    def _on_reply_to_own(self, notice: m.Listening | m.Failed) -> None:
        listener = self._own_calls.pop(notice.token)
        listener.missing -= 1
        index = next(i for i, handle in listener.at.items() if handle == -notice.token)
        if isinstance(notice, m.Failed):
            del listener.at[index]
            if not listener.is_over and listener.handle is None:
                self._give_up(listener)
                self._notices.append(replace(notice, token=listener.request.token))
            elif not listener.is_over:
                if notice.text != _GONE:
                    listener.refused.add(index)
                self._on_refusal(listener, notice.text)
            return
        if listener.is_over:
            self._send(index, m.Unlisten(notice.handle))
            return
        listener.at[index] = notice.handle
        listener.refused.clear()
        if listener.told[index] is not listener.request.tls:  # replaced meanwhile
            update = m.ReplaceTls(0, notice.handle, listener.request.tls, listener.request.alpn)
            self._replace_at(index, _Replacement(update, listener, is_accepted=True))
        if len(listener.at) == 1 and listener.handle is None:
            # All others listen on the port that this one got.
            listener.request = replace(listener.request, local=notice.local)
            listener.handle = notice.handle
            for other in self._workers:
                if other != index and not listener.is_at_one:
                    self._listen_at(other, listener)
        if not listener.missing:
            self._tell_listening(listener)

    def _on_refusal(self, listener: _Listener, why: str) -> None:
        """Handle the refusal of a listener that another worker had accepted. The listener is lost
        only when no worker is left to try and none is absent."""
        untried = [index for index in self._workers if index not in listener.refused]
        if listener.missing:
            return
        if listener.at:
            self._tell_listening(listener)
        elif untried:
            self._listen_at(untried[0], listener)
        elif not self._absent:
            self._lose_listener(listener, why)

    def _tell_listening(self, listener: _Listener) -> None:
        """Answer the application's Listen, once: token 0 marks it as answered."""
        request = listener.request
        assert listener.handle is not None
        if request.token:
            self._notices.append(m.Listening(request.token, listener.handle, request.local))
            listener.request = replace(request, token=0)

    def _give_up(self, listener: _Listener) -> None:
        listener.is_over = True
        self._listeners.remove(listener)
        for index, handle in listener.at.items():
            if handle >= 0:
                self._send(index, m.Unlisten(handle))

    def _lose_listener(self, listener: _Listener, why: str) -> None:
        self._give_up(listener)
        if listener.request.token:  # the application's Listen is unanswered
            self._notices.append(m.Failed(listener.request.token, errno.ECONNRESET, why))
        elif listener.handle is not None:
            self._notices.append(m.ListenerLost(listener.handle, why))

    def _replace_tls(self, request: m.ReplaceTls) -> None:
        for listener in self._listeners:
            if listener.handle == request.handle:
                self._try_replacement(_Replacement(request, listener))
                return
        self._notices.append(m.Failed(request.token, errno.ENOTCONN, "the listener is closed"))
        self.wake_application()

    def _try_replacement(self, replacement: _Replacement) -> None:
        """Ask one worker."""
        index = next((i for i, handle in replacement.listener.at.items() if handle >= 0), -1)
        if index < 0:
            self._fail(replacement.request.token)
        else:
            self._replace_at(index, replacement)

    def _replace_at(self, index: int, replacement: _Replacement) -> None:
        token = next(self._own_tokens)
        self._replacements[token] = index, replacement
        replacement.missing += 1
        handle = replacement.listener.at[index]
        self._send(index, replace(replacement.request, token=token, handle=handle))

    def _on_replaced(self, notice: m.Done | m.Failed) -> None:
        index, replacement = self._replacements.pop(notice.token)
        request, listener = replacement.request, replacement.listener
        replacement.missing -= 1
        if isinstance(notice, m.Failed):
            is_gone = notice.text == _GONE
            if is_gone and not replacement.is_accepted and not listener.is_over:
                self._try_replacement(replacement)
                return
            text = notice.text
            if replacement.is_accepted:
                text += f": worker {index} keeps the old certificates: try again"
            # A dead worker's successor gets what was accepted.
            if not (is_gone and replacement.is_accepted):
                replacement.failure = replace(notice, token=request.token, text=text)
        elif not replacement.is_accepted:
            replacement.is_accepted = True
            listener.request = replace(listener.request, tls=request.tls)
            for other, handle in listener.at.items():
                if other != index and handle >= 0:
                    self._replace_at(other, replacement)
        if request.token and not replacement.missing:
            self._notices.append(replacement.failure or m.Done(request.token))

    def _unlisten(self, request: m.Unlisten) -> None:
        for listener in self._listeners:
            if listener.handle == request.handle:
                self._give_up(listener)
                return

    # --- up ----------------------------------------------------------------------------------

    @property
    def has_notices(self) -> bool:
        """Whether `take_notices` would return notices that this module made itself."""
        return bool(self._notices)

    def take_notices(self) -> list[m.Notice]:
        for index, worker in list(self._workers.items()):
            self._take_all(index, worker)
        notices, self._notices = self._notices, []
        return notices

    def _take_all(self, index: int, worker: AttachedWorker) -> None:
        for notice in worker.take_notices():
            try:
                self._take(index, notice)
            except Exception as error:
                # For example an answer without a request.
                worker.give_up(error)

    def on_bad_notice(self, notice: m.Notice, error: Exception) -> None:
        """Treat the worker that sent an invalid notice as dead."""
        handle = getattr(notice, "connection", getattr(notice, "handle", 0))
        worker = self._workers.get(worker_of(handle))
        if worker is not None:
            worker.give_up(error)

    def _take(self, index: int, notice: m.Notice) -> None:
        token = getattr(notice, "token", None)
        if token is not None and token >= _FIRST_OWN_TOKEN:
            if token in self._replacements:
                assert isinstance(notice, m.Done | m.Failed)
                self._on_replaced(notice)
            else:
                assert isinstance(notice, m.Listening | m.Failed)
                self._on_reply_to_own(notice)
            return
        if isinstance(notice, m.Learned):
            self._learn(notice)
            return
        if token is not None:
            self._calls.pop(token, None)
        match notice:
            case m.Accepted():
                listener = self._listener_at(index, notice.listener)
                self._connections[index].add(notice.handle)
                if listener is not None and listener.handle is not None:
                    notice = replace(notice, listener=listener.handle)
            case m.Connected():
                self._connections[index].add(notice.handle)
                if notice.token in self._sessions:
                    self._connect_tokens[notice.handle] = notice.token
            case m.Closed():
                self._connections[index].discard(notice.handle)
                self._forget_sessions(notice.handle)
            case m.Failed():
                self._sessions.pop(notice.token, None)
            case m.StreamsAvailable():
                return  # its worker was told
            case _:
                pass
        self._notices.append(notice)

    def _listener_at(self, index: int, handle: int) -> _Listener | None:
        for listener in self._listeners:
            if listener.at.get(index) == handle:
                return listener
        return None

    def take_events(self) -> list[tuple[int, int]]:
        events: list[tuple[int, int]] = []
        for worker in self._workers.values():
            events += worker.take_events()
        return events
