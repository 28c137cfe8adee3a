"""Connecting over the network: from an application's request to a ready session or an error."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from hoststack.boundary import messages as m
from hoststack.boundary.application import Application, ImpossibleRequestError
from hoststack.boundary.protocols import CONFIGS, Config
from hoststack.link.base import Endpoint, Link, LinkError
from hoststack.link.zones import on_interface
from hoststack.quic.seam import (
    NO_ANSWER,
    CloseInfo,
    ConnectionContext,
    Credentials,
    Engine,
    QuicConfig,
)
from hoststack.session.ports import PortTable, check_size
from hoststack.session.rules import Rules
from hoststack.session.session import ConnectionSession, SessionState, SessionTable
from hoststack.session.slow_lane import HANDSHAKE_S, charged
from hoststack.text import printable


class Spawn(Protocol):
    """Start a task in the worker's nursery."""

    def __call__(self, task: Callable[..., Awaitable[None]], *arguments: object) -> None: ...


def error_text(error: Exception) -> str:
    """Return an error as one line for the user."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def config_of(request: m.Connect | m.Listen, default: QuicConfig) -> Config:
    """Return the settings of a request's protocol; `default` is QUIC's."""
    class_ = CONFIGS[request.protocol]
    if request.config is None:
        return default if class_ is QuicConfig else class_()
    if type(request.config) is not class_:
        raise ImpossibleRequestError(
            f"it gave a {type(request.config).__name__} for {request.protocol}"
        )
    return request.config


def credentials_for(engine: Engine, request: m.WithKeys, *, is_server: bool) -> Credentials:
    """Return the credentials for a request of an application in this process; raises ValueError."""
    tls, alpn = request.tls, request.alpn
    found = engine.find_credentials(tls, alpn, is_server=is_server)
    return found or engine.load_credentials(tls, alpn, is_server=is_server)


class Connector:
    """Client connections until their handshakes are complete."""

    def __init__(
        self,
        link: Link,
        engine: Engine,
        sessions: SessionTable,
        ports: PortTable,
        rules: Rules,
        spawn: Spawn,
    ) -> None:
        self._link = link
        self._engine = engine
        self._sessions = sessions
        self._ports = ports
        self._rules = rules
        self._spawn = spawn
        self._searches: dict[tuple[Application, int], trio.CancelScope] = {}
        self._tokens: dict[ConnectionContext, int] = {}
        self._contexts: dict[tuple[Application, int], ConnectionContext] = {}

    def check_token(self, application: Application, token: int) -> None:
        """Raise ImpossibleRequestError if another pending connect has this token."""
        if (application, token) in self._searches or (application, token) in self._contexts:
            raise ImpossibleRequestError(f"it used the token {token} twice")

    def start(
        self,
        application: Application,
        request: m.Connect,
        config: QuicConfig,
        credentials: Credentials | None,
    ) -> None:
        """Find the path to the peer, then start the handshake; without credentials, load them."""
        # Register it before the task runs, so that an immediate Cancel finds it.
        self._searches[application, request.token] = trio.CancelScope()
        application.count_sessions(1)  # reserved for the connection
        self._spawn(charged, application, self._search, application, request, config, credentials)

    async def _search(
        self,
        application: Application,
        request: m.Connect,
        config: QuicConfig,
        credentials: Credentials | None,
    ) -> None:
        with self._searches[application, request.token]:
            try:
                host, port = request.remote
                remote = Endpoint(on_interface(host, self._link.interface_name), port)
                local = self._ports.open_for_client(remote)
                denial = self._rules.denial("global", application.namespace, local, remote)
                if denial is not None:
                    raise LinkError(errno.EACCES, denial)
                path = await self._link.connect_path(local.port, remote)
                check_size(self._link.max_datagram_bytes(path), f"the path to {remote.host}")
                connection = self._engine.connect(
                    path,
                    request.server_name,
                    credentials or credentials_for(self._engine, request, is_server=False),
                    config,
                    application.sessions_for(request, self._engine.name),
                )
            except (LinkError, ValueError) as error:
                number = error.errno if isinstance(error, LinkError) else errno.EINVAL
                application.notify(m.Failed(request.token, number or 0, error_text(error)))
            except Exception as error:
                self._sessions.refused["faults"] += 1
                application.on_fault(error)
            else:
                application.account.left_s -= HANDSHAKE_S
                self.began(application, request, connection)
            finally:
                del self._searches[application, request.token]
                application.count_sessions(-1)
        # The worker may be asleep: it has a handshake to start, or a failure to report.
        application.worker.wake()

    def began(
        self, application: Application, request: m.Connect, connection: ConnectionContext
    ) -> None:
        """Register a connection whose handshake has started."""
        self._tokens[connection] = request.token
        self._contexts[application, request.token] = connection
        self._sessions.add(ConnectionSession(application, SessionState.CONNECTING, connection))

    def cancel(self, application: Application, request: m.Cancel) -> ConnectionSession | None:
        """Cancel the search for a path, or return the session that the caller has to close."""
        search = self._searches.get((application, request.token))
        if search is not None:
            search.cancel()
        connection = self._contexts.get((application, request.token))
        if connection is None:
            return None
        return self._sessions.owned(application, connection.session, ConnectionSession)

    def detach(self, application: Application) -> None:
        """Cancel all connects of an application that is gone."""
        for (owner, _), search in self._searches.items():
            if owner is application:
                search.cancel()

    def take_token(self, session: ConnectionSession) -> int:
        """Return the token of a session's Connect, and forget it."""
        token = self._tokens.pop(session.context)
        del self._contexts[session.application, token]
        return token

    def fail(self, session: ConnectionSession, info: CloseInfo) -> bool:
        """Send Failed for a connection that ended during its handshake; return whether it did."""
        if session.context not in self._tokens:
            return False
        token = self.take_token(session)
        number, text = _failure(session.context.remote, info)
        session.application.notify(m.Failed(token, number, text))
        return True


def _failure(remote: tuple[str, int], info: CloseInfo) -> tuple[int, str]:
    """Return the errno and text for a failed handshake (RFC 9000 section 20.1)."""
    host, port = remote
    where = f"{host} port {port}"
    if not info.by_peer and info.reason == NO_ANSWER:
        return errno.ETIMEDOUT, (
            f"no answer from {where}: is a QUIC server running there, and does the network let "
            "UDP through?"
        )
    who = "the peer" if info.by_peer else "this side"
    reason = printable(info.reason) or "no reason given"
    # CRYPTO_ERROR 0x0100-0x01ff carries a TLS alert (RFC 9001 section 4.8).
    if info.code == 0x178:
        return errno.EPROTONOSUPPORT, (
            f"{where} speaks none of the application protocols (ALPN) that were offered: "
            "give both sides the same one"
        )
    if 0x100 <= info.code <= 0x1FF:
        return errno.EPROTO, (
            f"the TLS handshake with {where} failed, said {who}: "
            f"{reason} (alert {info.code - 0x100}): check certificate, "
            "name and trusted CAs on both sides"
        )
    return errno.ECONNREFUSED, (
        f"{where} closed the connection during the handshake: {reason} (code {info.code:#x})"
    )
