"""Attaching to a daemon: the same API, with the engine in the daemon's worker processes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from hoststack.api.daemon_client import (
    PATIENCE_S,
    THROWN_OUT,
    admitted,
    connect_to,
    hello_of,
    no_answer,
    offer_of,
    offered_worker,
)
from hoststack.api.in_trio import TrioRouter
from hoststack.api.stack import Stack
from hoststack.boundary import attaching
from hoststack.boundary.attached_worker import AttachedWorker
from hoststack.boundary.attached_workers import AttachedWorkers
from hoststack.boundary.channel import Channel, ChannelClosedError
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

    `name` is shown to the daemon's operator; the default is the program's name. `scopes` and
    `shares_listeners` are as in `EmbeddedStack.application`. Without `config`, connections use the
    daemon's defaults. Everything open is closed at the end of the block, and when the daemon ends:
    pending calls then raise BrokenResourceError or ConnectError. Raises AttachError if there is no
    daemon, or it refuses.
    """
    channel = Channel(connect_to(str(path)), takes_fds=True)
    error: BaseException | None = None
    try:
        hello = hello_of(name, namespace, secret, scopes, shares_listeners)
        about, workers = await _greet(channel, str(path), hello)
        async with trio.open_nursery() as nursery:
            daemon = _Daemon(channel, nursery, workers, hello.name)
            await nursery.start(daemon.run, about.workers)
            router = TrioRouter(workers)
            stack = Stack(
                router,
                config,
                link_name=about.link_name,
                link_reason=about.link_reason,
                engine_name=about.engine_name,
            )
            try:
                yield stack
            except trio.Cancelled:
                raise
            except BaseException as caught:
                # Raised again outside the nursery, which would put it into an ExceptionGroup.
                error = caught
            finally:
                router.close_listeners()
                nursery.cancel_scope.cancel()
    finally:
        channel.close()
    if error is not None:
        raise error


async def _greet(
    channel: Channel, path: str, hello: attaching.Attach
) -> tuple[attaching.Attached, AttachedWorkers]:
    try:
        channel.send(attaching.encode(hello))
        with trio.fail_after(PATIENCE_S):
            data = await channel.receive_one()
    except (ChannelClosedError, trio.TooSlowError) as error:
        raise no_answer(path, error) from None
    about = admitted(path, data[0])
    return about, AttachedWorkers(about.engine_name)


class _Daemon:
    """The connection to the daemon itself, which reports new and lost workers."""

    def __init__(
        self, channel: Channel, nursery: trio.Nursery, workers: AttachedWorkers, name: str
    ) -> None:
        self._channel = channel
        self._nursery = nursery
        self._workers = workers
        self._name = name
        self._scopes: dict[int, trio.CancelScope] = {}
        self._told: dict[int, trio.Event] = {}
        """For workers that closed their channel: set when the daemon reports them lost."""

    async def run(
        self, expected: int, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Add and remove workers as the daemon reports; started when all initial ones are there."""
        started = False
        try:
            while True:
                data, fds = await self._channel.receive_one()
                match offer_of(data, fds):
                    case attaching.WorkerOffered(index):
                        self._add(index, fds)
                    case attaching.WorkerLost(index):
                        expected -= index not in self._scopes
                        self._lose(index)
                if not started and len(self._scopes) >= expected:
                    started = True
                    task_status.started()
        except ChannelClosedError:
            for index in list(self._scopes):
                self._lose(index)
            self._workers.end()
            if not started:
                task_status.started()

    def _add(self, index: int, fds: list[int]) -> None:
        worker = offered_worker(self._name, fds)
        self._lose(index)
        self._scopes[index] = trio.CancelScope()
        self._workers.add(index, worker)
        self._nursery.start_soon(self._run_worker, index, worker)

    async def _run_worker(self, index: int, worker: AttachedWorker) -> None:
        scope = self._scopes[index]
        with scope:
            await worker.run()
        if self._scopes.get(index) is not scope:
            return
        self._lose(index)
        told = self._told[index] = trio.Event()
        with trio.move_on_after(PATIENCE_S):
            await told.wait()
            return
        for other in list(self._scopes):
            self._lose(other)
        self._workers.end(THROWN_OUT)
        self._channel.shut()

    def _lose(self, index: int) -> None:
        if index in self._told:
            self._told.pop(index).set()
        scope = self._scopes.pop(index, None)
        if scope is not None:
            scope.cancel()
            self._workers.remove(index)
