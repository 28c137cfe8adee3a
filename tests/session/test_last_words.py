"""What a process said before it left is heard, whichever of its descriptors closes first."""

from __future__ import annotations

import contextlib
import os
import socket
from itertools import permutations

import pytest
import trio
import trio.testing

import hoststack
from hoststack import TlsConfig
from hoststack.boundary import messages as m
from hoststack.boundary.attached_worker import AttachedWorker
from hoststack.boundary.attached_workers import AttachedWorkers
from hoststack.boundary.channel import Channel, ChannelClosedError
from hoststack.boundary.codec import encode
from hoststack.boundary.fifo_pool import BlockName
from hoststack.boundary.remote_application import Limits, RemoteApplication
from hoststack.boundary.rings import RING_ENTRIES
from hoststack.link.memory import MemoryNetwork
from hoststack.native.memory.fifo import Fifo
from hoststack.native.session._session import lib
from hoststack.quic.seam import CloseInfo, Handshake
from tests.support.attached import SEAL, both_ends, follow, hear, inline
from tests.support.event_ring import EventRing

HOST, OTHER = "10.0.0.1", "10.0.0.2"
URI = f"quic://{HOST}:4433"
TLS = TlsConfig.self_signed([HOST])
ENDS = ("_channel", "_wakes_worker", "_wakes_us")
ORDERS = list(permutations(ENDS))


async def close_ends(side: object, names: tuple[str, ...]) -> None:
    """As the kernel does when a process ends, and with time for the other side in between."""
    for name in names:
        getattr(side, name).close()
        await trio.testing.wait_all_tasks_blocked(0.001)


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_a_close_of_an_application(order: tuple[str, ...]) -> None:
    async def main() -> None:
        network = MemoryNetwork()
        async with (
            hoststack.open_stack(link=network.link(HOST)) as server,
            hoststack.open_stack(link=network.link(OTHER)) as stack,
            trio.open_nursery() as nursery,
        ):
            listener = await server.listen(URI, tls=TLS, alpn=["test"])
            ends, ours = both_ends("brief")
            remote = RemoteApplication("brief", ends, Limits(), SEAL, inline)
            stack._worker.attach(remote)
            nursery.start_soon(remote.run)
            trusting = TlsConfig(ca=TLS.certificate)
            ours.request(m.Connect(1, (HOST, 4433), HOST, trusting, ("test",), None))
            accepted = await listener.accept()
            stream = await accepted.open_stream()
            await stream.send_all(b"x")
            while not (notices := ours.take_notices()):
                await hear(ours)
            (connected,) = (each for each in notices if isinstance(each, m.Connected))
            # Events and notices that nobody takes are on their way, too.
            ours.request(m.CloseConnection(connected.handle, 7, "bye"))
            await stream.send_all(b"y")
            await close_ends(ours, order)
            info = await accepted.wait_closed()
            assert (info.code, info.reason) == (7, "bye")
            await trio.testing.wait_all_tasks_blocked(0.001)
            assert remote.gone
            nursery.cancel_scope.cancel()

    for _ in range(5):  # trio runs what is ready in any order
        trio.run(main)


@pytest.mark.parametrize("announced", [0, 7, 20])
@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_a_notice_of_a_worker(order: tuple[str, ...], announced: int) -> None:
    """It may end before the ring names the places of its messages among the news."""

    def no_fifo(_: Fifo) -> BlockName:
        raise AssertionError("there is none")

    async def main() -> None:
        theirs, ours = both_ends("brief")
        told: list[m.Notice] = []
        ours.wake_application = lambda: told.extend(ours.take_notices())
        said = [m.Closed(handle, CloseInfo(7, True, "bye", by_peer=True)) for handle in range(20)]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow, ours)
            remote = RemoteApplication("brief", theirs, Limits(), SEAL, inline)
            for notice in said:
                remote._channel.send(encode(notice, no_fifo))
            await trio.testing.wait_all_tasks_blocked(0.001)
            assert told == []
            news = EventRing(RING_ENTRIES, ours.rings.memory, ours.rings.block_bytes)
            assert not announced or news.push(0, lib.HS_NEWS_MESSAGES, announced)
            names = {"_wakes_us": "_wakes_application"}
            await close_ends(remote, tuple(names.get(name, name) for name in order))

        assert isinstance(ours, AttachedWorker)
        assert told == said
        assert ours.is_gone

    trio.run(main)


def test_a_worker_that_the_daemon_reports_lost_first() -> None:
    """Nothing of what it said has been read by then, and it still has its end of the channel."""
    theirs, ours = both_ends("brief")
    workers = AttachedWorkers("native")
    workers.add(0, ours)
    workers.request(m.Connect(1, (HOST, 4433), HOST, TlsConfig(verify=False), ("test",), None))
    connected = m.Connected(1, 2, (OTHER, 1), (HOST, 4433), "test", Handshake())
    theirs.channel.send(encode(connected))
    workers.remove(0)
    said = workers.take_notices()
    assert [type(each) for each in said] == [m.Connected, m.Closed]
    assert workers.hold(2)
    ours.close()
    theirs.channel.close()
    for fd in (theirs.rings_fd, theirs.wake_worker_fd, theirs.wake_application_fd):
        os.close(fd)


def test_messages_of_an_end_that_closed_with_unread_ones() -> None:
    """The kernel reports ECONNRESET ahead of what is queued."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    here, there = Channel(ours), Channel(theirs)
    here.send(b"unread")
    for data in (b"1", b"2", b"3"):
        there.send(data)
    there.close()
    received: list[tuple[bytes, list[int]]] = []
    with contextlib.suppress(ChannelClosedError):
        while len(received) < 10:
            received += here.receive_now()
    assert [data for data, _ in received] == [b"1", b"2", b"3"]
    here.close()
