"""The session layer of one worker: sessions, applications, and the transports below them.

It turns an application's requests and signals into calls of the engine, or of cut-through where
both ends are applications of this stack. It turns the events of a turn into notices and events for
the application that owns the session. It touches no stream data: that is in FIFOs which the
application shares with the engine or with another application.
"""

from __future__ import annotations

import contextlib
import errno
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, cast
from weakref import WeakKeyDictionary

from hoststack.boundary import messages as m
from hoststack.boundary.application import Application
from hoststack.boundary.loading import Loaded
from hoststack.boundary.protocols import UdpConfig
from hoststack.link.base import Endpoint, Link, Path
from hoststack.quic.seam import (
    ABORTED_CODE,
    CloseInfo,
    ConnectionContext,
    Credentials,
    Engine,
    EngineOwner,
    Event,
    EventKind,
    QuicConfig,
    StreamsInC,
    StreamsInPython,
    Transport,
)
from hoststack.session.connection_news import tell_news, tell_statistics
from hoststack.session.connector import Connector, Spawn, config_of
from hoststack.session.fifo_maker import FifoMaker
from hoststack.session.kernel_sockets import KernelSockets, is_kernels
from hoststack.session.listeners import Listeners
from hoststack.session.local_scope import LocalScope
from hoststack.session.migrator import Migrator
from hoststack.session.namespaces import Namespaces
from hoststack.session.ports import PortTable
from hoststack.session.rules import Rules
from hoststack.session.session import (
    ConnectionSession,
    ListenerSession,
    SessionState,
    SessionTable,
)
from hoststack.session.slow_lane import SlowLane, charging
from hoststack.session.streams import Streams
from hoststack.transport.local.cut_through import CutConnection, CutThrough, is_cut
from hoststack.transport.local.ports import LocalPorts

#: Application close code of refused connections: the number of CONNECTION_REFUSED (RFC 9000 section
#: 20.1).
_REFUSED = 0x02


