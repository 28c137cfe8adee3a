"""Servers of ASGI applications that run in trio, with the names of hoststack.asgi."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio

from hoststack.api.connection import Connection
from hoststack.api.listener import Listener
from hoststack.api.stack import Stack
from hoststack.asgi.access_log import AccessLog
from hoststack.asgi.config import AsgiConfig
from hoststack.asgi.core import Core
from hoststack.asgi.exchange import Exchange
from hoststack.asgi.lifespan import Lifespan
from hoststack.asgi.loading import Application
from hoststack.asgi.scopes import Peer
from hoststack.http3.about_connection import ALPN
from hoststack.http3.config import Http3Config
from hoststack.http3.server import serve_connection
from hoststack.quic.seam import QuicConfig
from hoststack.quic.tls import TlsConfig

logger = logging.getLogger("hoststack.asgi")


class Server(Core):
    """A started application: `serve` it on any number of endpoints. Made by `open_server`."""

    _nursery: trio.Nursery
    """Of the server's tasks; set by `open_server`."""
    now = staticmethod(trio.current_time)
    new_event = trio.Event
    new_lot = trio.lowlevel.ParkingLot

    def __init__(
        self,
        application: Application,
        config: AsgiConfig | None = None,
        *,
        access_log: AccessLog | None = None,
    ) -> None:
        super().__init__(application, config, access_log=access_log)
        self._listeners: list[Listener] = []

    def spawn(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._nursery.start_soon(self._run_alone, function)

    async def _run_alone(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a task whose failure ends no other one."""
        try:
            await function()
        except Exception:
            logger.exception("a task of the server failed")

    async def _call(self, exchange: Exchange, scope: dict[str, Any]) -> None:
        if self.expires_every is None:
            await self.application(scope, exchange.receive, exchange.send)
            return
        with trio.CancelScope() as cancel_scope:
            exchange.cancel = cancel_scope.cancel
            await self.application(scope, exchange.receive, exchange.send)

    async def serve(
        self,
        stack: Stack,
        uri: str,
        *,
        tls: TlsConfig,
        http3: Http3Config | None = None,
        quic: QuicConfig | None = None,
        task_status: trio.TaskStatus[Listener] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Listen on `quic://ADDRESS:PORT`, and serve the application there, until cancelled, or
        until requests in progress have ended after `shut_down`. `nursery.start` returns the
        Listener. Raises as `hoststack.Stack.serve`."""
        lost: trio.BrokenResourceError | None = None
        async with trio.open_nursery() as nursery:
            started = _Started(task_status, self._listeners)
            nursery.start_soon(self._leave, nursery.cancel_scope)
            try:
                await stack.serve(
                    uri,
                    partial(self._serve_connection, http3),
                    tls=tls,
                    alpn=[ALPN],
                    config=quic,
                    task_status=started,
                )
                if self._leaving.is_set():
                    await self._until_idle()
            except trio.BrokenResourceError as error:
                # Raised again outside the nursery, which would put it into an ExceptionGroup.
                lost = error
            finally:
                started.forget()
            nursery.cancel_scope.cancel()
        if lost is not None:
            raise lost

    async def _leave(self, serving: trio.CancelScope) -> None:
        await self._leaving.wait()
        for listener in self._listeners:
            listener.close()
        for http in self._connections:
            http.shut_down()
        self._announce_end()
        await trio.sleep(self.config.drain_seconds)
        self._report_cut_off()
        serving.cancel()

    async def _serve_connection(self, config: Http3Config | None, connection: Connection) -> None:
        self.statistics.connections += 1
        peer = Peer(connection, self.config.root_path)
        async with serve_connection(connection, config) as http:
            self._connections.add(http)
            try:
                if self._leaving.is_set():
                    http.shut_down()
                async for request in http:
                    self.spawn(partial(self.handle, peer, request))
            finally:
                self._connections.discard(http)

    async def _expire_now_and_then(self, seconds: float) -> None:
        while True:
            await trio.sleep(seconds)
            self.expire()


@asynccontextmanager
async def open_server(
    application: Application,
    config: AsgiConfig | None = None,
    *,
    access_log: AccessLog | None = None,
) -> AsyncIterator[Server]:
    """Start an application (lifespan), and end it at the end of the block.

    Raises ApplicationError if it is none, or if its startup fails.
    """
    server = Server(application, config, access_log=access_log)
    config = server.config
    caught: BaseException | None = None
    async with trio.open_nursery() as nursery:
        server._nursery = nursery
        if access_log is not None:
            nursery.start_soon(server._flush_log, access_log)
        if server.expires_every is not None:
            nursery.start_soon(server._expire_now_and_then, server.expires_every)
        lifespan = Lifespan(server) if config.lifespan != "off" else None
        # The application ends after its requests, when the nursery may be cancelled already.
        its_scope = trio.CancelScope(shield=True)
        try:
            if lifespan is not None:
                nursery.start_soon(_run, lifespan, its_scope)
                with trio.move_on_after(config.startup_seconds):
                    await lifespan.started.wait()
                lifespan.check_started()
            yield server
        except trio.Cancelled:
            raise
        except BaseException as error:
            # Raised again outside the nursery, which would put it into an ExceptionGroup.
            caught = error
        finally:
            nursery.cancel_scope.cancel()
            if lifespan is not None and lifespan.begin_shutdown():
                limit = trio.move_on_after(config.shutdown_seconds)
                limit.shield = True
                with limit:
                    await server._until_idle()
                    await lifespan.stopped.wait()
                lifespan.report_shutdown()
            its_scope.cancel()
    if access_log is not None:
        access_log.flush()
    if caught is not None:
        raise caught


async def _run(lifespan: Lifespan, scope: trio.CancelScope) -> None:
    with scope:
        await lifespan.run()


class _Started:
    """A task status that has a server know its listener."""

    def __init__(self, task_status: trio.TaskStatus[Listener], listeners: list[Listener]) -> None:
        self._task_status = task_status
        self._listeners = listeners
        self._listener: Listener | None = None

    def started(self, value: Any = None) -> None:
        self._listener = value
        self._listeners.append(value)
        self._task_status.started(value)

    def forget(self) -> None:
        if self._listener is not None:
            self._listeners.remove(self._listener)


async def serve(
    application: Application,
    stack: Stack,
    uri: str,
    *,
    tls: TlsConfig,
    config: AsgiConfig | None = None,
    access_log: AccessLog | None = None,
    http3: Http3Config | None = None,
    quic: QuicConfig | None = None,
    task_status: trio.TaskStatus[Listener] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Start an application, listen on `quic://ADDRESS:PORT`, and serve it over HTTP/3 until
    cancelled. `nursery.start` returns the Listener. Raises ApplicationError, and as
    `hoststack.Stack.serve`."""
    async with open_server(application, config, access_log=access_log) as server:
        await server.serve(stack, uri, tls=tls, http3=http3, quic=quic, task_status=task_status)
