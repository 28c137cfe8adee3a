"""The application's side of the boundary: sends requests, dispatches notices, wakes tasks.

It knows no kind of object and no loop: trio's are in this folder, asyncio's in hoststack/aio.
"""

from __future__ import annotations

import errno
import itertools
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, ClassVar, Final, NamedTuple, Protocol, TypeVar

from hoststack.boundary import messages as m
from hoststack.boundary.application import ApplicationSide
from hoststack.native.session._session import ffi, lib
from hoststack.quic.seam import CloseInfo

T = TypeVar("T")

#: Up to so many bytes are copied once more rather than looked at in two calls.
FEW_BYTES: Final = 8192
#: Of an operation that need not wait; so many count as one operation more.
_BYTES_OF_A_CALL: Final = 1024
#: Wake-ups that are taken with one call.
_WAKES: Final = 256
_WAKE_ALL: Final = int(lib.HS_WAKE_ALL)
_ENDED: Final = "the stack has ended"


class Event(Protocol):
    """As trio.Event and asyncio.Event."""

    def set(self) -> object: ...
    def wait(self) -> Awaitable[object]: ...


class Lot(Protocol):
    """As trio.lowlevel.ParkingLot: tasks that wait, the oldest first."""

    def park(self) -> Awaitable[None]: ...
    def unpark(self, *, count: int = 1) -> object: ...
    def unpark_all(self) -> object: ...
    def __bool__(self) -> bool: ...


class Made(Protocol):
    """What a request makes."""

    def _abandon(self) -> None:
        """Close it: the caller was cancelled."""


class ConnectionHere(Made, Protocol):
    """What the router needs of a connection."""

    _side: Any

    @property
    def handle(self) -> int: ...
    @property
    def _openers(self) -> tuple[Lot, Lot]: ...
    def _on_wake(self) -> None: ...
    def _on_closed(self, info: CloseInfo) -> None: ...
    def _on_handshake_done(self, notice: m.HandshakeDone) -> None: ...
    def _on_path_changed(self, notice: m.PathChanged) -> None: ...
    def _on_datagrams_ready(self, notice: m.DatagramsReady) -> None: ...
    def _on_datagram_event(self, code: int) -> None: ...
    def _take(self) -> None: ...


class ListenerHere(Made, Protocol):
    """What the router needs of a listener."""

    def close(self) -> None: ...
    def _on_accepted(self, connection: Any) -> None: ...
    def _on_lost(self, why: str) -> None: ...


class Kinds(NamedTuple):
    """The objects of an API."""

    connection: Callable[[Any, m.Connected | m.Accepted], ConnectionHere]
    listener: Callable[[Any, int, tuple[str, int]], ListenerHere]
    stream: Callable[..., Made]
    send_stream: Callable[..., Made]
    receive_stream: Callable[..., Made]


Reply = m.Failed | m.Statistics | m.Done | Made


class _Call:
    """A request that waits for its reply."""

    def __init__(self, done: Event) -> None:
        self.done = done
        self.reply: Reply | None = None


