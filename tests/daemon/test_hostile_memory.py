"""An application that is attached to a daemon and breaks one rule: it is thrown out, or nothing
comes of it, and a well-behaved one does not notice."""

from __future__ import annotations

import itertools
import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import trio

import hoststack
from hoststack.boundary import attaching
from hoststack.boundary import messages as m
from hoststack.boundary.channel import Channel
from hoststack.boundary.codec import SegmentCame, decode_notice, encode
from hoststack.boundary.fifo_pool import BlockName
from hoststack.boundary.rings import RING_ENTRIES
from hoststack.native.memory.segment import map_segment
from hoststack.native.session._session import lib
from tests.daemon.conftest import PATIENCE_S, Daemon
from tests.daemon.echoing import TRUSTING, echo_server
from tests.daemon.fuzz_application import NEWS_AT, Worker, block_at
from tests.daemon.test_lives import Load
from tests.support.event_ring import RingEvent
from tests.support.shared_words import store

#: In a ring's or a FIFO's block: the producer's index, and the consumer's.
PRODUCER, CONSUMER, WANTS_READ = 0, 64, 72
_numbers = itertools.count()


class Villain:
    """Attached by the protocol, without the library that would keep it honest; has a stream to an
    echo server."""

    def __init__(self, daemon: Daemon, port: int) -> None:
        self._daemon = daemon
        end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        end.connect(daemon.api)
        self._attachment = Channel(end, takes_fds=True)
        self._name = f"villain{next(_numbers)}"
        hello = attaching.Attach(version=attaching.PROTOCOL_VERSION, name=self._name)
        self._attachment.send(attaching.encode(hello))
        _, offered, other = (self._wait(self._attachment) for _ in range(3))
        self.worker, self._other = Worker(offered[1]), Worker(other[1])
        offer = attaching.decode_answer(offered[0])
        assert isinstance(offer, attaching.WorkerOffered)
        self.pid = daemon.worker_pid(offer.index)
        self._news: deque[RingEvent] = deque()
        self.send(m.Connect(1, ("127.0.0.1", port), "127.0.0.1", TRUSTING, ("test",), None))
        self.connection = self.hear(m.Connected).handle
        self.command(self.connection, lib.HS_COMMAND_OPEN, 0, 2)
        opened = self.hear_news(lib.HS_NEWS_OPENED)
        assert opened.words[0] == self.connection
        assert opened.words[4] == 2
        self.stream = opened.handle
        self.rx, self.tx = (self._block(place) for place in opened.words[2:4])

    def _wait(self, channel: Channel) -> tuple[bytes, list[int]]:
        while not (received := channel.receive_now(1)):
            assert select.select([channel._socket], [], [], PATIENCE_S)[0]
        return received[0]

    def send(self, request: m.Request, fds: list[int] | None = None) -> None:
        self.worker.channel.send(encode(request), fds or [])

    def hear(self, kind: type | tuple[type, ...]) -> Any:
        """The next notice of that kind."""
        while True:
            data, fds = self._wait(self.worker.channel)
            notice = decode_notice(data, lambda name: name)  # type: ignore[arg-type, return-value]
            if isinstance(notice, SegmentCame):
                self.worker.segments[notice.number] = map_segment(fds[0])
            for fd in fds:
                os.close(fd)
            if isinstance(notice, kind):
                return notice

    def hear_news(self, *kinds: int) -> RingEvent:
        """The next news of these kinds."""
        while True:
            while not self._news:
                self._news += self.worker.read_news()
                if not self._news and not self._armed_news():
                    assert select.select([self.worker.wake_ups[1]], [], [], PATIENCE_S)[0]
                    os.read(self.worker.wake_ups[1], 64)
            if (news := self._news.popleft()).kind in kinds:
                return news

    def _armed_news(self) -> bool:
        """Ask to be woken for news; whether there are some already."""
        store(self.worker.rings, NEWS_AT + WANTS_READ, 1)
        pushed, popped = struct.unpack_from("<Q56xQ", self.worker.rings, NEWS_AT)
        return bool(pushed != popped)

    def _block(self, place: int) -> BlockName:
        """A FIFO's block, once its segment has come."""
        block = block_at(place)
        assert block is not None
        while block.segment not in self.worker.segments:
            self.hear(SegmentCame)
        return block

    def command(self, handle: int, kind: int, arg: int = 0, word: int = 0) -> None:
        """Give the worker a command, as the library would."""
        self.worker.command(RingEvent(handle, kind, arg, (word,)))

    def fifo(self, name: Any, place: int, index: int) -> None:
        store(self.worker.segments[name.segment], name.offset + place, index)

    def why_it_left(self) -> str:
        """Once it is thrown out."""
        return self._daemon.wait_for(rf"{self._name}-{os.getpid()} left: (.*)")[1]

    def have_echoed(self, count: int) -> None:
        """Send so many bytes, and wait until they have come back."""
        self.fifo(self.tx, PRODUCER, count)
        self.command(self.stream, lib.HS_COMMAND_SENT)
        while True:
            self.fifo(self.rx, WANTS_READ, 1)
            store(self.worker.rings, NEWS_AT + WANTS_READ, 1)
            memory = self.worker.segments[self.rx.segment]
            if struct.unpack_from("<Q", memory, self.rx.offset + PRODUCER)[0] == count:
                break
            assert select.select([self.worker.wake_ups[1]], [], [], PATIENCE_S)[0]
            os.read(self.worker.wake_ups[1], 64)

    def is_answered(self) -> bool:
        """Whether it is still there for the worker, though its connection may not be."""
        self.send(m.GetStatistics(3, self.connection))
        return bool(self.hear((m.Statistics, m.Failed)))

    def is_served(self) -> bool:
        """Whether it still gets answers."""
        self.send(m.GetStatistics(3, self.connection))
        return bool(self.hear(m.Statistics))

    def close(self) -> None:
        self._attachment.close()
        self.worker.close()
        self._other.close()


