"""The stack: opens connections and listeners, in a daemon or in the caller's own trio loop."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Literal

import trio

from hoststack.api.connection import Connection
from hoststack.api.errors import ConnectError, ListenError
from hoststack.api.listener import Listener
from hoststack.api.racing import first_connection
from hoststack.api.resolving import Address, resolve
from hoststack.api.router import Router
from hoststack.boundary import messages as m
from hoststack.boundary.application import Application
from hoststack.boundary.protocols import CONFIGS, PROTOCOLS, Config, not_supported
from hoststack.boundary.scope import DEFAULT_NAMESPACE, Scope
from hoststack.boundary.uri import Uri, parse_uri
from hoststack.link.base import Link
from hoststack.quic.seam import ABORTED_CODE, EngineCounters, QuicConfig, check_protocols
from hoststack.quic.tls import TlsConfig, checked_server_name

if TYPE_CHECKING:
    from hoststack.session.namespaces import Namespaces
    from hoststack.session.rules import Rules
    from hoststack.worker.engines import EngineName
    from hoststack.worker.worker import Worker

logger = logging.getLogger(__name__)

Handler = Callable[[Connection], Awaitable[object]]


class Stack:
    """Opens connections and listeners. Created by `open_stack` and `attach`."""

    def __init__(
        self,
        router: Router,
        config: QuicConfig | None,
        *,
        link_name: str,
        link_reason: str,
        engine_name: str,
    ) -> None:
        self._router = router
        self._config = config
        self._link_name = link_name
        self._link_reason = link_reason
        self._engine_name = engine_name

    @property
    def link_name(self) -> str:
        """ "af_xdp", "udp" or "memory"."""
        return self._link_name

    @property
    def engine_name(self) -> str:
        """ "native" or "aioquic"."""
        return self._engine_name

    @property
    def link_reason(self) -> str:
        """Why a better link was not chosen, in one line; empty if this is the best."""
        return self._link_reason

    @asynccontextmanager
    async def connect(
        self,
        uri: str,
        *,
        tls: TlsConfig | None = None,
        alpn: Sequence[str] = (),
        config: Config | None = None,
    ) -> AsyncIterator[Connection]:
        """Connect as `open_connection` does, and close the connection at the end of the block: with
        code 0, or with `ABORTED_CODE` when an exception leaves it."""
        async with await self.open_connection(uri, tls=tls, alpn=alpn, config=config) as connection:
            yield connection

    async def open_connection(
        self,
        uri: str,
        *,
        tls: TlsConfig | None = None,
        alpn: Sequence[str] = (),
        config: Config | None = None,
    ) -> Connection:
        """Connect to `quic://host:port`, and return the connection, which the caller closes.

        A name is looked up, and connections to all of its addresses race each other, started a
        quarter of a second apart, alternating between IPv6 and IPv4 (RFC 8305); the first one
        established is used. A link-local address includes its interface:
        `quic://[fe80::1%eth0]:4433`.

        For QUIC, `alpn` names the application protocols (RFC 7301), the preferred one first, for
        example `["h3"]`: the native engine offers at most 8 names of 31 ASCII characters, aioquic
        32 of 255. Without `tls` the peer's certificate is checked against the system's CAs and the
        URI's host. `tcp://` and `udp://` use kernel sockets and accept neither `tls` nor `alpn`: a
        TCP connection has one stream, which `open_stream` returns, and UDP has only datagrams.
        `config` is a QuicConfig, TcpConfig or UdpConfig; without it the stack's, or the default.

        Raises ConnectError, whose `kind` says why. For wrong arguments it raises UriError,
        TypeError, ValueError (no `alpn`, or names that can't be offered), TlsConfigError (an
        invalid server name), and OSError with ENOTSUP for a feature that a protocol does not have.
        """
        parsed = parse_uri(uri, PROTOCOLS)
        config = self._checked(parsed, tls, alpn, config)
        tls = tls or TlsConfig()
        if PROTOCOLS[parsed.scheme].tls:
            checked_server_name(tls.server_name or parsed.host)
        server_name = tls.server_name or parsed.host.partition("%")[0]

        async def connect_to(remote: Address) -> Connection:
            reply = await self._router.call(
                lambda token: m.Connect(
                    token,
                    remote,
                    server_name,
                    tls,
                    tuple(alpn),
                    config,
                    protocol=parsed.scheme,
                )
            )
            if isinstance(reply, m.Failed):
                raise ConnectError(reply.errno, reply.text)
            assert isinstance(reply, Connection)
            return reply

        addresses = await resolve(parsed, ConnectError)
        return await first_connection(addresses, connect_to, uri)

    async def listen(
        self,
        uri: str,
        *,
        tls: TlsConfig | None = None,
        alpn: Sequence[str] = (),
        config: Config | None = None,
    ) -> Listener:
        """Listen on `quic://address:port`; port 0 picks a free one (see `Listener.local`). For a
        name, the first address is used.

        QUIC needs `tls` with a certificate, and `alpn` as in `open_connection`: a client that
        offers none of these protocols is refused. `tcp://` and `udp://` accept neither: their
        connections have one stream that the peer opened, or datagrams from one peer.

        Raises ListenError if the port or address is unavailable (its `kind` says why), and for
        wrong arguments what `open_connection` raises.
        """
        parsed = parse_uri(uri, PROTOCOLS)
        config = self._checked(parsed, tls, alpn, config)
        own_tls = tls or TlsConfig()
        local = (await resolve(parsed, ListenError))[0]
        reply = await self._router.call(
            lambda token: m.Listen(token, local, own_tls, tuple(alpn), config, parsed.scheme)
        )
        if isinstance(reply, m.Failed):
            raise ListenError(reply.errno, f"{uri}: {reply.text}")
        assert isinstance(reply, Listener)
        return reply

    async def serve(
        self,
        uri: str,
        handler: Handler,
        *,
        tls: TlsConfig | None = None,
        alpn: Sequence[str] = (),
        config: Config | None = None,
        handler_nursery: trio.Nursery | None = None,
        task_status: trio.TaskStatus[Listener] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Listen, and run `handler(connection)` for every connection, until cancelled, or until the
        listener is closed, as at the end of the stack's block.

        The connection is closed with code 0 when its handler returns, and with `ABORTED_CODE` when
        its handler raises or is cancelled. A handler's trio.BrokenResourceError ends only its own
        connection, since the peer caused it; any other exception ends `serve`. `nursery.start`
        returns the Listener. If that is lost, for example with a daemon, `serve` raises
        trio.BrokenResourceError as soon as all handlers have ended.
        """
        lost: trio.BrokenResourceError | None = None
        async with (
            await self.listen(uri, tls=tls, alpn=alpn, config=config) as listener,
            trio.open_nursery() as nursery,
        ):
            task_status.started(listener)
            while lost is None:
                try:
                    connection = await listener.accept()
                except trio.ClosedResourceError:
                    break
                except trio.BrokenResourceError as error:
                    # Raised again outside the nursery, which would put it into an ExceptionGroup.
                    lost = error
                else:
                    (handler_nursery or nursery).start_soon(_handle, handler, connection)
        if lost is not None:
            raise lost

    def _checked(
        self, uri: Uri, tls: TlsConfig | None, alpn: Sequence[str], config: Config | None
    ) -> Config | None:
        """Return the settings for a connection or listener, None for the worker's default.

        Raises TypeError, ValueError or OSError for what the protocol of `uri` can't use.
        """
        class_ = CONFIGS[uri.scheme]
        if config is None and isinstance(self._config, class_):
            config = self._config
        if config is not None and not isinstance(config, class_):
            raise TypeError(
                f"{uri.scheme}:// needs a {class_.__name__}, not a {type(config).__name__}"
            )
        if PROTOCOLS[uri.scheme].tls:
            assert config is None or isinstance(config, QuicConfig)
            check_protocols(alpn, config, self.engine_name)
        elif tls is not None or alpn:
            raise not_supported(uri.scheme, "TLS here: omit `tls` and `alpn`, or use quic://")
        return config