class Router(ABC):
    """The objects of one application by handle, and its pending calls by token."""

    calls_in_a_row: ClassVar[int] = 32
    """Operations that need not wait, before one lets other tasks run."""

    def __init__(self, application: ApplicationSide, kinds: Kinds) -> None:
        self._application = application
        self._kinds = kinds
        self._tokens = itertools.count(1)
        self._calls: dict[int, _Call] = {}
        self._is_ended = False
        self._calls_left = 0
        self._listeners: dict[int, ListenerHere] = {}
        self._connections: dict[int, ConnectionHere] = {}
        self._listens = 0
        """Calls that wait for a listener."""
        self._early_accepted: dict[int, list[ConnectionHere]] = {}
        """Connections of listeners whose reply has not arrived yet, by the listener's handle: one
        worker of a daemon accepts while another is still asked."""
        self._opens: dict[int, tuple[ConnectionHere, bool]] = {}
        """Connection and direction of streams that workers in other processes were asked for, by
        token."""
        self._sleepers: dict[int, Callable[[], object]] = {}
        """What wakes a task that waits for a stream, by key (native/session/end.h)."""
        self._lots: dict[int, Lot] = {}
        """The same, where several may wait."""
        self._keys = ffi.new("uint64_t[]", _WAKES)
        self.room = ffi.new("uint8_t[]", FEW_BYTES)
        """Where streams read to: another thread may have a router of its own."""
        self.room_bytes = ffi.buffer(self.room)
        self._accepted = ffi.new("struct hs_accepted *")
        self.act = application.act
        self.has_turned = application.before_sleep
        self._reloads = 0
        """How often this application was asked to read its certificates again."""
        self._reloading = self.new_lot()
        self._early_datagrams: dict[int, m.DatagramsReady] = {}
        """For connections whose own notice has not arrived yet."""
        self._notices: dict[type, Callable[[Any], None]] = {
            m.Failed: self._on_failed,
            m.Statistics: self._on_statistics,
            m.Listening: self._on_listening,
            m.Connected: self._on_connected,
            m.Accepted: self._on_accepted,
            m.ListenerLost: self._on_listener_lost,
            m.ReloadRequested: self._on_reload_requested,
            m.HandshakeDone: self._on_handshake_done,
            m.StreamsAvailable: self._on_streams_available,
            m.DatagramsReady: self._on_datagrams_ready,
            m.PathChanged: self._on_path_changed,
            m.Done: self._on_done,
            m.Closed: self._on_closed,
        }
        application.wake_application = self._collect

    def must_yield(self, size_bytes: int = 0) -> bool:
        """Return whether an operation that need not wait lets other tasks run: a trip through the
        scheduler costs more than a small one."""
        self._calls_left -= 1 + size_bytes // _BYTES_OF_A_CALL
        if self._calls_left > 0:
            return False
        self._calls_left = self.calls_in_a_row
        return True

    # --- out ---

    async def call(self, make_request: Callable[[int], m.Request]) -> Reply:
        """Send a request and wait for its reply; if cancelled, cancel the request."""
        token = next(self._tokens)
        if self._is_ended:
            await self.checkpoint()
            return m.Failed(token, errno.ECONNRESET, _ENDED)
        request = make_request(token)
        is_listen = isinstance(request, m.Listen)
        self._listens += is_listen
        try:
            return await self._wait_for(token, lambda: self._application.request(request))
        finally:
            self._listens -= is_listen
            if not self._listens:
                self._abandon_early()

    async def _wait_for(self, token: int, ask: Callable[[], None]) -> Reply:
        call = self._calls[token] = _Call(self.new_event())
        ask()
        try:
            await call.done.wait()
        except BaseException:
            self._application.request(m.Cancel(token))
            self._give_up(call.reply)
            raise
        finally:
            del self._calls[token]
        assert call.reply is not None
        return call.reply

    def post(self, request: m.Request) -> None:
        """Send a request that has no reply."""
        self._application.request(request)

    def signal_sent(self, handle: int) -> None:
        """Signal the worker that a tx FIFO has data."""
        self._application.signal_sent(handle)

    def signal_consumed(self, handle: int, is_urgent: bool) -> None:
        """Signal the worker that an rx FIFO has more room; urgent if a peer may wait for that."""
        self._application.signal_consumed(handle, is_urgent)

    def signal_taken(self, handle: int) -> None:
        """Signal the worker that the program accepted a connection or stream of a peer."""
        self._application.signal_taken(handle)

    def forget_listener(self, handle: int) -> None:
        self._listeners.pop(handle, None)

    def close_listeners(self) -> None:
        """Close all listeners before the stack ends, so that callers in `accept` return."""
        for listener in list(self._listeners.values()):
            listener.close()

    def end(self) -> None:
        """Fail all calls, those to come as well: nothing answers them any more."""
        self._is_ended = True
        self._reloading.unpark_all()
        for token in list(self._calls):
            self._reply(token, m.Failed(token, errno.ECONNRESET, _ENDED))

    async def reload_requests(self) -> AsyncIterator[None]:
        """See AboutStack."""
        seen = self._reloads
        while not self._is_ended:
            if seen == self._reloads:
                await self._reloading.park()
            else:
                seen = self._reloads
                yield

    # --- waiting ---

    closed_error: type[Exception]
    """What is raised for something that the program itself has closed."""
    broken_error: type[Exception]
    """The same for something that broke."""

    @abstractmethod
    async def sleep(self, key: int) -> None:
        """Wait for what a stream waits for; one task at a time. `_sleepers` has what wakes it."""

    @abstractmethod
    async def checkpoint(self) -> None:
        """Let other tasks run, and raise if this one was cancelled, as far as the loop does."""

    @abstractmethod
    async def checkpoint_if_cancelled(self) -> None:
        """Raise if this task was cancelled, as far as the loop does."""

    @abstractmethod
    async def within(self, seconds: float, awaitable: Coroutine[Any, Any, T]) -> T | None:
        """Return the result, or None if there is none in that time: it is cancelled."""

    @abstractmethod
    async def shielded_checkpoint(self) -> None:
        """Let other tasks run, as far as the loop does."""

    @abstractmethod
    def new_event(self) -> Event:
        """Return an event of the loop."""

    @abstractmethod
    def new_lot(self) -> Lot:
        """Return a parking lot of the loop."""

    async def park(self, key: int) -> None:
        """Wait as `sleep` does, with any number of tasks."""
        lot = self._lots.get(key)
        if lot is None:
            lot = self._lots[key] = self.new_lot()
        await lot.park()

    def _wake(self) -> None:
        side, keys, sleepers = self._application.side, self._keys, self._sleepers
        woken = 0
        while count := lib.hs_side_take(side, keys, _WAKES):
            for key in ffi.unpack(keys, count):
                if key == _WAKE_ALL:
                    self._wake_all()
                    break
                wake = sleepers.pop(key, None)
                if wake is not None:
                    wake()
                elif key in self._lots:
                    self._lots.pop(key).unpark_all()
                elif (connection := self._connections.get(key >> 2)) is not None:
                    connection._on_wake()
            woken += count
        self._application.runnable = woken

    def _wake_all(self) -> None:
        """Have everything that waits look again."""
        sleepers, lots = list(self._sleepers.values()), list(self._lots.values())
        self._sleepers.clear()
        self._lots.clear()
        for wake in sleepers:
            wake()
        for lot in lots:
            lot.unpark_all()
        for connection in self._connections.values():
            connection._on_wake()

    # --- streams ---

    def hold(self, handle: int) -> Any:
        """Return the struct hs_end_connection of a new connection."""
        return self._application.hold(handle)

    def accept(self, connection: ConnectionHere) -> Any:
        """Return the next stream that the peer opened; None if there is none yet."""
        accepted = self._accepted
        if not lib.hs_end_accept(connection._side, accepted):
            return None
        handle = accepted.handle
        end = self._application.hold_end(handle, accepted.end)
        self._application.runnable += 1
        if accepted.hints:
            self.act(accepted.hints)
        kind = self._kinds.stream if accepted.has_tx else self._kinds.receive_stream
        return kind(self, connection, end, handle, accepted.stream_id)

    async def open_stream(self, connection: ConnectionHere, *, unidirectional: bool) -> Any:
        """Open a stream; waits while the peer's limit forbids it. Raises OSError."""
        plane = self._application.plane
        if plane is None:
            return await self._open_elsewhere(connection, unidirectional)
        waiting = connection._openers[unidirectional]
        opened = None
        if not waiting:
            opened = self._open_here(connection, unidirectional)
            if opened is not None and self.must_yield():
                await self.shielded_checkpoint()
        while opened is None:
            await waiting.park()
            try:
                opened = self._open_here(connection, unidirectional)
            except OSError:
                # The credit is the next one's.
                self.wake_openers(connection, unidirectional)
                raise
        end, handle, stream_id = opened
        kind = self._kinds.send_stream if unidirectional else self._kinds.stream
        return kind(self, connection, end, handle, stream_id)

    async def _open_elsewhere(self, connection: ConnectionHere, unidirectional: bool) -> Any:
        token = next(self._tokens)
        self._opens[token] = connection, unidirectional
        try:
            reply = await self._wait_for(
                token,
                lambda: self._application.open_stream(connection.handle, unidirectional, token),
            )
        finally:
            del self._opens[token]
        if isinstance(reply, m.Failed):
            raise OSError(reply.errno, reply.text)
        return reply

    def _open_here(
        self, connection: ConnectionHere, unidirectional: bool
    ) -> tuple[Any, int, int] | None:
        plane = self._application.plane
        assert plane is not None
        return plane.open_here(self._application, connection.handle, unidirectional=unidirectional)

    def wake_openers(self, connection: ConnectionHere, unidirectional: bool) -> None:
        """Have tasks that wait to open a stream try, as many as the peer allows."""
        waiting = connection._openers[unidirectional]
        plane = self._application.plane
        if waiting and plane is not None:
            waiting.unpark(count=plane.openings(connection.handle, unidirectional))

    # --- in ---

    def _collect(self) -> None:
        for notice in self._application.take_notices():
            try:
                self._notices[type(notice)](notice)
            except Exception as error:
                self._application.on_bad_notice(notice, error)
        for token, handle, stream_id, end in self._application.take_opened():
            self._on_opened(token, handle, stream_id, end)
        for handle, code in self._application.take_events():
            if handle in self._connections:
                self._connections[handle]._on_datagram_event(code)
        self._wake()

    def _reply(self, token: int, reply: Reply) -> None:
        call = self._calls.get(token)
        if call is None:
            # Its caller was cancelled while the reply was on its way.
            self._give_up(reply)
        else:
            call.reply = reply
            call.done.set()

    def _give_up(self, reply: Reply | None) -> None:
        """Close the result of a call whose caller was cancelled."""
        if reply is not None and not isinstance(reply, m.Failed | m.Statistics | m.Done):
            reply._abandon()

    def _on_failed(self, notice: m.Failed) -> None:
        self._reply(notice.token, notice)

    def _on_statistics(self, notice: m.Statistics) -> None:
        self._reply(notice.token, notice)

    def _on_done(self, notice: m.Done) -> None:
        self._reply(notice.token, notice)

    def _on_listening(self, notice: m.Listening) -> None:
        listener = self._kinds.listener(self, notice.handle, notice.local)
        self._listeners[notice.handle] = listener
        for connection in self._early_accepted.pop(notice.handle, ()):
            listener._on_accepted(connection)
        self._reply(notice.token, listener)

    def _on_connected(self, notice: m.Connected) -> None:
        self._reply(notice.token, self._add_connection(notice))

    def _on_accepted(self, notice: m.Accepted) -> None:
        connection = self._add_connection(notice)
        listener = self._listeners.get(notice.listener)
        if listener is not None:
            listener._on_accepted(connection)
            return
        self._early_accepted.setdefault(notice.listener, []).append(connection)
        if not self._listens:
            self._abandon_early()

    def _abandon_early(self) -> None:
        """Close the connections of listeners that are not there, and will not be."""
        for connections in self._early_accepted.values():
            for connection in connections:
                connection._take()
                connection._abandon()
        self._early_accepted.clear()

    def _on_listener_lost(self, notice: m.ListenerLost) -> None:
        listener = self._listeners.pop(notice.handle, None)
        if listener is not None:
            listener._on_lost(notice.text)

    def _on_reload_requested(self, _: m.ReloadRequested) -> None:
        self._reloads += 1
        self._reloading.unpark_all()

    def _on_handshake_done(self, notice: m.HandshakeDone) -> None:
        connection = self._connections.get(notice.handle)
        if connection is not None:
            connection._on_handshake_done(notice)

    def _add_connection(self, notice: m.Connected | m.Accepted) -> ConnectionHere:
        connection = self._kinds.connection(self, notice)
        self._connections[notice.handle] = connection
        early = self._early_datagrams.pop(notice.handle, None)
        if early is not None:
            connection._on_datagrams_ready(early)
        return connection

    def _on_opened(self, token: int, handle: int, stream_id: int, end: Any) -> None:
        if token not in self._opens:
            lib.hs_end_close(end, True, 0)  # its caller was cancelled
            return
        connection, is_unidirectional = self._opens[token]
        kind = self._kinds.send_stream if is_unidirectional else self._kinds.stream
        self._reply(token, kind(self, connection, end, handle, stream_id))

    def _on_streams_available(self, notice: m.StreamsAvailable) -> None:
        connection = self._connections.get(notice.handle)
        if connection is not None:
            for unidirectional in (False, True):
                self.wake_openers(connection, unidirectional)

    def _on_datagrams_ready(self, notice: m.DatagramsReady) -> None:
        connection = self._connections.get(notice.handle)
        if connection is None:
            self._early_datagrams[notice.handle] = notice
        else:
            connection._on_datagrams_ready(notice)
        self._application.signal_noted(notice.handle)

    def _on_path_changed(self, notice: m.PathChanged) -> None:
        connection = self._connections.get(notice.handle)
        if connection is not None:
            connection._on_path_changed(notice)
        self._application.signal_noted(notice.handle)

    def _on_closed(self, notice: m.Closed) -> None:
        self._early_datagrams.pop(notice.handle, None)
        connection = self._connections.pop(notice.handle, None)
        if connection is None:
            return
        connection._on_closed(notice.info)
        if self._application.plane is None:
            lib.hs_end_connection_gone(connection._side)
