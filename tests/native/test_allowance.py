"""Bytes that some streams of a connection may send in all, of an application in this process and of
one in another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from hoststack.native.memory._memory import lib as memory
from hoststack.native.session._session import ffi, lib
from tests.support.planes import BYTES_MASK, CONNECTION, TX_BYTES, Elsewhere, Stack

FINISHED = lib.HS_STREAM_FINISHED


class Opened:
    """A stream that the application opened."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        if isinstance(stack, Elsewhere):
            assert stack.command(lib.HS_COMMAND_OPEN, word=1)
            (task,) = stack.pump()
            self.end = task.end
            self.handle = task.handle
        else:
            opened = stack.opens()
            self.end = opened.end
            self.handle = opened.handle
        self.session, self.tx = stack.transport.session, stack.transport.tx

    def write(self, count: int) -> int:
        return int(lib.hs_end_write(self.end, bytes(count), count)) & BYTES_MASK

    def drop(self) -> None:
        lib.hs_end_close(self.end, 1, 0)
        lib.hs_end_drop(self.end)
        pump(self.stack)

    def tell(self, events: int) -> None:
        self.stack.report(self.session, events)
        pump(self.stack)


def pump(stack: Stack) -> None:
    if isinstance(stack, Elsewhere):
        stack.pump()
    else:
        lib.hs_plane_collect(stack.plane)


@pytest.fixture(params=["here", "elsewhere"])
def stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    made: Stack = Stack(is_remote=False) if request.param == "here" else Elsewhere()
    made.announce()
    if isinstance(made, Elsewhere):
        made.attach_connection()
    yield made
    made.end()


def allowance(most_bytes: int) -> Any:
    return ffi.gc(lib.hs_allowance_new(most_bytes), lib.hs_allowance_release)


def limited(stack: Stack, by: Any) -> Opened:
    opened = Opened(stack)
    lib.hs_end_set_allowance(opened.end, by)
    return opened


def test_writers_wait_for_more(stack: Stack) -> None:
    by = allowance(100)
    first, second, free = limited(stack, by), limited(stack, by), Opened(stack)
    assert first.write(70) == 70
    assert second.write(70) == 30
    assert lib.hs_end_writable(first.end) == 0
    assert free.write(70) == 70
    assert stack.wakes() == []
    lib.hs_end_extend_allowance(stack.held, by, 100)
    assert stack.wakes() == []
    lib.hs_end_extend_allowance(stack.held, by, 120)
    assert sorted(stack.wakes()) == sorted(
        (each.handle, lib.HS_WAIT_WRITE) for each in (first, second)
    )
    assert lib.hs_end_writable(second.end) == 20
    assert first.write(70) == 20
    assert lib.hs_allowance_left(by) == 0
    for each in (first, second, free):
        each.drop()
        each.tell(FINISHED | lib.HS_STREAM_OVER)


def test_a_full_fifo_uses_nothing_up(stack: Stack) -> None:
    by = allowance(10 * TX_BYTES)
    stream = limited(stack, by)
    assert stream.write(2 * TX_BYTES) == TX_BYTES
    assert stream.write(1) == 0
    assert lib.hs_allowance_left(by) == 9 * TX_BYTES
    stream.drop()
    stream.tell(FINISHED | lib.HS_STREAM_OVER)


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("dropped", [False, True])
def test_what_a_reset_left_unsent_is_given_back(stack: Stack, stopped: bool, dropped: bool) -> None:
    """Also if the program dropped the stream before the transport told how much it sent. What was
    written before the allowance was set does not count."""
    by = allowance(1000)
    stream = Opened(stack)
    assert stream.write(5) == 5
    lib.hs_end_set_allowance(stream.end, by)
    assert stream.write(600) == 600
    waiting = limited(stack, by)
    assert waiting.write(999) == 400
    if not stopped:
        lib.hs_end_reset(stream.end, 7)
    if dropped:
        stream.drop()
    assert lib.hs_allowance_left(by) == 0
    stack.wakes()
    assert memory.hs_fifo_drop_to(stream.tx, 5 + 150) == 0
    stream.tell(FINISHED | (lib.HS_STREAM_STOPPED if stopped else 0))
    assert lib.hs_allowance_left(by) == 450
    assert (waiting.handle, lib.HS_WAIT_WRITE) in stack.wakes()
    stream.tell(FINISHED | lib.HS_STREAM_OVER)
    assert lib.hs_allowance_left(by) == 450
    if not dropped:
        stream.drop()
    waiting.drop()
    waiting.tell(FINISHED | lib.HS_STREAM_OVER)
    assert lib.hs_allowance_left(by) == 850


def test_what_was_sent_whole_is_not_given_back(stack: Stack) -> None:
    by = allowance(1000)
    stream = limited(stack, by)
    assert stream.write(300) == 300
    lib.hs_end_finish(stream.end)
    stream.drop()
    assert memory.hs_fifo_drop_to(stream.tx, 300) == 0
    stream.tell(FINISHED | lib.HS_STREAM_OVER)
    assert lib.hs_allowance_left(by) == 700


def test_streams_outlive_their_allowances_maker(stack: Stack) -> None:
    by = allowance(10)
    stream = limited(stack, by)
    lib.hs_end_set_allowance(stream.end, by)
    ffi.release(by)
    assert stream.write(20) == 10
    stack.close()
    pump(stack)
    lib.hs_end_connection_gone(stack.held)
    stream.drop()
    assert CONNECTION not in [handle for handle, _ in stack.wakes()]
