"""Two workers in one process, each with the debug CLI, and lines that run in them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from hoststack.debug.lines import run_line
from hoststack.debug.run import run
from hoststack.debug.worker_side import WorkerSide
from hoststack.engine.engines import engine_maker
from hoststack.engine.worker import Worker
from hoststack.link.base import Link
from hoststack.link.memory import MemoryNetwork


@dataclass
class Host:
    """A machine with some workers, and its debug CLI."""

    sides: list[WorkerSide] = field(default_factory=list)

    async def ctl(self, line: str) -> str:
        """A line's answer, as text."""
        return await run_line(line, self._workers())

    async def json(self, line: str) -> Any:
        return json.loads(await run_line(line, self._workers(), as_json=True))

    def _workers(self) -> dict[int, Any]:
        return {side.index: partial(run, side=side) for side in self.sides}


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
            host.sides.append(WorkerSide(worker, nursery, index=index, workers=len(links)))
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
