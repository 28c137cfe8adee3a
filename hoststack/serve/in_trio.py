"""Serving an application of trio."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial

import trio

import hoststack
from hoststack.asgi import Application
from hoststack.asgi.trio import Server, open_server
from hoststack.serve import orders
from hoststack.serve.application import COUNT_EVERY_S, Job, replace_tls


def run(application: Application, job: Job) -> None:
    """Serve until the manager says stop. Raises as `open_stack`, `open_server` and `listen`."""
    trio.run(_serve, application, job)


async def _serve(application: Application, job: Job) -> None:
    async with AsyncExitStack() as undo:
        stack = await undo.enter_async_context(
            hoststack.attach(job.attach_at, **job.attach_options())
            if job.attach_at
            else hoststack.open_stack(**job.stack_options())
        )
        server = await undo.enter_async_context(
            open_server(application, job.settings.asgi(), access_log=job.access_log)
        )
        async with trio.open_nursery() as beside:
            async with trio.open_nursery() as serving:
                control = _Control(serving, beside, server)
                serve = partial(server.serve, stack, tls=job.tls, http3=job.settings.http3())
                control.listeners = [await serving.start(serve, uri) for uri in job.uris]
                if job.tcp:
                    import hypercorn.trio

                    for companion in job.companions(
                        hypercorn.trio.serve, server, control.stopped.wait
                    ):
                        serving.start_soon(companion)
                job.end.send(orders.Ready(stack.link_name, stack.engine_name))
                beside.start_soon(_follow, job, control)
                beside.start_soon(_count, job, server)
                beside.start_soon(_pass_on_requests, stack, job)
            beside.cancel_scope.cancel()


async def _follow(job: Job, control: _Control) -> None:
    while True:
        await trio.lowlevel.wait_readable(job.end.fileno())
        job.follow(control)


async def _count(job: Job, server: Server) -> None:
    while True:
        await trio.sleep(COUNT_EVERY_S)
        job.count(server.statistics)


async def _pass_on_requests(stack: hoststack.Stack, job: Job) -> None:
    async for _ in stack.reload_requests():
        job.end.send(orders.WantCertificates())


class _Control:
    """What the manager can order."""

    def __init__(self, serving: trio.Nursery, beside: trio.Nursery, server: Server) -> None:
        self._serving = serving
        self._beside = beside
        self._server = server
        self.listeners: list[hoststack.Listener] = []
        self.stopped = trio.Event()

    def replace_tls(self, tls: hoststack.TlsConfig) -> None:
        for listener in self.listeners:
            self._beside.start_soon(replace_tls, listener, tls)

    def stop(self) -> None:
        self._server.shut_down()
        self.stopped.set()

    def stop_at_once(self) -> None:
        self._serving.cancel_scope.cancel()