def with_a_villain(daemon: Daemon, script: Callable[[Villain, list[int]], None]) -> None:
    """Beside a well-behaved application with connections through all workers."""

    async def main() -> None:
        with trio.fail_after(2 * PATIENCE_S):
            async with (
                hoststack.attach(daemon.api, name="good") as stack,
                echo_server(stack) as uri,
                stack.connect(uri, tls=TRUSTING, alpn=["test"]) as one,
                stack.connect(uri, tls=TRUSTING, alpn=["test"]) as other,
                trio.open_nursery() as nursery,
            ):
                loads = [Load(), Load()]
                nursery.start_soon(loads[0].run, one)
                nursery.start_soon(loads[1].run, other)
                port = int(uri.rpartition(":")[2])
                villain = await trio.to_thread.run_sync(Villain, daemon, port)
                foreign = [one.handle, other.handle, (await one.open_stream()).handle]
                try:
                    await trio.to_thread.run_sync(script, villain, foreign)
                finally:
                    villain.close()
                for load in loads:
                    await load.one_more_round()
                nursery.cancel_scope.cancel()

    pids = [daemon.worker_pid(index) for index in range(2)]
    try:
        trio.run(main)
    except BaseException:
        print(daemon.log)  # why it threw whom out
        raise
    assert pids == [daemon.worker_pid(index) for index in range(2)]
    assert "Traceback" not in daemon.log


def ring_tail(villain: Villain) -> None:
    (at,) = struct.unpack_from("<Q", villain.worker.rings, CONSUMER)
    store(villain.worker.rings, PRODUCER, at + RING_ENTRIES + 1)
    villain.worker.wake()


def ring_tail_goes_back(villain: Villain) -> None:
    assert struct.unpack_from("<Q", villain.worker.rings, CONSUMER)[0]  # it opened a stream
    store(villain.worker.rings, PRODUCER, 0)
    villain.worker.wake()


def ring_head(villain: Villain) -> None:
    store(villain.worker.rings, NEWS_AT + CONSUMER, 1 << 63)
    villain.fifo(villain.rx, WANTS_READ, 1)  # an event, please, when the echo is there
    villain.fifo(villain.tx, PRODUCER, 1)
    villain.command(villain.stream, lib.HS_COMMAND_SENT)


@pytest.mark.parametrize("misdeed", [ring_tail, ring_tail_goes_back, ring_head])
def test_a_ring_with_an_index_that_can_not_be(
    daemon: Daemon, misdeed: Callable[[Villain], None]
) -> None:
    def script(villain: Villain, foreign: list[int]) -> None:
        misdeed(villain)
        assert villain.why_it_left() == "an index in the event ring's shared block is invalid"

    with_a_villain(daemon, script)


def fifo_tail(villain: Villain) -> None:
    villain.fifo(villain.tx, PRODUCER, villain.tx.size_bytes + 1)


def fifo_tail_goes_back(villain: Villain) -> None:
    villain.have_echoed(100)
    villain.fifo(villain.tx, PRODUCER, 99)


def fifo_head(villain: Villain) -> None:
    villain.have_echoed(100)
    villain.fifo(villain.rx, CONSUMER, 101)
    villain.command(villain.stream, lib.HS_COMMAND_CONSUMED)
    villain.fifo(villain.tx, PRODUCER, 101)  # whose echo has nowhere to go


