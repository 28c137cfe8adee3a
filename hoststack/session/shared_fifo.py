"""FIFOs between two applications (cut-through), whichever processes they live in."""

from __future__ import annotations

import os

from hoststack.native.fifo import Fifo
from hoststack.native.segment import make_segment, map_segment
from hoststack.session.application import Application


def make_fifo_between(one: Application, other: Application, size_bytes: int) -> Fifo:
    """A FIFO that both applications see, and no third one; raises OSError.

    Where one lives in another process it has a segment to itself: a segment that had more in it
    would show the one what the other has with others.
    """
    if not (one.is_remote or other.is_remote):
        return Fifo(size_bytes)
    fd = make_segment("hoststack-cut-through", Fifo.block_bytes(size_bytes))
    try:
        fifo = Fifo(size_bytes, map_segment(fd))
        for application in {one, other}:
            application.adopt_fifo(fifo, fd)
    finally:
        os.close(fd)
    return fifo
