"""FIFOs that two applications in other processes share, as both of them and the worker see them."""

from __future__ import annotations

import gc
import os
from dataclasses import dataclass, field

import pytest

from hoststack.boundary.application import Application
from hoststack.boundary.fifo_pool import BlockName, FifoPool, FifoSize, SharedFifos
from hoststack.boundary.shared_fifo import make_fifos_between
from hoststack.native.memory.fifo import Fifo


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

    def opened(self, fifo: Fifo) -> Fifo:
        """The FIFO as the other process has it: by its name, over memory of its own."""
        name = self.pool.hand_out(fifo)
        return self.fifos.open(BlockName(*name))


def make_fifo_between(one: Application, other: Application, size_bytes: int) -> Fifo:
    size = FifoSize(size_bytes, size_bytes)
    (fifo,) = make_fifos_between({one: None, other: None}, [size])
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


def test_it_has_a_segment_to_itself_that_goes_with_it() -> None:
    one, other = Remote(), Remote()
    (own,) = one.pool.make([FifoSize(4096, 4096)])
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        fifo = make_fifo_between(one.application, other.application, 4096)
        name = other.pool.name_of(fifo)
        assert (name.offset, name.size_bytes) == (0, 4096)
        there = other.opened(fifo)
        one.opened(fifo)
        # Named again, it is the same one.
        assert other.fifos.open(name) is there
        # Nor does the other one's memory come along.
        with pytest.raises(ValueError, match="no segment"):
            other.fifos.open(one.pool.name_of(own))
        del fifo, there
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
    assert other.pool.used_bytes == 0


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
    before = len(os.listdir("/proc/self/fd"))
    fifo = make_fifo_between(Application("a"), Application("b"), 4096)
    assert fifo.write(b"x") == 1
    assert len(os.listdir("/proc/self/fd")) == before


def test_one_of_the_two_may_live_in_the_worker() -> None:
    remote, local = Remote(), Application("internal")
    fifo = make_fifo_between(local, remote.application, 4096)
    fifo.write(b"hello")
    assert remote.opened(fifo).read(100) == b"hello"