@pytest.mark.parametrize("misdeed", [fifo_tail, fifo_tail_goes_back, fifo_head])
def test_a_fifo_with_an_index_that_can_not_be(
    daemon: Daemon, misdeed: Callable[[Villain], None]
) -> None:
    """It is the end of its stream, at which the server leaves."""

    def script(villain: Villain, foreign: list[int]) -> None:
        misdeed(villain)
        villain.command(villain.stream, lib.HS_COMMAND_SENT)
        if misdeed is fifo_head:
            # The server may have echoed that byte before it heard that nobody reads: one more then.
            end = villain.worker.channel._socket
            for count in range(102, 200):
                if select.select([end], [], [], 0.2)[0]:
                    break
                villain.fifo(villain.tx, PRODUCER, count)
                villain.command(villain.stream, lib.HS_COMMAND_SENT)
        assert villain.hear(m.Closed).info.by_peer
        assert villain.is_answered()

    with_a_villain(daemon, script)


def test_commands_for_foreign_sessions_come_to_nothing(daemon: Daemon) -> None:
    def script(villain: Villain, foreign: list[int]) -> None:
        near = {*range(200), *(1 << 32 | index for index in range(200)), (1 << 64) - 1}
        for handle in (*foreign, *near - {villain.stream, villain.connection}):
            for kind in (*range(10), 99, (1 << 32) - 1):
                villain.command(handle, kind)
        for kind in (*set(range(10)) - {lib.HS_COMMAND_OPEN}, 99, (1 << 32) - 1):
            villain.command(villain.connection, kind)
        assert villain.is_served()

    with_a_villain(daemon, script)


def test_a_message_that_is_too_long(daemon: Daemon) -> None:
    def script(villain: Villain, foreign: list[int]) -> None:
        villain.worker.channel._socket.send(bytes(70_000))
        assert villain.why_it_left() == "a message is too long"

    with_a_villain(daemon, script)


def test_requests_whose_answers_nobody_reads_wait(daemon: Daemon) -> None:
    def script(villain: Villain, foreign: list[int]) -> None:
        end = villain.worker.channel._socket
        request = encode(m.GetStatistics(3, villain.connection))
        sent = 0
        # A second in which the worker takes nothing: it waits for its answers to be read.
        while select.select([], [end], [], 1)[1]:
            end.send(request)
            sent += 1
            assert sent < 20_000, "answers pile up without end"
        for _ in range(sent):
            villain.hear(m.Statistics)
        assert villain.is_served()

    with_a_villain(daemon, script)


@pytest.mark.parametrize("of", ["its connection", "nothing"])
def test_commands_whose_answers_nobody_reads_wait(daemon: Daemon, of: str) -> None:
    def script(villain: Villain, foreign: list[int]) -> None:
        handle = villain.connection if of == "its connection" else 1 << 20
        sent, until = 0, time.monotonic() + 1
        # A second in which the worker takes nothing: it waits for its answers to be read.
        while time.monotonic() < until:
            if villain.worker.room:
                villain.command(handle, lib.HS_COMMAND_OPEN, 0, 5)
                sent, until = sent + 1, time.monotonic() + 1
            assert sent < 20_000, "answers pile up without end"
        for _ in range(sent):
            villain.hear_news(lib.HS_NEWS_OPENED, lib.HS_NEWS_REFUSED)
        assert villain.is_served()

    with_a_villain(daemon, script)


def test_descriptors_with_a_request_are_not_taken(daemon: Daemon) -> None:
    def script(villain: Villain, foreign: list[int]) -> None:
        def held() -> int:
            return len(os.listdir(f"/proc/{villain.pid}/fd"))

        assert villain.is_served()
        before = held()
        for _ in range(20):
            villain.send(m.Cancel(99), [villain.worker.wake_ups[0]] * 50)
        assert villain.is_served()
        assert held() < before + 20

    with_a_villain(daemon, script)


def test_a_stream_that_nobody_reads(daemon: Daemon) -> None:
    """It fills both of its FIFOs, and goes no further."""

    def script(villain: Villain, foreign: list[int]) -> None:
        villain.fifo(villain.tx, PRODUCER, villain.tx.size_bytes)
        villain.command(villain.stream, lib.HS_COMMAND_SENT)
        for _ in range(1000):
            villain.command(villain.stream, lib.HS_COMMAND_CONSUMED)
            assert villain.is_served()

    with_a_villain(daemon, script)
