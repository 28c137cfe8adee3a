"""The stack: opens connections and listeners, in a daemon or in the caller's own trio loop."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Literal

import trio

from hoststack.api.about_stack import AboutStack
from hoststack.api.connection import Connection
from hoststack.api.in_trio import TrioRouter
from hoststack.api.listener import Listener
from hoststack.api.racing import first_connection
from hoststack.api.resolving import resolve
from hoststack.boundary.application import Application
from hoststack.boundary.protocols import Config
from hoststack.boundary.scope import DEFAULT_NAMESPACE, Scope
from hoststack.link.base import Link
from hoststack.quic.seam import ABORTED_CODE, EngineCounters, QuicConfig
from hoststack.quic.tls import TlsConfig

if TYPE_CHECKING:
    from hoststack.session.namespaces import Namespaces
    from hoststack.session.rules import Rules
    from hoststack.worker.engines import EngineName
    from hoststack.worker.worker import Worker

logger = logging.getLogger(__name__)

Handler = Callable[[Connection], Awaitable[object]]


class Stack(AboutStack[Connection, Listener]):
    """Opens connections and listeners. Created by `open_stack` and `attach`."""

    _resolve = staticmethod(resolve)
    _first_connection = staticmethod(first_connection)

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


class EmbeddedStack(Stack):
    """A stack whose engine runs in the caller's own loop, with access to its internals."""

    def __init__(
        self, router: TrioRouter, worker: Worker, link_reason: str, config: QuicConfig | None
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
        router = TrioRouter(application)
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
    return EmbeddedStack(TrioRouter(application), worker, link_reason, config)


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