class SessionLayer:
    """Sessions of one worker.

    `make_engine` gets this layer as the engine's owner; `spawn` starts a task in the worker's
    nursery, for example to resolve a next hop.
    """

    def __init__(
        self,
        worker: int,
        link: Link,
        make_engine: Callable[[EngineOwner], Engine],
        spawn: Spawn,
        first_session: int = 0,
    ) -> None:
        self.sessions = SessionTable(worker, first_session)
        self.is_enabled = True
        self._is_draining = False
        """Whether `stop_listening` was called; new listeners and connections are refused then."""
        self.default_config = QuicConfig()
        """For requests of QUIC without a config."""
        self.applications: list[Application] = []
        self.namespaces = Namespaces()
        self.rules = Rules()
        self.streams = Streams(worker, first_session, self.sessions, self._stream_transport)
        self.stream_verbs = self.streams.verbs
        self._fifos = fifos = FifoMaker(self.sessions, self.streams, self._payer)
        self.make_stream_fifos = fifos.make_stream_fifos
        self.make_datagram_fifos = fifos.make_datagram_fifos
        self.engine = make_engine(self)
        self.cut_through = CutThrough(fifos.make_fifos_between)
        self.kernel = KernelSockets(link, self.sessions, self.rules, spawn)
        self._leaving: list[Application] = []
        self._is_engine_due = False
        self._datagram_limits: WeakKeyDictionary[ConnectionContext, int] = WeakKeyDictionary()
        self.ports = PortTable(link)
        local_ports = LocalPorts()
        self._listeners = Listeners(link, self.engine, self.sessions, self.ports, local_ports)
        self._connector = Connector(link, self.engine, self.sessions, self.ports, self.rules, spawn)
        self._local_scope = LocalScope(
            self.cut_through, self._listeners, self._connector, local_ports, self.rules
        )
        self._migrator = Migrator(link, self.engine, self.ports, spawn)
        self._slow_lane = SlowLane(self._handle)
        self._requests: dict[type, Callable[[Application, Any], None]] = {
            m.Listen: self._listen,
            Loaded: self._on_loaded,
            m.Bind: self._bind,
            m.Connect: self._connect,
            m.Cancel: self._cancel,
            m.Unlisten: self._unlisten,
            m.ReplaceTls: self._replace_tls,
            m.CloseConnection: self._close_connection,
            m.UpdateKey: self._update_key,
            m.Migrate: self._migrate,
            m.GetStatistics: self._get_statistics,
        }
        self._connection_events: dict[EventKind, Callable[[ConnectionContext, Any], None]] = {
            EventKind.ACCEPTED: self._on_accepted,
            EventKind.CONNECTED: self._on_connected,
            EventKind.HANDSHAKE_DONE: self._on_handshake_done,
            EventKind.CLOSED: self._on_closed,
            EventKind.STREAMS_AVAILABLE: self._on_streams_available,
            EventKind.DATAGRAMS_READY: self._on_datagrams_ready,
            EventKind.PATH_CHANGED: self._on_path_changed,
            EventKind.MIGRATION_FAILED: self._on_migration_failed,
        }
        self._datagram_events: dict[EventKind, Callable[[ConnectionSession], None]] = {
            EventKind.READABLE: self._on_readable,
            EventKind.WRITABLE: self._on_writable,
        }

    def attach(self, application: Application) -> None:
        """Start to serve an application."""
        application.engine = self.engine
        self.streams.attach(application)
        self.applications.append(application)

    def detach(
        self, application: Application, *, is_gone: bool = True, code: int = ABORTED_CODE
    ) -> None:
        """Close an application's listeners, and its connections with a code. The default aborts
        them: the application died, or left without closing them. If it is gone, serving it stops
        now, else when it has been notified of the end of all its sessions."""
        self._connector.detach(application)
        self.kernel.detach(application)
        for session in self.sessions:
            if session.application is not application:
                continue
            if isinstance(session, ListenerSession):
                self._remove_listener(session)
            elif isinstance(session, ConnectionSession):
                self._close(session, code, "the application is gone")
        if is_gone:
            self._forget(application)
        else:
            self._leaving.append(application)

    def _forget(self, application: Application) -> None:
        self.sessions.forget_untaken(application)
        self.streams.forget(application)
        self._fifos.between.forget(application)
        self.applications.remove(application)

    def stop_listening(self) -> None:
        """Close all listeners and refuse new sessions; existing connections continue."""
        self._is_draining = True
        for port in self.ports.in_use():
            if port.use == "listener":
                # A client may consider its handshake complete while it is not here; closing its
                # connection needs the port. The end of the process frees it.
                self.ports.hold(port.local)
        for session in self.sessions:
            if isinstance(session, ListenerSession):
                self._remove_listener(session)

    def arm_applications(self) -> bool:
        """Ask for wake-ups before the worker sleeps; return whether there is work already."""
        return any([application.arm() for application in self.applications])

    def shutdown(self, code: int, reason: str) -> None:
        """Close every connection; the engine sends CONNECTION_CLOSE in its last turns."""
        self.cut_through.shutdown(code, reason)
        self.kernel.shutdown(code, reason)
        self.engine.shutdown(code, reason)

    def end(self) -> None:
        """End what the last turns left, so that no task waits for it: they may have failed."""
        self.streams.close_all()
        info = CloseInfo(ABORTED_CODE, True, "the stack has ended", False)
        for session in self.sessions:
            if isinstance(session, ConnectionSession) and not self._connector.fail(session, info):
                session.application.notify(m.Closed(session.handle, info))
        for application in self.applications:
            application.flush()

    @property
    def refused(self) -> Counter[str]:
        """Refusals to applications and their peers, by reason."""
        return self.sessions.refused + Counter(self.streams.refused)

    def end_streams(self, connection: ConnectionContext) -> None:
        """End the streams of a connection that its engine forgets; see EngineOwner."""
        self.streams.close(connection)

    def connections(self) -> list[ConnectionContext]:
        """Return all live connections; cut-through ones with both sides."""
        return [
            *self.engine.connections(),
            *self.cut_through.connections(),
            *self.kernel.connections(),
        ]

    def _transport(self, connection: ConnectionContext) -> Transport:
        """Return the transport of a connection."""
        if is_kernels(connection):
            return self.kernel
        return self.cut_through if isinstance(connection, CutConnection) else self.engine

    def _stream_transport(self, connection: ConnectionContext) -> StreamsInC | StreamsInPython:
        return cast("StreamsInC | StreamsInPython", self._transport(connection))

    # --- a turn's two halves -----------------------------------------------------------------

    def wants_turn(self) -> bool:
        """Return and reset whether the last turn's events gave the engine something to send."""
        is_due, self._is_engine_due = self._is_engine_due, False
        return is_due

    def take_from_applications(self) -> None:
        """Process the applications' requests and signals; called before the engine's turn."""
        self.streams.collect()
        for application in list(self.applications):
            if application.is_quiet:
                continue
            commands, is_due = application.take_commands()
            self._is_engine_due |= is_due
            if commands:
                with charging(application.account):
                    self._on_commands(application, commands)
        self._slow_lane.run(self.applications)

    def _on_commands(
        self, application: Application, commands: Sequence[tuple[int, int, int, int]]
    ) -> None:
        for handle, command, argument, token in commands:
            try:
                self._on_command(application, handle, command, argument, token)
            except Exception as error:
                application.on_fault(error)

    def _handle(self, application: Application, request: m.Request | Loaded) -> None:
        try:
            self._requests[type(request)](application, request)
        except Exception as error:
            self.sessions.refused["faults"] += 1
            application.on_fault(error)

    def give_to_applications(self, events: Sequence[Event]) -> bool:
        """Dispatch a turn's events to the applications; return whether any was woken."""
        if events:
            self._give(events)
        # Handling an event may cause others.
        while self.cut_through.has_events or self.kernel.has_events:
            self._give(self.cut_through.take_events() + self.kernel.take_events())
        self.engine.after_events()
        if self._fifos.between.due:
            self._fifos.between.drop_unused()
        woken = [application.flush() for application in list(self.applications)]
        if self._leaving:
            self._remove_detached()
        return any(woken)

    def _give(self, events: Sequence[Event]) -> None:
        for event in events:
            try:
                self._give_one(*event)
            except Exception as error:
                self._on_fault(event, error)

    def _on_fault(self, event: Event, error: Exception) -> None:
        """Pass an exception to the application of an event in another process, else raise it."""
        context: Any = event[1]
        connection = getattr(context, "connection", context)
        session = self.sessions.get(context.session) or self._connection(connection)
        if session is None or not session.application.is_remote:
            raise error
        self.sessions.refused["faults"] += 1
        session.application.on_fault(error)

    def _give_one(self, kind: EventKind, context: Any, info: Any) -> None:
        on_datagrams = self._datagram_events.get(kind)
        if hasattr(context, "stream_id"):
            self.streams.on_event(kind, context, info or 0)
        elif on_datagrams is not None:
            session = self._connection(context)
            if session is not None:
                on_datagrams(session)
        else:
            self._connection_events[kind](cast(ConnectionContext, context), info)

    def _remove_detached(self) -> None:
        """Stop serving detached applications that have no sessions left."""
        left = {session.application for session in self.sessions}
        for application in self._leaving:
            if application not in left:
                self._forget(application)
        self._leaving = [a for a in self._leaving if a in left]

    def _on_command(
        self, application: Application, handle: int, command: int, argument: int, token: int
    ) -> None:
        # An unknown session, or another application's, is no error: a command may be late.
        if command == m.Command.TAKEN:
            self.sessions.take(application, handle)
            return
        if command == m.Command.OPEN:
            self.streams.open_remote(application, handle, bool(argument & 1), token)
            return
        session = self.sessions.owned(application, handle, ConnectionSession)
        if session is None:
            return
        context = session.context
        if command == m.Command.NOTED:
            tell_news(session, at_once=True)
        elif command == m.Command.SENT and context.tx is not None:
            if not isinstance(context, CutConnection):
                context.tx.arm_read()
            self._transport(context).send_datagrams(context)
        elif command == m.Command.CONSUMED and isinstance(context, CutConnection):
            # Only a peer on this stack waits for room: datagrams have no flow control on the wire.
            self.cut_through.datagrams_consumed(context)

    # --- for the engine, in the middle of its turn -------------------------------------------

    def find_path(self, connection: ConnectionContext, remote: tuple[str, int]) -> Path | None:
        """Return the path to another address of a peer; see EngineOwner."""
        return self._migrator.path_to(connection, Endpoint(*remote))

    def stream_owner(self, connection: ConnectionContext) -> int:
        """Return the address of the plane's connection; see EngineOwner."""
        payer = self._payer(connection)
        if payer is None:
            return 0
        return self.streams.address_of(self.streams.begin(connection, payer.application))

    def _payer(self, context: ConnectionContext) -> ConnectionSession | ListenerSession | None:
        """Return a connection's session or, if it has none yet within a turn, its listener's."""
        return self._connection(context) or self._listeners.receiver(context)

    # --- requests ----------------------------------------------------------------------------

    def _may_begin(self, application: Application, token: int) -> bool:
        """Return whether a new connection or listener is allowed; if not, send Failed."""
        if self._is_draining:
            text = "the daemon is shutting down: it accepts no new connections or listeners"
            application.notify(m.Failed(token, errno.ESHUTDOWN, text))
        elif not self.is_enabled:
            text = (
                "the session layer is disabled: `session enable` allows new connections and "
                "listeners again"
            )
            application.notify(m.Failed(token, errno.EPERM, text))
        elif (refusal := self.sessions.refusal(application)) is not None:
            application.notify(m.Failed(token, errno.EMFILE, refusal))
        else:
            return True
        return False

    def _on_loaded(self, application: Application, loaded: Loaded) -> None:
        request, credentials = loaded
        match request:
            case m.Listen():
                self._listen(application, request, credentials)
            case m.ReplaceTls():
                self._replace_tls(application, request, credentials)
            case m.Connect():
                self._connect(application, request, credentials)

    def _connect(
        self, application: Application, request: m.Connect, credentials: Credentials | None = None
    ) -> None:
        self._connector.check_token(application, request.token)
        if not self._may_begin(application, request.token):
            return
        config = config_of(request, self.default_config)
        if isinstance(config, QuicConfig):
            self._local_scope.start(application, request, config, credentials)
        else:
            self.kernel.connect(application, request, config)

    def _bind(self, application: Application, request: m.Bind) -> None:
        if self._may_begin(application, request.token):
            self.kernel.bind(application, request, request.config or UdpConfig())

    def _listen(
        self, application: Application, request: m.Listen, credentials: Credentials | None = None
    ) -> None:
        if not self._may_begin(application, request.token):
            return
        config = config_of(request, self.default_config)
        if isinstance(config, QuicConfig):
            self._listeners.listen(application, request, config, credentials)
        else:
            self.kernel.listen(application, request, config)

    def _replace_tls(
        self,
        application: Application,
        request: m.ReplaceTls,
        credentials: Credentials | None = None,
    ) -> None:
        session = self.sessions.owned(application, request.handle, ListenerSession)
        if session is None:
            text = "the listener is closed"
            application.notify(m.Failed(request.token, errno.ENOTCONN, text))
        elif is_kernels(session.context):
            text = "a listener of TCP or UDP has no certificates"
            application.notify(m.Failed(request.token, errno.ENOTSUP, text))
        else:
            self._listeners.replace_tls(application, session, request, credentials)

    def _unlisten(self, application: Application, request: m.Unlisten) -> None:
        session = self.sessions.owned(application, request.handle, ListenerSession)
        if session is not None:
            self._remove_listener(session)

    def _remove_listener(self, session: ListenerSession) -> None:
        layer = self.kernel if is_kernels(session.context) else self._listeners
        layer.unlisten(session)

    def _cancel(self, application: Application, request: m.Cancel) -> None:
        connecting = self._connector.cancel(application, request)
        if connecting is not None:
            self._close(connecting, 0, "")
        self.kernel.cancel(application, request)
        self._migrator.cancel(application, request)

    def _close_connection(self, application: Application, request: m.CloseConnection) -> None:
        session = self.sessions.owned(application, request.handle, ConnectionSession)
        if session is not None:
            self._close(session, request.code, request.reason)

    def _close(self, session: ConnectionSession, code: int, reason: str) -> None:
        if session.state is not SessionState.CLOSING:
            session.move_to(SessionState.CLOSING)
            self._transport(session.context).close(session.context, code, reason)

    def _update_key(self, application: Application, request: m.UpdateKey) -> None:
        session = self.sessions.owned(application, request.handle, ConnectionSession)
        if session is not None:
            self._transport(session.context).update_key(session.context)

    def _migrate(self, application: Application, request: m.Migrate) -> None:
        session = self.sessions.owned(application, request.handle, ConnectionSession)
        if session is None or session.state is not SessionState.READY:
            application.notify(m.Failed(request.token, errno.ENOTCONN, "the connection is closed"))
        else:
            self._migrator.start(session, request)

    def _get_statistics(self, application: Application, request: m.GetStatistics) -> None:
        session = self.sessions.owned(application, request.handle, ConnectionSession)
        tell_statistics(application, session, request)

    # --- events of connections ---------------------------------------------------------------

    def _connection(self, context: ConnectionContext) -> ConnectionSession | None:
        session = self.sessions.get(context.session)
        return session if isinstance(session, ConnectionSession) else None

    def _on_accepted(self, context: ConnectionContext, _: None) -> None:
        listener = self._listeners.receiver(context)
        if listener is None or context.listener is None:
            # The listener was closed during the handshake.
            self._refuse(context, _REFUSED, "no listener")
            return
        if listener.is_full:
            self.sessions.refused["untaken"] += 1
            self._refuse(context, _REFUSED, "the application is busy")
            return
        if self.sessions.refusal(listener.application) is not None:
            self._refuse(context, _REFUSED, "the application accepts no more")
            return
        if not isinstance(context, CutConnection):
            # LocalScope checked the rules of a cut-through connection before it was made.
            denial = self.rules.denial(
                "global", listener.application.namespace, context.local, context.remote
            )
            if denial is not None:
                self._refuse(context, _REFUSED, "refused by a session rule")
                return
            self.ports.hold(Endpoint(*context.listener.local))
        session = self.sessions.add(
            ConnectionSession(listener.application, SessionState.READY, context, listener)
        )
        self._tell_datagrams(context)
        session.application.notify(
            m.Accepted(
                listener.handle,
                session.handle,
                context.local,
                context.remote,
                context.alpn,
                context.handshake,
            )
        )
        self.streams.announce(session)

    def _refuse(self, context: ConnectionContext, code: int, reason: str) -> None:
        self._transport(context).close(context, code, reason)
        self._is_engine_due = True

    def _on_connected(self, context: ConnectionContext, _: None) -> None:
        session = self._connection(context)
        if session is not None and session.state is SessionState.CONNECTING:
            session.move_to(SessionState.READY)
            self._tell_datagrams(context)
            session.application.notify(
                m.Connected(
                    self._connector.take_token(session),
                    session.handle,
                    context.local,
                    context.remote,
                    context.alpn,
                    context.handshake,
                )
            )
            self.streams.announce(session)

    def _tell_datagrams(self, context: ConnectionContext) -> None:
        """Send a pending DatagramsReady, before the notice about the connection itself."""
        limit_bytes = self._datagram_limits.pop(context, None)
        if isinstance(context, CutConnection):
            # Without memory for their FIFOs the connection has no datagrams.
            with contextlib.suppress(OSError):
                limit_bytes = self.cut_through.offer_datagrams(context)
        if limit_bytes is not None:
            self._on_datagrams_ready(context, limit_bytes)

    def _on_handshake_done(self, context: ConnectionContext, _: None) -> None:
        session = self._connection(context)
        if session is not None:
            session.application.notify(m.HandshakeDone(session.handle, context.handshake))

    def _on_closed(self, context: ConnectionContext, info: CloseInfo) -> None:
        session = self._connection(context)
        if session is None:
            self.streams.close(context)
            return
        info = info.within_bounds()
        self._migrator.on_closed(context)
        self.streams.close(context)
        self.sessions.remove(session)
        if isinstance(context, CutConnection):
            self._local_scope.on_closed(session, context)
        elif context.listener is not None and not is_kernels(context):
            self.ports.release(Endpoint(*context.listener.local))
        if not self._connector.fail(session, info):
            session.application.notify(m.Closed(session.handle, info))

    def _on_streams_available(self, context: ConnectionContext, _: None) -> None:
        session = self._connection(context)
        if session is not None and self.streams.take_waiting(session):
            session.application.notify(m.StreamsAvailable(session.handle))

    def _on_path_changed(self, context: ConnectionContext, _: None) -> None:
        session = self._connection(context)
        if session is not None:
            session.has_new_path = True
            tell_news(session, at_once=self._migrator.is_moving(context))
            self._migrator.on_path_changed(context)

    def _on_migration_failed(self, context: ConnectionContext, _: None) -> None:
        self._migrator.on_failed(context)

    def _on_datagrams_ready(self, context: ConnectionContext, limit_bytes: int) -> None:
        session = self._connection(context)
        if session is None:
            # The connection is about to be accepted; see _tell_datagrams.
            self._datagram_limits[context] = limit_bytes
        else:
            session.new_datagram_limit = limit_bytes
            tell_news(session)

    # --- events of datagrams -----------------------------------------------------------------

    def _on_readable(self, session: ConnectionSession) -> None:
        rx = session.context.rx
        if rx is not None and (is_cut(session.context) or rx.take_read_armed()):
            session.application.raise_event(session.handle, m.EventCode.READABLE)

    def _on_writable(self, session: ConnectionSession) -> None:
        tx = session.context.tx
        if tx is not None and (is_cut(session.context) or tx.take_write_armed()):
            session.application.raise_event(session.handle, m.EventCode.WRITABLE)
