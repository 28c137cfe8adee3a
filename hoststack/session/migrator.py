"""Connection migration: to a new local port, or to the preferred address of a server."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

import trio

from hoststack.boundary import messages as m
from hoststack.boundary.application import Application
from hoststack.link.base import Endpoint, Link, LinkError, Path
from hoststack.quic.seam import ConnectionContext, Engine
from hoststack.session.connector import Spawn, error_text
from hoststack.session.kernel_sockets import is_kernels
from hoststack.session.ports import PortTable
from hoststack.session.session import ConnectionSession
from hoststack.transport.local.cut_through import CutConnection

#: How long an unused port stays open for packets that are still in flight, in seconds.
_STRAGGLERS_S = 3.0

Address = IPv4Address | IPv6Address


@dataclass(slots=True)
class _Move:
    """A migration in progress."""

    token: int | None
    """Token of the request; None if that was cancelled."""
    application: Application
    local: Endpoint


class Migrator:
    """Client connections that have their own port, and those that are moving to one."""

    def __init__(self, link: Link, engine: Engine, ports: PortTable, spawn: Spawn) -> None:
        self._link = link
        self._engine = engine
        self._ports = ports
        self._spawn = spawn
        self._moves: dict[ConnectionContext, _Move] = {}
        self._own: dict[ConnectionContext, Endpoint] = {}

    def start(self, session: ConnectionSession, request: m.Migrate) -> None:
        """Open a port, and start the engine's migration to it."""
        context, application = session.context, session.application
        refusal = self._refusal(context)
        if refusal is not None:
            application.notify(m.Failed(request.token, *refusal))
            return
        remote = Endpoint(*context.remote)
        opened: Endpoint | None = None
        try:
            wanted = Endpoint(*(request.local or self._link.local_endpoint_for(remote)))
            if ip_address(wanted.host).version != ip_address(remote.host).version:
                raise ValueError(f"{wanted.host} and {remote.host} differ in IP version")
            opened = self._ports.open_for_one(wanted, application.process)
            self._engine.migrate(context, self._link.path_from(opened, remote))
        except (LinkError, ValueError) as error:
            if opened is not None:
                self._ports.close_of_one(opened)
            number = error.errno if isinstance(error, LinkError) else errno.EPERM
            application.notify(m.Failed(request.token, number or 0, error_text(error)))
        else:
            self._moves[context] = _Move(request.token, application, opened)

    def _refusal(self, context: ConnectionContext) -> tuple[int, str] | None:
        if is_kernels(context):
            return errno.EOPNOTSUPP, "only QUIC connections can migrate"
        if isinstance(context, CutConnection):
            return (
                errno.EOPNOTSUPP,
                "it is cut through within this stack, and has no network path",
            )
        if context in self._moves:
            return errno.EALREADY, "a migration is in progress: wait until it ends"
        return None

    def cancel(self, application: Application, request: m.Cancel) -> None:
        """Cancel a migration that has not begun; one that has begun may still happen."""
        for context, move in self._moves.items():
            if move.application is application and move.token == request.token:
                move.token = None
                self._engine.stay(context)

    def is_moving(self, context: ConnectionContext) -> bool:
        """Return whether a migration that the application asked for is in progress."""
        return context in self._moves

    def path_to(self, context: ConnectionContext, remote: Endpoint) -> Path | None:
        """Return the path to another address of a peer from the shared client port; None if there
        is none or it is not allowed."""
        if not _may_be_sent(ip_address(context.remote[0]), ip_address(remote.host)):
            return None
        try:
            return self._link.path_from(self._ports.open_for_client(remote), remote)
        except LinkError:
            return None

    def on_path_changed(self, context: ConnectionContext) -> None:
        """Complete a migration if the new path is the one that was asked for."""
        move = self._moves.get(context)
        if move is None or move.local != context.local:
            return
        del self._moves[context]
        left = self._own.pop(context, None)
        if left is not None:
            self._spawn(self._close_later, left)
        self._own[context] = move.local
        if move.token is not None:
            move.application.notify(m.Done(move.token))

    def on_failed(self, context: ConnectionContext) -> None:
        """Fail the migration of a connection."""
        self._end(
            context,
            errno.EHOSTUNREACH,
            "the peer does not answer on the new path: the connection stays on the old one",
        )

    def on_closed(self, context: ConnectionContext) -> None:
        """Fail the migration of a closed connection, and close its port later."""
        self._end(context, errno.ENOTCONN, "the connection is closed")
        # If the peer missed the CONNECTION_CLOSE and sends more, it gets it again on this port.
        own = self._own.pop(context, None)
        if own is not None:
            self._spawn(self._close_later, own)

    def _end(self, context: ConnectionContext, number: int, text: str) -> None:
        move = self._moves.pop(context, None)
        if move is None:
            return
        self._ports.close_of_one(move.local)
        if move.token is not None:
            move.application.notify(m.Failed(move.token, number, text))

    async def _close_later(self, port: Endpoint) -> None:
        await trio.sleep(_STRAGGLERS_S)
        self._ports.close_of_one(port)


def _may_be_sent(here: Address, there: Address) -> bool:
    """Return whether a peer at address `here` may redirect us to address `there`.

    A server could name an address whose owner trusts this machine more than it trusts the server
    (RFC 9000 section 21.5.3): this machine itself, or a host on its link.
    """
    if there.is_multicast or there.is_unspecified:
        return False
    return here.is_loopback == there.is_loopback and here.is_link_local == there.is_link_local
