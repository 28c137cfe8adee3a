"""UMEM and sockets over a veth pair: bursts, owners of frames, rings that run dry or full."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

import pyxdp
from pyxdp import Program, Socket, Umem
from tests.pyxdp.conftest import Veth
from tests.pyxdp.test_program import REDIRECT
from tests.support.open_files import open_files

FRAMES = 256
HEADER = bytes.fromhex("ffffffffffff 020000000001 88b5")
DEADLINE_MS = 5000


def packet(number: int, size: int = 100) -> bytes:
    """An Ethernet frame of `size` bytes that can be told from others."""
    return (HEADER + number.to_bytes(4, "big")).ljust(size, b"\x5a")


def send(sender: Socket, packets: list[bytes]) -> None:
    """Send them all, waiting for room where there is none."""
    waiting = select.poll()
    waiting.register(sender, select.POLLOUT)
    while packets or sender.kick():
        burst = sender.tx_alloc(min(len(packets), 64))
        for index, one in enumerate(packets[: len(burst)]):
            burst.write(index, one)
        taken = sender.tx_send(burst)
        sender.tx_release(burst)
        packets = packets[taken:]
        if not taken:
            assert waiting.poll(DEADLINE_MS)


def receive(receiver: Socket, count: int) -> list[bytes]:
    """Wait for `count` packets and release them."""
    waiting = select.poll()
    waiting.register(receiver, select.POLLIN)
    got: list[bytes] = []
    while len(got) < count:
        burst = receiver.rx_burst(count - len(got))
        came = [bytes(view) for view in burst]
        receiver.rx_release(burst)
        got += came
        if not came:
            assert waiting.poll(DEADLINE_MS), f"{len(got)} of {count} packets came"
    return got


class Pair(NamedTuple):
    """Two ends: left sends, right receives."""

    left: Socket
    right: Socket
    program: Program


@contextlib.contextmanager
def open_pair(veth: Veth, mode: pyxdp.Mode = "native", frame_bytes: int = 2048) -> Iterator[Pair]:
    """A socket on each side, each on a UMEM of its own, and the programs that feed them."""
    with contextlib.ExitStack() as stack:
        program = stack.enter_context(Program.load(REDIRECT))
        program.attach(veth.right, mode)
        other = stack.enter_context(Program.load(REDIRECT))
        other.attach(veth.left, mode)
        umems = [stack.enter_context(Umem(FRAMES, frame_bytes, debug=True)) for _ in range(2)]
        left = Socket(umems[0], veth.left)
        right = Socket(umems[1], veth.right)
        program.maps["sockets"].update(0, right.fd)
        other.maps["sockets"].update(0, left.fd)
        yield Pair(left, right, program)


@pytest.fixture
def pair(veth: Veth) -> Iterator[Pair]:
    with open_pair(veth) as made:
        yield made


def settled(umem: Umem) -> dict[str, int]:
    """The owners of frames; every frame has one."""
    owned = umem.owned_frames()
    assert sum(owned.values()) == umem.frame_count
    assert owned["free"] == umem.free_frames
    return owned


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_packets_arrive_whole_and_in_order(veth: Veth, mode: pyxdp.Mode) -> None:
    packets = [packet(number, 60 + number) for number in range(1000)]
    with open_pair(veth, mode) as pair:
        got: list[bytes] = []
        for start in range(0, len(packets), 100):
            send(pair.left, packets[start : start + 100])
            got += receive(pair.right, 100)
        assert got == packets
        pair.left.reap()
        assert settled(pair.left.umem) == dict(free=128, fill=128, rx=0, reserved=0, tx=0)
        assert settled(pair.right.umem) == dict(free=128, fill=128, rx=0, reserved=0, tx=0)
        statistics = pair.right.statistics()
        assert statistics.rx_frames == len(packets)
        assert statistics.rx_dropped == statistics.rx_ring_full == statistics.rx_bad_descs == 0
        assert pair.left.statistics().tx_frames == len(packets)
        assert pair.left.statistics().tx_invalid_descs == 0


def test_large_packets_in_large_frames(make_veth: Callable[..., Veth]) -> None:
    with open_pair(make_veth(mtu_bytes=3490), frame_bytes=4096) as pair:
        largest = packet(1, 3490 + 14)
        assert len(largest) <= pair.right.umem.largest_packet_bytes
        send(pair.left, [largest, packet(2), largest])
        assert receive(pair.right, 3) == [largest, packet(2), largest]


def test_headroom_is_masked_away_when_recycling(veth: Veth) -> None:
    with (
        Program.load(REDIRECT) as program,
        Umem(8, headroom_bytes=64, debug=True) as umem,
        Umem(FRAMES) as sending,
    ):
        program.attach(veth.right, "generic")
        right = Socket(umem, veth.right, fill_frames=4)
        left = Socket(sending, veth.left)
        program.maps["sockets"].update(0, right.fd)
        for number in range(40):
            send(left, [packet(number)])
            burst = right.rx_burst()
            while not len(burst):
                assert select.select([right], [], [], 5)[0]
                burst = right.rx_burst()
            assert burst.descs[0].addr % 2048 == 256 + 64
            assert bytes(burst[0]) == packet(number)
            right.rx_release(burst)
        assert settled(umem) == dict(free=4, fill=4, rx=0, reserved=0, tx=0)


def test_sockets_of_two_queues_and_two_of_one(make_veth: Callable[..., Veth]) -> None:
    veth = make_veth(queues=2)
    with (
        Program.load(REDIRECT) as program,
        Umem(FRAMES, debug=True) as umem,
        Umem(FRAMES, debug=True) as sending,
    ):
        # In native mode a packet comes in on the queue that it was sent on; in generic mode veth
        # forgets the queue.
        program.attach(veth.right, "native")
        right = [Socket(umem, veth.right, queue, fill_frames=32) for queue in (0, 0, 1)]
        assert settled(umem)["fill"] == 96
        left = [Socket(sending, veth.left, queue, fill_frames=8) for queue in (0, 1)]
        sockets = program.maps["sockets"]
        sockets.update(1, right[2].fd)
        for number in range(100):
            target = right[number % 2]
            sockets.update(0, target.fd)
            send(left[0], [packet(number)])
            assert receive(target, 1) == [packet(number)]
            send(left[1], [packet(1000 + number)])
            assert receive(right[2], 1) == [packet(1000 + number)]
        assert [one.statistics().rx_frames for one in right] == [50, 50, 100]
        assert settled(umem) == dict(free=160, fill=96, rx=0, reserved=0, tx=0)
        # One of two closed: the other goes on, on the rings that they shared.
        right[0].close()
        sockets.update(0, right[1].fd)
        send(left[0], [packet(7)])
        assert receive(right[1], 1) == [packet(7)]


def test_received_packets_are_sent_on_in_place(pair: Pair) -> None:
    umem = pair.right.umem
    for number in range(10):
        send(pair.left, [packet(number), packet(number + 1000)])
        assert select.select([pair.right], [], [], 5)[0]
        burst = pair.right.rx_burst()
        assert pair.right.tx_send(burst) == 2
        assert receive(pair.left, 2) == [packet(number), packet(number + 1000)]
    pair.right.reap()
    owned = settled(umem)
    assert owned["rx"] == owned["tx"] == 0
    # The next release tops the FILL ring up again.
    send(pair.left, [packet(1)])
    receive(pair.right, 1)
    assert settled(umem)["fill"] == 128


def test_fill_ring_runs_dry_and_recovers(veth: Veth) -> None:
    with (
        Program.load(REDIRECT) as program,
        Umem(8, debug=True) as umem,
        Umem(FRAMES) as sending,
    ):
        program.attach(veth.right, "generic")
        right = Socket(umem, veth.right, fill_frames=8)
        left = Socket(sending, veth.left)
        program.maps["sockets"].update(0, right.fd)
        assert umem.free_frames == 0
        assert len(right.tx_alloc()) == 0
        send(left, [packet(number) for number in range(20)])
        assert receive(right, 8) == [packet(number) for number in range(8)]
        assert right.rx_burst().count == 0
        assert right.statistics().rx_fill_ring_empty_descs + right.statistics().rx_dropped >= 12
        send(left, [packet(99)])
        assert receive(right, 1) == [packet(99)]
        assert settled(umem)["fill"] == 8


def test_full_tx_ring_takes_fewer(veth: Veth) -> None:
    with Umem(FRAMES, debug=True) as umem, Socket(umem, veth.left, tx_size=16) as left:
        burst = left.tx_alloc(64)
        for index in range(len(burst)):
            burst.write(index, packet(index))
        assert left.tx_send(burst) == 16
        assert len(burst) == 48
        assert bytes(burst[0]) == packet(16)
        left.tx_release(burst)
        assert left.kick() == 0
        assert left.reap() == 16
        assert settled(umem)["tx"] == 0


def test_one_or_two_kicks_send_a_burst(pair: Pair) -> None:
    send(pair.left, [packet(number) for number in range(64)])
    receive(pair.right, 64)
    statistics = pair.left.statistics()
    # One where the kernel can be told how much a call may send (6.17), else 32 packets each.
    assert statistics.kicks == 1 + statistics.kicks_again
    assert statistics.kicks in (1, 2)


def test_larger_than_a_frame_is_dropped_and_counted(make_veth: Callable[..., Veth]) -> None:
    veth = make_veth(mtu_bytes=3000)
    with Program.load(REDIRECT) as program, Umem(FRAMES, 2048, debug=True) as umem:
        program.attach(veth.right, "generic")
        right = Socket(umem, veth.right)
        program.maps["sockets"].update(0, right.fd)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind((veth.left, 0))
            raw.send(packet(1, 2900))
            for size in (14, 15, 60, 1792):
                raw.send(packet(2, size)[:size])
        assert [len(one) for one in receive(right, 4)] == [14, 15, 60, 1792]
        assert right.statistics().rx_dropped == 1


@pytest.mark.parametrize(
    ("addr", "length"),
    [(0, 0), (0, 13), (0, 2049), (2000, 100), (FRAMES * 2048, 60), (2**64 - 1, 60), (2**48, 60)],
)
def test_bad_descriptors_are_refused_whole(pair: Pair, addr: int, length: int) -> None:
    burst = pair.left.tx_alloc(2)
    burst.write(0, packet(1))
    good = burst.descs[1].addr
    burst.descs[1].addr = good + addr if addr < 2048 else addr
    burst.descs[1].len = length
    with pytest.raises(ValueError, match="outside the UMEM"):
        pair.left.tx_send(burst)
    burst.write(0, packet(1))
    burst.descs[1].addr = good
    burst.descs[1].len = 60
    assert pair.left.tx_send(burst) == 2
    assert receive(pair.right, 2)[0] == packet(1)


def test_packet_that_does_not_fit_its_frame(pair: Pair) -> None:
    burst = pair.left.tx_alloc(1)
    with pytest.raises(ValueError, match="does not fit 2048"):
        burst.write(0, bytes(2049))
    with pytest.raises(IndexError):
        burst.write(1, packet(1))
    with pytest.raises(IndexError):
        burst[1]
    pair.left.tx_release(burst)


def test_a_frame_used_twice_is_found(pair: Pair) -> None:
    left = pair.left
    burst = left.tx_alloc(2)
    for index in range(2):
        burst.write(index, packet(index))
    addr, other = burst.descs[0].addr, burst.descs[1].addr

    burst.descs[1].addr = addr  # one frame twice in a burst
    with pytest.raises(pyxdp.FrameOwnershipError, match="should be rx or reserved"):
        left.tx_send(burst)
    burst.descs[1].addr = other
    with pytest.raises(pyxdp.FrameOwnershipError, match="should be rx, but it is reserved"):
        left.rx_release(burst)
    left.tx_send(burst)

    burst.descs[0].addr = addr  # sent already
    burst.count = 1
    with pytest.raises(pyxdp.FrameOwnershipError, match="but it is tx"):
        left.tx_release(burst)
    burst.count = 0

    receive(pair.right, 2)
    left.reap()
    burst.descs[0].addr = addr  # free already
    burst.descs[0].len = 60
    burst.count = 1
    with pytest.raises(pyxdp.FrameOwnershipError, match="but it is free"):
        left.tx_send(burst)
    burst.count = 0
    assert settled(left.umem)["free"] == 128


def test_forgotten_bursts_are_refused(pair: Pair) -> None:
    burst = pair.left.tx_alloc(1)
    with pytest.raises(ValueError, match="neither sent nor released"):
        pair.left.tx_alloc(1)
    burst.write(0, packet(1))
    pair.left.tx_send(burst)
    assert select.select([pair.right], [], [], 5)[0]
    received = pair.right.rx_burst()
    with pytest.raises(ValueError, match="neither released nor sent on"):
        pair.right.rx_burst()
    pair.right.rx_release(received)


def test_two_threads_share_a_queue(veth: Veth) -> None:
    """Both take from one FILL ring and give back to it, while frames are checked."""
    with (
        Program.load(REDIRECT) as program,
        Umem(64, debug=True) as umem,
        Umem(FRAMES) as sending,
    ):
        program.attach(veth.right, "generic")
        right = [Socket(umem, veth.right, fill_frames=24) for _ in range(2)]
        left = Socket(sending, veth.left)
        failures: list[BaseException] = []
        stop = threading.Event()
        counts = [0, 0]

        def take(index: int) -> None:
            try:
                while not stop.is_set():
                    select.select([right[index]], [], [], 0.05)
                    burst = right[index].rx_burst()
                    counts[index] += len(burst)
                    right[index].rx_release(burst)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=take, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        try:
            for number in range(400):
                program.maps["sockets"].update(0, right[number % 2].fd)
                send(left, [packet(number)] * 8)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert failures == []
        assert min(counts) > 0
        for receiver in right:
            while len(burst := receiver.rx_burst()):
                receiver.rx_release(burst)
        assert settled(umem) == dict(free=16, fill=48, rx=0, reserved=0, tx=0)


def test_queue_of_another_umem_is_busy(veth: Veth, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyxdp.xsk._BUSY_RETRIES", 1)
    with (
        Umem(64) as first,
        Umem(64) as second,
        Socket(first, veth.left),
        pytest.raises(pyxdp.QueueBusyError, match="ss --xdp"),
    ):
        Socket(second, veth.left)


def test_queue_is_free_again_after_closing(veth: Veth) -> None:
    for _ in range(3):
        with Umem(64) as umem, Socket(umem, veth.left):
            pass


def test_socket_that_cannot_be_opened_leaves_the_umem_good(veth: Veth) -> None:
    with Umem(64, debug=True) as umem:
        with pytest.raises(pyxdp.NoInterfaceError, match="no such queue"):
            Socket(umem, veth.left, 5)
        with pytest.raises(pyxdp.NoInterfaceError, match="no interface 'nope0'"):
            Socket(umem, "nope0")
        with Socket(umem, veth.left) as left:
            send(left, [packet(1)])


def test_nothing_is_left_open(veth: Veth) -> None:
    def everything() -> None:
        with Program.load(REDIRECT) as program, Umem(64) as umem:
            program.attach(veth.left)
            program.test_run(packet(1))
            Socket(umem, veth.left)
            with pytest.raises(pyxdp.NoInterfaceError):
                Socket(umem, veth.left, 7)
            with Program.load(REDIRECT) as other, pytest.raises(pyxdp.ForeignProgramError):
                other.attach(veth.left)
            with pytest.raises(pyxdp.ObjectError):
                Program.load(REDIRECT, name="nope")

    everything()
    before = open_files()
    for _ in range(5):
        everything()
    assert open_files() == before


def test_queue_closed_for_good(veth: Veth) -> None:
    with Umem(64) as umem:
        Socket(umem, veth.left).close()
        with pytest.raises(pyxdp.PyxdpError, match="make a new UMEM") as caught:
            Socket(umem, veth.left)
        assert caught.value.errno == errno.ESHUTDOWN


def test_zero_copy_where_the_driver_has_none(veth: Veth) -> None:
    with (
        Umem(64, bind_mode="zero-copy") as umem,
        pytest.raises(pyxdp.PyxdpError, match="copy mode") as caught,
    ):
        Socket(umem, veth.left)
    assert caught.value.errno == errno.EOPNOTSUPP
    with Umem(64, bind_mode="copy", need_wakeup=False) as umem, Socket(umem, veth.left) as left:
        assert not left.is_zero_copy
        send(left, [packet(1)])


def test_views_outlive_the_umem(veth: Veth) -> None:
    umem = Umem(64)
    view = umem.area[0:4]
    umem.close()
    umem.close()
    assert bytes(view) == bytes(4)
    with pytest.raises(pyxdp.ClosedError):
        Socket(umem, veth.left)


def test_closed_socket_says_so(pair: Pair) -> None:
    pair.left.close()
    pair.left.close()
    for verb in (pair.left.rx_burst, pair.left.tx_alloc, pair.left.kick, pair.left.statistics):
        with pytest.raises(pyxdp.ClosedError, match="is closed"):
            verb()


@pytest.mark.parametrize(
    "arguments",
    [(0,), (-1,), (1 << 21,), (64, 1024), (64, 3000), (64, 8192), (64, 2048, 1792), (64, 2048, -1)],
)
def test_sizes_out_of_range(extension: None, arguments: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"frame_count|frame_bytes|headroom_bytes"):
        Umem(*arguments)


def test_socket_sizes_out_of_range(veth: Veth) -> None:
    with Umem(64) as umem:
        for wrong in (dict(rx_size=3), dict(tx_size=0), dict(fill_frames=65), dict(queue=-1)):
            with pytest.raises(ValueError, match=next(iter(wrong))):
                Socket(umem, veth.left, **wrong)


def test_interface_is_described(make_veth: Callable[..., Veth]) -> None:
    veth = make_veth(queues=4, mtu_bytes=1400)
    found = pyxdp.describe_interface(veth.left)
    assert (found.driver, found.mtu_bytes, found.rx_queues) == ("veth", 1400, 4)
    assert found.is_up
    assert found.has_carrier
    assert pyxdp.describe_interface("lo").rx_queues == 1
    with pytest.raises(pyxdp.NoInterfaceError):
        pyxdp.describe_interface("nope0")


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_the_driver_is_polled_when_there_is_nothing(veth: Veth, mode: pyxdp.Mode) -> None:
    packets = [packet(number) for number in range(100)]
    af_xdp, prefer_busy_poll, busy_poll = 44, 69, 46  # linux/socket.h
    with open_pair(veth, mode) as pair:
        pair.right.busy_poll(50, 32)
        with socket.socket(af_xdp, socket.SOCK_RAW, 0, os.dup(pair.right.fd)) as told:
            assert told.getsockopt(socket.SOL_SOCKET, prefer_busy_poll) == 1
            assert told.getsockopt(socket.SOL_SOCKET, busy_poll) == 50
        got: list[bytes] = []
        send(pair.left, packets)
        while len(got) < len(packets):
            burst = pair.right.rx_burst()
            got += [bytes(view) for view in burst]
            pair.right.rx_release(burst)
        assert got == packets


def test_polling_the_driver_takes_privilege(veth: Veth) -> None:
    with open_pair(veth) as pair:
        os.seteuid(65534)
        try:
            with pytest.raises(pyxdp.NoPrivilegeError, match="cannot enable busy polling"):
                pair.right.busy_poll(50)
        finally:
            os.seteuid(0)
        assert pair.right.rx_burst().count == 0
