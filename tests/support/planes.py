"""A session plane between a transport and applications that are made here: in this process, or with
the rings and the memory of one in another process."""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
from collections.abc import Iterator
from typing import Any, Final

from hoststack.native.memory._memory import ffi as memory_ffi
from hoststack.native.memory._memory import lib as memory
from hoststack.native.session._session import ffi, lib

WORKER: Final = 3
RX_BYTES, TX_BYTES = 4096, 2048
CONNECTION: Final = WORKER << 32 | 8
BYTES_MASK: Final = (1 << lib.HS_END_BYTES_BITS) - 1
APPLICATION_KEY, CONNECTION_KEY = 55, 77
_PAGE_BYTES: Final = int(lib.HS_PLACE_PAGE_BYTES)
_SEGMENT: Final = 6
_HEADER_BYTES: Final = int(memory.HS_FIFO_HEADER_BYTES)


def hints(result: int) -> int:
    assert result >= 0
    return result >> int(lib.HS_END_BYTES_BITS)


class Transport:
    """Streams are numbers: their addresses."""

    def __init__(self) -> None:
        self.done: list[tuple[Any, ...]] = []
        self.credit = 100
        self._opened = 0
        one = "void(void *)"
        two = "void(void *, uint64_t)"
        self._kept = [
            ffi.callback("uint64_t(void *, int)", lambda c, uni: max(self.credit, 0)),
            ffi.callback(
                "void *(void *, int, void *, struct hs_fifo_producer *,"
                " struct hs_fifo_consumer *, int64_t *)",
                self._open,
            ),
            ffi.callback("int(void *, int)", lambda c, uni: self._note("allow", None, uni)),
            ffi.callback(one, self._noting("send_ready")),
            ffi.callback("int(void *)", self._noting("consumed")),
            *(ffi.callback(two, self._noting(name)) for name in ("reset", "stop")),
            ffi.callback(one, self._noting("let_go")),
        ]
        self._verbs = ffi.new("struct hs_transport_verbs *", self._kept)
        self.verbs = int(ffi.cast("uintptr_t", self._verbs))

    def _note(self, name: str, stream: Any, *more: int) -> int:
        """Note a call; the peer should be told what is credited."""
        number = () if stream is None else (int(ffi.cast("uintptr_t", stream)),)
        self.done.append((name, *number, *more))
        return 1

    def _noting(self, name: str) -> Any:
        def note(stream: Any, *more: int) -> int | None:
            noted = self._note(name, stream, *more)
            return noted if name == "consumed" else None

        return note

    def _open(self, _c: Any, is_uni: int, session: Any, _rx: Any, tx: Any, stream_id: Any) -> Any:
        self.credit -= 1
        self._opened += 1
        self.session = ffi.cast("struct hs_stream_session *", session)
        address = int(ffi.cast("uintptr_t", tx))
        self.tx = memory_ffi.cast("struct hs_fifo_consumer *", address)
        stream_id[0] = self._opened * 4 + 2 * is_uni
        return ffi.cast("void *", 1000 + self._opened)

    def take(self) -> list[tuple[Any, ...]]:
        done, self.done = self.done, []
        return done


