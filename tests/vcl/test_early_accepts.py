"""A connection that is accepted before the program is told of its listener: of two workers of a
daemon, one serves while the other is still asked."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterator

import pytest

from hoststack.boundary import messages as m
from hoststack.boundary.rings import RING_ENTRIES, Rings
from hoststack.native.session._session import lib
from hoststack.quic.seam import CloseInfo, Handshake
from hoststack.vcl import VclConfig, connecting
from hoststack.vcl.session import State, VclSession
from hoststack.vcl.worker import VclWorker
from tests.support.attached import both_ends
from tests.support.event_ring import EventRing, RingEvent

HERE, THERE = ("10.0.0.1", 80), ("10.0.0.2", 5000)
LISTENER, CONNECTION, STREAM = 4, 2, 3
ACCEPTED = m.Accepted(LISTENER, CONNECTION, HERE, THERE, None, Handshake())
#: A stream without FIFOs.
STREAM_ACCEPTED = RingEvent(STREAM, lib.HS_NEWS_OPENED, 1, (CONNECTION, 0, 0, 0, 0))
STREAM_RESET = RingEvent(STREAM, lib.HS_NEWS_STREAM, lib.HS_STREAM_RESET, (7, 0))
Said = m.Notice | RingEvent


class Side:
    """The workers of a daemon, as a script of notices and news."""

    def __init__(self) -> None:
        self.notices: deque[list[Said]] = deque()
        self.requests: list[m.Request] = []
        self.taken: list[int] = []
        self._ends, self._worker = both_ends("early")
        rings = Rings(self._ends.rings_fd)
        self._news = EventRing(RING_ENTRIES, rings.memory, rings.block_bytes)
        self.side = self._worker.side
        self.hold = self._worker.hold
        self.hold_end = self._worker.hold_end
        self.take_opened = self._worker.take_opened

    def close(self) -> None:
        self._worker.close()
        self._ends.channel.close()
        for fd in (self._ends.wake_worker_fd, self._ends.wake_application_fd):
            os.close(fd)

    @property
    def has_notices(self) -> bool:
        return bool(self.notices)

    def take_notices(self) -> list[m.Notice]:
        said = self.notices.popleft() if self.notices else []
        for each in said:
            if isinstance(each, RingEvent):
                self._news.push(*each)
                self._worker.take_news()
            else:
                self._worker._note(each)
        return [each for each in said if not isinstance(each, RingEvent)]

    def take_events(self) -> list[tuple[int, int]]:
        return []

    def request(self, request: m.Request) -> None:
        self.requests.append(request)

    def signal_taken(self, handle: int) -> None:
        self.taken.append(handle)

    def closes(self) -> list[int]:
        return [each.handle for each in self.requests if isinstance(each, m.CloseConnection)]


class Client:
    """A daemon's client without a daemon."""

    is_gone = False

    def __init__(self, path: str, hello: object) -> None:
        self.workers = Side()

    def start(self) -> None:
        pass

    def wait(self, timeout_s: float | None) -> None:
        assert timeout_s is not None or self.workers.has_notices, "nothing will come"


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[VclWorker]:
    monkeypatch.setattr(sys.modules[VclWorker.__module__], "DaemonClient", Client)
    made = VclWorker(0, VclConfig(), "early")
    yield made
    side_of(made).close()


def side_of(worker: VclWorker) -> Side:
    side: object = worker.side
    assert isinstance(side, Side)
    return side


def listen(worker: VclWorker, *batches: list[Said]) -> VclSession:
    """Listen while these notices arrive."""
    session = worker.add("tcp")
    session.bound = session.local = HERE
    side_of(worker).notices.extend(batches)
    connecting.listen(worker, session)
    return session


@pytest.mark.parametrize(
    "batches",
    [
        [[ACCEPTED], [STREAM_ACCEPTED], [m.Listening(1, LISTENER, HERE)]],
        [[ACCEPTED, m.Listening(1, LISTENER, HERE), STREAM_ACCEPTED]],
        [[m.Listening(1, LISTENER, HERE), ACCEPTED, STREAM_ACCEPTED]],
    ],
    ids=["apart", "between", "after"],
)
def test_it_waits_for_its_listener(worker: VclWorker, batches: list[list[Said]]) -> None:
    listener = listen(worker, *batches)
    (accepted,) = listener.accepted
    assert (accepted.handle, accepted.stream_handle) == (CONNECTION, STREAM)
    assert accepted.state is State.READY
    assert side_of(worker).closes() == []


def test_what_happens_to_it_meanwhile_is_handled_later(worker: VclWorker) -> None:
    closed = m.Closed(CONNECTION, CloseInfo(0, True, "", True))
    listener = listen(
        worker,
        [ACCEPTED, STREAM_ACCEPTED, STREAM_RESET, closed],
        [m.Listening(1, LISTENER, HERE)],
    )
    (accepted,) = listener.accepted
    assert accepted.state is State.CLOSED
    assert side_of(worker).closes() == []


def test_it_is_closed_where_the_listener_fails(worker: VclWorker) -> None:
    with pytest.raises(OSError, match="in use"):
        listen(worker, [ACCEPTED, STREAM_ACCEPTED, m.Failed(1, 98, "in use")])
    assert side_of(worker).closes() == [CONNECTION]


def test_it_is_closed_where_no_listener_is_asked_for(worker: VclWorker) -> None:
    side_of(worker).notices.append([ACCEPTED])
    worker.pump()
    assert side_of(worker).closes() == [CONNECTION]
