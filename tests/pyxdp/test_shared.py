"""A UMEM of several processes: adopted rings, and what workers leave that were killed."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

import pytest

from pyxdp import (
    AdoptedSocket,
    AdoptedUmem,
    FrameOwnershipError,
    Program,
    SharedSocket,
    SharedUmem,
    Socket,
    Umem,
)
from tests.pyxdp.conftest import Veth
from tests.pyxdp.test_program import REDIRECT
from tests.pyxdp.test_xsk import packet, receive, send

QUEUES = 2
RX_FRAMES = 128
TX_FRAMES = 64
SIZES = {"rx_size": 64, "tx_size": 64}
NOBODY = 65534


class Maker:
    """The process that makes the sockets, and the other end of the wire."""

    def __init__(self, veth: Veth, stack: contextlib.ExitStack) -> None:
        self.interface = veth.right
        program = stack.enter_context(Program.load(REDIRECT, map_sizes={"sockets": QUEUES}))
        program.attach(veth.right, "native")
        other = stack.enter_context(Program.load(REDIRECT, map_sizes={"sockets": QUEUES}))
        other.attach(veth.left, "native")
        self.map = program.maps["sockets"]
        self.umem = stack.enter_context(
            SharedUmem(QUEUES, QUEUES, rx_frames=RX_FRAMES, tx_frames=TX_FRAMES)
        )
        self.sockets = [
            [SharedSocket(self.umem, veth.right, queue, **SIZES) for queue in range(QUEUES)]
            for _ in range(QUEUES)
        ]
        sending = stack.enter_context(Umem(1024))
        self.peers = [Socket(sending, veth.left, queue, fill_frames=256) for queue in range(QUEUES)]
        for queue, peer in enumerate(self.peers):
            other.maps["sockets"].update(queue, peer.fd)

    def steer(self, queue: int, worker: int) -> None:
        """A queue's packets go to that worker."""
        self.map.update(queue, self.sockets[worker][queue].fd)

    def fds(self, worker: int) -> list[int]:
        ledger = self.umem.ledger_fds[worker]
        return [self.umem.fd, ledger, *(each.fd for each in self.sockets[worker])]

    def levels(self) -> list[int]:
        """Frames in each queue's FILL ring."""
        return [each.fill_level for each in self.sockets[0]]

    def reclaim(self, worker: int) -> int:
        return self.umem.reclaim(worker, self.sockets[worker])


class Worker:
    """What a process has that adopted a worker's sockets."""

    def __init__(self, maker: Maker, index: int, fds: list[int]) -> None:
        self.umem = AdoptedUmem(fds[0], fds[1], maker.umem.shape, index)
        self.sockets = [
            AdoptedSocket(self.umem, fd, maker.interface, queue, **SIZES)
            for queue, fd in enumerate(fds[2:])
        ]

    def in_hand(self) -> int:
        """Received frames that it has."""
        owned = self.umem.owned_frames()
        return owned["rx"] + owned["reserved"]

    def close(self) -> None:
        self.umem.close()


@pytest.fixture
def maker(make_veth: Callable[..., Veth]) -> Iterator[Maker]:
    with contextlib.ExitStack() as stack:
        yield Maker(make_veth(queues=QUEUES), stack)


def adopt(maker: Maker, index: int) -> Worker:
    """In this process: the rings and what is shared are the same as in another one."""
    return Worker(maker, index, [os.dup(fd) for fd in maker.fds(index)])


def wait_for_packet(one: Socket) -> None:
    assert select.select([one], [], [], 5)[0]


