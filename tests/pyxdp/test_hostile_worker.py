"""A worker that writes what it likes into all that it shares: the maker and the others go on."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import struct
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from pyxdp import PyxdpError, Socket
from pyxdp._extension import ffi, require
from tests.pyxdp.conftest import Veth
from tests.pyxdp.test_shared import (
    NOBODY,
    QUEUES,
    RX_FRAMES,
    TX_FRAMES,
    Maker,
    Worker,
    adopt,
    wait_for_packet,
)
from tests.pyxdp.test_xsk import packet, receive, send

PAGE: Final = mmap.PAGESIZE
#: linux/if_xdp.h: where a socket's rings are mapped.
RINGS: Final = {"rx": 0, "tx": 0x80000000, "fill": 0x100000000, "completion": 0x180000000}
#: Offsets in a ring (XDP_MMAP_OFFSETS on x86-64): its first index, and its entries.
PRODUCER: Final = 0
SLOTS: Final = 320
MAKER: Final = 0xFF
WORDS: Final = (0, 1, 2, 0xFF, 0x101, 0x1FF, 0x7FFFFFFF, 0x80000000, 0xFFFFFF00, 0xFFFFFFFF)


class Hostile:
    """All memory that worker 0's process can write, but for the packets."""

    def __init__(self, maker: Maker) -> None:
        umem = maker.umem
        self._maps = {"control": self._map(umem.fd, umem.size_bytes + umem._control_bytes, 0)}
        self.control = memoryview(self._maps["control"])[umem.size_bytes :]
        ledger = umem.ledger_fds[0]
        self._maps["ledger"] = self._map(ledger, os.fstat(ledger).st_size, 0)
        for queue, each in enumerate(maker.sockets[0]):
            for name, offset in RINGS.items():
                self._maps[f"{name} {queue}"] = self._map(each.fd, PAGE, offset)
        self.parts = {name: memoryview(of) for name, of in self._maps.items()} | {
            "control": self.control
        }

    @staticmethod
    def _map(fd: int, size: int, offset: int) -> mmap.mmap:
        return mmap.mmap(fd, size, mmap.MAP_SHARED, offset=offset)

    def word(self, part: str, at: int) -> int:
        return int(struct.unpack_from("=I", self.parts[part], at)[0])

    def put(self, part: str, at: int, value: int) -> None:
        struct.pack_into("=I", self.parts[part], at, value & 0xFFFFFFFF)

    def holds(self, frame: int) -> int:
        """Where a frame's byte is in the ledger: behind a word, and one for each queue."""
        return 4 + 4 * QUEUES + frame

    def scribble(self, rng: random.Random) -> str:
        """Something, somewhere; returns what."""
        name = rng.choice(list(self.parts))
        part = self.parts[name]
        match rng.randrange(4):
            case 0:
                # Indices and locks: what is read first.
                at, value = rng.choice([0, 64, 128, 192]) % len(part), rng.choice(WORDS)
                self.put(name, at, value)
                return f"{value:#x} at {at} of {name}"
            case 1:
                at = rng.randrange(0, len(part) - 4, 4)
                value = (
                    self.word(name, at) + rng.choice([-1, 1, 63, 64, 65, 512, 1 << 31])
                ) % 2**32
                self.put(name, at, value)
                return f"{value:#x} at {at} of {name}"
            case 2:
                size = rng.choice([4, 8, 64, len(part)])
                at = rng.randrange(0, len(part) - size + 1)
                part[at : at + size] = rng.randbytes(size)
                return f"{size} random bytes at {at} of {name}"
            case _:
                fill = rng.choice([0, 1, 0xFF])
                part[:] = bytes([fill]) * len(part)
                return f"{name} full of {fill}"

    def close(self) -> None:
        self.control.release()
        for part in self.parts.values():
            part.release()
        for each in self._maps.values():
            each.close()


@pytest.fixture
def maker(make_veth: Callable[..., Veth]) -> Iterator[Maker]:
    with contextlib.ExitStack() as stack:
        yield Maker(make_veth(queues=QUEUES), stack)


@pytest.fixture
def hostile(maker: Maker) -> Iterator[Hostile]:
    memory = Hostile(maker)
    yield memory
    memory.close()


