"""Applications that have left, until every worker has let go of them.

A worker lets go of an application when it has read what that had sent, in the time that is for its
process. So a process that attaches and leaves in a loop waits here, and its leftovers, descriptors
and memory, stay few.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import trio

from hoststack.boundary.user_shares import Process

#: Most applications of one process that have left. Above it, the next one waits.
MOST_LEAVING: Final = 8

OnLetGo = Callable[[int], None]
"""Called with the number of an attachment that a worker serves no more."""


@dataclass(slots=True, eq=False)
class _Attachment:
    process: Process
    workers: set[int] = field(default_factory=set)
    """Those that have it."""
    has_left: bool = False


class Attachments:
    """The attachments of all processes."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._by_number: dict[int, _Attachment] = {}
        self._changed = trio.lowlevel.ParkingLot()

    def __len__(self) -> int:
        return len(self._by_number)

    def add(self, process: Process) -> int:
        """Add an attachment; return its number."""
        number = next(self._numbers)
        self._by_number[number] = _Attachment(process)
        return number

    def served(self, number: int, worker: int) -> None:
        """Note that a worker serves an attachment."""
        self._by_number[number].workers.add(worker)

    def left(self, number: int) -> None:
        """Note that the application has left."""
        self._by_number[number].has_left = True
        self._forget(number)

    def let_go(self, number: int, worker: int) -> None:
        """Note that a worker serves an attachment no more. It may say so about any number."""
        attachment = self._by_number.get(number)
        if attachment is not None:
            attachment.workers.discard(worker)
            self._forget(number)

    def worker_died(self, worker: int) -> None:
        """Note that a worker has nothing any more."""
        for number in list(self._by_number):
            self.let_go(number, worker)

    def _forget(self, number: int) -> None:
        attachment = self._by_number[number]
        if attachment.has_left and not attachment.workers:
            del self._by_number[number]
            self._changed.unpark_all()

    async def wait_for_room(self, process: Process) -> None:
        """Wait until few enough applications of a process are leaving."""
        while self._leaving(process) >= MOST_LEAVING:
            await self._changed.park()

    def _leaving(self, process: Process) -> int:
        return sum(each.has_left and each.process == process for each in self._by_number.values())
