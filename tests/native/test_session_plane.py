"""The session plane between a transport and applications that are made here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pytest

from hoststack.native.memory._memory import ffi as memory_ffi
from hoststack.native.memory._memory import lib as memory
from hoststack.native.session._session import ffi, lib

WORKER: Final = 3
RX_BYTES, TX_BYTES = 4096, 2048
CONNECTION: Final = WORKER << 32 | 9
BYTES_MASK: Final = (1 << lib.HS_END_BYTES_BITS) - 1


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
            ffi.callback("int(void *, int)", lambda c, uni: self.credit > 0),
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
        """Note a call; the peer should hear of what is credited."""
        number = () if stream is None else (int(ffi.cast("uintptr_t", stream)),)
        self.done.append((name, *number, *more))
        return 1

    def _noting(self, name: str) -> Any:
        def note(stream: Any, *more: int) -> int | None:
            noted = self._note(name, stream, *more)
            return noted if name == "consumed" else None

        return note

    def _open(self, _c: Any, is_uni: int, session: Any, _rx: Any, _tx: Any, stream_id: Any) -> Any:
        self.credit -= 1
        self._opened += 1
        self.session = ffi.cast("struct hs_stream_session *", session)
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
        self._fifos: list[Any] = []
        self._command = ffi.callback(
            "void(void *, uint64_t, uint32_t, uint64_t)",
            lambda _, handle, command, code: self.commands.append((handle, command, code)),
        )
        self._make = ffi.callback(
            "int(void *, uint64_t, uint64_t, struct hs_fifo_producer **,"
            " struct hs_fifo_consumer **)",
            self._make_fifos,
        )
        self.plane = lib.hs_plane_new(WORKER, 100, self._command, self._make, ffi.NULL)
        self.side = lib.hs_side_new()
        self.application = lib.hs_application_new(self.plane, ffi.NULL if is_remote else self.side)
        self.connection = lib.hs_connection_session_new(
            self.application, 77, self.transport.verbs, ffi.NULL, RX_BYTES, TX_BYTES
        )
        self._sessions = ffi.cast("struct hs_session_verbs *", lib.hs_plane_verbs())
        self.held: Any = None

    def _make_fifos(self, _owner: Any, key: int, _handle: int, rx: Any, tx: Any) -> int:
        assert key == 77
        self._fifos.append(ffi.new("uint8_t[256]"))  # nobody uses them here
        rx[0] = ffi.cast("struct hs_fifo_producer *", self._fifos[-1])
        if tx:
            tx[0] = ffi.cast("struct hs_fifo_consumer *", self._fifos[-1])
        return 0

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

    def events(self) -> list[tuple[int, int]]:
        out = ffi.new("struct hs_session_event[16]")
        count = lib.hs_application_events(self.application, out, 16)
        return [(event.handle, event.events) for event in out[0:count]]

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


@pytest.fixture
def here() -> Iterator[Stack]:
    """With an application in this process."""
    stack = Stack(is_remote=False)
    yield stack
    stack.end()


@pytest.fixture
def remote() -> Iterator[Stack]:
    """With one in another process."""
    stack = Stack(is_remote=True)
    yield stack
    stack.held = None  # of this process only
    stack.end()


def read(end: Any, n: int) -> tuple[int, bytes]:
    room = ffi.new("uint8_t[]", n)
    result = int(lib.hs_end_read(end, room, n, 0))
    return result, bytes(ffi.buffer(room, max(result, 0) & BYTES_MASK))


def test_a_peers_stream_gives_credit_once_when_it_is_over_and_taken(here: Stack) -> None:
    here.announce()
    session, rx = here.peer_opens()
    accepted = here.accept()
    assert accepted.has_tx
    assert accepted.handle >> 32 == WORKER
    assert accepted.handle & lib.HS_SESSION_STREAM
    memory.hs_fifo_write(rx, b"hello", 5)
    memory.hs_fifo_set_eof(rx)
    assert read(accepted.end, 9)[1] == b"hello"
    assert read(accepted.end, 9) == (0, b"")
    lib.hs_end_close(accepted.end, 0, 0)
    assert here.transport.take() == [("consumed", 500), ("send_ready", 500)]
    here.report(session, lib.HS_STREAM_FINISHED | lib.HS_STREAM_OVER)
    assert here.transport.take() == [("allow", 0)]
    assert lib.hs_plane_has_credit(here.plane)
    assert here.sessions == 0
    lib.hs_end_drop(accepted.end)
    lib.hs_plane_collect(here.plane)
    assert here.transport.take() == []


def test_a_stream_that_is_over_before_it_is_taken_gives_credit_then(here: Stack) -> None:
    session, rx = here.peer_opens(stream_id=2)
    memory.hs_fifo_write(rx, b"early", 5)
    here.report(session, lib.HS_STREAM_READABLE | lib.HS_STREAM_OVER)
    assert (here.sessions, lib.hs_plane_streams(here.plane)) == (1, 0)
    assert here.transport.take() == []
    here.announce()
    accepted = here.accept()
    assert accepted.hints == lib.HS_END_CREDIT
    assert here.transport.take() == [("allow", 1)]
    assert read(accepted.end, 9)[1] == b"early"
    assert here.accept() is None
    lib.hs_end_drop(accepted.end)


def test_an_end_is_woken_for_what_it_waits_for(here: Stack) -> None:
    here.announce()
    assert here.accept() is None
    assert here.wakes() == []
    session, rx = here.peer_opens()
    assert here.wakes() == [(CONNECTION, lib.HS_WAIT_STREAMS)]
    accepted = here.accept()
    end, handle = accepted.end, accepted.handle
    here.report(session, lib.HS_STREAM_READABLE)
    assert here.wakes() == []  # nobody waits
    assert read(end, 9) == (lib.HS_END_WAIT, b"")
    memory.hs_fifo_write(rx, b"x", 1)
    here.report(session, lib.HS_STREAM_READABLE | lib.HS_STREAM_WRITABLE)
    assert here.wakes() == [(handle, lib.HS_WAIT_READ)]
    assert lib.hs_end_write(end, bytes(TX_BYTES + 1), TX_BYTES + 1) & BYTES_MASK == TX_BYTES
    assert lib.hs_end_writable(end) == 0
    here.report(session, lib.HS_STREAM_WRITABLE)
    assert here.wakes() == [(handle, lib.HS_WAIT_WRITE)]
    lib.hs_end_finish(end)
    assert lib.hs_end_unacknowledged(here.held, 1) == 1
    assert lib.hs_end_wait_finished(end) == 0
    here.report(session, lib.HS_STREAM_FINISHED)
    assert here.wakes() == [(handle, lib.HS_WAIT_FINISHED), (CONNECTION, lib.HS_WAIT_FINISHED)]
    assert lib.hs_end_wait_finished(end) == 1
    lib.hs_end_drop(end)


def test_what_was_received_can_be_read_after_the_connection_is_closed(here: Stack) -> None:
    here.announce()
    _, rx = here.peer_opens()
    end = here.accept().end
    assert read(end, 9)[0] == lib.HS_END_WAIT
    memory.hs_fifo_write(rx, b"last words", 10)
    here.close()
    assert here.transport.take() == [("let_go", 500)]
    assert [wait for _, wait in here.wakes()] == [lib.HS_WAIT_READ]
    assert read(end, 99)[1] == b"last words"
    assert read(end, 99)[0] == lib.HS_END_GONE
    assert lib.hs_end_write(end, b"x", 1) == lib.HS_END_GONE
    assert lib.hs_end_close(end, 1, 7) & BYTES_MASK == 0
    assert here.transport.take() == []
    lib.hs_end_drop(end)


def test_credit_is_urgent_from_a_quarter_of_the_fifo_on(here: Stack) -> None:
    here.announce()
    _, rx = here.peer_opens()
    end = here.accept().end
    memory.hs_fifo_write(rx, bytes(RX_BYTES), RX_BYTES)
    assert hints(read(end, 1)[0]) == lib.HS_END_CREDIT
    assert hints(read(end, 1)[0]) == 0  # the stack knows
    assert hints(read(end, RX_BYTES // 4)[0]) == lib.HS_END_CREDIT_NOW
    lib.hs_plane_collect(here.plane)
    assert hints(read(end, 1)[0]) == lib.HS_END_CREDIT
    lib.hs_end_drop(end)


@pytest.mark.parametrize("is_cut", [False, True])
def test_closing_resets_what_is_incomplete(here: Stack, is_cut: bool) -> None:
    here.announce()
    opened = here.opens()
    lib.hs_end_write(opened.end, b"part", 4)
    lib.hs_end_set_cut(opened.end, is_cut)
    assert lib.hs_end_cut_short(here.held) == is_cut
    here.transport.take()
    lib.hs_end_close(opened.end, 0, 0x107)
    stop = ("stop", 1001, 0)
    ended = ("reset", 1001, 0x107) if is_cut else ("send_ready", 1001)
    assert here.transport.take() == [ended, stop]
    assert lib.hs_end_cut_short(here.held) == 0
    lib.hs_end_drop(opened.end)


def test_no_credit_of_the_peer_opens_nothing(here: Stack) -> None:
    here.announce()
    here.transport.credit = 0
    opened = ffi.new("struct hs_opened *")
    assert lib.hs_session_open(here.connection, 0, opened) == lib.HS_SESSION_NO_CREDIT
    lib.hs_application_set_max(here.application, 1)
    lib.hs_application_count(here.application, 1)
    assert lib.hs_session_open(here.connection, 0, opened) == lib.HS_SESSION_MAX_SESSIONS
    assert here.peer_opens() == (None, None)
    counts = ffi.new("uint64_t[]", lib.HS_SESSION_REFUSALS)
    lib.hs_plane_refused(here.plane, counts)
    assert counts[lib.HS_SESSION_MAX_SESSIONS] == 2
    lib.hs_application_count(here.application, -1)


def test_a_handle_is_not_used_again_soon(here: Stack) -> None:
    here.announce()
    here.transport.credit = 1 << 20
    handles = set()
    for _ in range(lib.HS_SESSION_REUSE):
        opened = here.opens()
        handles.add(opened.handle)
        here.report(here.transport.session, lib.HS_STREAM_OVER)
        lib.hs_end_drop(opened.end)
        lib.hs_plane_collect(here.plane)
        assert not lib.hs_session_find(here.plane, opened.handle)
    assert len(handles) == lib.HS_SESSION_REUSE


def test_events_follow_the_announcement(remote: Stack) -> None:
    session, _ = remote.peer_opens(stream_id=2)
    handle = lib.hs_session_handle(ffi.cast("struct hs_stream_session *", session))
    assert remote.events() == []
    lib.hs_connection_session_announce(remote.connection, CONNECTION)
    remote.report(session, lib.HS_STREAM_READABLE)
    assert remote.events() == [(handle, lib.HS_STREAM_OPENED | lib.HS_STREAM_READABLE)]
    remote.report(session, lib.HS_STREAM_RESET, 5)
    remote.report(session, lib.HS_STREAM_RESET | lib.HS_STREAM_OVER, 6)
    assert remote.events() == [(handle, lib.HS_STREAM_RESET | lib.HS_STREAM_OVER)]
    assert remote.transport.take() == []
    lib.hs_session_signal(remote.application, handle, lib.HS_SIGNAL_TAKEN, 0)
    assert remote.transport.take() == [("allow", 1)]
    assert remote.sessions == 0
    assert not lib.hs_session_signal(remote.application, handle, lib.HS_SIGNAL_TAKEN, 0)
    assert remote.commands == []  # the last event said that the FIFOs are unused


def test_the_fifos_of_a_refused_connection_are_given_back(remote: Stack) -> None:
    session, _ = remote.peer_opens(stream_id=2)
    handle = lib.hs_session_handle(ffi.cast("struct hs_stream_session *", session))
    remote.close()
    assert remote.events() == []
    assert remote.commands == [(handle, lib.HS_SESSION_FREED, 0)]
    assert remote.sessions == 0


def test_streams_that_a_program_never_took_count_until_it_is_gone(remote: Stack) -> None:
    lib.hs_connection_session_announce(remote.connection, CONNECTION)
    for number in range(3):
        remote.peer_opens(500 + number, number * 4 + 2)
    remote.close()
    assert [events for _, events in remote.events()] == [
        lib.HS_STREAM_OPENED | lib.HS_STREAM_OVER
    ] * 3
    assert remote.sessions == 3
    lib.hs_application_forget_untaken(remote.application)
    assert remote.sessions == 0


def test_a_signal_about_a_stream_of_another_application_is_ignored(
    here: Stack, remote: Stack
) -> None:
    here.announce()
    opened = here.opens()
    for handle in (opened.handle, 0, CONNECTION, (1 << 64) - 1):
        for signal in range(6):
            assert not lib.hs_session_signal(remote.application, handle, signal, 1)
    assert here.transport.take() == []
    lib.hs_end_drop(opened.end)