def poke(one: Socket) -> None:
    """Receive and send as far as that goes now."""
    burst = one.rx_burst()
    for view in burst:
        bytes(view)
    one.rx_release(burst)
    with contextlib.suppress(ValueError):  # another queue's
        frames = one.tx_alloc(8)
        for index in range(len(frames)):
            frames.write(index, packet(index))
        one.tx_send(frames)
        one.tx_release(frames)


def load(maker: Maker) -> None:
    for peer in maker.peers:
        burst = peer.tx_alloc(16)
        for index in range(len(burst)):
            burst.write(index, packet(index))
        peer.tx_send(burst)
        peer.tx_release(burst)
        peer.rx_release(peer.rx_burst())


def is_sane(worker: Worker) -> None:
    owned = worker.umem.owned_frames()
    assert worker.umem.free_frames == owned["free"] <= TX_FRAMES, owned
    assert owned["rx"] == 0, owned


def test_rubbish_in_any_word(maker: Maker, hostile: Hostile) -> None:
    """Whatever stands there, what is read there harms no process and holds up none."""
    rng = random.Random(20261130)
    maker.steer(0, 0)
    maker.steer(1, 1)
    honest = adopt(maker, 1)
    done: list[str] = []
    for life in range(150):
        try:
            worker = adopt(maker, 0)
        except PyxdpError:
            raise AssertionError(done) from None
        for _ in range(4):
            done.append(hostile.scribble(rng))
            load(maker)
            for each in (*worker.sockets, *honest.sockets):
                poke(each)
            is_sane(worker)
            is_sane(honest)
        worker.close()
        done.append(hostile.scribble(rng))
        assert 0 <= maker.reclaim(0) <= QUEUES * RX_FRAMES, done
        assert all(0 <= level <= 1024 for level in maker.levels()), (life, done)
        maker.umem.break_locks()
    honest.close()


def test_rubbish_meanwhile(maker: Maker, hostile: Hostile) -> None:
    """A process of nobody's writes all the time; the maker reclaims all the same."""
    maker.steer(0, 0)
    maker.steer(1, 1)
    honest = adopt(maker, 1)
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            rng = random.Random(7)
            while os.getppid() != 1:
                hostile.scribble(rng)
        os._exit(0)
    try:
        for _ in range(300):
            load(maker)
            for each in honest.sockets:
                poke(each)
            is_sane(honest)
            assert 0 <= maker.reclaim(0) <= QUEUES * RX_FRAMES
            maker.levels()
            maker.umem.break_locks()
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        honest.close()


def test_frames_that_others_have_are_not_given_twice(maker: Maker, hostile: Hostile) -> None:
    """The dead worker's ledger claims all: what lies in rings, and what another one has in hand."""
    maker.steer(0, 1)
    honest = adopt(maker, 1)
    send(maker.peers[0], [packet(number) for number in range(40)])
    wait_for_packet(honest.sockets[0])
    held = honest.sockets[0].rx_burst(10)
    for frame in range(QUEUES * RX_FRAMES):
        hostile.parts["ledger"][hostile.holds(frame)] = 1
    assert maker.reclaim(0) == 0
    assert maker.umem.unreclaimed == 0
    honest.sockets[0].rx_release(held)
    assert receive(honest.sockets[0], 30) == [packet(number) for number in range(10, 40)]
    assert maker.levels() == [RX_FRAMES, RX_FRAMES]
    assert maker.reclaim(0) == 0
    honest.close()


def test_a_frame_that_is_received_twice_is_taken_once(maker: Maker, hostile: Hostile) -> None:
    maker.steer(0, 1)
    honest = adopt(maker, 1)
    # The second entry of the FILL ring is the first one's frame again.
    (first,) = struct.unpack_from("=Q", hostile.parts["fill 0"], SLOTS)
    struct.pack_into("=Q", hostile.parts["fill 0"], SLOTS + 8, first)
    one = honest.sockets[0]
    send(maker.peers[0], [packet(1)])
    wait_for_packet(one)
    held = one.rx_burst()
    assert (len(held), held.descs[0].addr & ~(maker.umem.frame_bytes - 1)) == (1, first)
    # In hand still when it comes once more.
    more = ffi.new("struct pyxdp_desc[]", 4)
    send(maker.peers[0], [packet(2)])
    wait_for_packet(one)
    assert require().pyxdp_rx_burst(one.c_socket, more, 4) == 0
    assert one.statistics().rx_bad_descs == 1
    one.rx_release(held)
    assert honest.in_hand() == 0
    honest.close()


