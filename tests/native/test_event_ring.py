"""The event ring."""

from __future__ import annotations

import gc
import mmap

import pytest

from hoststack.boundary.rings import EventRingCorruptError
from tests.support.event_ring import EventRing, RingEvent


def test_events_come_in_order_over_many_turns_of_the_ring() -> None:
    ring = EventRing(8)
    sent = 0
    seen: list[RingEvent] = []
    while sent < 1000:
        while ring.push(sent << 32 | 5, sent & 7, sent, (sent, 0, 0, 0, 0, ~sent & (1 << 64) - 1)):
            sent += 1
        assert len(ring) == 8
        assert ring.room == 0
        seen += ring.pop_many(3)
        assert ring.room == 3
    seen += ring.pop_many(100)
    assert seen == [
        RingEvent(i << 32 | 5, i & 7, i, (i, 0, 0, 0, 0, ~i & (1 << 64) - 1)) for i in range(sent)
    ]
    assert not len(ring)
    assert ring.pop_many(1) == []


def test_a_size_that_is_no_power_of_two_is_refused() -> None:
    for size in (0, -8, 12):
        with pytest.raises(ValueError, match="power of two"):
            EventRing(size)


@pytest.mark.parametrize("count", [0, 9 + 4, 1 << 63, (1 << 64) - 1])
def test_a_producer_that_writes_an_impossible_count_is_found_out(count: int) -> None:
    ring = EventRing(8)
    for i in range(4):
        assert ring.push(i, 0)
    assert len(ring.pop_many(2)) == 2
    ring.memory[0:8] = count.to_bytes(8, "little")
    with pytest.raises(EventRingCorruptError):
        ring.pop_many(8)


@pytest.mark.parametrize("count", [1, 6, 1 << 63])
def test_a_consumer_that_writes_an_impossible_count_is_found_out(count: int) -> None:
    ring = EventRing(8)
    for i in range(4):
        assert ring.push(i, 0)
    ring.pop_many(2)
    assert ring.push(4, 0)
    assert len(ring) == 3
    ring.memory[64:72] = count.to_bytes(8, "little")
    with pytest.raises(EventRingCorruptError):
        ring.push(5, 0)


def test_a_side_that_waits_is_woken_once() -> None:
    ring = EventRing(2)
    assert not ring.take_armed()
    ring.arm()
    ring.push(1, 0)
    assert ring.take_armed()
    assert not ring.take_armed()
    ring.push(2, 0)
    assert not ring.take_room_armed()
    assert ring.arm_room() == 0
    ring.pop_many(1)
    assert ring.take_room_armed()
    assert not ring.take_room_armed()
    assert ring.arm_room() == 1  # there is some already: nobody has to wait


def test_rings_in_a_cycle_of_garbage_are_collected() -> None:
    gc.collect()
    gc.disable()  # or some would be collected on the way
    for _ in range(100):
        cycle: list[object] = [
            EventRing(8),
            EventRing(8, mmap.mmap(-1, 4096)),
        ]
        cycle.append(cycle)
    del cycle
    gc.enable()
    assert gc.collect() >= 100
