"""The streams of one worker: what the session plane (native/session/session.h) leaves to Python.

The plane has a session for each stream. Here it is told of connections, and connected to transports
that are written in Python, and to applications in other processes, whose FIFOs are made here.
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable, Iterator
from typing import Any, Final, cast

from hoststack.boundary import messages as m
from hoststack.boundary.application import Application
from hoststack.boundary.fifo_pool import FifoSize
from hoststack.native.memory.fifo import Fifo
from hoststack.native.session._session import ffi, lib
from hoststack.quic.seam import (
    ConnectionContext,
    EventKind,
    Fifos,
    StreamContext,
    StreamsInC,
    StreamsInPython,
)
from hoststack.session.about_stream import AboutStream, about_stream
from hoststack.session.session import ConnectionSession, SessionState, SessionTable, no_room
from hoststack.transport.local.cut_through import CutStream, is_cut

#: Events that are taken from the plane with one call.
_EVENTS: Final = 256
_BITS: Final = {
    EventKind.STREAM_OPENED: lib.HS_STREAM_OPENED,
    EventKind.READABLE: lib.HS_STREAM_READABLE,
    EventKind.WRITABLE: lib.HS_STREAM_WRITABLE,
    EventKind.RESET: lib.HS_STREAM_RESET,
    EventKind.STOPPED: lib.HS_STREAM_STOPPED,
    EventKind.SEND_FINISHED: lib.HS_STREAM_FINISHED,
    EventKind.STREAM_CLOSED: lib.HS_STREAM_OVER,
}
NO_ROOM: Final = (
    "the application's FIFOs use all the memory that they may: close streams, or raise "
    "fifo-memory-bytes in the daemon's settings"
)
CLOSED: Final = "the connection is closed"
#: Errors of memfd_create(2), mmap(2) and the limits on an application's FIFOs.
_NO_MEMORY: Final = (errno.ENOMEM, errno.EMFILE, errno.ENFILE)
_NONE: Final = Fifos(None, None)
_MOST_HANDLES: Final = 1 << 64
_SIGNALS: Final = {
    int(m.EventCode.SENT): lib.HS_SIGNAL_SENT,
    int(m.EventCode.CONSUMED): lib.HS_SIGNAL_CONSUMED,
    int(m.EventCode.TAKEN): lib.HS_SIGNAL_TAKEN,
}
#: Names of refusals in `Streams.refused`.
_REFUSALS: Final = {
    "max_sessions": lib.HS_SESSION_MAX_SESSIONS,
    "session_share": lib.HS_SESSION_SHARE,
    "fifo_memory": lib.HS_SESSION_NO_MEMORY,
}


@ffi.def_extern(error=None)  # type: ignore[untyped-decorator]
def hs_python_command(owner: Any, handle: int, command: int, code: int) -> None:
    """Pass a command of the plane to a transport in Python."""
    streams: Streams = ffi.from_handle(owner)
    streams._on_command(handle, command, code)


@ffi.def_extern(error=-1)  # type: ignore[untyped-decorator]
def hs_python_make_stream_fifos(owner: Any, key: int, handle: int, rx: Any, tx: Any) -> int:
    """Make the FIFOs of a stream that the peer of an application in another process opened."""
    streams: Streams = ffi.from_handle(owner)
    return streams._make_fifos(key, handle, rx, tx)


class StreamConnection:
    """A connection as the plane knows it."""

    __slots__ = ("application", "context", "is_announced", "key", "pointer")

    def __init__(
        self, pointer: Any, key: int, application: Application, context: ConnectionContext
    ) -> None:
        self.pointer = pointer
        self.key = key
        self.application = application
        self.context = context
        self.is_announced = False


class Streams:
    """The streams of a worker."""

    def __init__(
        self,
        worker: int,
        first: int,
        sessions: SessionTable,
        transport_of: Callable[[ConnectionContext], StreamsInC | StreamsInPython],
    ) -> None:
        """`first` is the first index of their handles."""
        self._sessions = sessions
        self._transport_of = transport_of
        self._owner = ffi.new_handle(self)
        self._plane = ffi.gc(
            lib.hs_plane_new(
                worker,
                first,
                lib.hs_python_command,
                lib.hs_python_make_stream_fifos,
                self._owner,
            ),
            lib.hs_plane_release,
        )
        if not self._plane:
            raise MemoryError("no memory for the session plane")
        self._keys = itertools.count(worker << 32)
        self._by_key: dict[int, StreamConnection] = {}
        self._by_context: dict[ConnectionContext, StreamConnection] = {}
        self._announced: dict[int, tuple[Application, Any]] = {}
        """What `hold` returns, until it is called: the connection may be closed by then."""
        self._fifos: dict[int, Fifos] = {}
        """FIFOs that were made here, by their stream's handle."""
        self._contexts: dict[int, tuple[StreamsInPython, StreamContext]] = {}
        """Streams of transports in Python, by handle."""
        self._transports: dict[int, StreamsInPython] = {}
        """Transports in Python of connections, by key."""
        self._room = ffi.new("struct hs_session_event[]", _EVENTS)
        self._opened = ffi.new("struct hs_opened *")
        self.verbs = int(lib.hs_plane_verbs())
        """The address of struct hs_session_verbs, for an engine in C."""

    # --- applications ------------------------------------------------------------------------

    def attach(self, application: Application) -> None:
        """Let an application have streams."""
        side = ffi.NULL if application.is_remote else application.side
        made = lib.hs_application_new(self._plane, side)
        if not made:
            raise MemoryError("no memory for an application")
        application.streams = ffi.gc(made, lib.hs_application_release)
        lib.hs_application_set_max(application.streams, application.max_sessions or 0)
        if not application.is_remote:
            application.plane = self

    def hold(self, handle: int) -> Any:
        """Return the application's side (native/session/end.h) of a connection in this process."""
        session = self._sessions.get(handle)
        if isinstance(session, ConnectionSession):
            self.announce(session)
        return self._announced.pop(handle)[1]

    # --- connections -------------------------------------------------------------------------

    def begin(self, context: ConnectionContext, application: Application) -> StreamConnection:
        """Return the plane's connection of a context, a new one if it has none."""
        known = self._by_context.get(context)
        if known is not None:
            return known
        key = next(self._keys)
        transport = self._transport_of(context)
        verbs, pointer = 0, 0
        if (in_c := _in_c(transport)) is not None:
            verbs, pointer = in_c.stream_verbs, in_c.stream_transport(context)
        config = context.config
        made = lib.hs_connection_session_new(
            application.streams,
            key,
            verbs,
            ffi.cast("void *", pointer),
            config.rx_fifo_bytes,
            config.tx_fifo_bytes,
        )
        if not made:
            raise MemoryError("no memory for a connection")
        if is_cut(context):
            lib.hs_connection_session_share(made)
        connection = StreamConnection(made, key, application, context)
        self._by_key[key] = self._by_context[context] = connection
        if in_c is not None:
            in_c.set_session(context, self.address_of(connection))
        else:
            self._transports[key] = cast(StreamsInPython, transport)
        return connection

    @staticmethod
    def address_of(connection: StreamConnection) -> int:
        """Return the address of struct hs_connection_session, for a transport in C."""
        return int(ffi.cast("uintptr_t", connection.pointer))

    def announce(self, session: ConnectionSession) -> StreamConnection:
        """Note that a connection was reported to its application: its streams may follow."""
        connection = self.begin(session.context, session.application)
        if not connection.is_announced:
            connection.is_announced = True
            lib.hs_connection_session_announce(connection.pointer, session.handle)
            if not session.application.is_remote:
                end = lib.hs_connection_session_hold(connection.pointer)
                held = ffi.gc(end, lib.hs_end_connection_drop)
                self._announced[session.handle] = session.application, held
        return connection

    def close(self, context: ConnectionContext) -> None:
        """End all streams of a connection, which is closed. Idempotent."""
        connection = self._by_context.pop(context, None)
        if connection is None:
            return
        del self._by_key[connection.key]
        self._transports.pop(connection.key, None)
        lib.hs_connection_session_close(connection.pointer)

    def close_all(self) -> None:
        """End all streams: the worker ends, and its engine with it."""
        for context in list(self._by_context):
            self.close(context)

    def count_of(self, context: ConnectionContext) -> int:
        """Return how many streams a connection has."""
        connection = self._by_context.get(context)
        if connection is None:
            return 0
        return int(lib.hs_connection_session_streams(connection.pointer))

    # --- opening -----------------------------------------------------------------------------

    def open_here(
        self, application: object, handle: int, *, unidirectional: bool
    ) -> tuple[Any, int, int] | None:
        """Open a stream of an application in this process: its end (native/session/end.h), handle
        and ID. Returns None while the peer's limit forbids it: StreamsAvailable follows. Raises
        OSError, ENOTCONN for a connection that is closed."""
        session = self._sessions.get(handle)
        if (
            not isinstance(session, ConnectionSession)
            or session.application is not application
            or session.state is not SessionState.READY
        ):
            raise OSError(errno.ENOTCONN, CLOSED)
        connection = self.announce(session)
        opened: tuple[Any, int, int] | None
        if connection.key in self._transports:
            opened = self._open_here_over_fifos(connection, unidirectional)
        else:
            opened = self._open_here(connection, unidirectional)
        session.waits_for_credit |= opened is None
        return opened

    def may_open(self, handle: int, unidirectional: bool) -> bool:
        """Return whether a connection's peer may allow another stream; for a transport in Python
        that is not known."""
        session = self._sessions.get(handle)
        if not isinstance(session, ConnectionSession):
            return False
        connection = self.announce(session)
        if connection.key in self._transports:
            return True
        refusal = lib.hs_session_why_not(connection.pointer, unidirectional)
        session.waits_for_credit |= refusal == lib.HS_SESSION_NO_CREDIT
        return bool(refusal != lib.HS_SESSION_NO_CREDIT)

    def _open_here(
        self, connection: StreamConnection, unidirectional: bool
    ) -> tuple[Any, int, int] | None:
        opened = self._opened
        refusal = lib.hs_session_open(connection.pointer, unidirectional, opened)
        if not refusal:
            return ffi.gc(opened.end, lib.hs_end_drop), opened.handle, opened.stream_id
        if refusal == lib.HS_SESSION_NO_CREDIT:
            return None
        raise self._error(refusal, connection.application)

    def _open_here_over_fifos(
        self, connection: StreamConnection, unidirectional: bool
    ) -> tuple[Any, int, int] | None:
        opened = self._open_over_fifos(connection, unidirectional)
        if opened is None:
            return None
        session = opened[0]
        end = ffi.gc(lib.hs_session_end(session), lib.hs_end_drop)
        return end, lib.hs_session_handle(session), lib.hs_session_stream_id(session)

    def open_remote(
        self, session: ConnectionSession, *, unidirectional: bool
    ) -> tuple[int, int, Fifos] | None:
        """Open a stream of an application in another process: its handle, ID and FIFOs. Returns
        None and raises as `open_here`."""
        connection = self.announce(session)
        opened = self._open_over_fifos(connection, unidirectional)
        if opened is None:
            return None
        pointer, fifos = opened
        _arm(fifos, is_cut(session.context))
        return lib.hs_session_handle(pointer), lib.hs_session_stream_id(pointer), fifos

    @staticmethod
    def _error(refusal: int, application: Application) -> OSError:
        if refusal == lib.HS_SESSION_NO_MEMORY:
            return OSError(errno.ENOMEM, NO_ROOM)
        if refusal == lib.HS_SESSION_CLOSED:
            return OSError(errno.ENOTCONN, CLOSED)
        return OSError(errno.EMFILE, no_room(application))

    def _open_over_fifos(
        self, connection: StreamConnection, unidirectional: bool
    ) -> tuple[Any, Fifos] | None:
        """Open a stream over FIFOs that are made here; its struct hs_stream_session, and these."""
        transport = self._transports.get(connection.key)
        if transport is not None:
            refusal = lib.hs_session_may_add(connection.pointer, False)
        else:
            refusal = lib.hs_session_why_not(connection.pointer, unidirectional)
        if refusal == lib.HS_SESSION_NO_CREDIT:
            return None
        if refusal:
            raise self._error(refusal, connection.application)
        try:
            if transport is not None:
                return self._open_in_python(connection, transport, unidirectional)
            fifos = self.make_fifos(
                connection, has_rx=not unidirectional, has_tx=True, is_peers=False
            )
        except (OSError, MemoryError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_MEMORY:
                raise
            self._sessions.refused["fifo_memory"] += 1
            raise OSError(errno.ENOMEM, NO_ROOM) from None
        session = lib.hs_session_open_over(
            connection.pointer, unidirectional, _producer(fifos.rx), _consumer(fifos.tx)
        )
        if not session:
            raise OSError(errno.ENOTCONN, CLOSED)
        self._fifos[lib.hs_session_handle(session)] = fifos
        return session, fifos

    def _open_in_python(
        self, connection: StreamConnection, transport: StreamsInPython, unidirectional: bool
    ) -> tuple[Any, Fifos] | None:
        context = transport.open_stream(connection.context, unidirectional=unidirectional)
        if context is None:
            return None
        session = self._add(connection, context, transport, is_peers=False)
        return session, Fifos(context.rx, context.tx)

    def make_fifos(
        self, connection: StreamConnection, *, has_rx: bool, has_tx: bool, is_peers: bool
    ) -> Fifos:
        """Make the FIFOs of a stream in the memory of its application. Raises OSError and
        MemoryError."""
        config = connection.context.config
        sizes = []
        if has_rx:
            sizes.append(FifoSize(config.rx_fifo_bytes, config.least_rx_bytes))
        if has_tx:
            sizes.append(FifoSize(config.tx_fifo_bytes, config.least_tx_bytes))
        owner = connection.context if is_peers else None
        made = connection.application.make_fifos(sizes, owner)
        return Fifos(made[0] if has_rx else None, made[-1] if has_tx else None)

    def check_room(self, connection: StreamConnection) -> None:
        """Raise OSError if the peer may open no further stream."""
        if lib.hs_session_may_add(connection.pointer, True):
            raise OSError(errno.EMFILE, "the connection has as many streams as it may have now")

    # --- transports in Python ----------------------------------------------------------------

    def _add(
        self,
        connection: StreamConnection,
        context: StreamContext,
        transport: StreamsInPython,
        *,
        is_peers: bool,
    ) -> Any:
        """Add a stream of a transport in Python; returns its struct hs_stream_session."""
        rx, tx = context.rx, context.tx
        is_remote = connection.application.is_remote
        session = lib.hs_session_add(
            connection.pointer,
            context.stream_id,
            is_peers,
            _producer(rx),
            _consumer(tx),
            ffi.NULL if is_remote else _consumer(rx),
            ffi.NULL if is_remote else _producer(tx),
        )
        if not session:
            raise OSError(errno.ENOTCONN, CLOSED)
        context.session = handle = lib.hs_session_handle(session)
        self._fifos[handle] = Fifos(rx, tx)
        self._contexts[handle] = transport, context
        return session

    def on_event(self, kind: EventKind, context: StreamContext, code: int) -> None:
        """Handle an event of a transport in Python about a stream."""
        if kind is EventKind.STREAM_OPENED:
            opener = self._sessions.get(context.connection.session)
            if not isinstance(opener, ConnectionSession):
                return
            connection = self.announce(opener)
            transport = self._transports[connection.key]
            session = self._add(connection, context, transport, is_peers=True)
        else:
            session = lib.hs_session_find(self._plane, max(context.session, 0))
            if not session:
                return
        if kind is EventKind.STREAM_CLOSED:
            self._forget_context(context.session)
        lib.hs_session_report(session, _BITS[kind], code, code)

    def _forget_context(self, handle: int) -> None:
        _, context = self._contexts.pop(handle, (None, None))
        if context is not None:
            context.session = -1
        if isinstance(context, CutStream):
            context.let_go()

    def _on_command(self, handle: int, command: int, code: int) -> None:
        if command == lib.HS_SESSION_FREED:
            self._fifos.pop(handle, None)
            return
        if command == lib.HS_SESSION_ALLOW:
            transport = self._transports.get(handle)
            connection = self._by_key.get(handle)
            if transport is not None and connection is not None:
                transport.allow_stream(connection.context, unidirectional=bool(code))
            return
        if command == lib.HS_SESSION_LET_GO:
            self._forget_context(handle)
            return
        found = self._contexts.get(handle)
        if found is None:
            return
        carrier, context = found
        if command == lib.HS_SESSION_SEND_READY:
            carrier.send_ready(context)
        elif command == lib.HS_SESSION_CONSUMED:
            carrier.consumed(context)
        elif command == lib.HS_SESSION_RESET:
            carrier.reset_stream(context, code)
        elif command == lib.HS_SESSION_STOP:
            carrier.stop_sending(context, code)

    # --- applications in other processes -----------------------------------------------------

    def _make_fifos(self, key: int, handle: int, rx: Any, tx: Any) -> int:
        connection = self._by_key[key]
        try:
            fifos = self.make_fifos(connection, has_rx=True, has_tx=bool(tx), is_peers=True)
        except (OSError, MemoryError):
            return -1
        self._fifos[handle] = fifos
        rx[0] = _producer(fifos.rx)
        if tx:
            tx[0] = _consumer(fifos.tx)
        return 0

    def forget(self, application: Application) -> None:
        """Give back what an application that is gone has not taken."""
        lib.hs_application_forget_untaken(application.streams)
        if application.is_remote:
            self.tell(application)
        for handle, (owner, _) in list(self._announced.items()):
            if owner is application:
                del self._announced[handle]

    def signal(self, application: Application, handle: int, code: int) -> bool:
        """Handle a signal about a stream; return whether the transport may have work now."""
        signal = _SIGNALS.get(code)
        return signal is not None and self._signal(application, handle, signal, 0)

    @staticmethod
    def _signal(application: Application, handle: int, signal: int, code: int) -> bool:
        if not 0 <= handle < _MOST_HANDLES:
            return False
        return bool(lib.hs_session_signal(application.streams, handle, signal, code))

    def reset(self, application: Application, handle: int, code: int) -> None:
        """Reset a stream of an application; nothing happens if it is not its own."""
        self._signal(application, handle, lib.HS_SIGNAL_RESET, code)

    def stop(self, application: Application, handle: int, code: int) -> None:
        """Stop receiving on a stream of an application, as `reset`."""
        self._signal(application, handle, lib.HS_SIGNAL_STOP, code)

    def tell(self, application: Application) -> None:
        """Notify an application in another process of what happened to its streams."""
        while count := lib.hs_application_events(application.streams, self._room, _EVENTS):
            for event in self._room[0:count]:
                self._tell_one(application, event)

    def _tell_one(self, application: Application, event: Any) -> None:
        handle, events, is_cut = event.handle, event.events, event.is_shared
        fifos = self._fifos.get(handle, _NONE)
        if events & lib.HS_STREAM_OPENED:
            _arm(fifos, is_cut)
            about = m.StreamAccepted(event.connection, handle, event.stream_id, *fifos)
            application.notify(about)
        if (
            events & lib.HS_STREAM_READABLE
            and fifos.rx is not None
            and (is_cut or fifos.rx.take_read_armed())
        ):
            application.raise_event(handle, m.EventCode.READABLE)
        if events & lib.HS_STREAM_RESET:
            application.notify(m.StreamReset(handle, event.reset_code))
        if events & lib.HS_STREAM_STOPPED:
            application.notify(m.StreamStopped(handle, event.stop_code))
        if (
            events & lib.HS_STREAM_WRITABLE
            and fifos.tx is not None
            and (is_cut or fifos.tx.take_write_armed())
        ):
            application.raise_event(handle, m.EventCode.WRITABLE)
        if events & lib.HS_STREAM_FINISHED:
            application.notify(m.SendFinished(handle))
        if events & lib.HS_STREAM_OVER:
            self._fifos.pop(handle, None)

    # --- for observers -----------------------------------------------------------------------

    @property
    def refused(self) -> dict[str, int]:
        """How many streams were refused, by reason."""
        counts = ffi.new("uint64_t[]", lib.HS_SESSION_REFUSALS)
        lib.hs_plane_refused(self._plane, counts)
        return {name: int(counts[number]) for name, number in _REFUSALS.items()}

    def __len__(self) -> int:
        return int(lib.hs_plane_streams(self._plane))

    def __iter__(self) -> Iterator[AboutStream]:
        """Yield what is known of each stream."""
        about = ffi.new("struct hs_session_about *")
        index = 0
        while index := lib.hs_plane_next(self._plane, index, about):
            yield about_stream(about)

    def find(self, handle: int) -> AboutStream | None:
        """Return what is known of a stream; None if there is none with that handle."""
        about = ffi.new("struct hs_session_about *")
        return about_stream(about) if lib.hs_plane_look(self._plane, handle, about) else None

    @property
    def has_credit(self) -> bool:
        """Whether a transport has credit to give to its peers, since `collect` was called."""
        return bool(lib.hs_plane_has_credit(self._plane))

    def collect(self) -> None:
        """Forget what applications in this process have dropped; called once a turn."""
        lib.hs_plane_collect(self._plane)


def _in_c(transport: StreamsInC | StreamsInPython) -> StreamsInC | None:
    return cast(StreamsInC, transport) if hasattr(transport, "stream_verbs") else None


def _arm(fifos: Fifos, is_cut: bool) -> None:
    """Have an application in another process signal what it does with a new stream. With
    cut-through the two applications arm for each other."""
    if not is_cut:
        if fifos.tx is not None:
            fifos.tx.arm_read()
        if fifos.rx is not None:
            fifos.rx.arm_write()


def _producer(fifo: Fifo | None) -> Any:
    return ffi.cast("struct hs_fifo_producer *", fifo.producer_address if fifo is not None else 0)


def _consumer(fifo: Fifo | None) -> Any:
    return ffi.cast("struct hs_fifo_consumer *", fifo.consumer_address if fifo is not None else 0)