class Stack:
    """A plane with one application, which has one connection."""

    def __init__(self, *, is_remote: bool) -> None:
        self.transport = Transport()
        self.commands: list[tuple[int, int, int]] = []
        self._command = ffi.callback(
            "void(void *, uint64_t, uint32_t, uint64_t)",
            lambda _, *command: self._on_command(*command),
        )
        self._make = ffi.callback(
            "int(void *, uint64_t, int, struct hs_made_block *)", self._make_blocks, error=-1
        )
        self.plane = lib.hs_plane_new(WORKER, 100, self._command, self._make, ffi.NULL)
        self.side = lib.hs_side_new()
        self.application = lib.hs_application_new(
            self.plane, ffi.NULL if is_remote else self.side, APPLICATION_KEY
        )
        self.connection = lib.hs_connection_session_new(
            self.application, CONNECTION_KEY, self.transport.verbs, ffi.NULL, RX_BYTES, TX_BYTES
        )
        self._sessions = ffi.cast("struct hs_session_verbs *", lib.hs_plane_verbs())
        self.held: Any = None

    def _on_command(self, handle: int, command: int, code: int) -> None:
        self.commands.append((handle, command, code))

    def _make_blocks(self, _owner: Any, key: int, _is_peers: int, out: Any) -> int:
        raise NotImplementedError

    def announce(self) -> None:
        lib.hs_connection_session_announce(self.connection, CONNECTION)
        self.held = lib.hs_connection_session_hold(self.connection)

    def close(self) -> None:
        lib.hs_connection_session_close(self.connection)
        self.connection = None

    def peer_opens(self, number: int = 500, stream_id: int = 0) -> tuple[Any, Any]:
        """The stream's session, and its rx FIFO."""
        rx, tx = ffi.new("struct hs_fifo_producer **"), ffi.new("struct hs_fifo_consumer **")
        is_uni = stream_id & 2
        session = self._sessions.open(
            self.connection,
            ffi.cast("void *", number),
            stream_id,
            rx,
            ffi.NULL if is_uni else tx,
        )
        if not session:
            return None, None
        self.report(session, lib.HS_STREAM_OPENED)
        address = int(ffi.cast("uintptr_t", rx[0]))
        return session, memory_ffi.cast("struct hs_fifo_producer *", address)

    def report(self, session: Any, events: int, code: int = 0) -> None:
        self._sessions.report(session, events, code, code)

    def opens(self) -> Any:
        opened = ffi.new("struct hs_opened *")
        assert lib.hs_session_open(self.connection, 0, opened) == 0
        return opened

    def accept(self) -> Any:
        accepted = ffi.new("struct hs_accepted *")
        return accepted if lib.hs_end_accept(self.held, accepted) else None

    def wakes(self) -> list[tuple[int, int]]:
        keys = ffi.new("uint64_t[16]")
        count = lib.hs_side_take(self.side, keys, 16)
        return [(key >> 2, key & 3) for key in keys[0:count]]

    @property
    def sessions(self) -> int:
        return int(lib.hs_application_sessions(self.application))

    def end(self) -> None:
        """Release all; streams were dropped."""
        if self.connection:
            self.close()
        if self.held:
            lib.hs_end_connection_drop(self.held)
        lib.hs_plane_collect(self.plane)
        assert lib.hs_plane_streams(self.plane) == 0
        assert self.sessions == 0
        lib.hs_application_release(self.application)
        lib.hs_plane_release(self.plane)
        lib.hs_side_free(self.side)


def read(end: Any, n: int) -> tuple[int, bytes]:
    room = ffi.new("uint8_t[]", n)
    result = int(lib.hs_end_read(end, room, n, 0))
    return result, bytes(ffi.buffer(room, max(result, 0) & BYTES_MASK))


class Task:
    """What hs_attached_take returned."""

    def __init__(self, kind: int, news: Any) -> None:
        self.kind = kind
        self.end = news.end
        self.handle, self.token, self.code = int(news.handle), int(news.token), int(news.code)