class EmbeddedStack(Stack):
    """A stack whose engine runs in the caller's own loop, with access to its internals."""

    def __init__(
        self, router: Router, worker: Worker, link_reason: str, config: QuicConfig | None
    ) -> None:
        super().__init__(
            router,
            config,
            link_name=worker.link.name,
            link_reason=link_reason,
            engine_name=worker.layer.engine.name,
        )
        self._worker = worker

    @property
    def link(self) -> Link:
        """The link that the stack uses, for its statistics."""
        return self._worker.link

    def counters(self) -> EngineCounters:
        """Return the engine's counters of datagrams and turns."""
        return self._worker.layer.engine.counters

    @asynccontextmanager
    async def application(
        self,
        name: str,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        secret: str = "",
        scopes: Collection[Scope] = frozenset({"global"}),
        shares_listeners: bool = False,
        config: QuicConfig | None = None,
    ) -> AsyncIterator[EmbeddedStack]:
        """Add an application to this stack, with its own sessions, which are closed at the end of
        the block: with code 0, or with `ABORTED_CODE` when an exception leaves it.

        `scopes` are "global", the network, and "local", the other applications of its namespace on
        this stack. With both, it listens in both, and connects to another application if one
        listens, without packets, handshakes or certificates (docs/architecture.md). Applications
        with `shares_listeners` and the same name and namespace may listen on the same endpoint, and
        get its connections round robin. Raises NamespaceError if the namespace does not exist, the
        secret is wrong, or the namespace does not allow the scopes.
        """
        application = Application(name)
        application.scopes = self._worker.layer.namespaces.admit(namespace, secret, scopes)
        application.namespace = namespace
        if shares_listeners:
            application.group = (name, namespace, os.getuid())
        self._worker.attach(application)
        router = Router(application)
        code = ABORTED_CODE
        try:
            yield EmbeddedStack(router, self._worker, self._link_reason, config or self._config)
            code = 0
        finally:
            router.close_listeners()
            self._worker.detach(application, is_gone=False, code=code)
            router.end()

    @property
    def namespaces(self) -> Namespaces:
        """The namespaces that applications may belong to."""
        return self._worker.layer.namespaces

    @property
    def rules(self) -> Rules:
        """The session rules: which connections are allowed."""
        return self._worker.layer.rules


