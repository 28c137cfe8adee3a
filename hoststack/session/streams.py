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
from hoststack.boundary.fifo_pool import FifoSize, SharedBlock
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
_REFUSAL_OF: Final = {
    errno.ENOMEM: lib.HS_SESSION_NO_MEMORY,
    errno.EMFILE: lib.HS_SESSION_MAX_SESSIONS,
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
def hs_python_make_blocks(owner: Any, key: int, is_peers: int, out: Any) -> int:
    """Make blocks for a stream of an application in another process."""
    streams: Streams = ffi.from_handle(owner)
    return streams._make_blocks(key, bool(is_peers), out)


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
                lib.hs_python_make_blocks,
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
        self._fifos: dict[int, tuple[Application, Fifos]] = {}
        """FIFOs that were made here, by their stream's handle."""
        self._application_keys = itertools.count(1)
        self._blocks: dict[tuple[int, int], tuple[Application, SharedBlock]] = {}
        """Blocks of applications in other processes, by application's key and place."""
        self._contexts: dict[int, tuple[StreamsInPython, StreamContext]] = {}
        """Streams of transports in Python, by handle."""
        self._transports: dict[int, StreamsInPython] = {}
        """Transports in Python of connections, by key."""
        self._opened = ffi.new("struct hs_opened *")
        self.verbs = int(lib.hs_plane_verbs())
        """The address of struct hs_session_verbs, for an engine in C."""

    # --- applications ------------------------------------------------------------------------

    def attach(self, application: Application) -> None:
        """Let an application have streams."""
        side = ffi.NULL if application.is_remote else application.side
        application.key = next(self._application_keys)
        made = lib.hs_application_new(self._plane, side, application.key)
        if not made:
            raise MemoryError("no memory for an application")
        application.streams = ffi.gc(made, lib.hs_application_release)
        rings = application.rings
        if rings is not None:
            lib.hs_application_set_rings(made, rings.down, rings.up, rings.block_bytes)
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
        if connection.key in self._transports:
            added = self._open_in_python(connection, unidirectional)
            if added is None:
                return None
            end = ffi.gc(lib.hs_session_end(added), lib.hs_end_drop)
            return end, lib.hs_session_handle(added), lib.hs_session_stream_id(added)
        return self._open_in_c(connection, unidirectional)

    def take_waiting(self, session: ConnectionSession) -> bool:
        """Return whether the application waits for credit to open a stream, and forget that."""
        connection = self._by_context.get(session.context)
        return connection is not None and bool(
            lib.hs_connection_session_take_waiting(connection.pointer)
        )

    def openings(self, handle: int, unidirectional: bool) -> int:
        """Return how many more streams a connection's peer allows now, 0 without a connection;
        StreamsAvailable reports when there are more."""
        session = self._sessions.get(handle)
        if not isinstance(session, ConnectionSession):
            return 0
        connection = self.announce(session)
        transport = self._transports.get(connection.key)
        if transport is not None:
            lib.hs_connection_session_set_waiting(connection.pointer)
            return transport.openings(session.context, unidirectional=unidirectional)
        return int(lib.hs_session_openings(connection.pointer, unidirectional))

    def _open_in_c(
        self, connection: StreamConnection, unidirectional: bool
    ) -> tuple[Any, int, int] | None:
        opened = self._opened
        refusal = lib.hs_session_open(connection.pointer, unidirectional, opened)
        if not refusal:
            return ffi.gc(opened.end, lib.hs_end_drop), opened.handle, opened.stream_id
        if refusal == lib.HS_SESSION_NO_CREDIT:
            return None
        raise self._error(refusal, connection.application)

    def open_remote(
        self, application: Application, handle: int, unidirectional: bool, token: int
    ) -> None:
        """Answer a Command.OPEN of an application in another process that is not answered in C."""
        session = self._sessions.owned(application, handle, ConnectionSession)
        try:
            if session is None or session.state is not SessionState.READY:
                raise OSError(errno.ENOTCONN, CLOSED)
            connection = self.announce(session)
            if connection.key not in self._transports:
                raise OSError(errno.ENOTCONN, CLOSED)
            added = self._open_in_python(connection, unidirectional)
        except OSError as error:
            number = error.errno or 0
            if number == errno.ENOTSUP and not application.is_behind:
                application.notify(m.Failed(token, number, error.strerror or str(error)))
            else:
                # Commands are read while its messages wait: there is room in its ring.
                refusal = _REFUSAL_OF.get(number, lib.HS_SESSION_CLOSED)
                application.refuse_stream(token, refusal)
            return
        if added is None:
            application.refuse_stream(token, lib.HS_SESSION_NO_CREDIT)
        else:
            lib.hs_session_answer(added, token)

    @staticmethod
    def _error(refusal: int, application: Application) -> OSError:
        if refusal == lib.HS_SESSION_NO_MEMORY:
            return OSError(errno.ENOMEM, NO_ROOM)
        if refusal == lib.HS_SESSION_CLOSED:
            return OSError(errno.ENOTCONN, CLOSED)
        return OSError(errno.EMFILE, no_room(application))

    def _open_in_python(self, connection: StreamConnection, unidirectional: bool) -> Any:
        """Open a stream of a transport in Python: its struct hs_stream_session. Returns None and
        raises as `open_here`."""
        transport = self._transports[connection.key]
        refusal = lib.hs_session_may_add(connection.pointer, False)
        if refusal:
            raise self._error(refusal, connection.application)
        try:
            context = transport.open_stream(connection.context, unidirectional=unidirectional)
        except (OSError, MemoryError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_MEMORY:
                raise
            self._sessions.refused["fifo_memory"] += 1
            raise OSError(errno.ENOMEM, NO_ROOM) from None
        if context is None:
            lib.hs_connection_session_set_waiting(connection.pointer)
            return None
        return self._add(connection, context, transport, is_peers=False)

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
        application = connection.application
        is_remote = application.is_remote
        session = lib.hs_session_add(
            connection.pointer,
            context.stream_id,
            is_peers,
            _producer(rx),
            _consumer(tx),
            ffi.NULL if is_remote else _consumer(rx),
            ffi.NULL if is_remote else _producer(tx),
            0 if rx is None else application.hand_out(rx),
            0 if tx is None else application.hand_out(tx),
        )
        if not session:
            raise OSError(errno.ENOTCONN, CLOSED)
        context.session = handle = lib.hs_session_handle(session)
        self._fifos[handle] = application, Fifos(rx, tx)
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
            application, fifos = self._fifos.pop(handle)
            for fifo in fifos:
                if fifo is not None:
                    application.take_back(fifo)
            return
        if command == lib.HS_SESSION_FREE_BLOCK:
            application, block = self._blocks.pop((handle, code))
            application.free_block(block.name)
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

    def _make_blocks(self, key: int, is_peers: bool, out: Any) -> int:
        connection = self._by_key[key]
        application, config = connection.application, connection.context.config
        sizes = []
        if out[0].bytes:
            sizes.append(FifoSize(config.rx_fifo_bytes, config.least_rx_bytes))
        if out[1].bytes:
            sizes.append(FifoSize(config.tx_fifo_bytes, config.least_tx_bytes))
        try:
            made = application.make_blocks(sizes, connection.context if is_peers else None)
        except (OSError, MemoryError):
            return -1
        blocks = iter(made)
        for wanted in out[0:2]:
            if wanted.bytes:
                block = next(blocks)
                place = block.name.place
                self._blocks[application.key, place] = application, block
                wanted.bytes, wanted.address = block.block_bytes, block.address
                wanted.place = place
        return 0

    def forget(self, application: Application) -> None:
        """Give back what an application that is gone has not taken."""
        lib.hs_application_leave(application.streams)
        for handle, (owner, _) in list(self._announced.items()):
            if owner is application:
                del self._announced[handle]

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


def _producer(fifo: Fifo | None) -> Any:
    return ffi.cast("struct hs_fifo_producer *", fifo.producer_address if fifo is not None else 0)


def _consumer(fifo: Fifo | None) -> Any:
    return ffi.cast("struct hs_fifo_consumer *", fifo.consumer_address if fifo is not None else 0)
