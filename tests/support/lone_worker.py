"""What an application has of a worker in another process, where a test writes the news."""

from __future__ import annotations

import os
from typing import Any

from hoststack.boundary import messages as m
from hoststack.boundary.codec import decode_request
from hoststack.boundary.fifo_pool import BlockName
from hoststack.boundary.rings import RING_ENTRIES
from hoststack.native.memory.fifo import Fifo
from hoststack.native.memory.segment import make_segment, map_segment
from hoststack.native.session._session import lib
from hoststack.quic.seam import Handshake
from tests.support.attached import both_ends
from tests.support.event_ring import EventRing

#: Where the FIFOs of a stream are in a segment.
_RX, _TX = 0, 8192
_SEGMENT = 0


class LoneWorker:
    """The worker, and the application's side of it."""

    def __init__(self, connection: int = 2) -> None:
        """Its streams are of that connection."""
        self._ends, self.attached = both_ends("lone")
        self._ends.channel.setblocking(False)
        self.connection = connection
        rings = self.attached.rings
        self._commands = EventRing(RING_ENTRIES, rings.memory)
        self._news = EventRing(RING_ENTRIES, rings.memory, rings.block_bytes)

    def notify(self, notice: m.Notice) -> None:
        """Say something."""
        self.attached._note(notice)
        self.attached.notify(notice)

    def connect(self) -> Any:
        """Return the struct hs_end_connection of the connection, which is new."""
        local, remote = ("10.0.0.1", 1), ("10.0.0.2", 2)
        self.attached._note(m.Connected(1, self.connection, local, remote, "test", Handshake()))
        return self.attached.hold(self.connection)

    def requests(self) -> list[object]:
        """What the application has asked for since the last call."""
        asked = []
        while True:
            try:
                asked.append(decode_request(self._ends.channel.recv(1 << 16)))
            except BlockingIOError:
                return asked

    def tell(self, handle: int, news: int, argument: int = 0, *words: int) -> None:
        """Write news, and have the application read it."""
        assert self._news.push(handle, news, argument, words)
        self.attached.take_news()
        self.attached.wake_application()

    def commands(self) -> list[tuple[int, int]]:
        """Handles and kinds of the commands since the last call."""
        self.attached.settle()
        return [(each.handle, each.kind) for each in self._commands.pop_many(RING_ENTRIES)]

    def open_stream(self, handle: int, size_bytes: int) -> tuple[Any, Fifo, Fifo]:
        """A stream that the application asked for: its struct hs_end, and the worker's sides of
        its rx and tx FIFO."""
        fd = make_segment("lone", 2 * _TX)
        memory = map_segment(fd)
        assert not lib.hs_attached_add_segment(self.attached._attached, _SEGMENT, fd)
        os.close(fd)
        rx, tx = (Fifo(size_bytes, memory, offset) for offset in (_RX, _TX))
        places = (BlockName(_SEGMENT, offset, size_bytes).place for offset in (_RX, _TX))
        self.attached.open_stream(self.connection, False, 1)
        tx.arm_read()
        rx.arm_write()
        assert self._news.push(handle, lib.HS_NEWS_OPENED, 0, (self.connection, 0, *places, 1))
        self.attached.take_news()
        (opened,) = self.attached.take_opened()
        self.commands()
        return opened.end, rx, tx
