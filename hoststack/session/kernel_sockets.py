"""TCP and UDP sessions over the kernel's sockets.

They do not use the engine. Their sessions are listeners, connections and streams as others are;
transport/kernel/tcp.py and transport/kernel/udp.py carry their data.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable
from functools import partial
from ipaddress import ip_address
from typing import Final, TypeGuard
from weakref import WeakKeyDictionary

import trio

from hoststack.boundary import messages as m
from hoststack.boundary.application import (
    Application,
    ImpossibleRequestError,
    run_alone,
)
from hoststack.boundary.protocols import Protocol, TcpConfig, UdpConfig, not_supported
from hoststack.boundary.user_shares import UserShares
from hoststack.link.base import UNSPECIFIED, Endpoint, Link, LinkError
from hoststack.link.zones import canonical, socket_address
from hoststack.quic.seam import (
    CloseInfo,
    ConnectionContext,
    Event,
    EventKind,
    ListenerContext,
    StreamContext,
)
from hoststack.session.connector import Spawn, error_text
from hoststack.session.rules import Rules
from hoststack.session.session import (
    ConnectionSession,
    ListenerSession,
    SessionState,
    SessionTable,
)
from hoststack.session.slow_lane import charged
from hoststack.transport.kernel.open_files import room_for
from hoststack.transport.kernel.tcp import TcpConnection, TcpListener, TcpStream
from hoststack.transport.kernel.udp import UdpConnection, UdpListener, address_of, block_bytes_of
from hoststack.transport.kernel.udp_peers import UdpPeers
from hoststack.transport.kernel.udp_port import UdpPorts

Address = tuple[str, int]
KernelConnection = TcpConnection | UdpConnection

#: The kernel's queue of connections before `accept`.
_BACKLOG: Final = 1024
#: The scope of these sessions: they use the network and are never cut through.
_SCOPE: Final = "global"
#: Delay before a listener retries accept(2) when there are too many open files.
_PAUSE_S: Final = 0.1
#: What a new socket costs beside its request: its tasks start in later turns, and its end is not
#: asked for.
_SOCKET_S: Final = 400e-6
#: Most sockets that the supervisor opens for a worker (daemon/ports.py).
_MOST_SOCKETS: Final = 1 << 16
#: Close reason of a UDP endpoint that another peer replaced.
_REPLACED: Final = "Replaced by a newer peer"


def is_kernels(
    context: ConnectionContext | ListenerContext | StreamContext,
) -> TypeGuard[TcpConnection | UdpConnection | TcpListener | UdpListener | TcpStream]:
    """Return whether kernel sockets carry a context."""
    return isinstance(
        context, TcpConnection | UdpConnection | TcpListener | UdpListener | TcpStream
    )


def _refusal(address: Address, error: OSError) -> str:
    """Return one line for the user. Uses strerror where trio's text would repeat the address."""
    if isinstance(error, LinkError):
        return error_text(error)
    ours = error.errno in (errno.ENOTSUP, errno.EACCES, errno.EMFILE, errno.ENOMEM)
    why = error_text(error) if ours or not error.errno else os.strerror(error.errno)
    return f"{address[0]} port {address[1]}: {why}"


def _offer_datagrams(application: Application, session: ConnectionSession) -> None:
    """Send DatagramsReady of a UDP endpoint, before the notice about the endpoint itself."""
    context = session.context
    if isinstance(context, UdpConnection):
        context.tx.arm_read()
        limit_bytes = context.max_datagram_bytes
        application.notify(m.DatagramsReady(session.handle, context.rx, context.tx, limit_bytes))


