"""FIFOs that two applications in other processes share, as both of them and the worker see them."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass, field

import pytest

from hoststack.boundary.application import Application
from hoststack.boundary.arena import SEGMENT_BYTES
from hoststack.boundary.fifo_pool import BlockName, FifoPool, FifoSize, SharedFifos
from hoststack.boundary.shared_fifo import FifosBetween
from hoststack.native.memory.fifo import Fifo
from tests.support.open_files import open_files


@dataclass
class Remote:
    """An application in another process: the worker's side of it, and its own."""

    limit_bytes: int = 1 << 20
    application: Application = field(init=False)
    pool: FifoPool = field(init=False)
    fifos: SharedFifos = field(init=False)

    def __post_init__(self) -> None:
        self.fifos = SharedFifos(lambda name: self.pool.release(name))
        self.pool = FifoPool(
            "test",
            self.limit_bytes,
            lambda number, fd: self.fifos.add_segment(number, [fd]),
            self.fifos.remove_segment,
        )
        self.application = Application("test")
        self.application.is_remote = True
        self.application.adopt_fifo = self.pool.adopt  # type: ignore[method-assign]
        self.application.add_segment = self.pool.add_segment  # type: ignore[method-assign]
        self.application.remove_segment = self.pool.remove_segment  # type: ignore[method-assign]
        self.application.make_fifos = self.pool.make  # type: ignore[method-assign]

    def opened(self, fifo: Fifo) -> Fifo:
        """The FIFO as the other process has it: by its name, over memory of its own."""
        name = self.pool.hand_out(fifo)
        return self.fifos.open(BlockName(*name))


def make_fifo_between(
    one: Application, other: Application, size_bytes: int, between: FifosBetween | None = None
) -> Fifo:
    size = FifoSize(size_bytes, size_bytes)
    (fifo,) = (between or FifosBetween()).make({one: None, other: None}, [size])
    return fifo


def test_what_one_writes_the_other_reads_and_the_worker_looks_on() -> None:
    one, other = Remote(), Remote()
    fifo = make_fifo_between(one.application, other.application, 5000)
    assert fifo.size == 8192
    here, there = one.opened(fifo), other.opened(fifo)
    assert len({id(x) for x in (here, there, fifo)}) == 3
    for i in range(100):
        data = bytes([i]) * 1000
        assert here.write(data) == 1000
        there.arm_write()
        assert fifo.positions == (i * 1000, (i + 1) * 1000)
        assert there.read(5000) == data
    # Flags go through as well.
    fifo.arm_read()
    assert here.take_read_armed()
    here.set_eof()
    assert fifo.eof
    assert there.at_end
    assert fifo.positions == (100_000, 100_000)


def test_it_is_accounted_for_until_all_three_are_done_with_it() -> None:
    one, other = Remote(), Remote()
    fifo = make_fifo_between(one.application, other.application, 4096)
    here, there = one.opened(fifo), other.opened(fifo)
    used = one.pool.used_bytes
    assert used >= 4096
    assert other.pool.used_bytes == used
    del here
    gc.collect()
    assert one.pool.used_bytes == used
    del fifo
    gc.collect()
    assert one.pool.used_bytes == 0
    assert other.pool.used_bytes == used
    del there
    gc.collect()
    assert other.pool.used_bytes == 0


def test_fifos_of_two_applications_share_a_segment_that_no_third_one_has() -> None:
    between = FifosBetween()
    one, other, third = Remote(1 << 30), Remote(1 << 30), Remote(1 << 30)
    (own,) = one.pool.make([FifoSize(4096, 4096)])
    before = open_files()
    made = []
    for _ in range(500):
        fifo = make_fifo_between(one.application, other.application, 4096, between)
        here, there = one.opened(fifo), other.opened(fifo)
        # Named again, it is the same one.
        assert other.fifos.open(other.pool.name_of(fifo)) is there
        made.append((fifo, here, there))
    # One of the worker, and one of each application.
    assert open_files() == before + 3
    elsewhere = make_fifo_between(one.application, third.application, 4096, between)
    for fifo in (own, elsewhere):
        with pytest.raises(ValueError, match="no segment"):
            other.fifos.open(one.pool.name_of(fifo)._replace(segment=7))
    assert [len(each.fifos._segments) for each in (one, other, third)] == [3, 1, 1]
    del elsewhere, fifo, here, there
    made.clear()
    assert {len(each.pool._held) for each in (other, third)} == {0}
    # The memory is used again, but for the headers as it was.
    fifo = make_fifo_between(one.application, other.application, 4096, between)
    assert fifo.positions == (0, 0)
    assert open_files() == before + 3 + 3


def test_a_segment_is_given_back_when_one_of_the_two_leaves() -> None:
    """And the other one has released its FIFOs: at once, without a garbage collection."""
    between = FifosBetween()
    one, other = Remote(), Remote()
    before = open_files()
    gc.disable()
    try:
        fifo = make_fifo_between(one.application, other.application, 4096, between)
        here, there = one.opened(fifo), other.opened(fifo)
        application = weakref.ref(one.application)
        one.pool.close()
        one.fifos._segments.clear()  # its process is gone
        between.forget(one.application)
        del here, fifo, one
        between.drop_unused()
        assert there.write(b"what the other still has") > 0
        assert other.pool.used_bytes > 0
        del there
        between.drop_unused()
        assert other.pool.used_bytes == 0
        assert open_files() == before
        assert not other.fifos._segments
        assert not between._retired
    finally:
        gc.enable()
    gc.collect()
    assert application() is None


def test_unused_segments_go_but_one_of_each_pair() -> None:
    between = FifosBetween()
    one, other = Remote(1 << 30), Remote(1 << 30)
    fifos = [
        make_fifo_between(one.application, other.application, SEGMENT_BYTES // 2, between)
        for _ in range(3)
    ]
    assert len(one.fifos._segments) == len(other.fifos._segments) == 3
    del fifos
    between.drop_unused()
    assert len(one.fifos._segments) == len(other.fifos._segments) == 1


def test_many_pairs_keep_no_segments() -> None:
    between = FifosBetween()
    one, others = Remote(), [Remote() for _ in range(70)]
    before = open_files()
    for other in others:
        make_fifo_between(one.application, other.application, 4096, between)
        between.drop_unused()
    assert open_files() <= before + 3 * 64


def test_an_application_that_connects_to_itself_learns_of_it_once() -> None:
    one = Remote()
    fifo = make_fifo_between(one.application, one.application, 4096)
    used = one.pool.used_bytes
    assert used < 2 * 4096 + 4096
    one.opened(fifo)
    del fifo
    gc.collect()
    assert one.pool.used_bytes == 0


def test_in_one_process_there_is_no_segment() -> None:
    before = open_files()
    fifo = make_fifo_between(Application("a"), Application("b"), 4096)
    assert fifo.write(b"x") == 1
    assert open_files() == before


def test_one_of_the_two_may_live_in_the_worker() -> None:
    remote, local = Remote(), Application("internal")
    fifo = make_fifo_between(local, remote.application, 4096)
    fifo.write(b"hello")
    assert remote.opened(fifo).read(100) == b"hello"
