"""The session plane between a transport and applications in this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hoststack.native.memory._memory import lib as memory
from hoststack.native.session._session import ffi, lib
from tests.support.planes import (
    BYTES_MASK,
    CONNECTION,
    RX_BYTES,
    TX_BYTES,
    WORKER,
    Stack,
    hints,
    read,
)


@pytest.fixture
def here() -> Iterator[Stack]:
    """With an application in this process."""
    stack = Stack(is_remote=False)
    yield stack
    stack.end()


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