def test_nobody_waits_for_a_lock(maker: Maker, hostile: Hostile) -> None:
    """Worker 0 holds queue 0's lock in worker 1's name, for ever: that one keeps what it releases,
    and the maker does not wait either. What the same holder keeps is broken after a while."""
    maker.steer(0, 1)
    honest = adopt(maker, 1)
    hostile.put("control", 0, 7 << 8 | 2)
    send(maker.peers[0], [packet(number) for number in range(40)])
    assert receive(honest.sockets[0], 40) == [packet(number) for number in range(40)]
    assert honest.in_hand() == 40
    assert maker.levels()[0] == RX_FRAMES - 40
    maker.reclaim(0)
    assert maker.umem.unreclaimed == 1
    assert maker.umem.break_locks() == 0  # seen for the first time
    assert maker.umem.break_locks() == 1
    maker.reclaim(0)
    assert maker.umem.unreclaimed == 0
    assert len(honest.sockets[0].rx_burst()) == 0
    assert honest.in_hand() == 0
    assert maker.levels()[0] == RX_FRAMES
    honest.close()


@pytest.mark.parametrize("holder", [0, 1, 9, MAKER], ids=["nobody", "dead", "none such", "maker"])
def test_a_lock_that_nobody_can_hold_is_taken(maker: Maker, hostile: Hostile, holder: int) -> None:
    hostile.put("control", 0, 7 << 8 | holder)
    maker.reclaim(0)
    assert maker.umem.unreclaimed == 0
    assert hostile.word("control", 0) == 0


def test_a_fill_ring_of_impossible_indices_begins_anew(maker: Maker, hostile: Hostile) -> None:
    maker.steer(0, 1)
    honest = adopt(maker, 1)
    producer = hostile.word("fill 0", PRODUCER)
    hostile.put("fill 0", PRODUCER, producer + (1 << 30))
    assert maker.reclaim(0) == RX_FRAMES
    assert maker.levels() == [RX_FRAMES, RX_FRAMES]
    send(maker.peers[0], [packet(number) for number in range(32)])
    assert receive(honest.sockets[0], 32) == [packet(number) for number in range(32)]
    assert maker.levels() == [RX_FRAMES, RX_FRAMES]
    honest.close()


def test_completions_that_nobody_sent_free_nothing(maker: Maker, hostile: Hostile) -> None:
    """Every worker can write every COMPLETION ring."""
    honest = adopt(maker, 1)
    out = honest.sockets[1]
    frames = out.tx_alloc(4)
    producer = hostile.word("completion 1", PRODUCER)
    first = (QUEUES * RX_FRAMES + TX_FRAMES) * maker.umem.frame_bytes
    for index in range(8):
        address = first + index * maker.umem.frame_bytes
        struct.pack_into("=Q", hostile.parts["completion 1"], SLOTS + 8 * index, address)
    hostile.put("completion 1", PRODUCER, producer + (1 << 31))
    before = honest.umem.free_frames
    assert out.reap() == 0
    assert honest.umem.free_frames == before == TX_FRAMES - 4
    out.tx_release(frames)
    assert honest.umem.free_frames == TX_FRAMES
    honest.close()


def test_the_next_worker_can_send_whatever_the_last_one_noted(
    maker: Maker, hostile: Hostile
) -> None:
    first = QUEUES * RX_FRAMES
    for frame in range(first, first + TX_FRAMES):
        hostile.parts["ledger"][hostile.holds(frame)] = 1
    for ring in ("tx 0", "rx 0", "completion 0"):
        hostile.put(ring, PRODUCER, 1 << 30)
    after = adopt(maker, 0)
    out = after.sockets[0]
    assert len(out.rx_burst()) == 0
    assert after.umem.free_frames == 0
    while not len(frames := out.tx_alloc(8)):  # a second: nothing completes them
        pass
    for index in range(len(frames)):
        frames.write(index, packet(index))
    assert out.tx_send(frames) == 8
    assert receive(maker.peers[0], 8) == [packet(number) for number in range(8)]
    after.close()
