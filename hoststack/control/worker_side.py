"""The debug CLI inside one worker: what commands act on."""

from __future__ import annotations

from typing import Any

import trio

from hoststack.api.stack import Stack, stack_on
from hoststack.session.session import SessionTable
from hoststack.worker.worker import Worker

#: What a command brings about in one worker: JSON.
Data = dict[str, Any]


class WorkerSide:
    """One worker, as the debug CLI sees it. It belongs into the worker's own loop."""

    def __init__(
        self, worker: Worker, nursery: trio.Nursery, *, index: int = 0, workers: int = 1
    ) -> None:
        """`nursery` is where echo servers run; `workers` is how many there are, of which this is
        number `index`."""
        self.worker = worker
        self.nursery = nursery
        self.index = index
        self.workers = workers
        self.counted_before: dict[tuple[str, str], int] = {}
        """What `clear errors` found, by node and reason: counters are never reset."""
        self.servers: dict[str, Server] = {}
        """Echo servers by URI."""
        self._stacks: dict[str, Stack] = {}

    @property
    def sessions(self) -> SessionTable:
        return self.worker.layer.sessions

    def stack(self, name: str) -> Stack:
        """The internal application of that name, attached when it is first needed."""
        if name not in self._stacks:
            self._stacks[name] = stack_on(self.worker, name)
        return self._stacks[name]


class Server:
    """An echo server that runs; `scope` ends it, `ended` tells when it has."""

    def __init__(self, local: tuple[str, int]) -> None:
        self.local = local
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
