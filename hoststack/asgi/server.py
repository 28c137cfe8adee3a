"""Servers of ASGI applications in asyncio."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from hoststack.aio.connection import Connection
from hoststack.aio.listener import Listener
from hoststack.aio.router import ParkingLot
from hoststack.aio.stack import Stack
from hoststack.asgi.access_log import AccessLog
from hoststack.asgi.config import AsgiConfig
from hoststack.asgi.core import Core
from hoststack.asgi.exchange import Exchange
from hoststack.asgi.lifespan import Lifespan
from hoststack.asgi.loading import Application
from hoststack.asgi.scopes import Peer
from hoststack.http3.about_connection import ALPN
from hoststack.http3.aio import serve_connection
from hoststack.http3.config import Http3Config
from hoststack.quic.seam import QuicConfig
from hoststack.quic.tls import TlsConfig

logger = logging.getLogger("hoststack.asgi")


class Server(Core):
    """A started application: `serve` it on any number of endpoints. Made by `open_server`."""

    now = staticmethod(time.monotonic)
    new_event = asyncio.Event
    new_lot = ParkingLot

    def __init__(
        self,
        application: Application,
        config: AsgiConfig | None = None,
        *,
        access_log: AccessLog | None = None,
    ) -> None:
        super().__init__(application, config, access_log=access_log)
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._start(function())

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a task of the server failed", exc_info=error)

    async def _call(self, exchange: Exchange, scope: dict[str, Any]) -> None:
        task = asyncio.current_task()
        assert task is not None
        exchange.cancel = task.cancel
        try:
            await self.application(scope, exchange.receive, exchange.send)
        except asyncio.CancelledError:
            if not task.cancelling():
                raise RuntimeError("the application raised CancelledError of its own") from None
            if not exchange.is_expired:
                raise
            task.uncancel()

    async def serve(
        self,
        stack: Stack,
        uri: str,
        *,
        tls: TlsConfig,
        http3: Http3Config | None = None,
        quic: QuicConfig | None = None,
        listening: asyncio.Future[Listener] | None = None,
    ) -> None:
        """Listen on `quic://ADDRESS:PORT`, and serve the application there, until cancelled, or
        until requests in progress have ended after `shut_down`. `listening` gets the Listener.
        Raises as `hoststack.aio.Stack.serve`."""
        here: asyncio.Future[Listener] = asyncio.get_running_loop().create_future()
        serving = asyncio.ensure_future(
            stack.serve(
                uri,
                partial(self._serve_connection, http3),
                tls=tls,
                alpn=[ALPN],
                config=quic,
                listening=here,
            )
        )
        leaving = asyncio.ensure_future(self._leaving.wait())
        try:
            await asyncio.wait((serving, here), return_when=asyncio.FIRST_COMPLETED)
            if here.done() and listening is not None and not listening.done():
                listening.set_result(here.result())
            await asyncio.wait((serving, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not serving.done():
                await self._drain(here, serving)
        finally:
            leaving.cancel()
            serving.cancel()
            [result] = await asyncio.gather(serving, return_exceptions=True)
        if isinstance(result, Exception):
            raise result

    async def _drain(
        self, listening: asyncio.Future[Listener], serving: asyncio.Future[None]
    ) -> None:
        if listening.done():
            listening.result().close()
        for http in self._connections:
            http.shut_down()
        self._announce_end()
        try:
            async with asyncio.timeout(self.config.drain_seconds):
                await asyncio.wait((serving,))
                await self._until_idle()
        except TimeoutError:
            self._report_cut_off()

    async def _serve_connection(self, config: Http3Config | None, connection: Connection) -> None:
        self.statistics.connections += 1
        peer = Peer(connection, self.config.root_path)
        async with serve_connection(connection, config) as http:
            self._connections.add(http)
            try:
                if self._leaving.is_set():
                    http.shut_down()
                async for request in http:
                    self._start(self.handle(peer, request))
            finally:
                self._connections.discard(http)

    async def _expire_now_and_then(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            self.expire()

    async def _end_tasks(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


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
    own = []
    if access_log is not None:
        own.append(asyncio.create_task(server._flush_log(access_log)))
    if server.expires_every is not None:
        own.append(asyncio.create_task(server._expire_now_and_then(server.expires_every)))
    lifespan = None
    try:
        if config.lifespan != "off":
            lifespan = Lifespan(server)
            own.append(asyncio.create_task(lifespan.run()))
            await _within(config.startup_seconds, lifespan.started)
            lifespan.check_started()
        yield server
    finally:
        try:
            await server._end_tasks()
            if lifespan is not None and lifespan.begin_shutdown():
                await _within(config.shutdown_seconds, lifespan.stopped)
                lifespan.report_shutdown()
        finally:
            for task in own:
                task.cancel()
            await asyncio.gather(*own, return_exceptions=True)
            if access_log is not None:
                access_log.flush()


async def _within(seconds: float, event: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass


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
    listening: asyncio.Future[Listener] | None = None,
) -> None:
    """Start an application, listen on `quic://ADDRESS:PORT`, and serve it over HTTP/3 until
    cancelled. `listening` gets the Listener. Raises ApplicationError, and as
    `hoststack.aio.Stack.serve`."""
    async with open_server(application, config, access_log=access_log) as server:
        await server.serve(stack, uri, tls=tls, http3=http3, quic=quic, listening=listening)