class Elsewhere(Stack):
    """The application is in another process: with small rings, and memory of its own."""

    def __init__(self, events: int = 4, pages: int = 64) -> None:
        super().__init__(is_remote=True)
        ring_bytes = int(lib.HS_EVENT_RING_HEADER_BYTES) + events * int(lib.HS_EVENT_BYTES)
        self._rings = [ffi.new("uint8_t[]", ring_bytes) for _ in range(2)]
        assert lib.hs_application_set_rings(self.application, *self._rings, ring_bytes) == 0
        fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, pages * _PAGE_BYTES)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self._memory = mmap.mmap(fd, pages * _PAGE_BYTES)
        self._free_pages = list(range(pages))
        self.made: list[int] = []
        """Places of all blocks that were made, in order."""
        self.freed: list[int] = []
        """The same of those that were given back."""
        self.woken, self._worker = socket.socketpair()
        self.woken.setblocking(False)
        self.attached = lib.hs_attached_new(
            self.side, *self._rings, ring_bytes, self._worker.fileno()
        )
        assert lib.hs_attached_add_segment(self.attached, _SEGMENT, fd) == 0
        os.close(fd)
        self._news = ffi.new("struct hs_attached_news *")
        self._done = ffi.new("struct hs_commanded *")
        # Exactly as large as it has to be, and what follows is looked at.
        self._out = ffi.new("struct hs_event[]", lib.HS_SESSION_COMMANDS + 64)
        self.messages = 0
        """Those that were sent, and not taken."""

    def _make_blocks(self, _owner: Any, key: int, _is_peers: int, out: Any) -> int:
        assert key == CONNECTION_KEY
        wanted = [out[i] for i in range(2) if out[i].bytes]
        if len(self._free_pages) < 2 * len(wanted):
            return -1
        base = int(ffi.cast("uintptr_t", ffi.from_buffer(self._memory)))
        for block in wanted:
            # Of two pages each.
            page, _ = self._free_pages.pop(0), self._free_pages.pop(0)
            log = int(block.bytes).bit_length() - 1
            block.address = base + page * _PAGE_BYTES
            block.place = (_SEGMENT << 26 | page) << 6 | log
            block.bytes += _HEADER_BYTES
            self.made.append(int(block.place))
        return 0

    def _on_command(self, handle: int, command: int, code: int) -> None:
        assert (handle, command) == (APPLICATION_KEY, lib.HS_SESSION_FREE_BLOCK)
        page = code >> 6 & (1 << 26) - 1
        assert page not in self._free_pages
        self._free_pages += [page, page + 1]
        self.freed.append(code)

    def announce(self) -> None:
        """Announce the connection, with a message."""
        self.send()
        lib.hs_connection_session_announce(self.connection, CONNECTION)

    def send(self) -> None:
        assert lib.hs_application_queue_message(self.application) == 0
        self.messages += 1

    def attach_connection(self) -> None:
        """Take the message of `announce`."""
        lib.hs_application_tell(self.application)
        assert [task.kind for task in self.take(1)] == [lib.HS_TASK_MESSAGE]
        self.held = lib.hs_attached_connection(self.attached, CONNECTION)

    def take(self, most: int = 1000, *, has_message: bool = True) -> Iterator[Task]:
        """Take news, as far as they are in the ring."""
        for _ in range(most):
            has = has_message and self.messages > 0
            kind = lib.hs_attached_take(self.attached, has, self._news)
            assert kind >= 0
            if not kind:
                return
            self.messages -= kind == lib.HS_TASK_MESSAGE
            yield Task(kind, self._news)

    def tell(self) -> int:
        told = int(lib.hs_application_tell(self.application))
        assert told >= 0
        return told

    def follow(self) -> list[tuple[int, int, int]]:
        """Follow commands; return those for the owner: (handle, kind, token)."""
        count = lib.hs_application_commands(self.application, self._out, self._done)
        assert 0 <= count <= lib.HS_SESSION_COMMANDS
        return [(each.handle, each.kind, each.words[0]) for each in self._out[0:count]]

    @property
    def done(self) -> Any:
        """The struct hs_commanded of `follow`."""
        return self._done

    def command(self, kind: int, handle: int = CONNECTION, arg: int = 0, word: int = 0) -> bool:
        return bool(lib.hs_attached_command(self.attached, handle, kind, arg, word))

    def settle(self) -> int:
        return int(lib.hs_attached_settle(self.attached))

    def pump(self) -> list[Task]:
        """Let both sides go on until neither has anything for the other."""
        tasks: list[Task] = []
        while True:
            told = self.tell()
            tasks += self.take()
            self.settle()
            self.follow()
            if not told and not self._done.count:
                return tasks

    def take_wake(self) -> bool:
        """Whether the worker was woken since the last call."""
        try:
            return bool(self.woken.recv(4096))
        except BlockingIOError:
            return False

    def accepts(self) -> Any:
        """Accept the next stream: its struct hs_end."""
        return self.accept().end

    def end(self) -> None:
        """Release all; streams were dropped."""
        if self.held:
            lib.hs_end_connection_drop(self.held)
            self.held = None
        if self.connection:
            self.close()
        self.pump()
        assert self.sessions == 0
        assert sorted(self._free_pages) == list(range(len(self._free_pages)))
        assert len(self._free_pages) == len(self._memory) // _PAGE_BYTES
        lib.hs_attached_free(self.attached)
        super().end()
        self.woken.close()
        self._worker.close()
