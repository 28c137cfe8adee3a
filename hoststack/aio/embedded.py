"""A stack in an asyncio program's own loop: trio, which runs the engine, is a guest there."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import outcome
import trio

from hoststack.aio.router import AsyncioRouter
from hoststack.aio.stack import Stack
from hoststack.api.stack import EmbeddedStack
from hoststack.api.stack import open_stack as open_trio_stack
from hoststack.boundary.application import Application
from hoststack.link.base import Link
from hoststack.quic.seam import ABORTED_CODE, QuicConfig
from hoststack.worker.engines import EngineName


@asynccontextmanager
async def open_stack(
    interface: str | None = None,
    *,
    link: Literal["auto", "af_xdp", "udp"] | Link = "auto",
    mode: Literal["auto", "native", "generic"] = "auto",
    engine: EngineName = "auto",
    config: QuicConfig | None = None,
    secret: bytes | None = None,
) -> AsyncIterator[Stack]:
    """Run a stack in the caller's own asyncio loop, and close it at the end of the block.

    All is as in `hoststack.open_stack`. A loop has one trio guest, so a thread can run only one
    such stack, and none beside a program's own trio. A program that serves many requests attaches
    to a daemon (`hoststack.aio.attach`) instead: a guest's waits go through a thread.
    """
    guest = _Guest(interface, link=link, mode=mode, engine=engine, config=config, secret=secret)
    host = await guest.start()
    application = Application(f"{os.getpid()}-asyncio")
    host._worker.attach(application)
    router = AsyncioRouter(application)
    code = ABORTED_CODE
    try:
        yield Stack(
            router,
            config,
            link_name=host.link_name,
            link_reason=host.link_reason,
            engine_name=host.engine_name,
        )
        code = 0
    finally:
        router.close_listeners()
        host._worker.detach(application, is_gone=False, code=code)
        router.end()
        await guest.end()


class _Guest:
    """A trio loop within the asyncio loop, with a stack in it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._arguments, self._options = arguments, options
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._opened: asyncio.Future[EmbeddedStack] = loop.create_future()
        self._over: asyncio.Future[None] = loop.create_future()
        self._leave: trio.Event | None = None

    async def start(self) -> EmbeddedStack:
        """Open the stack; raises what `hoststack.open_stack` raises."""
        trio.lowlevel.start_guest_run(
            self._run,
            run_sync_soon_threadsafe=self._loop.call_soon_threadsafe,
            run_sync_soon_not_threadsafe=self._loop.call_soon,
            done_callback=self._on_done,
            host_uses_signal_set_wakeup_fd=True,
        )
        return await self._opened

    async def _run(self) -> None:
        self._leave = trio.Event()
        async with open_trio_stack(*self._arguments, **self._options) as stack:
            self._opened.set_result(stack)
            await self._leave.wait()

    def _on_done(self, result: outcome.Outcome[None]) -> None:
        match result:
            case outcome.Error(error):
                over = self._over if self._opened.done() else self._opened
                over.set_exception(error)
            case _:
                self._over.set_result(None)

    async def end(self) -> None:
        """Close the stack, and wait until trio has ended."""
        if self._leave is not None:
            self._leave.set()
        await asyncio.shield(self._over)