def _ends_of(remote: Address) -> tuple[Address, Address]:
    """Return the local address (with port 0) and the remote address of a connection to a peer. An
    unspecified remote address stands for this machine. Raises OSError."""
    if not remote[1]:
        raise OSError(errno.EADDRNOTAVAIL, "no peer can have port 0")
    if getattr(ip_address(remote[0]), "ipv4_mapped", None) is not None:
        # Rules would treat it as an IPv6 address.
        raise OSError(errno.EADDRNOTAVAIL, "write an IPv4-mapped address as an IPv4 address")
    family = socket.AF_INET6 if ":" in remote[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(socket_address(remote))  # sends nothing
        return (address_of(probe.getsockname())[0], 0), address_of(probe.getpeername())


class KernelSockets:
    """The TCP and UDP sockets of one worker: a transport beside the engine."""

    name = "kernel sockets"

    def __init__(self, link: Link, sessions: SessionTable, rules: Rules, spawn: Spawn) -> None:
        self._source = link.sockets
        self._interface = link.interface_name
        self._udp = UdpPorts(self._source, link.datagrams(), self._tell)
        self._sessions = sessions
        self._rules = rules
        self._spawn = spawn
        self._shares = UserShares("TCP and UDP sockets")
        self._events: list[Event] = []
        self._connecting: dict[tuple[Application, int], trio.CancelScope] = {}
        self._connections: set[KernelConnection] = set()
        self._udp_peers: WeakKeyDictionary[Application, UdpPeers] = WeakKeyDictionary()
        self._running: set[KernelConnection] = set()
        """TCP connections whose task runs; they may still send after they were reported closed."""

    def _canonical(self, address: Address) -> Address:
        """Return an address with its zone if it is link-local; the default zone is the link's
        interface. Raises LinkError."""
        return canonical(address[0], self._interface), address[1]

    @property
    def has_events(self) -> bool:
        """Whether `take_events` would return any."""
        return bool(self._events)

    def take_events(self) -> list[Event]:
        """Return the events since the last call, oldest first."""
        events, self._events = self._events, []
        return events

    def connections(self) -> list[KernelConnection]:
        """Return all live connections, and closed ones that still send."""
        return list(self._connections | self._running)

    def move_datagrams(self) -> bool:
        """Send and receive datagrams that bypass the kernel; called once a turn. Return whether
        some wait until the link is writable."""
        return self._udp.move()

    def _charge(self, application: Application, descriptor: int) -> Callable[[], None]:
        """Charge an application for a new socket; return what ends that. Raises OSError if its
        process has its share of all open files."""
        left = min(room_for(descriptor), _MOST_SOCKETS - len(self._shares))
        refusal = self._shares.refusal(application.process, left)
        if refusal is not None:
            raise OSError(errno.EMFILE, refusal)
        return self._shares.add(application.process)

    # --- requests ----------------------------------------------------------------------------

    def connect(
        self, application: Application, request: m.Connect, config: TcpConfig | UdpConfig
    ) -> None:
        """Connect a socket; the reply is Connected or Failed."""
        key = application, request.token
        if key in self._connecting:
            raise ImpossibleRequestError(f"it used the token {request.token} twice")
        self._connecting[key] = trio.CancelScope()
        application.count_sessions(1)  # reserved for the connection
        task = self._connect
        self._spawn(
            run_alone, application, charged, application, task, application, request, config
        )

    async def _connect(
        self, application: Application, request: m.Connect, config: TcpConfig | UdpConfig
    ) -> None:
        key = application, request.token
        try:
            if _SCOPE not in application.scopes:
                raise not_supported(request.protocol, "local scope")
            with self._connecting[key]:
                await trio.lowlevel.checkpoint_if_cancelled()
                if isinstance(config, TcpConfig):
                    await self._connect_tcp(application, request, config)
                else:
                    self._connect_udp(application, request, config)
        except OSError as error:
            text = _refusal(request.remote, error)
            application.notify(m.Failed(request.token, error.errno or errno.EIO, text))
        finally:
            del self._connecting[key]
            application.count_sessions(-1)
            application.worker.wake()

    async def _connect_tcp(
        self, application: Application, request: m.Connect, config: TcpConfig
    ) -> None:
        local, remote = _ends_of(self._canonical(request.remote))
        self._check_rules("tcp", application, local, remote)
        family = socket.AF_INET6 if ":" in remote[0] else socket.AF_INET
        sock = trio.socket.socket(family, socket.SOCK_STREAM)
        with contextlib.ExitStack() as undo:
            undo.callback(sock.close)
            release = self._charge(application, sock.fileno())
            undo.callback(release)
            with trio.move_on_after(config.connect_timeout_s) as scope:
                await sock.connect(socket_address(remote))
            if scope.cancelled_caught:
                raise TimeoutError(errno.ETIMEDOUT, "no answer")
            # The application may have gone since the socket became ready.
            await trio.lowlevel.checkpoint_if_cancelled()
            connection = TcpConnection(sock, application, config, self._tell, release)
            undo.pop_all()
        self._connected(application, request, connection)

    def _connect_udp(self, application: Application, request: m.Connect, config: UdpConfig) -> None:
        local, remote = _ends_of(self._canonical(request.remote))
        port = self._udp.open(local, remote, charge=partial(self._charge, application))
        try:
            self._check_rules("udp", application, port.local, remote)
            connection = UdpConnection(port, port.local, remote, application, config)
        except BaseException:
            port.close()
            raise
        port.add(connection, is_only=True)
        self._spawn(run_alone, application, port.run)
        self._connected(application, request, connection)

    def bind(self, application: Application, request: m.Bind, config: UdpConfig) -> None:
        """Open an unconnected UDP endpoint; the reply is Connected or Failed."""
        try:
            if _SCOPE not in application.scopes:
                raise not_supported("udp", "local scope")
            port = self._udp.open(
                self._canonical(request.local),
                charge=partial(self._charge, application),
                # Sending to an unspecified address would reach this machine despite any rules
                # about its addresses.
                allows=lambda peer: (
                    peer[0] not in UNSPECIFIED
                    and self._denial("udp", application, port.local, peer) is None
                ),
            )
            try:
                any_peer = (UNSPECIFIED[":" in port.local[0]], 0)
                connection = UdpConnection(port, port.local, any_peer, application, config)
            except BaseException:
                port.close()
                raise
        except OSError as error:
            text = _refusal(request.local, error)
            application.notify(m.Failed(request.token, error.errno or errno.EIO, text))
            return
        port.add(connection, is_only=True)
        self._spawn(run_alone, application, port.run)
        self._connected(application, request, connection)

    def _connected(
        self,
        application: Application,
        request: m.Connect | m.Bind,
        connection: KernelConnection,
    ) -> None:
        application.account.left_s -= _SOCKET_S
        self._connections.add(connection)
        session = self._sessions.add(ConnectionSession(application, SessionState.READY, connection))
        _offer_datagrams(application, session)
        application.notify(
            m.Connected(
                request.token,
                session.handle,
                connection.local,
                connection.remote,
                None,
                connection.handshake,
            )
        )

    def listen(
        self, application: Application, request: m.Listen, config: TcpConfig | UdpConfig
    ) -> None:
        """Listen with a socket; the reply is Listening or Failed."""
        try:
            if _SCOPE not in application.scopes:
                raise not_supported(request.protocol, "local scope")
            if isinstance(config, TcpConfig):
                listener: TcpListener | UdpListener = self._listen_tcp(application, request, config)
            else:
                listener = self._listen_udp(application, request, config)
        except OSError as error:
            text = _refusal(request.local, error)
            application.notify(m.Failed(request.token, error.errno or errno.EIO, text))
            return
        session = self._sessions.add(ListenerSession(application, SessionState.LISTENING, listener))
        # UDP peers have their own limit (UdpPeers), above which older ones are replaced.
        session.is_counting = isinstance(listener, TcpListener)
        if isinstance(listener, TcpListener):
            self._spawn(run_alone, application, self._accept_tcp, session, listener)
        else:
            self._spawn(run_alone, application, listener.port.run)
        application.notify(m.Listening(request.token, session.handle, listener.local))

    def _listen_tcp(
        self, application: Application, request: m.Listen, config: TcpConfig
    ) -> TcpListener:
        host, port = self._canonical(request.local)
        sock = self._source.open_socket("tcp", Endpoint(host, port))
        local = Endpoint(host, sock.getsockname()[1])
        with contextlib.ExitStack() as undo:
            undo.callback(sock.close)
            undo.callback(self._source.close_socket, "tcp", local)
            release = self._charge(application, sock.fileno())
            undo.callback(release)
            sock.listen(_BACKLOG)
            undo.pop_all()
        return TcpListener(trio.socket.from_stdlib_socket(sock), local, config, release)

    def _listen_udp(
        self, application: Application, request: m.Listen, config: UdpConfig
    ) -> UdpListener:
        port = self._udp.open(
            self._canonical(request.local),
            charge=partial(self._charge, application),
            idle_s=config.idle_timeout_s,
            accept=lambda local, peer: self._accept_udp(listener, local, peer),
        )
        listener = UdpListener(port, config)
        return listener

    def unlisten(self, session: ListenerSession) -> None:
        """Stop listening; accepted connections continue."""
        self._sessions.remove(session)
        context = session.context
        if isinstance(context, TcpListener):
            # Close now: the application may reuse the port as soon as it knows of the end.
            context.scope.cancel()
            self._source.close_socket("tcp", Endpoint(*context.local))
            context.socket.close()
            context.release()
        elif isinstance(context, UdpListener):
            context.port.is_listening = False
            context.port.close_if_unused()

    def cancel(self, application: Application, request: m.Cancel) -> None:
        """Cancel a connect."""
        scope = self._connecting.get((application, request.token))
        if scope is not None:
            scope.cancel()

    def detach(self, application: Application) -> None:
        """Cancel all connects of an application that is gone."""
        for (owner, _), scope in self._connecting.items():
            if owner is application:
                scope.cancel()

    # --- incoming connections ----------------------------------------------------------------

    async def _accept_tcp(self, session: ListenerSession, listener: TcpListener) -> None:
        with listener.scope, listener.socket:
            while True:
                # Meanwhile new connections wait in the kernel's queue.
                await self._wait_for_room(session)
                try:
                    sock, _ = await listener.socket.accept()
                except OSError as error:
                    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                        await trio.sleep(_PAUSE_S)
                    continue
                self._take(session, listener, sock)
                session.application.worker.wake()

    @staticmethod
    async def _wait_for_room(session: ListenerSession) -> None:
        while session.is_full:
            room = trio.Event()
            session.has_room = room.set
            await room.wait()

    def _take(
        self, session: ListenerSession, listener: TcpListener, sock: trio.socket.SocketType
    ) -> None:
        application = session.application
        # getpeername raises OSError if the peer has reset the connection already.
        with contextlib.ExitStack() as undo, contextlib.suppress(OSError):
            undo.callback(sock.close)
            release = self._charge(application, sock.fileno())
            undo.callback(release)
            connection = TcpConnection(
                sock, application, listener.config, self._tell, release, listener
            )
            self._check("tcp", application, connection.local, connection.remote)
            stream = connection.open_stream()
            undo.pop_all()
            self._accepted(session, connection)
            self._tell(stream, EventKind.STREAM_OPENED)
            self._run(connection)

    def _run(self, connection: TcpConnection) -> None:
        """Start the task of a connection that has its stream."""
        self._running.add(connection)
        self._spawn(run_alone, connection.application, self._run_until_over, connection)

    async def _run_until_over(self, connection: TcpConnection) -> None:
        try:
            await connection.run()
        finally:
            self._running.discard(connection)
            connection.application.worker.wake()

    def _accept_udp(
        self, listener: UdpListener, local: Address, peer: Address
    ) -> UdpConnection | None:
        session = self._sessions.get(listener.session)
        if not isinstance(session, ListenerSession):
            return None
        application = session.application
        peers = self._udp_peers.setdefault(application, UdpPeers())
        block_bytes = block_bytes_of(listener.config)
        if not peers.may_add(application, block_bytes):
            self._sessions.refused["udp_peers"] += 1
            return None
        try:
            self._check_rules("udp", application, local, peer)
            longest_silent = peers.whose_place(application, block_bytes)
            if longest_silent is not None:
                self._sessions.refused["udp_peers_replaced"] += 1
                self._end(longest_silent, CloseInfo(0, False, _REPLACED, by_peer=False))
            else:
                self._check_room(application)
            connection = UdpConnection(
                listener.port, local, peer, application, listener.config, listener, peers
            )
        except OSError:
            return None
        self._accepted(session, connection)
        return connection

    def _accepted(self, listener: ListenerSession, connection: KernelConnection) -> None:
        self._connections.add(connection)
        session = self._sessions.add(
            ConnectionSession(listener.application, SessionState.READY, connection, listener)
        )
        _offer_datagrams(listener.application, session)
        listener.application.notify(
            m.Accepted(
                listener.handle,
                session.handle,
                connection.local,
                connection.remote,
                None,
                connection.handshake,
            )
        )

    def _check(
        self, protocol: Protocol, application: Application, local: Address, remote: Address
    ) -> None:
        """Raise OSError if a limit or a rule forbids a peer's connection."""
        self._check_room(application)
        self._check_rules(protocol, application, local, remote)

    def _check_room(self, application: Application) -> None:
        """Raise OSError if an application may have no more sessions."""
        refusal = self._sessions.refusal(application)
        if refusal is not None:
            raise OSError(errno.EMFILE, refusal)

    def _check_rules(
        self, protocol: Protocol, application: Application, local: Address, remote: Address
    ) -> None:
        """Raise OSError if a rule forbids a connection."""
        denial = self._denial(protocol, application, local, remote)
        if denial is not None:
            raise OSError(errno.EACCES, denial)

    def _denial(
        self, protocol: Protocol, application: Application, local: Address, remote: Address
    ) -> str | None:
        return self._rules.denial(_SCOPE, application.namespace, local, remote, protocol)

    # --- as a transport ----------------------------------------------------------------------

    def open_stream(
        self, connection: ConnectionContext, *, unidirectional: bool
    ) -> TcpStream | None:
        """Open the only stream of a TCP connection; raises OSError for any other."""
        if not isinstance(connection, TcpConnection):
            raise not_supported("udp", "streams")
        if unidirectional:
            raise not_supported("tcp", "unidirectional streams")
        stream = connection.open_stream()
        self._run(connection)
        return stream

    def openings(self, connection: ConnectionContext, *, unidirectional: bool) -> int:
        """Return 0: opening a stream never waits."""
        return 0

    def send_ready(self, stream: StreamContext) -> None:
        """Send what the tx FIFO has; see Transport."""
        assert isinstance(stream, TcpStream)
        stream.connection.sent()

    def consumed(self, stream: StreamContext) -> None:
        """Receive into the new room of the rx FIFO; see Transport."""
        assert isinstance(stream, TcpStream)
        stream.connection.consumed()

    def allow_stream(self, connection: ConnectionContext, *, unidirectional: bool) -> None:
        """Do nothing: a TCP connection has only one stream."""

    def send_datagrams(self, connection: ConnectionContext) -> None:
        """Send the messages of the tx FIFO; see Transport."""
        assert isinstance(connection, UdpConnection)
        connection.send_ready()

    def reset_stream(self, stream: StreamContext, code: int) -> None:
        """Reset the connection; TCP carries no code."""
        assert isinstance(stream, TcpStream)
        stream.connection.close(CloseInfo(code, True, "this side reset it", by_peer=False))

    def stop_sending(self, stream: StreamContext, code: int) -> None:
        """Discard further data; TCP has no signal for that."""
        assert isinstance(stream, TcpStream)
        stream.connection.discard()

    def update_key(self, connection: ConnectionContext) -> None:
        """Do nothing: there are no keys."""

    def close(self, connection: ConnectionContext, code: int, reason: str) -> None:
        """Close a connection; see Transport, and transport/kernel/tcp.py for unsent data."""
        info = CloseInfo(code, True, reason, by_peer=False)
        if isinstance(connection, TcpConnection):
            connection.close(info)
        elif isinstance(connection, UdpConnection) and connection in self._connections:
            self._end(connection, info)

    def _end(self, connection: UdpConnection, info: CloseInfo) -> None:
        connection.close()
        self._tell(connection, EventKind.CLOSED, info)

    def shutdown(self, code: int, reason: str) -> None:
        """Close every connection at once, without lingering: no more turns follow."""
        for connection in list(self._connections):
            if isinstance(connection, TcpConnection):
                connection.abort()
            else:
                connection.close()
            self._tell(connection, EventKind.CLOSED, CloseInfo(code, True, reason, False))

    def _tell(
        self,
        context: KernelConnection | TcpStream,
        kind: EventKind,
        info: CloseInfo | int | None = None,
    ) -> None:
        if kind is EventKind.CLOSED:
            assert not isinstance(context, TcpStream)
            if context not in self._connections:
                return
            self._connections.discard(context)
        self._events.append(Event(kind, context, info))
        owner = context.connection if isinstance(context, TcpStream) else context
        owner.application.worker.wake()
