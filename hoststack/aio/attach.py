"""Attaching to a daemon from asyncio: the same objects, with the engine in the daemon's worker
processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path

from hoststack.aio.router import AsyncioRouter
from hoststack.aio.stack import Stack
from hoststack.api.daemon_client import DaemonClient, hello_of
from hoststack.boundary import attaching
from hoststack.boundary.scope import DEFAULT_NAMESPACE, Scope
from hoststack.quic.seam import QuicConfig


@asynccontextmanager
async def attach(
    path: str | Path = attaching.DEFAULT_PATH,
    *,
    name: str | None = None,
    namespace: str = DEFAULT_NAMESPACE,
    secret: str = "",
    scopes: Collection[Scope] = frozenset({"global"}),
    shares_listeners: bool = False,
    config: QuicConfig | None = None,
) -> AsyncIterator[Stack]:
    """Attach to the daemon whose socket is at `path`, and detach at the end of the block.

    All is as in `hoststack.attach`; what is open when the daemon ends raises BrokenError or
    ConnectError. Raises AttachError if there is no daemon, or it refuses.
    """
    hello = hello_of(name, namespace, secret, scopes, shares_listeners)
    driver = _Driver(DaemonClient(str(path), hello))
    try:
        await driver.start()
        about = driver.client.about
        router = AsyncioRouter(driver.client.workers)
        try:
            yield Stack(
                router,
                config,
                link_name=about.link_name,
                link_reason=about.link_reason,
                engine_name=about.engine_name,
            )
        finally:
            router.close_listeners()
            driver.close()
            router.end()
    finally:
        driver.close()


class _Driver:
    """Pumps a client whenever there is something to pump."""

    def __init__(self, client: DaemonClient) -> None:
        self.client = client
        self._loop = asyncio.get_running_loop()
        self._started: asyncio.Future[None] = self._loop.create_future()
        self._again: asyncio.Handle | None = None
        self._is_closed = False
        client.call_soon = self._loop.call_soon_threadsafe
        self._loop.add_reader(client.fileno(), self._pump)

    async def start(self) -> None:
        """Wait until the daemon has admitted this program. Raises AttachError."""
        self._pump()
        await self._started

    def _pump(self) -> None:
        if self._is_closed:
            return
        client = self.client
        try:
            client.pump()
            client.workers.wake_application()
            start_s = None if client.has_started else client.check_start()
        except Exception as error:
            if self._started.done():
                raise
            self._started.set_exception(error)
            self.close()
            return
        if client.has_started and not self._started.done():
            self._started.set_result(None)
        limits_s = [each for each in (client.prepare(), start_s) if each is not None]
        limit_s = min(limits_s, default=None)
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if limit_s is not None:
            # After the tasks that this has woken.
            later = self._loop.call_later
            self._again = (
                later(limit_s, self._pump) if limit_s else self._loop.call_soon(self._pump)
            )

    def close(self) -> None:
        """Detach. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._again is not None:
            self._again.cancel()
        self._loop.remove_reader(self.client.fileno())
        self.client.close()
