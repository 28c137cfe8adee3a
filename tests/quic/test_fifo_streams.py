"""A stream's two halves over FIFOs."""

from __future__ import annotations

import itertools
import random

import pytest
from aioquic.quic.packet_builder import QuicDeliveryState
from aioquic.quic.stream import FinalSizeError
from hypothesis import given
from hypothesis import strategies as st

from hoststack.native.memory.fifo import Fifo
from hoststack.quic.aioquic.stream import FifoReceiver, FifoSender, UnstorableError

DATA = random.Random(4).randbytes(20_000)
FAR = 1 << 40


def receiver(size_bytes: int = 1 << 15) -> FifoReceiver:
    return FifoReceiver(0, Fifo(size_bytes))


def sender(size_bytes: int = 1 << 15) -> FifoSender:
    return FifoSender(0, Fifo(size_bytes), on_pending=lambda: None, on_progress=lambda: None)


@given(seed=st.integers(0, 1 << 32), end=st.integers(0, len(DATA)))
def test_pieces_in_any_order_make_the_stream(seed: int, end: int) -> None:
    rng = random.Random(seed)
    cuts = sorted({0, end, *(rng.randrange(end + 1) for _ in range(20))})
    pieces = list(itertools.pairwise(cuts)) or [(0, 0)]
    pieces += [(rng.randrange(end + 1), end) for _ in range(3)]
    rng.shuffle(pieces)
    half = receiver()
    for start, stop in pieces:
        half.put(start, DATA[start:stop], stop == end)
    assert half.final_size == end
    assert half.rx.eof
    assert half.rx.read(len(DATA)) == DATA[:end]
    # Over only when the application has it all.
    assert not half.is_finished
    half.note_consumed()
    assert half.is_finished


@pytest.mark.parametrize(
    "second",
    [(10, b"x", False), (0, b"x" * 11, False), (0, b"x" * 9, True), (0, b"x" * 11, True)],
)
def test_a_stream_has_one_size(second: tuple[int, bytes, bool]) -> None:
    half = receiver()
    half.put(8, b"89", True)
    with pytest.raises(FinalSizeError):
        half.put(*second)


def test_an_end_before_what_came_is_an_error() -> None:
    half = receiver()
    half.put(0, b"0123456789", False)
    with pytest.raises(FinalSizeError):
        half.put(0, b"01234", True)


def test_too_many_gaps_are_as_if_lost() -> None:
    half = receiver()
    for offset in range(1, 512, 2):
        half.put(offset, b"x", False)
    with pytest.raises(UnstorableError):
        half.put(513, b"x", False)
    assert half.rx.tail == 0


def test_a_reset_after_all_bytes_changes_nothing() -> None:
    half = receiver()
    half.put(0, b"all", True)
    assert half.handle_reset(final_size=3, error_code=9) is None
    assert not half.is_finished
    assert half.rx.read(10) == b"all"


def test_a_reset_before_that_ends_it() -> None:
    half = receiver()
    half.put(0, b"so", False)
    event = half.handle_reset(final_size=3, error_code=9)
    assert event is not None
    assert event.error_code == 9
    assert half.is_finished


def test_what_is_not_wanted_is_counted_and_thrown_away() -> None:
    half = receiver(1024)
    assert half.discard()
    half.put(0, b"x" * 700, False)
    half.put(700, b"x" * 700, True)
    assert half.highest_offset == 1400
    assert half.is_finished
    assert not half.rx.readable


@given(seed=st.integers(0, 1 << 32))
def test_all_bytes_are_sent_whatever_is_lost(seed: int) -> None:
    rng = random.Random(seed)
    half = sender(4096)
    written = 0
    got = bytearray(len(DATA))
    under_way: list[tuple[int, bytes, bool]] = []
    ended = False
    for _ in range(10_000):
        if written < len(DATA):
            written += half.tx.write(DATA[written : written + rng.randrange(3000)])
            if written == len(DATA):
                half.tx.set_eof()
        half.look()
        chunk = half.next_chunk(rng.randrange(1, 1400), FAR)
        if chunk is not None:
            under_way.append(chunk)
        if under_way and rng.random() < 0.7:
            offset, data, fin = under_way.pop(rng.randrange(len(under_way)))
            stop = offset + len(data)
            if rng.random() < 0.3:
                half.on_data_delivery(QuicDeliveryState.LOST, offset, stop, fin)
            else:
                got[offset:stop] = data
                ended = ended or fin
                half.on_data_delivery(QuicDeliveryState.ACKED, offset, stop, fin)
        if half.is_finished:
            break
    assert half.is_finished
    assert ended
    assert bytes(got) == DATA
    assert half.tx.head == len(DATA)


def test_flow_control_holds_new_bytes_back() -> None:
    half = sender()
    half.tx.write(DATA[:5000])
    half.look()
    assert half.next_chunk(3000, 1000) == (0, DATA[:1000], False)
    assert half.next_chunk(3000, 1000) is None
    # What was sent before may be sent again.
    half.on_data_delivery(QuicDeliveryState.LOST, 0, 1000, False)
    assert half.next_chunk(400, 1000) == (0, DATA[:400], False)
    assert half.new_bytes(FAR) == 0
    assert half.next_chunk(1000, 1000) == (400, DATA[400:1000], False)
    assert half.new_bytes(FAR) == 4000


def test_an_empty_stream_has_an_end() -> None:
    half = sender()
    half.tx.set_eof()
    half.look()
    assert half.next_chunk(100, FAR) == (0, b"", True)
    assert half.next_chunk(100, FAR) is None
    half.on_data_delivery(QuicDeliveryState.ACKED, 0, 0, True)
    assert half.is_finished
