"""Serving an application of asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from hoststack import TlsConfig, aio
from hoststack.asgi import Application, Server, open_server
from hoststack.serve import orders
from hoststack.serve.application import COUNT_EVERY_S, Job, has_uvloop, replace_tls


def run(application: Application, job: Job) -> None:
    """Serve until the manager says stop. Raises as `open_stack`, `open_server` and `listen`."""
    make_loop = None
    if has_uvloop(job.settings):
        import uvloop

        make_loop = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(_serve(application, job))


async def _serve(application: Application, job: Job) -> None:
    async with AsyncExitStack() as undo:
        stack = await undo.enter_async_context(
            aio.attach(job.attach_at, **job.attach_options())
            if job.attach_at
            else aio.open_stack(**job.stack_options())
        )
        server = await undo.enter_async_context(
            open_server(application, job.settings.asgi(), access_log=job.access_log)
        )
        async with asyncio.TaskGroup() as group:
            control = _Control(group, server)
            for uri in job.uris:
                await control.listen(stack, uri, job)
            if job.tcp:
                import hypercorn.asyncio

                for companion in job.companions(
                    hypercorn.asyncio.serve, server, control.stopped.wait
                ):
                    control.serve(companion())
            job.end.send(orders.Ready(stack.link_name, stack.engine_name))
            beside = (
                group.create_task(control.follow(job)),
                group.create_task(_pass_on_requests(stack, job)),
            )
            await asyncio.wait(control.serving)
            for task in beside:
                task.cancel()


async def _pass_on_requests(stack: aio.Stack, job: Job) -> None:
    async for _ in stack.reload_requests():
        job.end.send(orders.WantCertificates())


class _Control:
    """What the manager can order."""

    def __init__(self, group: asyncio.TaskGroup, server: Server) -> None:
        self._group = group
        self._server = server
        self._listeners: list[aio.Listener] = []
        self.serving: list[asyncio.Task[None]] = []
        self.stopped = asyncio.Event()

    def serve(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self.serving.append(self._group.create_task(coroutine))

    async def listen(self, stack: aio.Stack, uri: str, job: Job) -> None:
        """Serve a URI; return when it listens."""
        listening: asyncio.Future[aio.Listener] = asyncio.get_running_loop().create_future()
        http3 = job.settings.http3()
        self.serve(self._server.serve(stack, uri, tls=job.tls, http3=http3, listening=listening))
        self._listeners.append(await listening)

    async def follow(self, job: Job) -> None:
        """Follow orders until cancelled."""
        loop = asyncio.get_running_loop()
        loop.add_reader(job.end.fileno(), partial(job.follow, self))
        try:
            while True:
                await asyncio.sleep(COUNT_EVERY_S)
                job.count(self._server.statistics)
        finally:
            loop.remove_reader(job.end.fileno())

    def replace_tls(self, tls: TlsConfig) -> None:
        for listener in self._listeners:
            self._group.create_task(replace_tls(listener, tls))

    def stop(self) -> None:
        self._server.shut_down()
        self.stopped.set()

    def stop_at_once(self) -> None:
        for task in self.serving:
            task.cancel()
