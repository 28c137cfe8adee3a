"""The debug CLI inside one worker: the objects that commands use."""

from __future__ import annotations

from typing import Any

import trio

from hoststack.api.stack import Stack, stack_on
from hoststack.session.session import SessionTable
from hoststack.session.streams import Streams
from hoststack.worker.worker import Worker

#: A command's result in one worker: JSON.
Data = dict[str, Any]


class WorkerSide:
    """One worker, as the debug CLI sees it. Use it only in the worker's own event loop."""

    def __init__(
        self, worker: Worker, nursery: trio.Nursery, *, index: int = 0, workers: int = 1
    ) -> None:
        """`nursery` runs the echo servers; `workers` is the number of workers, of which this is
        number `index`."""
        self.worker = worker
        self.nursery = nursery
        self.index = index
        self.workers = workers
        self.counted_before: dict[tuple[str, str], int] = {}
        """Errors at the time of `clear errors`, by node and reason: counters are never reset."""
        self.servers: dict[str, Server] = {}
        """Echo servers by URI."""
        self._stacks: dict[str, Stack] = {}

    @property
    def sessions(self) -> SessionTable:
        return self.worker.layer.sessions

    @property
    def streams(self) -> Streams:
        return self.worker.layer.streams

    def stack(self, name: str) -> Stack:
        """Return the internal application of that name, attached on first use."""
        if name not in self._stacks:
            self._stacks[name] = stack_on(self.worker, name)
        return self._stacks[name]


class Server:
    """A running echo server; cancelling `scope` ends it, `ended` is set when it has ended."""

    def __init__(self, local: tuple[str, int]) -> None:
        self.local = local
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