async def _handle(handler: Handler, connection: Connection) -> None:
    try:
        async with connection:
            await handler(connection)
    except* trio.BrokenResourceError as group:
        logger.debug("%r: its handler ended: %r", connection, group.exceptions)


def stack_on(
    worker: Worker, name: str, *, link_reason: str = "", config: QuicConfig | None = None
) -> EmbeddedStack:
    """Return a Stack for a new application on an existing worker, separate from the worker's other
    applications. Without `config`, connections use the worker's default."""
    application = Application(name)
    worker.attach(application)
    return EmbeddedStack(Router(application), worker, link_reason, config)


@asynccontextmanager
async def open_stack(
    interface: str | None = None,
    *,
    link: Literal["auto", "af_xdp", "udp"] | Link = "auto",
    mode: Literal["auto", "native", "generic"] = "auto",
    engine: EngineName = "auto",
    config: QuicConfig | None = None,
    secret: bytes | None = None,
    busy_poll_us: int = 0,
) -> AsyncIterator[EmbeddedStack]:
    """Run a stack in the caller's own trio loop, and close it at the end of the block: connections
    with code 0, or with `ABORTED_CODE` when an exception leaves the block.

    With an interface, `link="auto"` uses AF_XDP on it if that works, otherwise the kernel's UDP
    sockets (`Stack.link_reason` says why); `mode` is XDP's. A Link object is used as it is, and
    closed at the end. `engine="auto"` uses the native QUIC engine if it was built, otherwise
    aioquic. Stacks with the same `secret`, 32 bytes unknown to others, accept each other's session
    tickets and tokens. With `busy_poll_us` the stack polls for datagrams all the time, for that
    many microseconds (at most 1000) before other tasks run: round trips are shorter, and it uses a
    whole core (docs/howto/tune.md). Raises LinkError if the requested link is unavailable, and
    ValueError for an engine that is unavailable or can't poll busily.
    """
    # Programs that attach to a daemon need no links and no engines.
    from hoststack.link.auto import choose_link
    from hoststack.worker.engines import engine_maker
    from hoststack.worker.worker import Worker

    if isinstance(link, str):
        chosen, reason = choose_link(interface, link, mode=mode, busy_poll_us=busy_poll_us)
    else:
        chosen, reason = link, ""
    error: BaseException | None = None
    try:
        worker = Worker(chosen, engine_maker(engine, chosen, secret=secret), spin_us=busy_poll_us)
        async with trio.open_nursery() as nursery:
            stack = stack_on(worker, f"{os.getpid()}", link_reason=reason, config=config)
            await nursery.start(worker.run)
            code = ABORTED_CODE
            try:
                yield stack
                code = 0
            except trio.Cancelled:
                raise
            except BaseException as caught:
                # Raised again outside the nursery, which would put it into an ExceptionGroup.
                error = caught
            finally:
                stack._router.close_listeners()
                try:
                    worker.close(code, "")
                finally:
                    stack._router.end()
                nursery.cancel_scope.cancel()
    finally:
        chosen.close()
    if error is not None:
        raise error
