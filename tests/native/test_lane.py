"""The fast lane: the session plane and an application in another process, over rings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from hoststack.native.memory._memory import lib as memory
from hoststack.native.session._session import ffi, lib
from tests.support.planes import (
    BYTES_MASK,
    CONNECTION,
    CONNECTION_KEY,
    RX_BYTES,
    TX_BYTES,
    Elsewhere,
    Stack,
    read,
)

MESSAGE, OPENED, REFUSED = lib.HS_TASK_MESSAGE, lib.HS_TASK_OPENED, lib.HS_TASK_REFUSED


@pytest.fixture
def remote() -> Iterator[Elsewhere]:
    """With rings of four events."""
    stack = Elsewhere()
    yield stack
    stack.end()


def handle_of(session: Any) -> int:
    return int(lib.hs_session_handle(ffi.cast("struct hs_stream_session *", session)))


def drop(end: Any) -> None:
    """Close and drop an end."""
    lib.hs_end_close(end, 1, 0)
    lib.hs_end_drop(end)


def over(stack: Stack, session: Any) -> None:
    stack.report(session, lib.HS_STREAM_OVER)


def ask(remote: Elsewhere, token: int) -> tuple[Any, Any]:
    """Ask for a stream; return its end, and its session."""
    assert remote.command(lib.HS_COMMAND_OPEN, word=token)
    (task,) = remote.pump()
    assert (task.kind, task.token) == (OPENED, token)
    return task.end, remote.transport.session


# --- news ----------------------------------------------------------------------------------------


def test_news_follow_the_announcement(remote: Elsewhere) -> None:
    session, rx = remote.peer_opens(stream_id=2)
    assert remote.tell() == 0
    remote.announce()
    memory.hs_fifo_write(rx, b"hello", 5)
    remote.report(session, lib.HS_STREAM_READABLE)
    remote.attach_connection()
    remote.pump()
    accepted = remote.accept()
    assert (accepted.handle, accepted.stream_id, accepted.has_tx) == (handle_of(session), 2, 0)
    assert read(accepted.end, 9)[1] == b"hello"
    assert read(accepted.end, 9)[0] == lib.HS_END_WAIT
    memory.hs_fifo_write(rx, b"x", 1)
    remote.report(session, lib.HS_STREAM_READABLE)
    remote.pump()
    assert remote.wakes() == [(accepted.handle, lib.HS_WAIT_READ)]
    remote.report(session, lib.HS_STREAM_RESET, 5)
    remote.report(session, lib.HS_STREAM_RESET | lib.HS_STREAM_OVER, 6)
    assert remote.transport.take()[-1] == ("allow", 1)  # it is over and taken
    remote.pump()
    state = ffi.new("struct hs_end_state *")
    lib.hs_end_state(accepted.end, state)
    assert (state.rx, state.reset_code) == (lib.HS_END_RESET, 5)
    assert remote.sessions == 1  # but not released
    drop(accepted.end)
    remote.pump()
    assert remote.sessions == 0
    assert not lib.hs_session_find(remote.plane, accepted.handle)


def test_a_stream_gives_credit_once_when_it_is_over_and_taken(remote: Elsewhere) -> None:
    remote.announce()
    remote.attach_connection()
    session, _ = remote.peer_opens()
    over(remote, session)
    remote.pump()
    assert ("allow", 0) not in remote.transport.take()
    assert remote.sessions == 1
    end = remote.accepts()
    remote.pump()
    assert remote.transport.take() == [("allow", 0)]
    drop(end)
    remote.pump()
    assert remote.transport.take() == []


@pytest.mark.parametrize("events", [2, 4, 16])
def test_a_full_ring_of_news_loses_nothing_and_keeps_the_order(events: int) -> None:
    remote = Elsewhere(events)
    remote.announce()
    remote.attach_connection()
    expected: list[tuple[int, int]] = []
    seen: list[tuple[int, int]] = []
    sessions = []
    for number in range(12):
        # Messages have their places between the streams that they are about.
        for _ in range(number % 3):
            remote.send()
            expected.append((MESSAGE, 0))
        session, _ = remote.peer_opens(500 + number, number * 4)
        sessions.append(session)
        expected.append((OPENED, handle_of(session)))
    told = [remote.tell()]
    assert told == [lib.HS_TOLD_SOME | lib.HS_TOLD_NOT_ALL]
    assert remote.tell() == lib.HS_TOLD_NOT_ALL
    while told[-1]:
        for task in remote.take():
            seen += untaken(remote)
            seen.append((task.kind, 0))
        seen += untaken(remote)
        told.append(remote.tell())
    assert seen == expected
    assert all(bits & lib.HS_TOLD_SOME for bits in told[:-1])
    for session in sessions:
        over(remote, session)
    remote.end()


def untaken(remote: Elsewhere) -> list[tuple[int, int]]:
    """Accept and drop what was told."""
    found = []
    while accepted := remote.accept():
        found.append((int(OPENED), int(accepted.handle)))
        drop(accepted.end)
    return found


def test_news_wait_for_the_message_ahead_of_them(remote: Elsewhere) -> None:
    remote.announce()
    remote.attach_connection()
    remote.send()
    remote.peer_opens()
    remote.tell()
    assert list(remote.take(has_message=False)) == []
    assert not lib.hs_attached_arm(remote.attached)
    assert remote.accept() is None
    assert [task.kind for task in remote.take()] == [MESSAGE]
    drop(remote.accepts())


def test_datagrams_are_not_told_ahead_of_their_connection(remote: Elsewhere) -> None:
    remote.announce()
    push = lib.hs_application_push
    assert push(remote.application, CONNECTION, lib.HS_NEWS_READABLE) == 0
    remote.tell()
    assert push(remote.application, CONNECTION, lib.HS_NEWS_READABLE) == 1
    assert push(remote.application, CONNECTION, lib.HS_NEWS_WRITABLE) == 1
    kinds = [task.kind for task in remote.take()]
    assert kinds == [MESSAGE, lib.HS_TASK_READABLE, lib.HS_TASK_WRITABLE]


def test_the_worker_is_woken_when_its_ring_has_room_again() -> None:
    remote = Elsewhere(16, pages=256)
    remote.announce()
    remote.attach_connection()
    remote.take_wake()
    for number in range(12):
        remote.peer_opens(500 + number, number * 4)
    remote.tell()
    list(remote.take())
    assert not remote.take_wake()  # it had room
    for number in range(12, 30):
        remote.peer_opens(500 + number, number * 4)
    assert remote.tell() & lib.HS_TOLD_NOT_ALL
    list(remote.take())
    assert remote.take_wake()
    remote.end()


# --- commands ------------------------------------------------------------------------------------


def test_a_full_ring_of_commands_loses_nothing(remote: Elsewhere) -> None:
    remote.announce()
    remote.attach_connection()
    ends = []
    for token in range(9):
        end, session = ask(remote, token)
        ends.append((end, session))
    remote.transport.take()
    remote.settle()
    for number, (end, _) in enumerate(ends):
        assert lib.hs_end_write(end, b"x" * number, number) & BYTES_MASK == number
        lib.hs_end_reset(end, number)
        lib.hs_end_stop(end, 100 + number)
    assert remote.settle() > 0
    assert not remote.command(lib.HS_COMMAND_NOTED)
    rounds = 0
    while True:
        remote.follow()
        assert not remote.done.is_held_up
        left = remote.settle()
        # Whoever may sleep until there is room is told of it.
        assert remote.done.has_made_room or not remote.done.count or not rounds or not left
        rounds += 1
        if not left and not remote.done.count:
            break
    assert rounds > 4
    calls = remote.transport.take()
    streams = [1000 + number for number in range(1, 10)]
    assert [call[1] for call in calls if call[0] == "reset"] == streams
    assert [call[2] for call in calls if call[0] == "reset"] == list(range(9))
    assert [call[2] for call in calls if call[0] == "stop"] == [100 + i for i in range(9)]
    for end, session in ends:
        over(remote, session)
        drop(end)


def test_the_application_is_woken_when_its_ring_has_room_again(remote: Elsewhere) -> None:
    remote.announce()
    remote.attach_connection()
    for _ in range(4):
        assert remote.command(lib.HS_COMMAND_NOTED)
    remote.follow()
    assert not remote.done.has_made_room
    while remote.command(lib.HS_COMMAND_NOTED):
        pass
    assert len(remote.follow()) == 4
    assert remote.done.has_made_room
    remote.follow()
    assert not remote.done.has_made_room


def test_commands_wait_for_room_for_their_answers(remote: Elsewhere) -> None:
    remote.announce()
    remote.attach_connection()
    remote.transport.credit = 0
    for token in range(4):
        assert remote.command(lib.HS_COMMAND_OPEN, word=token)
    remote.follow()
    assert (remote.done.count, bool(remote.done.is_held_up)) == (4, True)
    assert remote.command(lib.HS_COMMAND_OPEN, word=4)
    assert remote.command(lib.HS_COMMAND_NOTED)
    remote.follow()
    assert (remote.done.count, bool(remote.done.is_held_up)) == (0, True)
    assert remote.tell() == lib.HS_TOLD_SOME  # so that it is woken for the refusals
    assert remote.tell() == 0
    remote.take_wake()
    refused = [(task.kind, task.token, task.code) for task in remote.take()]
    assert refused == [(REFUSED, token, lib.HS_SESSION_NO_CREDIT) for token in range(4)]
    assert remote.take_wake()
    assert [kind for _, kind, _ in remote.follow()] == [lib.HS_COMMAND_NOTED]
    assert [task.token for task in remote.take()] == [4]
    assert lib.hs_connection_session_take_waiting(remote.connection)


def test_no_more_commands_are_handed_out_than_there_is_room_for() -> None:
    remote = Elsewhere(4096)
    remote.announce()
    remote.attach_connection()
    # Answers to commands have room for three, so commands are followed in threes.
    for _ in range(4096 - 3):
        assert lib.hs_application_push(remote.application, CONNECTION, lib.HS_NEWS_READABLE)
    for _ in range(2000):
        assert remote.command(lib.HS_COMMAND_NOTED)
    assert len(remote.follow()) == lib.HS_SESSION_COMMANDS
    assert len(remote.follow()) == 2000 - lib.HS_SESSION_COMMANDS
    remote.end()


def test_the_owners_refusals_have_room() -> None:
    remote = Elsewhere(16)
    python = lib.hs_connection_session_new(
        remote.application, CONNECTION_KEY, 0, ffi.NULL, RX_BYTES, TX_BYTES
    )
    lib.hs_connection_session_announce(python, CONNECTION + 2)
    for token in range(16):
        assert remote.command(lib.HS_COMMAND_OPEN, CONNECTION + 2, word=token)
    for _ in range(9):
        assert lib.hs_application_push(remote.application, CONNECTION, lib.HS_NEWS_READABLE)
    opens = remote.follow()
    assert [token for _, _, token in opens] == list(range(7))
    for _, _, token in opens:
        refused = lib.hs_application_refuse(remote.application, token, lib.HS_SESSION_NO_CREDIT)
        assert refused == 1
    assert remote.done.is_held_up
    tokens = [task.token for task in remote.take() if task.kind == REFUSED]
    assert tokens == list(range(7))
    lib.hs_connection_session_close(python)
    list(remote.take())
    assert len(remote.follow()) == 9  # of a connection that is closed
    remote.end()


def test_a_command_about_a_stream_of_another_application_is_ignored(remote: Elsewhere) -> None:
    here = Stack(is_remote=False)
    here.announce()
    opened = here.opens()
    here.transport.take()
    for handle in (opened.handle, opened.handle ^ 2, (1 << 64) - 1):
        for kind in range(20):
            assert remote.command(kind, handle, word=1)
            opens = [(handle, kind, 1)] if kind == lib.HS_COMMAND_OPEN else []
            assert remote.follow() == opens  # which the owner refuses
    assert here.transport.take() == []
    assert remote.transport.take() == []
    list(remote.take())
    lib.hs_end_drop(opened.end)
    here.end()


@pytest.mark.parametrize("kind", [lib.HS_COMMAND_RESET, lib.HS_COMMAND_STOP])
def test_a_code_that_no_frame_can_carry_is_invalid(remote: Elsewhere, kind: int) -> None:
    assert remote.command(kind, 1, word=1 << 62)
    commands = lib.hs_application_commands
    assert commands(remote.application, remote._out, remote.done) == lib.HS_SESSION_INVALID


# --- the end of streams --------------------------------------------------------------------------


def test_streams_that_a_program_never_took_count_until_it_is_gone(remote: Elsewhere) -> None:
    remote.announce()
    remote.attach_connection()
    for number in range(3):
        remote.peer_opens(500 + number, number * 4 + 2)
    remote.close()
    remote.pump()
    assert remote.sessions == 3
    lib.hs_application_leave(remote.application)
    assert remote.sessions == 0
    assert len(remote.freed) == 3


def test_a_peers_stream_after_the_program_is_gone_leaves_nothing(remote: Elsewhere) -> None:
    remote.announce()
    lib.hs_application_leave(remote.application)
    session, _ = remote.peer_opens()
    remote.transport.take()
    over(remote, session)
    assert remote.transport.take() == [("allow", 0)]
    assert remote.sessions == 0
    assert not lib.hs_plane_streams(remote.plane)


def test_a_program_may_hold_a_closed_stream_while_its_handle_is_used_again() -> None:
    remote = Elsewhere(16, pages=256)
    remote.announce()
    remote.attach_connection()
    remote.transport.credit = 1 << 20
    kept, session = ask(remote, 0)
    handle = handle_of(session)
    lib.hs_end_close(kept, 1, 7)
    remote.pump()
    over(remote, session)
    handles = set()
    for token in range(1, lib.HS_SESSION_REUSE + 2):
        end, session = ask(remote, token)
        handles.add(handle_of(session))
        if handle in handles:
            break
        drop(end)
        over(remote, session)
        remote.pump()
    assert handle in handles
    # What is said about the old one is nothing to the new one.
    remote.transport.take()
    lib.hs_end_reset(kept, 9)
    lib.hs_end_drop(kept)
    remote.pump()
    assert remote.transport.take() == []
    assert lib.hs_end_write(end, b"x", 1) & BYTES_MASK == 1
    remote.pump()
    assert [call[0] for call in remote.transport.take()] == ["send_ready"]
    drop(end)
    over(remote, session)
    remote.end()


def test_what_is_acknowledged_late_is_counted_after_the_stream_was_dropped(
    remote: Elsewhere,
) -> None:
    remote.announce()
    remote.attach_connection()
    end, session = ask(remote, 1)
    lib.hs_end_write(end, b"x", 1)
    lib.hs_end_finish(end)
    drop(end)
    remote.pump()
    assert lib.hs_end_unacknowledged(remote.held, 1) == 1
    remote.report(session, lib.HS_STREAM_FINISHED | lib.HS_STREAM_OVER)
    remote.pump()
    assert lib.hs_end_unacknowledged(remote.held, 1) == 0
    assert remote.wakes() == [(CONNECTION, lib.HS_WAIT_FINISHED)]


# --- memory --------------------------------------------------------------------------------------


def test_the_fifos_of_a_refused_connection_are_given_back(remote: Elsewhere) -> None:
    remote.peer_opens(stream_id=2)
    remote.peer_opens(501, stream_id=0)
    remote.close()
    assert remote.tell() == 0
    assert sorted(remote.freed) == sorted(remote.made)
    assert remote.sessions == 0


def test_a_released_fifo_is_used_again_by_the_connections_next_stream(remote: Elsewhere) -> None:
    remote.announce()
    remote.attach_connection()
    for token in range(5):
        end, session = ask(remote, token)
        assert lib.hs_end_write(end, b"secret", 6) & BYTES_MASK == 6
        drop(end)
        remote.pump()
        over(remote, session)
        assert len(remote.made) == 2
        assert remote.freed == []
    # One of it at a time: what the other one needs is made.
    ends = [ask(remote, token) for token in (5, 6)]
    assert len(remote.made) == 4
    for end, session in ends:
        assert read(end, 9)[0] == lib.HS_END_WAIT
        drop(end)
        over(remote, session)
    remote.pump()
    assert remote.freed == []
    remote.close()
    assert sorted(remote.freed) == sorted(remote.made)


def test_a_fifo_that_is_not_released_is_not_used_again(remote: Elsewhere) -> None:
    remote.announce()
    remote.attach_connection()
    end, session = ask(remote, 1)
    over(remote, session)
    other, other_session = ask(remote, 2)
    assert len(remote.made) == 4
    drop(end)
    drop(other)
    over(remote, other_session)


def test_a_fifo_that_carried_much_goes_back_to_the_owner(remote: Elsewhere) -> None:
    remote.announce()
    remote.attach_connection()
    session, rx = remote.peer_opens()
    remote.pump()
    end = remote.accepts()
    for _ in range(9):
        memory.hs_fifo_write(rx, bytes(RX_BYTES), RX_BYTES)
        assert len(read(end, RX_BYTES)[1]) == RX_BYTES
    drop(end)
    over(remote, session)
    remote.pump()
    assert remote.freed == remote.made[:1]  # of receiving; nothing was sent


def test_spares_are_given_back_when_the_owner_has_no_memory() -> None:
    remote = Elsewhere(16, pages=12)  # three streams
    remote.announce()
    remote.attach_connection()
    ends = [ask(remote, token) for token in range(3)]
    for end, session in ends[:2]:
        drop(end)
        over(remote, session)
    remote.pump()
    other = lib.hs_connection_session_new(
        remote.application, CONNECTION_KEY, remote.transport.verbs, ffi.NULL, RX_BYTES, TX_BYTES
    )
    lib.hs_connection_session_announce(other, CONNECTION + 2)
    remote.send()
    side = lib.hs_attached_connection(remote.attached, CONNECTION + 2)
    assert (len(remote.made), remote.freed) == (6, [])
    opened = []
    for token in (7, 8, 9):
        assert remote.command(lib.HS_COMMAND_OPEN, CONNECTION + 2, word=token)
        opened += [task for task in remote.pump() if task.kind != MESSAGE]
    assert [(task.kind, task.token) for task in opened] == [(OPENED, 7), (OPENED, 8), (REFUSED, 9)]
    assert opened[2].code == lib.HS_SESSION_NO_MEMORY
    assert sorted(remote.freed) == sorted(remote.made[:4])
    for task in opened[:2]:
        drop(task.end)
    lib.hs_end_connection_drop(side)
    lib.hs_connection_session_close(other)
    drop(ends[2][0])
    over(remote, ends[2][1])
    remote.end()
