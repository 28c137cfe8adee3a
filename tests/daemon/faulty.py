"""Faults of applications: the exceptions to raise, and a worker with applications that do wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import trio
import trio.testing

import hoststack
from hoststack.boundary import messages as m
from hoststack.boundary.attached_worker import AttachedWorker
from hoststack.boundary.remote_application import Limits, RemoteApplication
from hoststack.link.memory import MemoryNetwork
from tests.support.attached import SEAL, both_ends, inline

HOST = "10.0.0.1"


def raiser(error: BaseException) -> Callable[..., NoReturn]:
    def throw(*_: object, **__: object) -> NoReturn:
        raise error

    return throw


class Bench:
    """A worker, and applications of it that do wrong one after the other."""

    def __init__(self, stack: hoststack.EmbeddedStack, nursery: trio.Nursery) -> None:
        self.worker = stack._worker
        self.layer = stack._worker.layer
        self.nursery = nursery

    @asynccontextmanager
    async def application(self) -> AsyncIterator[tuple[RemoteApplication, AttachedWorker]]:
        """One that has left, or is thrown out, at the end of the block."""
        ends, other = both_ends("it")
        application = RemoteApplication("it", ends, Limits(), SEAL, inline)
        over = trio.Event()

        async def serve() -> None:
            self.worker.attach(application)
            try:
                await application.run()
            finally:
                self.worker.detach(application)
                over.set()

        self.nursery.start_soon(serve)
        await trio.testing.wait_all_tasks_blocked()
        try:
            yield application, other
        finally:
            other.close()
            await over.wait()
            assert application not in self.layer.applications

    async def thrown_out(self, *messages: bytes) -> str:
        """Why one that sends these is."""
        async with self.application() as (application, other):
            for message in messages:
                other.channel.send(message)
            await trio.testing.wait_all_tasks_blocked()
            assert application.gone is not None, messages
        return application.gone

    async def is_well(self) -> bool:
        """Whether the next application is answered."""
        async with self.application() as (application, other):
            other.request(m.GetStatistics(7, 1))
            await trio.testing.wait_all_tasks_blocked()
            other.take_messages(other.channel.receive_now())
            (answer,) = other.take_notices()
            assert application.gone is None
        return isinstance(answer, m.Failed) and answer.token == 7


def on_bench(main: Callable[[Bench], Any]) -> None:
    async def run() -> None:
        with trio.fail_after(120):
            async with (
                hoststack.open_stack(link=MemoryNetwork().link(HOST)) as stack,
                trio.open_nursery() as nursery,
            ):
                await main(Bench(stack, nursery))
                nursery.cancel_scope.cancel()

    trio.run(run)
