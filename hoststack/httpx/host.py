"""What runs beside a program's own tasks, in its loop: a stack, and a task for each connection.

A transport is made and used by tasks that come and go, so its connections belong to none of them:
in trio they run in a system task, in asyncio in tasks of their own.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, Final

import anyio
import anyio.lowlevel
import trio

import hoststack
from hoststack import aio, http3
from hoststack.http3 import aio as http3_aio
from hoststack.http3.about_client import AboutClientConnection

logger = logging.getLogger(__name__)

#: The stack that the transports of one loop share: an asyncio loop can run only one.
_shared: Final = anyio.lowlevel.RunVar["Host | None"]("hoststack.httpx", None)

Function = Callable[..., Awaitable[None]]


class Host(ABC):
    """A stack and tasks, in one loop."""

    users = 0
    """Transports that share it."""

    def __init__(self, stack: Any) -> None:
        self.stack = stack
        self._error: BaseException | None = None
        self._opened = anyio.Event()
        self._leave = anyio.Event()
        self._ended = anyio.Event()

    @abstractmethod
    def spawn(self, function: Function, *arguments: Any) -> Callable[[], None]:
        """Run a function in a task; returns what cancels it."""

    @abstractmethod
    def speak(
        self, connection: Any, authority: str, config: http3.Http3Config
    ) -> AbstractAsyncContextManager[AboutClientConnection]:
        """Speak HTTP/3 on a connection."""

    @abstractmethod
    def _launch(self) -> None:
        """Begin to run `_run` in a task."""

    @abstractmethod
    def _open(self) -> AbstractAsyncContextManager[Any]:
        """Open a stack."""

    @abstractmethod
    async def _run_tasks(self) -> None:
        """Run the tasks until it is time to leave, and cancel those that are left."""

    async def _run(self) -> None:
        try:
            async with self._open() if self.stack is None else nullcontext(self.stack) as stack:
                self.stack = stack
                await self._run_tasks()
        except Exception as error:
            self._error = error
            if self._opened.is_set():
                logger.exception("the stack of HTTP/3 transports failed")
        finally:
            self._opened.set()
            self._ended.set()

    async def start(self) -> None:
        """Return when the stack is open; raises what `open_stack` raises."""
        self._launch()
        await self._opened.wait()
        self.check()

    def check(self) -> None:
        """Raise why the stack was not opened."""
        if isinstance(self._error, RuntimeError):
            raise RuntimeError(
                "this asyncio loop runs a stack or trio already: pass the stack as `stack=`"
            ) from self._error
        if self._error is not None:
            raise self._error

    async def stop(self) -> None:
        """End all tasks, and close the stack if it is this host's own."""
        self._leave.set()
        with anyio.CancelScope(shield=True):
            await self._ended.wait()


class TrioHost(Host):
    """In a trio loop."""

    def _launch(self) -> None:
        trio.lowlevel.spawn_system_task(self._run)

    def _open(self) -> AbstractAsyncContextManager[Any]:
        return hoststack.open_stack(link="udp")

    async def _run_tasks(self) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._opened.set()
            await self._leave.wait()
            nursery.cancel_scope.cancel()

    def spawn(self, function: Function, *arguments: Any) -> Callable[[], None]:
        scope = trio.CancelScope()

        async def run() -> None:
            with scope:
                await function(*arguments)

        self._nursery.start_soon(run)
        return scope.cancel

    def speak(
        self, connection: Any, authority: str, config: http3.Http3Config
    ) -> AbstractAsyncContextManager[AboutClientConnection]:
        return http3.client_on(connection, authority, config)


class AsyncioHost(Host):
    """In an asyncio loop."""

    def __init__(self, stack: Any) -> None:
        super().__init__(stack)
        self._tasks: set[asyncio.Task[None]] = set()

    def _launch(self) -> None:
        self._main = asyncio.get_running_loop().create_task(self._run())

    def _open(self) -> AbstractAsyncContextManager[Any]:
        return aio.open_stack(link="udp")

    async def _run_tasks(self) -> None:
        self._opened.set()
        try:
            await self._leave.wait()
        finally:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def spawn(self, function: Function, *arguments: Any) -> Callable[[], None]:
        async def run() -> None:
            await function(*arguments)

        task = asyncio.get_running_loop().create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

        def cancel() -> None:
            task.cancel()

        return cancel

    def speak(
        self, connection: Any, authority: str, config: http3.Http3Config
    ) -> AbstractAsyncContextManager[AboutClientConnection]:
        return http3_aio.client_on(connection, authority, config)


def current_loop() -> object:
    """Return what stands for the loop that the caller runs in."""
    if trio.lowlevel.in_trio_task():
        return trio.lowlevel.current_trio_token()
    return asyncio.get_running_loop()


async def open_host(stack: Any) -> Host:
    """Return a running host: with this stack, or with the one that the loop's transports share."""
    class_ = TrioHost if trio.lowlevel.in_trio_task() else AsyncioHost
    if stack is not None:
        host: Host = class_(stack)
        await host.start()
        return host
    shared = _shared.get()
    if shared is None or shared._ended.is_set():
        shared = class_(None)
        _shared.set(shared)
        shared.users = 1
        try:
            await shared.start()
        except BaseException:
            await close_host(shared)
            raise
        return shared
    shared.users += 1
    try:
        await shared._opened.wait()
    except BaseException:
        await close_host(shared)
        raise
    shared.check()
    return shared


async def close_host(host: Host) -> None:
    """End a host, unless other transports use it."""
    host.users -= 1
    if host.users <= 0:
        if _shared.get() is host:
            _shared.set(None)
        await host.stop()
