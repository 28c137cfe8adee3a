"""The wire over AF_XDP, on rings made of Python."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from tests.support.checksummed import udp_frame
from tests.support.rings import (
    FRAME_BYTES,
    MACS,
    PORTS,
    Rings,
    assert_frames,
    came_from,
    frame_in,
    over,
    set_interface,
    xdp_way,
)
from tests.support.wires import BURST, FAMILIES, extension, payloads


@pytest.mark.parametrize("tags", [(), ((0x8100, 7),), ((0x88A8, 5), (0x8100, 7))])
@pytest.mark.parametrize("family", FAMILIES)
def test_both_ways(family: str, tags: Any) -> None:
    rings = Rings()
    frames = len(rings.free)
    with over(rings) as wire:
        path = xdp_way(wire, family, tags)
        for data in payloads(3, 100):
            rings.arrive(frame_in(data, family, tags=tags))
        got = wire.receive()
        assert [(each.payload, each.path, each.ecn) for each in got] == [
            (data, path, 0) for data in payloads(3, 100)
        ]
        assert len(rings.free) == frames
        sent = [os.urandom(size) for size in (1, 21, 1200, 1472)]
        for ecn, data in enumerate(sent):
            assert wire.write(path, data, ecn)
        assert wire.flush() == 0
        assert rings.kicks == 1
        assert_frames(rings.tx_ring, path.header, sent)
        counters = wire.wire.counters
        assert (counters.rx_datagrams, counters.rx_bytes) == (3, 300)
        assert (counters.tx_datagrams, counters.tx_bytes) == (4, sum(map(len, sent)))


def test_queues_take_turns_and_get_their_frames_back() -> None:
    rings = Rings(queues=3)
    frames = len(rings.free)
    with over(rings) as wire:
        for queue, count in enumerate((100, 10, 30)):
            for _ in range(count):
                rings.arrive(frame_in(b"x", port=1000 + queue), queue)
        bursts = [[each.key[10:14] for each in wire.receive()] for _ in range(4)]
        assert [len(burst) for burst in bursts] == [64, 64, 12, 0]
        # The first queue filled a burst alone, so the others go before it the next time.
        assert len(set(bursts[0])) == 1
        assert len(set(bursts[1])) == 3
        assert rings.taken == [[], [], []]
        assert len(rings.free) == frames


def test_an_idle_queue_ends_no_burst() -> None:
    rings = Rings(queues=2)
    with over(rings) as wire:
        for _ in range(2 * BURST):
            rings.arrive(frame_in(b"x"), 0)
        assert [len(wire.receive()) for _ in range(3)] == [BURST, BURST, 0]


def test_drops_are_counted_and_their_frames_go_back() -> None:
    rings = Rings()
    frames = len(rings.free)
    good = frame_in(b"good")
    with over(rings) as wire:
        for frame in (good[:30], b"\xff" * 60, good[:23] + b"\x06" + good[24:]):
            rings.arrive(frame)
        assert wire.receive() == []  # at once, for who gets nothing releases nothing
        assert (rings.taken, len(rings.free)) == ([[]], frames)
        rings.arrive(b"\xff" * 60)
        rings.arrive(good)
        assert [each.payload for each in wire.receive()] == [b"good"]
        rings.free.pop()
        rings.arrived[0].append((len(rings.umem) - 10, 60))
        assert wire.receive() == []
        assert wire.dropped("hs_frame_drop") == {
            "HS_FRAME_TRUNCATED": 1,
            "HS_FRAME_NOT_IP": 2,
            "HS_FRAME_NOT_UDP": 1,
            "HS_FRAME_OUTSIDE_UMEM": 1,
        }


def test_what_can_not_go_is_dropped_and_its_frame_used_again() -> None:
    rings = Rings(frames=1)
    with over(rings) as wire:
        path = xdp_way(wire)
        assert wire.room() == FRAME_BYTES - 70
        assert wire.write(path, bytes(1473))
        path.has_header = 0
        assert wire.write(path, b"no way")
        path.has_header = 1
        assert wire.write(path, b"goes")
        assert not wire.write(path, b"no frame")
        assert wire.flush() == 0
        assert [frame[-4:] for frame in rings.tx_ring] == [b"goes"]
        assert wire.dropped("hs_wire_xdp_drop") == {
            "HS_WIRE_XDP_TX_TOO_LARGE": 1,
            "HS_WIRE_XDP_TX_NO_NEXT_HOP": 1,
        }
        assert wire.wire.counters.tx_full == 1


def test_a_full_ring_is_a_backlog() -> None:
    rings = Rings()
    frames = len(rings.free)
    sent = payloads(150, 100)
    with over(rings) as wire:
        path = xdp_way(wire)
        rings.tx_room = 50
        written = 0
        while wire.write(path, sent[written]):
            written += 1
        assert written == 2 * BURST  # a burst, and answers without a connection
        assert wire.flush() == written - 50
        assert not wire.room()
        rings.tx_room = 10
        assert wire.flush() == written - 60
        assert not wire.write(path, b"x")
        rings.tx_room = 1000
        assert wire.flush() == 0
        for data in sent[written:]:
            assert wire.write(path, data)
        assert wire.flush() == 0
        assert [frame[-100:] for frame in rings.tx_ring] == sent
        # What was taken and not used is kept for the next turn: no more than a burst.
        assert frames - len(rings.free) <= BURST
        assert wire.dropped("hs_wire_xdp_drop") == {}


def test_kicks_that_fail_or_leave_frames() -> None:
    _, lib = extension()
    rings = Rings()
    with over(rings) as wire:
        path = xdp_way(wire)
        assert wire.flush() == 0
        assert rings.kicks == 0
        for result in (7, -errno.ENETDOWN, -errno.ENXIO, 9):
            rings.kick_result = result
            assert wire.write(path, b"x")
            assert wire.flush() == 0
            assert lib.hs_wire_xdp_left(wire.wire) == max(result, 0)
            assert lib.hs_wire_xdp_left(wire.wire) == 0
        assert wire.dropped("hs_wire_xdp_drop") == {
            "HS_WIRE_XDP_TX_ENETDOWN": 1,
            "HS_WIRE_XDP_TX_ERROR": 1,
        }


def test_frames_that_the_ring_refuses_block_nothing() -> None:
    rings = Rings()
    with over(rings) as wire:
        path = xdp_way(wire)
        assert wire.write(path, b"lost")
        rings.tx_room = -errno.EPROTO
        assert wire.flush() == 0
        rings.tx_room = 1
        assert wire.write(path, b"goes")
        assert wire.flush() == 0
        assert [frame[-4:] for frame in rings.tx_ring] == [b"goes"]
        assert wire.dropped("hs_wire_xdp_drop") == {"HS_WIRE_XDP_TX_ERROR": 1}


def test_detached_it_touches_no_socket() -> None:
    _, lib = extension()
    rings = Rings()
    with over(rings) as wire:
        path = xdp_way(wire)
        rings.arrive(frame_in(b"x"))
        assert wire.write(path, b"x")
        lib.hs_wire_xdp_detach(wire.wire)
        assert wire.receive() == []
        assert wire.flush() == 0
        assert (rings.kicks, rings.tx_ring, len(rings.arrived[0])) == (0, [], 1)


@pytest.mark.parametrize("tags", [(), ((0x8100, 7),)])
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_go_back_to_where_a_datagram_came_from(family: str, tags: Any) -> None:
    ffi, lib = extension()
    rings = Rings()
    with over(rings) as wire:
        rings.arrive(frame_in(b"hello", family, tags=tags))
        (came,) = wire.receive()
        assert came.path == ffi.NULL
        back = wire.answer_path(came.key)
        assert wire.write(back, b"answer")
        assert wire.flush() == 0
        frame = rings.tx_ring.pop()
        assert (frame[:6], frame[6:12]) == (MACS[0], MACS[1])
        assert_frames([frame], back.header, [b"answer"])
        assert lib.hs_wire_path_count(wire.wire) == 0
        # It was proven; then the peer's router changes.
        path = wire.learn(came.key)
        mac = bytes.fromhex("020000000099")
        start = came.key.index(MACS[0])
        assert wire.learn(came.key[:start] + mac + came.key[start + 6 :]) == path
        assert bytes(path.header.bytes)[:6] == mac
        assert lib.hs_wire_path_count(wire.wire) == 1


def test_next_hops_are_asked_for_paths_in_use() -> None:
    ffi, lib = extension()
    rings = Rings()
    questions = ffi.new("struct hs_wire_xdp_question[]", 8)
    used, is_over = ffi.new("uint32_t[]", 8), ffi.new("int *")

    def asked() -> list[int]:
        count = lib.hs_wire_xdp_asked(wire.wire, questions, 8)
        return [each.path_id for each in questions[0:count]]

    def reported() -> list[int]:
        count = lib.hs_wire_xdp_used(wire.wire, used, 8, is_over)
        assert is_over[0]
        return list(used[0:count])

    with over(rings) as wire:
        (came,) = came_from(wire, rings, [5000])
        path = wire.learn(came.key)
        tagged = xdp_way(wire, tags=((0x8100, 7),))
        for _ in range(40):  # answers without a connection
            assert wire.write(path, b"x")
            wire.flush()
        assert asked() == reported() == []
        lib.hs_wire_hold_path(wire.wire, path.id)
        lib.hs_wire_hold_path(wire.wire, tagged.id)
        for number in range(40):
            assert asked() == ([path.id] if number == 16 else [])
            assert wire.write(path, b"x")
            assert wire.write(tagged, b"x")  # the kernel has no route by its interface
            wire.flush()
        assert questions[0].ends.remote_port == 5000
        assert reported() == [path.id]
        assert reported() == []
        hop = bytes.fromhex("020000000077")
        lib.hs_wire_xdp_answer(wire.wire, path.id, hop, 1300)
        assert bytes(path.header.bytes)[:6] == hop
        assert lib.hs_wire_path_bytes(wire.wire, path.id) == 1300 - 28
        # Its frames come from elsewhere now; the kernel's route stays.
        start = came.key.index(MACS[0])
        wire.learn(came.key[:start] + bytes(6) + came.key[start + 6 :])
        assert bytes(path.header.bytes)[:6] == hop
        # The interface changes.
        mac = bytes.fromhex("020000000055")
        set_interface(wire, mac, 1400)
        assert asked() == [path.id]
        lib.hs_wire_xdp_answer(wire.wire, path.id, ffi.NULL, 0)
        assert bytes(path.header.bytes)[:12] == bytes(6) + mac
        assert lib.hs_wire_path_bytes(wire.wire, path.id) == 1400 - 28
        lib.hs_wire_xdp_answer(wire.wire, 99, hop, 0)  # none has that number


def test_datagrams_for_others_and_from_nobody_are_dropped() -> None:
    rings = Rings()
    frames = len(rings.free)

    def arrive(source: str, to: str, macs: bytes = MACS[1] + MACS[0]) -> None:
        rings.arrive(udp_frame(b"x", macs=macs, hosts=(source, to), ports=PORTS))

    with over(rings) as wire:
        arrive("10.0.0.1", "10.0.0.3")
        arrive("10.0.0.1", "10.0.0.255")
        arrive("10.0.0.1", "10.0.0.2", macs=bytes(6) + MACS[0])
        arrive("10.0.0.255", "10.0.0.2")
        arrive("10.0.0.1", "10.0.0.2", macs=MACS[1] + bytes([1, *bytes(5)]))
        assert wire.receive() == []
        assert wire.dropped("hs_wire_xdp_drop") == {"HS_WIRE_XDP_RX_NOT_FOR_US": 3}
        assert wire.dropped("hs_frame_drop") == {"HS_FRAME_MARTIAN": 2}
        assert wire.wire.counters.rx_datagrams == 0
        assert len(rings.free) == frames
