"""An application's FIFOs: how connections share its memory, and that a failure leaves nothing."""

from __future__ import annotations

import errno
import gc
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from hoststack.boundary import arena, fifo_pool
from hoststack.boundary.application import Application
from hoststack.boundary.fifo_pool import FifoPool, FifoSize, PoolExhaustedError, SharedFifos
from hoststack.boundary.shared_fifo import FifosBetween
from hoststack.native.memory.fifo import Fifo
from tests.support.open_files import open_files

#: What a stream with the usual configuration asks for.
STREAM = [FifoSize(1 << 20, 32 << 10), FifoSize(1 << 20, 16 << 10)]
GIB = 1 << 30


class Owner:
    """What has a share: a connection."""


def sink(number: int, fd: int) -> None:
    os.close(fd)


def streams_of(pool: FifoPool, owner: Owner, most: int) -> list[list[Fifo]]:
    """As many streams as an owner gets, `most` at most."""
    made: list[list[Fifo]] = []
    while len(made) < most:
        try:
            made.append(pool.make(STREAM, owner))
        except PoolExhaustedError:
            break
    return made


def forget(number: int) -> None:
    """Stands for an application that is told of a segment that went."""


# --- shares ----------------------------------------------------------------------------------


def test_a_connection_alone_has_streams_as_large_as_it_wants_them() -> None:
    pool = FifoPool("test", 4 * GIB, sink, forget)
    streams = streams_of(pool, Owner(), 128)
    assert len(streams) == 128
    assert {fifo.size for fifos in streams for fifo in fifos} == {1 << 20}


@pytest.mark.parametrize("connections", [10, 100])
def test_greedy_connections_leave_room_for_others(connections: int) -> None:
    """As many streams on each as they may, each with a byte in it that nobody reads."""
    pool = FifoPool("test", GIB // 8, sink, forget)
    greedy = [Owner() for _ in range(connections)]
    held = [streams_of(pool, owner, 64) for owner in greedy]
    assert sum(map(len, held)) > connections
    honest = [streams_of(pool, Owner(), 8) for _ in range(10)]
    assert min(map(len, honest)) >= (8 if connections == 10 else 1)
    # And what they have comes back.
    del held
    gc.collect()
    del honest
    gc.collect()
    assert pool.used_bytes == 0
    assert {fifo.size for fifo in pool.make(STREAM, Owner())} == {1 << 20}


def test_what_the_application_asks_for_itself_has_no_share() -> None:
    pool = FifoPool("test", 64 << 20, sink, forget)
    made = []
    while pool.has_room_for(*(size.least_bytes for size in STREAM)):
        made.append(pool.make(STREAM))
    with pytest.raises(PoolExhaustedError, match="raise fifo-memory-bytes"):
        pool.make(STREAM)
    assert pool.used_bytes > (64 << 20) - sum(size.least_bytes + 4096 for size in STREAM)


# --- failures --------------------------------------------------------------------------------


class Nth:
    """Fails with an error when it is called for the nth time, from 0."""

    def __init__(self, real: Callable[..., Any], nth: int, error: Exception) -> None:
        self._real = real
        self._left = nth
        self._error = error
        self.has_failed = False

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self._left -= 1
        if self._left == -1:
            self.has_failed = True
            # Another one each time: it keeps what its traceback refers to.
            raise type(self._error)(*self._error.args)
        return self._real(*arguments, **options)


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, nth: int) -> Iterator[Nth]:
    error: Exception = OSError(errno.ENOMEM, "no memory")
    if name == "Fifo":
        error = MemoryError()
    with monkeypatch.context() as patch:
        one = Nth(getattr(owner, name), nth, error)
        if name == "Fifo":
            # Its static methods are used, too.
            one.rounded_up, one.block_bytes = Fifo.rounded_up, Fifo.block_bytes  # type: ignore[attr-defined]
        patch.setattr(owner, name, one)
        yield one


