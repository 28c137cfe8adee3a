"""A stack that is attached to a worker in the same trio loop: all that an application in another
process has in between, shared memory and sockets, on a clock that may jump."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import ExitStack, asynccontextmanager
from typing import TypeVar

import trio

from hoststack import EmbeddedStack, QuicConfig, Stack
from hoststack.api.in_trio import TrioRouter
from hoststack.boundary.attached_worker import AttachedWorker
from hoststack.boundary.attached_workers import AttachedWorkers
from hoststack.boundary.channel import ChannelClosedError
from hoststack.boundary.remote_application import Ends, Limits, RemoteApplication
from hoststack.boundary.resumption import TicketSeal
from hoststack.boundary.rings import shared_ends
from hoststack.boundary.scope import Scope
from hoststack.worker.worker import Worker

T = TypeVar("T")

#: Of all workers: they take each other's tickets, as a daemon's do.
SEAL = TicketSeal(b"of the tests")


async def inline(function: Callable[[], T], /) -> T:
    """Runs it in the loop, whose clock may jump: a thread would take no time of that."""
    return function()


def both_ends(name: str) -> tuple[Ends, AttachedWorker]:
    """What a daemon's supervisor gives to a worker and to an application."""
    with ExitStack() as made:
        one, other = ([os.dup(fd) for fd in fds] for fds in shared_ends(name, made))
    channel, *others = one
    ends = Ends(socket.socket(fileno=channel), *others)
    channel, *others = other
    return ends, AttachedWorker(name, socket.socket(fileno=channel), *others)


async def hear(worker: AttachedWorker) -> None:
    """Receive messages, and the news that name their places."""
    worker.take_messages(await worker.channel.receive())
    while worker._messages:
        if not worker.arm_events():
            await trio.lowlevel.wait_readable(worker.wake_fd)
            worker.clear_wake_up()
        worker.take_news()


@asynccontextmanager
async def attached(
    stacks: Collection[EmbeddedStack],
    name: str = "attached",
    *,
    scopes: Collection[Scope] = frozenset({"global"}),
    config: QuicConfig | None = None,
    limits: Limits | None = None,
) -> AsyncIterator[Stack]:
    """A stack of the workers of some others, with sessions of its own."""
    (first, *_) = stacks
    workers = AttachedWorkers(first.engine_name)
    async with trio.open_nursery() as nursery:
        for index, stack in enumerate(stacks):
            ends, attached_worker = both_ends(name)
            remote = RemoteApplication(name, ends, limits or Limits(), SEAL, inline)
            remote.scopes = frozenset(scopes)
            nursery.start_soon(_serve, stack._worker, remote)
            workers.add(index, attached_worker)
            nursery.start_soon(_follow, workers, index, attached_worker)
        try:
            yield Stack(
                TrioRouter(workers),
                config,
                link_name=first.link_name,
                link_reason=first.link_reason,
                engine_name=first.engine_name,
            )
        finally:
            nursery.cancel_scope.cancel()


async def _serve(worker: Worker, application: RemoteApplication) -> None:
    worker.attach(application)
    try:
        await application.run()
    finally:
        worker.detach(application)


async def _follow(workers: AttachedWorkers, index: int, worker: AttachedWorker) -> None:
    try:
        await follow(worker)
    finally:
        workers.remove(index)


async def follow(worker: AttachedWorker) -> None:
    """Read what a worker sends until it is gone, as a DaemonClient does."""
    worker.call_soon = trio.lowlevel.current_trio_token().run_sync_soon
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_send_waiting, worker)
            nursery.start_soon(_listen_to_events, worker)
            await receive(worker)
            nursery.cancel_scope.cancel()
    finally:
        worker.close()


async def receive(worker: AttachedWorker) -> None:
    """Read the messages of a worker until it is gone."""
    with contextlib.suppress(ChannelClosedError):
        while True:
            worker.take_messages(await worker.channel.receive())
            worker.wake_application()
            worker.settle()
    worker.hear_out()
    worker.wake_application()


async def _send_waiting(worker: AttachedWorker) -> None:
    try:
        await worker.channel.run()
    except ChannelClosedError:
        worker.channel.abandon()


async def _listen_to_events(worker: AttachedWorker) -> None:
    while True:
        if not worker.arm_events():
            await trio.lowlevel.wait_readable(worker.wake_fd)
            worker.clear_wake_up()
        worker.take_news()
        worker.wake_application()
        worker.settle()
        await trio.lowlevel.checkpoint()
