"""Waking the other process: whatever one side does to its descriptors, the other never waits."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
import trio
import trio.testing

import hoststack
from hoststack.boundary import messages as m
from hoststack.boundary.attached_worker import AttachedWorker
from hoststack.boundary.channel import ChannelClosedError
from hoststack.boundary.codec import encode
from hoststack.boundary.remote_application import Ends, Limits, RemoteApplication
from hoststack.boundary.rings import RING_ENTRIES, shared_ends
from hoststack.boundary.wake_up import WakeUp
from hoststack.link.memory import MemoryNetwork
from tests.support.attached import SEAL, both_ends, hear, inline
from tests.support.event_ring import EventRing

#: More than any buffer of a socket holds.
MANY = 5000
O_ASYNC = fcntl.FASYNC


@pytest.fixture
def pair() -> Iterator[tuple[WakeUp, WakeUp]]:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ends = WakeUp(one.detach()), WakeUp(other.detach())
    yield ends
    for end in ends:
        end.close()


def test_one_end_wakes_the_other(pair: tuple[WakeUp, WakeUp]) -> None:
    async def main() -> None:
        one, other = pair
        one.ring()
        with trio.fail_after(60):
            await trio.lowlevel.wait_readable(other)
        other.clear()
        other.clear()  # there is none: it does not wait for one
        with trio.move_on_after(0.01) as scope:
            await trio.lowlevel.wait_readable(other)
        assert scope.cancelled_caught

    trio.run(main)


@pytest.mark.parametrize("flags", [0, os.O_NONBLOCK], ids=["blocking", "not blocking"])
def test_who_is_never_heard_rings_on(pair: tuple[WakeUp, WakeUp], flags: int) -> None:
    one, other = pair
    for end in pair:
        fcntl.fcntl(end, fcntl.F_SETFL, flags)
    for _ in range(MANY):
        one.ring()
    for _ in range(MANY):
        other.clear()


@pytest.mark.parametrize("how", [socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR, None])
def test_an_end_that_is_gone_is_told(pair: tuple[WakeUp, WakeUp], how: int | None) -> None:
    one, other = pair
    other.ring()
    if how is None:
        other.close()
    else:
        other._socket.shutdown(how)

    def use() -> None:
        for _ in range(MANY):
            one.ring()
            one.clear()

    with pytest.raises(ChannelClosedError):
        use()


def test_an_empty_message_is_none(pair: tuple[WakeUp, WakeUp]) -> None:
    """A reader would wake for ever: it can't be told from the end."""
    one, other = pair
    one._socket.send(b"")
    with pytest.raises(ChannelClosedError):
        other.clear()


def test_no_socket_is_none() -> None:
    fd = os.eventfd(0)
    with pytest.raises(OSError, match="Socket operation on non-socket"):
        WakeUp(fd)
    os.close(fd)


def test_no_open_file_description_is_on_both_sides_but_what_is_mapped() -> None:
    """O_NONBLOCK, O_ASYNC and the owner of signals belong to the description (fcntl(2))."""
    with ExitStack() as made:
        ours, theirs = shared_ends("x", made)
        assert ours[1] == theirs[1]
        rings = ours.pop(1)
        theirs.remove(rings)
        before = [fcntl.fcntl(fd, fcntl.F_GETFL) for fd in ours]
        assert all(flags & os.O_NONBLOCK for flags in before)
        for fd in theirs:
            fcntl.fcntl(fd, fcntl.F_SETFL, O_ASYNC)
            fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(rings, fcntl.F_SETFL, os.O_NONBLOCK)
        for fd, flags in zip(ours, before, strict=True):
            assert fcntl.fcntl(fd, fcntl.F_GETFL) == flags
            assert fcntl.fcntl(fd, fcntl.F_GETOWN) == 0
        for fd in theirs:
            fcntl.fcntl(fd, fcntl.F_SETFL, 0)
        # The memory can't be taken away from under a mapping (SIGBUS), nor can more be charged.
        for size in (0, 1 << 30):
            with pytest.raises(PermissionError):
                os.ftruncate(rings, size)


def test_an_application_that_blocks_all_that_it_has_blocks_nobody() -> None:
    """It makes its ends blocking, fills them, arms its ring, and never reads."""

    async def main() -> None:
        async with (
            hoststack.open_stack(link=MemoryNetwork().link("10.0.0.1")) as stack,
            trio.open_nursery() as nursery,
        ):
            with ExitStack() as made:
                ours, theirs = shared_ends("x", made)
                channel, *others = map(os.dup, ours)
                application = RemoteApplication(
                    "x", Ends(socket.socket(fileno=channel), *others), Limits(), SEAL, inline
                )
                nursery.start_soon(application.run)
                stack._worker.attach(application)
                for fd in (theirs[0], *theirs[2:]):
                    end = socket.socket(fileno=os.dup(fd))
                    with end, suppress(BlockingIOError, BrokenPipeError):
                        for _ in range(MANY):
                            end.send(b"x", socket.MSG_DONTWAIT)
                    fcntl.fcntl(fd, fcntl.F_SETFL, 0)
                rings = application.rings
                ring = EventRing(RING_ENTRIES, rings.memory, rings.block_bytes)
                for _ in range(MANY):
                    ring.arm()  # as the other process would, to be woken again
                    application.raise_event(7, m.EventCode.READABLE)
                    application.flush()
                    application.notify(m.Failed(1, 1, "x"))
                # Everybody else is served.
                ends, other = both_ends("other")
                well = RemoteApplication("other", ends, Limits(), SEAL, inline)
                nursery.start_soon(well.run)
                stack._worker.attach(well)
                other._send(encode(m.GetStatistics(7, 1)))
                with trio.fail_after(60):
                    await hear(other)
                assert other.take_notices()
                # Its requests are read when it reads, and then it is thrown out.
                with trio.fail_after(60), socket.socket(fileno=os.dup(theirs[0])) as end:
                    while application.gone is None:
                        with suppress(BlockingIOError):
                            end.recv(65536, socket.MSG_DONTWAIT)
                        await trio.testing.wait_all_tasks_blocked(0.001)
                stack._worker.detach(application)
                stack._worker.detach(well)
                other.close()
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_a_worker_that_is_hostile_does_not_block_a_program() -> None:
    with ExitStack() as made:
        ours, theirs = shared_ends("x", made)
        channel, *others = map(os.dup, theirs)
        worker = AttachedWorker("x", socket.socket(fileno=channel), *others)
        for fd in (ours[0], *ours[2:]):
            fcntl.fcntl(fd, fcntl.F_SETFL, 0)
        ring = EventRing(RING_ENTRIES, worker.rings.memory)
        for _ in range(MANY):
            ring.arm()
            worker.signal_sent(7)
            worker.clear_wake_up()
        worker.close()