@pytest.mark.parametrize("name", ["make_segment", "map_segment", "Fifo"])
@pytest.mark.parametrize("nth", range(4))
def test_a_pair_is_made_as_a_whole_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch, name: str, nth: int
) -> None:
    pool = FifoPool("test", GIB, sink, forget)
    # Half a segment, so that there are several.
    sizes = [FifoSize(arena.SEGMENT_BYTES // 2 - 4096, 4096)] * 3
    gc.collect()
    before = open_files()
    with failing(monkeypatch, arena, name, nth) as failure:
        try:
            made = pool.make(sizes, Owner())
        except (OSError, MemoryError):
            assert failure.has_failed
        else:
            assert not failure.has_failed
            del made
    gc.collect()
    # A segment that is mapped has a descriptor of its own, and is there for the next FIFO.
    assert open_files() == before + len(pool._arena.segments)
    assert pool.used_bytes == 0
    assert len(pool.make(sizes, Owner())) == 3


@pytest.mark.parametrize("name", ["make_segment", "map_segment", "Fifo", "os.dup"])
@pytest.mark.parametrize("nth", range(3))
def test_fifos_between_two_applications_are_made_as_a_whole_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch, name: str, nth: int
) -> None:
    told: list[int] = []
    applications, pools = [], []
    for index in range(2):

        def on_segment(number: int, fd: int, index: int = index) -> None:
            told.append(index)
            os.close(fd)

        pool = FifoPool("test", GIB, on_segment, forget)
        application = Application("test")
        application.is_remote = True
        application.adopt_fifo = pool.adopt  # type: ignore[method-assign]
        application.add_segment = pool.add_segment  # type: ignore[method-assign]
        application.remove_segment = pool.remove_segment  # type: ignore[method-assign]
        application.choose_sizes = pool.choose  # type: ignore[method-assign]
        pools.append(pool)
        applications.append(application)
    sides: dict[Application, object | None] = {application: None for application in applications}
    between = FifosBetween()
    gc.collect()
    before = open_files()
    owner, _, function = name.rpartition(".")
    with failing(monkeypatch, os if owner else arena, function, nth) as failure:
        try:
            made = between.make(sides, STREAM)
        except (OSError, MemoryError):
            assert failure.has_failed
        else:
            assert not failure.has_failed
            del made
    gc.collect()
    # A segment that the applications know of is there for the next FIFO.
    assert open_files() == before + len(told) // 2
    assert [pool.used_bytes for pool in pools] == [0, 0]
    assert len(between.make(sides, STREAM)) == 2


def test_a_fifo_that_the_application_was_not_told_of_is_the_workers_alone() -> None:
    pool = FifoPool("test", GIB, sink, forget)
    first, second = pool.make(STREAM)
    pool.hand_out(first)
    del first, second
    gc.collect()
    assert pool.used_bytes == (1 << 20) + 4096


def test_segments_without_fifos_go_but_one() -> None:
    gone: list[int] = []
    pool = FifoPool("test", GIB, sink, gone.append)
    # Each takes more than half a segment.
    sizes = [FifoSize(arena.SEGMENT_BYTES // 2, 4096)] * 4
    gc.collect()
    before = open_files()
    made = pool.make(sizes)
    names = [pool.hand_out(fifo) for fifo in made]
    assert [name.segment for name in names] == [0, 1, 2, 3]
    assert open_files() == before + 4
    for name in names[:3]:
        pool.release(name)
    assert gone == []  # the worker has them
    del made
    pool.drop_unused()
    assert sorted(gone) == [0, 1, 2]
    pool.release(names[3])
    assert len(gone) == 3
    assert open_files() == before + 1
    # A new one has a number of its own, and what is left is used again.
    again = [pool.hand_out(fifo) for fifo in pool.make(sizes)]
    assert {name.segment for name in again} == {*range(4)} - {*gone} | {4, 5, 6}


def test_streams_that_come_and_go_do_not_hold_many_segments() -> None:
    """What a crowd leaves behind is scattered; the next ones gather in one segment."""
    numbers: set[int] = set()

    def came(number: int, fd: int) -> None:
        os.close(fd)
        numbers.add(number)

    pool = FifoPool("test", 4 * GIB, came, numbers.discard)
    crowd = [pool.make(STREAM) for _ in range(300)]
    assert len(numbers) > 5
    random.Random(1).shuffle(crowd)
    stay = crowd[:10]
    del crowd
    pool.drop_unused()
    for _ in range(100):
        # Each stays for a while, and another one comes before it goes.
        stay.append(pool.make(STREAM))
        del stay[0]
        pool.drop_unused()
    assert len(numbers) == 1


# --- the application's side ------------------------------------------------------------------


def test_a_process_without_room_for_a_segment_has_no_fifo_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    released: list[fifo_pool.BlockName] = []
    fifos = SharedFifos(released.append)
    fds: list[int] = []
    pool = FifoPool("test", GIB, lambda number, fd: fds.append(fd), forget)
    made = pool.make(STREAM)
    names = [pool.hand_out(fifo) for fifo in made]
    before = open_files()
    with failing(monkeypatch, fifo_pool, "map_segment", 0):
        fifos.add_segment(names[0].segment, [os.dup(fds[0])])
    assert open_files() == before
    for name in names:
        with pytest.raises(OSError, match="no memory"):
            fifos.open(name)
        fifos.give_up(name)
    assert released == names
    # One whose descriptor found no room.
    fifos.add_segment(7, [])
    with pytest.raises(OSError, match="too many open files"):
        fifos.open(names[0]._replace(segment=7))
    # What is there later is good.
    fifos.add_segment(names[0].segment, [fds.pop()])
    opened = fifos.open(names[0])
    assert made[0].write(b"hello") == 5
    assert opened.read(5) == b"hello"
    assert fifos.open(names[0]) is opened


def test_a_segment_that_went_is_no_segment_any_more() -> None:
    fifos = SharedFifos(lambda name: None)
    pool = FifoPool("test", GIB, lambda number, fd: fifos.add_segment(number, [fd]), forget)
    (fifo, *_) = pool.make(STREAM)
    name = pool.hand_out(fifo)
    opened = fifos.open(name)
    before = open_files()
    fifos.remove_segment(name.segment)
    fifo.write(b"still there")
    assert opened.read(100) == b"still there"
    del opened
    assert open_files() < before
    with pytest.raises(ValueError, match="no segment"):
        fifos.open(name)