def test_two_workers_share_a_queue(maker: Maker) -> None:
    workers = [adopt(maker, index) for index in range(2)]
    assert maker.levels() == [RX_FRAMES, RX_FRAMES]
    try:
        # Some rounds of the FILL rings, which both push into.
        for number in range(0, 40 * RX_FRAMES, 32):
            for queue in range(QUEUES):
                worker = workers[number // 32 % 2]
                maker.steer(queue, worker.umem.worker)
                packets = [packet(number + i) for i in range(32)]
                send(maker.peers[queue], packets)
                assert receive(worker.sockets[queue], 32) == packets
        for worker in workers:
            assert worker.in_hand() == 0
        assert maker.levels() == [RX_FRAMES, RX_FRAMES]
    finally:
        for worker in workers:
            worker.close()


def test_each_worker_sends_on_its_queue(maker: Maker) -> None:
    workers = [adopt(maker, index) for index in range(2)]
    try:
        for index, worker in enumerate(workers):
            packets = [packet(number) for number in range(5 * TX_FRAMES)]
            for start in range(0, len(packets), 32):
                send(worker.sockets[index], packets[start : start + 32])
                assert receive(maker.peers[index], 32) == packets[start : start + 32]
            assert worker.umem.free_frames + worker.sockets[index].reap() <= TX_FRAMES
            assert worker.umem.free_frames == TX_FRAMES
            with pytest.raises(ValueError, match="reserving frames"):
                worker.sockets[1 - index].tx_alloc()
    finally:
        for worker in workers:
            worker.close()


def test_frames_of_others_are_refused(maker: Maker) -> None:
    one, two = (adopt(maker, index) for index in range(2))
    try:
        maker.steer(0, 0)
        send(maker.peers[0], [packet(1)])
        wait_for_packet(one.sockets[0])
        burst = one.sockets[0].rx_burst()
        with pytest.raises(FrameOwnershipError):
            two.sockets[0].rx_release(burst)
        with pytest.raises(FrameOwnershipError):
            one.sockets[1].rx_release(burst)
        with pytest.raises(FrameOwnershipError):
            one.sockets[0].tx_send(burst)
        one.sockets[0].rx_release(burst)
        burst = one.sockets[0].tx_alloc(1)
        burst.descs[0].addr += TX_FRAMES * maker.umem.frame_bytes
        burst.descs[0].len = 100
        with pytest.raises(FrameOwnershipError):
            one.sockets[0].tx_send(burst)
    finally:
        one.close()
        two.close()


def test_what_was_in_hand_comes_back(maker: Maker) -> None:
    maker.steer(0, 0)
    maker.steer(1, 0)
    for _ in range(5):
        worker = adopt(maker, 0)
        for queue in range(QUEUES):
            send(maker.peers[queue], [packet(number) for number in range(40)])
            wait_for_packet(worker.sockets[queue])
            taken = worker.sockets[queue].rx_burst(30)
            assert len(taken) == 30
        worker.close()  # with 60 in hand, and 20 in its rings
        assert maker.reclaim(0) == 60
        assert maker.reclaim(0) == 0
        after = adopt(maker, 0)
        for queue in range(QUEUES):
            assert receive(after.sockets[queue], 10) == [packet(n) for n in range(30, 40)]
        after.close()
        assert maker.levels() == [RX_FRAMES, RX_FRAMES]


def test_what_was_sent_comes_back_to_the_next(maker: Maker) -> None:
    for _ in range(5):
        worker = adopt(maker, 0)
        out = worker.sockets[0]
        send(out, [packet(number) for number in range(20)])
        reserved = out.tx_alloc(10)
        assert len(reserved) == 10
        # On the TX ring, but the kernel was not told.
        for index in range(5):
            reserved.write(index, packet(100 + index))
        library = out._library
        assert library.pyxdp_tx_submit(out.c_socket, reserved.descs, 5) == 5
        worker.close()
        after = adopt(maker, 0)
        assert after.umem.free_frames >= TX_FRAMES - 25
        assert after.sockets[0].kick() == 0
        assert len(receive(maker.peers[0], 25)) == 25
        after.sockets[0].reap()
        assert after.umem.free_frames == TX_FRAMES
        after.close()


# --- a process that is killed where it stands ---


def serve(maker: Maker, index: int, fds: Connection) -> None:
    """Send back all that comes, without privilege, until killed."""
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    with socket.socket(fileno=fds.fileno()) as end:
        _, came, _, _ = socket.recv_fds(end, 16, 2 + QUEUES)
        worker = Worker(maker, index, came)
        os.write(fds.fileno(), b"ready")
        out = worker.sockets[index]
        while True:
            for each in worker.sockets:
                burst = each.rx_burst()
                frames = out.tx_alloc(len(burst))
                for number in range(len(frames)):
                    frames.write(number, bytes(burst[number]))
                out.tx_send(frames)
                out.tx_release(frames)
                each.rx_release(burst)
            if os.getppid() == 1:
                break


@contextlib.contextmanager
def child(maker: Maker, index: int) -> Iterator[int]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    context = multiprocessing.get_context("fork")
    process = context.Process(target=serve, args=(maker, index, Connection(theirs.detach())))
    process.start()
    assert process.pid is not None
    try:
        with ours:
            socket.send_fds(ours, [b"take"], maker.fds(index))
            assert ours.recv(16) == b"ready"
        yield process.pid
    finally:
        process.kill()
        process.join()


def test_killed_under_load(maker: Maker) -> None:
    """Fifty deaths at any moment; then every frame is where it was in the beginning."""
    maker.steer(0, 0)
    maker.steer(1, 0)
    with child(maker, 1):
        for life in range(50):
            with child(maker, 0) as pid:
                until = time.monotonic() + 0.01 + life * 0.0005
                while time.monotonic() < until:
                    for queue, peer in enumerate(maker.peers):
                        # Whatever the state of the wire: all of it is load.
                        burst = peer.tx_alloc(16)
                        for index in range(len(burst)):
                            burst.write(index, packet(life * 2 + queue))
                        peer.tx_send(burst)
                        peer.tx_release(burst)
                        peer.rx_release(peer.rx_burst())
                os.kill(pid, signal.SIGKILL)
            maker.reclaim(0)
    after = adopt(maker, 0)
    try:
        for queue in range(QUEUES):
            while len(burst := after.sockets[queue].rx_burst()):
                after.sockets[queue].rx_release(burst)
        while after.sockets[0].kick():
            select.select([], [after.sockets[0]], [], 1)
        after.sockets[0].reap()
        assert maker.levels() == [RX_FRAMES, RX_FRAMES]
        assert after.in_hand() == 0
        assert after.umem.free_frames == TX_FRAMES
        # And it goes on as if nothing had been.
        packets = [packet(number) for number in range(32)]
        for queue in range(QUEUES):
            send(maker.peers[queue], packets)
            assert receive(after.sockets[queue], 32) == packets
    finally:
        after.close()
