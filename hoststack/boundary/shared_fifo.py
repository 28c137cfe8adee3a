"""FIFOs between two applications (cut-through), in the same process or in different ones."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from hoststack.boundary.application import Application
from hoststack.boundary.arena import Arena, Block
from hoststack.boundary.fifo_pool import BlockName, FifoSize
from hoststack.native.memory.fifo import Fifo

#: Numbers of a segment, by application in another process.
_Numbers = dict[Application, int]

#: Pairs of applications up to which each may keep a segment that has no FIFOs left.
_KEEPING_PAIRS: Final = 64


class FifosBetween:
    """The FIFOs between the applications of one worker.

    Each pair of applications shares segments that no third one can access.
    """

    def __init__(self) -> None:
        self._arenas: dict[frozenset[Application], Arena[_Numbers]] = {}
        self._retired: set[Arena[_Numbers]] = set()
        """Arenas of applications that are gone; the other side still has FIFOs there."""
        self.due: set[Arena[_Numbers]] = set()
        """Arenas that may have segments to drop."""

    def make(
        self, sides: Mapping[Application, object | None], sizes: Sequence[FifoSize]
    ) -> list[Fifo]:
        """Allocate FIFOs that only these applications can access, all or none.

        `sides` maps each application to the owner that is charged (see `Application.make_fifos`).
        Raises OSError and MemoryError.
        """
        if len(sides) == 1:
            ((application, owner),) = sides.items()
            return application.make_fifos(sizes, owner)
        choices = [application.choose_sizes(sizes, owner) for application, owner in sides.items()]
        chosen = [min(choice) for choice in zip(*choices, strict=True)]
        remote = [application for application in sides if application.is_remote]
        if not remote:
            return [Fifo(size_bytes) for size_bytes in chosen]
        arena = self._arena_of(remote, frozenset(sides))
        blocks: list[Block[_Numbers]] = []
        try:
            for size_bytes in chosen:
                blocks.append(arena.take(size_bytes))
            made = [block.fifo() for block in blocks]
        except BaseException:
            for block in blocks:
                self._give_back(arena, block)
            raise
        # Nothing raises from here on.
        for fifo, block, size in zip(made, blocks, sizes, strict=True):
            free = _after(len(remote), lambda block=block: self._give_back(arena, block))  # type: ignore[misc]
            for application in remote:
                number = block.segment.label[application]
                name = BlockName(number, block.offset, block.size_bytes)
                application.adopt_fifo(fifo, name, free, size.least_bytes, sides[application])
        return made

    def _arena_of(
        self, remote: Sequence[Application], pair: frozenset[Application]
    ) -> Arena[_Numbers]:
        arena = self._arenas.get(pair)
        if arena is None:
            name = "cut-through"
            arena = Arena(name, lambda fd: _add_segment(remote, fd), _remove_segment)
            self._arenas[pair] = arena
        return arena

    def _give_back(self, arena: Arena[_Numbers], block: Block[_Numbers]) -> None:
        arena.give_back(block)
        if arena.has_unused:
            self.due.add(arena)

    def drop_unused(self) -> None:
        """Drop the segments without FIFOs; called once a turn."""
        while self.due:
            arena = self.due.pop()
            is_kept = arena not in self._retired and len(self._arenas) <= _KEEPING_PAIRS
            arena.drop_unused(keep=int(is_kept))
            if not arena.segments:
                self._retired.discard(arena)

    def forget(self, application: Application) -> None:
        """Give back what an application that is gone shared with others. What these still use
        lasts until they have released it."""
        for pair, arena in list(self._arenas.items()):
            if application in pair:
                del self._arenas[pair]
                arena.retire()
                for segment in arena.segments:
                    segment.label.pop(application, None)
                self._retired.add(arena)
                self.due.add(arena)
        self.drop_unused()


def _add_segment(remote: Sequence[Application], fd: int) -> _Numbers:
    """Send a segment to applications; raises OSError."""
    fds = [fd]
    try:
        while len(fds) < len(remote):
            fds.append(os.dup(fd))
    except OSError:
        for each in fds:
            os.close(each)
        raise
    return {
        application: application.add_segment(each)
        for application, each in zip(remote, fds, strict=True)
    }


def _remove_segment(numbers: _Numbers) -> None:
    for application, number in numbers.items():
        application.remove_segment(number)


def _after(count: int, function: Callable[[], None]) -> Callable[[], None]:
    """Return a function that calls another one when it is called for the `count`th time."""
    calls = itertools.count(1)

    def call() -> None:
        if next(calls) == count:
            function()

    return call
