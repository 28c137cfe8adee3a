"""Connections that move: to a local port of their own, or to the address that a server prefers."""

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

#: How long a port that nobody uses any more stays open, for what is still under way to it.
_STRAGGLERS_S = 3.0

Address = IPv4Address | IPv6Address


@dataclass(slots=True)
class _Move:
    """A migration that is under way."""

    token: int | None
    """Of the request that waits for it."""
    application: Application
    local: Endpoint


class Migrator:
    """Which connections of ours have a port of their own, and which are about to get one."""

    def __init__(self, link: Link, engine: Engine, ports: PortTable, spawn: Spawn) -> None:
        self._link = link
        self._engine = engine
        self._ports = ports
        self._spawn = spawn
        self._moves: dict[ConnectionContext, _Move] = {}
        self._own: dict[ConnectionContext, Endpoint] = {}

    def start(self, session: ConnectionSession, request: m.Migrate) -> None:
        """Open a port, and have the engine move there."""
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
                raise ValueError(f"from {wanted.host} no packet goes to {remote.host}")
            opened = self._ports.open_for_one(wanted)
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
            return errno.EOPNOTSUPP, "only connections of QUIC can move"
        if isinstance(context, CutConnection):
            return (
                errno.EOPNOTSUPP,
                "it is cut through within this stack, and has no path to leave",
            )
        if context in self._moves:
            return errno.EALREADY, "it is moving already: wait for that"
        return None

    def cancel(self, application: Application, request: m.Cancel) -> None:
        """Give up a migration if it has not begun; one that has may still come about."""
        for context, move in self._moves.items():
            if move.application is application and move.token == request.token:
                move.token = None
                self._engine.stay(context)

    def is_moving(self, context: ConnectionContext) -> bool:
        """Whether its application has asked for that."""
        return context in self._moves

    def path_to(self, context: ConnectionContext, remote: Endpoint) -> Path | None:
        """The path to another address of a peer's, from the port of our connections."""
        if not _may_be_sent(ip_address(context.remote[0]), ip_address(remote.host)):
            return None
        try:
            return self._link.path_from(self._ports.open_for_client(remote), remote)
        except LinkError:
            return None

    def on_path_changed(self, context: ConnectionContext) -> None:
        """A connection has moved, as was asked for or not."""
        move = self._moves.get(context)
        if move is None or move.local != context.local:
            return
        del self._moves[context]
        left = self._own.pop(context, None)
        if left is not None:
            self._spawn(self._close_later, left)
        self._own[context] = move.local
        if move.token is not None:
            move.application.notify(m.Migrated(move.token))

    def on_failed(self, context: ConnectionContext) -> None:
        """A connection has not moved though it was asked to."""
        self._end(
            context,
            errno.EHOSTUNREACH,
            "the peer does not answer along the new path: the connection stays where it was",
        )

    def on_closed(self, context: ConnectionContext) -> None:
        """A connection is over."""
        self._end(context, errno.ENOTCONN, "the connection is closed")
        # The peer may have missed the CONNECTION_CLOSE, and is told again if it goes on.
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
    """Whether a peer at one address may send us to another.

    A server could name an address whose owner trusts this machine more than it trusts the server
    (RFC 9000 section 21.5.3): ourselves, or a host on our link.
    """
    if there.is_multicast or there.is_unspecified:
        return False
    return here.is_loopback == there.is_loopback and here.is_link_local == there.is_link_local
