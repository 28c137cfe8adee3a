"""Two workers in one process, each with the debug CLI, and lines that run in them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
import trio.testing

from hoststack.control.console import Console, RunInWorker
from hoststack.control.run import read_answer, run_line
from hoststack.control.worker_side import Data, WorkerSide
from hoststack.link.base import Link
from hoststack.link.memory import MemoryNetwork
from hoststack.worker.engines import engine_maker
from hoststack.worker.worker import Worker


def in_worker(side: WorkerSide) -> RunInWorker:
    """As a supervisor runs lines in a worker of another process."""

    async def run_in_worker(line: str) -> Data:
        return read_answer(await run_line(line, side))

    return run_in_worker


@dataclass
class Host:
    """A machine with some workers, and its debug CLI."""

    sides: list[WorkerSide] = field(default_factory=list)
    workers: dict[int, RunInWorker] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.console = Console(self.workers)

    def add(self, side: WorkerSide) -> None:
        self.sides.append(side)
        self.workers[side.index] = in_worker(side)

    async def ctl(self, line: str) -> str:
        """A line's answer, as text."""
        return await self.console.run_line(line)

    async def json(self, line: str) -> Any:
        return json.loads(await self.console.run_line(line, as_json=True))


@asynccontextmanager
async def host_on(*links: Link) -> AsyncIterator[Host]:
    """A worker on each link, all of one host."""
    host = Host()
    async with AsyncExitStack() as undo:
        for link in links:
            undo.callback(link.close)
        nursery = await undo.enter_async_context(trio.open_nursery())
        for index, link in enumerate(links):
            worker = Worker(link, engine_maker("auto", link), index)
            host.add(WorkerSide(worker, nursery, index=index, workers=len(links)))
            await nursery.start(worker.run)
        yield host
        nursery.cancel_scope.cancel()


@dataclass
class Net:
    """A host that serves, with one worker; and one that connects, with two."""

    network: MemoryNetwork
    server: Host
    client: Host


@pytest.fixture
def play(engine: str) -> Callable[[Callable[[Net], Awaitable[None]]], None]:
    """Runs a script on two hosts on a clock that jumps; with each engine."""

    async def main(script: Callable[[Net], Awaitable[None]]) -> None:
        network = MemoryNetwork()
        with trio.fail_after(3600):
            async with (
                host_on(network.link("10.0.0.1")) as server,
                host_on(network.link("10.0.0.2"), network.link("10.0.0.3")) as client,
            ):
                await script(Net(network, server, client))

    return lambda script: trio.run(main, script, clock=trio.testing.MockClock(autojump_threshold=0))
