"""The FIFO against a model of it, and against a hostile other side."""

from __future__ import annotations

import ctypes
import gc
import mmap
from collections.abc import Iterator

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from hoststack.native.memory._memory import ffi, lib
from hoststack.native.memory.fifo import Fifo, FifoCorruptError, FifoOverflowError

SIZE_BYTES = 1024

_MODEL_BYTES = bytes((i * 7 + i // 251) & 0xFF for i in range(64 * SIZE_BYTES))


class FifoModel(RuleBasedStateMachine):
    """Bytes put in any order are read in the stream's order, each once."""

    offsets = Bundle("offsets")

    @initialize(ring_bytes=st.sampled_from([1, 128, 512, SIZE_BYTES]))
    def make(self, ring_bytes: int) -> None:
        self.fifo = Fifo(SIZE_BYTES)
        lib.hs_fifo_begin_small(self.fifo._producer, ring_bytes)
        self.ring_bytes = ring_bytes
        self.has = [False] * len(_MODEL_BYTES)
        self.head = 0

    @property
    def tail(self) -> int:
        return self.has.index(False)

    @rule(ahead=st.integers(-200, SIZE_BYTES + 50), count=st.integers(0, 400))
    def put(self, ahead: int, count: int) -> None:
        offset = max(0, self.head + ahead)
        data = _MODEL_BYTES[offset : offset + count]
        before = self.tail
        if offset + count > self.head + self.ring_bytes:
            with pytest.raises(FifoOverflowError):
                self.fifo.put(offset, data)
            return
        advanced = self.fifo.put(offset, data)
        self.has[offset : offset + count] = [True] * count
        assert advanced == self.tail - before

    @rule(count=st.integers(0, 400))
    def write(self, count: int) -> None:
        # An application that writes never puts, so its bytes follow the tail without a gap.
        if any(self.has[self.tail :]):
            return
        tail = self.tail
        taken = self.fifo.write(memoryview(_MODEL_BYTES)[tail : tail + count])
        assert taken == min(count, self.ring_bytes - (tail - self.head))
        self.has[tail : tail + taken] = [True] * taken

    @rule(ring_bytes=st.sampled_from([64, 256, SIZE_BYTES, 2 * SIZE_BYTES]))
    def grow(self, ring_bytes: int) -> None:
        grown = lib.hs_fifo_grow(self.fifo._producer, ring_bytes)
        # What wraps around stays where it is.
        is_possible = self.ring_bytes < ring_bytes <= SIZE_BYTES
        assert grown in ((0, 1) if is_possible else (0,))
        if not any(self.has[self.head :]):
            assert grown == is_possible
        if grown:
            self.ring_bytes = ring_bytes

    @rule(count=st.integers(0, 600))
    def read(self, count: int) -> None:
        data = self.fifo.read(count)
        assert data == _MODEL_BYTES[self.head : min(self.tail, self.head + count)]
        self.head += len(data)

    @rule(count=st.integers(1, 600))
    def read_into(self, count: int) -> None:
        buffer = bytearray(count)
        taken = self.fifo.read_into(buffer)
        assert buffer[:taken] == _MODEL_BYTES[self.head : min(self.tail, self.head + count)]
        self.head += taken

    @rule(data=st.data(), count=st.integers(0, 600))
    def peek(self, data: st.DataObject, count: int) -> None:
        offset = data.draw(st.integers(self.head, self.tail))
        assert (
            self.fifo.peek(offset, count) == _MODEL_BYTES[offset : min(self.tail, offset + count)]
        )

    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        offset = data.draw(st.integers(max(0, self.head - 10), self.tail))
        self.fifo.drop_to(offset)
        self.head = max(self.head, offset)

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "fifo"):
            return
        assert self.fifo.head == self.head
        assert self.fifo.tail == self.tail
        assert self.fifo.readable == self.tail - self.head
        assert self.fifo.writable == self.ring_bytes - (self.tail - self.head)


TestFifoModel = FifoModel.TestCase


def test_the_size_is_a_power_of_two_and_not_less_than_asked_for() -> None:
    assert Fifo(1).size == 1024
    assert Fifo(4096).size == 4096
    assert Fifo(4097).size == 8192


@pytest.mark.parametrize("size_bytes", [0, -1, 1 << 33])
def test_an_impossible_size_is_refused(size_bytes: int) -> None:
    with pytest.raises(ValueError, match="FIFO"):
        Fifo(size_bytes)


def test_the_end_comes_after_the_last_byte() -> None:
    fifo = Fifo(SIZE_BYTES)
    fifo.write(b"last")
    fifo.set_eof()
    assert fifo.eof
    assert not fifo.at_end
    assert fifo.read(10) == b"last"
    assert fifo.at_end


def test_gaps_are_bounded_and_what_is_refused_may_come_again() -> None:
    fifo = Fifo(4096)
    limit = int(lib.HS_FIFO_MAX_RANGES)
    for gap in range(limit):
        assert fifo.put(1 + 2 * gap, b"x") == 0
    assert fifo.put(1 + 2 * limit, b"x") == -1
    assert fifo.put(0, b"y") == 2
    assert fifo.put(1 + 2 * limit, b"x") == 0
    for gap in range(1, limit):
        assert fifo.put(2 * gap, b"y") == 2
    assert fifo.put(2 * limit, b"y") == 2
    assert fifo.read(4096) == b"yx" * (limit + 1)


def test_dropping_what_was_not_written_is_refused() -> None:
    fifo = Fifo(SIZE_BYTES)
    fifo.write(b"abc")
    with pytest.raises(FifoOverflowError):
        fifo.drop_to(4)
    with pytest.raises(FifoOverflowError):
        fifo.peek(4, 1)


def test_messages_are_whole_or_not_there() -> None:
    fifo = Fifo(SIZE_BYTES)
    assert fifo.read_message() is None
    messages = [b"", b"x", bytes(500), bytes(range(256)) * 2, b"last"]
    for _ in range(5):  # round the end of the block, at every distance from it
        for message in messages:
            assert fifo.write_message(message) == (message != b"last")
            if message == messages[2]:
                assert [fifo.read_message() for _ in range(3)] == messages[:3]
                assert fifo.write_message(bytes(504))
        assert [fifo.read_message() for _ in range(3)] == [bytes(504), messages[3], None]


@pytest.mark.parametrize("size_bytes", [SIZE_BYTES - 1, SIZE_BYTES, 65536, 1 << 20])
def test_a_message_that_never_fits_is_not_taken(size_bytes: int) -> None:
    fifo = Fifo(SIZE_BYTES)
    assert not fifo.write_message(bytes(size_bytes))
    assert not fifo.readable


@pytest.mark.parametrize("rubbish", [b"\xff", b"\x05\0four", b"\xff\xff" + bytes(1000)])
def test_the_length_of_a_message_is_not_believed(rubbish: bytes) -> None:
    fifo = Fifo(SIZE_BYTES)
    fifo.write(rubbish)
    with pytest.raises(FifoCorruptError):
        fifo.read_message()


def test_a_flag_is_taken_once() -> None:
    fifo = Fifo(SIZE_BYTES)
    assert not fifo.take_read_armed()
    fifo.arm_read()
    assert fifo.take_read_armed()
    assert not fifo.take_read_armed()
    fifo.arm_write()
    assert fifo.take_write_armed()
    assert not fifo.take_write_armed()


class Shared:
    """A block that somebody else writes to, with both sides of a FIFO on it."""

    TAIL, RING, HEAD = 0, 24, 64

    def __init__(self) -> None:
        self.block = bytearray(int(lib.HS_FIFO_HEADER_BYTES) + SIZE_BYTES)
        data = ffi.from_buffer(self.block)
        self.producer = ffi.new("struct hs_fifo_producer *")
        self.consumer = ffi.new("struct hs_fifo_consumer *")
        assert lib.hs_fifo_producer_open(self.producer, data, len(self.block)) == 0
        assert lib.hs_fifo_consumer_open(self.consumer, data, len(self.block)) == 0
        self.data = data

    def overwrite(self, index: int, value: int) -> None:
        self.block[index : index + 8] = ctypes.c_uint64(value).value.to_bytes(8, "little")


@pytest.fixture
def shared() -> Iterator[Shared]:
    shared = Shared()
    yield shared
    lib.hs_fifo_producer_close(shared.producer)


@pytest.mark.parametrize("tail", [9, SIZE_BYTES + 11, 1 << 40, 1 << 63, (1 << 64) - 1])
def test_a_producer_that_writes_an_impossible_tail_is_found_out(shared: Shared, tail: int) -> None:
    assert lib.hs_fifo_write(shared.producer, b"0123456789", 10) == 10
    assert lib.hs_fifo_tail(shared.consumer) == 10
    shared.overwrite(Shared.TAIL, tail)
    assert lib.hs_fifo_tail(shared.consumer) == lib.HS_FIFO_CORRUPT
    assert lib.hs_fifo_available(shared.consumer, 0) == lib.HS_FIFO_CORRUPT
    assert lib.hs_fifo_read(shared.consumer, ffi.new("uint8_t[10]"), 10) == lib.HS_FIFO_CORRUPT
    assert lib.hs_fifo_drop_to(shared.consumer, 11) == lib.HS_FIFO_CORRUPT


@pytest.mark.parametrize("head", [3, 11, 1 << 40, 1 << 63, (1 << 64) - 1])
def test_a_consumer_that_writes_an_impossible_head_is_found_out(shared: Shared, head: int) -> None:
    assert lib.hs_fifo_write(shared.producer, b"0123456789", 10) == 10
    assert lib.hs_fifo_read(shared.consumer, ffi.new("uint8_t[4]"), 4) == 4
    assert lib.hs_fifo_head(shared.producer) == 4
    shared.overwrite(Shared.HEAD, head)
    assert lib.hs_fifo_writable(shared.producer) == lib.HS_FIFO_CORRUPT
    assert lib.hs_fifo_write(shared.producer, b"x", 1) == lib.HS_FIFO_CORRUPT
    assert lib.hs_fifo_put(shared.producer, 10, b"x", 1) == lib.HS_FIFO_CORRUPT


def test_python_tells_corruption_by_an_exception_of_its_own() -> None:
    fifo = Fifo(SIZE_BYTES)
    fifo.write(b"abc")
    fifo._memory[0:8] = b"\xff" * 8
    with pytest.raises(FifoCorruptError):
        fifo.read(1)
    with pytest.raises(FifoCorruptError):
        _ = fifo.readable


@pytest.mark.parametrize("block_bytes", [0, 1, 128, 128 + 1000, 128 + 1025])
def test_a_block_of_another_size_is_refused(block_bytes: int) -> None:
    block = bytearray(block_bytes or 1)
    data = ffi.from_buffer(block)
    assert lib.hs_fifo_producer_open(ffi.new("struct hs_fifo_producer *"), data, block_bytes) == -1
    assert lib.hs_fifo_consumer_open(ffi.new("struct hs_fifo_consumer *"), data, block_bytes) == -1


def test_an_empty_fifo_begins_at_its_first_byte_again() -> None:
    fifo = Fifo(1 << 16)
    for i in range(1000):
        piece = bytes([1 + i % 255]) * 1000
        assert fifo.write(piece) == len(piece)
        assert fifo.read(2000) == piece
    assert fifo.tail == 1_000_000
    # What was never needed was never touched.
    assert not any(fifo._data[1000:])


def test_a_small_ring_touches_no_more_of_its_block() -> None:
    fifo = Fifo(1 << 16)
    lib.hs_fifo_begin_small(fifo._producer, 4096)
    fifo.write(b"first")
    for i in range(1000):
        piece = bytes([1 + i % 255]) * 1000
        assert fifo.write(piece) == len(piece)
        assert len(fifo.read(1000)) == 1000  # it is never empty
    assert not any(fifo._data[4096:])
    fifo.read(5)
    assert lib.hs_fifo_grow(fifo._producer, 1 << 16) == 1
    assert fifo.writable == 1 << 16


@pytest.mark.parametrize("ring_bytes", [1, 3, 100, 2 * SIZE_BYTES, 1 << 63, (1 << 64) - 1])
def test_a_producer_that_writes_an_impossible_ring_is_found_out(
    shared: Shared, ring_bytes: int
) -> None:
    assert lib.hs_fifo_write(shared.producer, b"0123456789", 10) == 10
    shared.overwrite(Shared.RING, ring_bytes)
    assert lib.hs_fifo_tail(shared.consumer) == lib.HS_FIFO_CORRUPT
    assert lib.hs_fifo_read(shared.consumer, ffi.new("uint8_t[10]"), 10) == lib.HS_FIFO_CORRUPT


def test_a_fifo_that_is_not_empty_goes_on_behind_what_it_holds() -> None:
    fifo = Fifo(1024)
    fifo.write(b"a" * 700)
    fifo.read(700)
    fifo.write(b"b" * 700)
    assert fifo.read(300) == b"b" * 300
    fifo.write(b"c" * 624)
    assert fifo.writable == 0
    assert fifo.read(2000) == b"b" * 400 + b"c" * 624
    # Bytes that came before their turn keep their place.
    assert fifo.put(2024 + 50, b"e" * 50) == 0
    assert fifo.put(2024, b"f" * 50) == 100
    assert fifo.read(2000) == b"f" * 50 + b"e" * 50


def test_fifos_in_a_cycle_of_garbage_are_collected() -> None:
    gc.collect()
    gc.disable()  # or some would be collected on the way
    for _ in range(100):
        cycle: list[object] = [
            Fifo(1024),
            Fifo(1024, mmap.mmap(-1, Fifo.block_bytes(1024))),
        ]
        cycle.append(cycle)
    del cycle
    gc.enable()
    assert gc.collect() >= 100
