"""FIFOs between two applications (cut-through), in the same process or in different ones."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from hoststack.boundary.application import Application
from hoststack.boundary.fifo_pool import FifoSize
from hoststack.native.memory.fifo import Fifo
from hoststack.native.memory.segment import make_segment, map_segment


def make_fifos_between(
    sides: Mapping[Application, object | None], sizes: Sequence[FifoSize]
) -> list[Fifo]:
    """Allocate FIFOs that only these applications can access, all or none.

    `sides` maps each application to the owner that is charged (see `Application.make_fifos`).
    Raises OSError and MemoryError. If an application is in another process, each FIFO gets its own
    segment: a shared one would expose the other side's FIFOs with third parties.
    """
    choices = [application.choose_sizes(sizes, owner) for application, owner in sides.items()]
    chosen = [min(choice) for choice in zip(*choices, strict=True)]
    if not any(application.is_remote for application in sides):
        return [Fifo(size_bytes) for size_bytes in chosen]
    made: list[Fifo] = []
    with ExitStack() as undo:
        fds: list[list[int]] = []
        for size_bytes in chosen:
            fd = make_segment("hoststack-cut-through", Fifo.block_bytes(size_bytes))
            fds.append([fd])
            undo.callback(os.close, fd)
            made.append(Fifo(size_bytes, map_segment(fd)))
            for _ in range(len(sides) - 1):
                fds[-1].append(os.dup(fd))
                undo.callback(os.close, fds[-1][-1])
        # Nothing raises from here on.
        undo.pop_all()
    for fifo, size, duplicates in zip(made, sizes, fds, strict=True):
        for (application, owner), fd in zip(sides.items(), duplicates, strict=True):
            application.adopt_fifo(fifo, fd, size.least_bytes, owner)
    return made
