"""A connection that is accepted before the program is told of its listener: of two workers of a
daemon, one serves while the other is still asked."""

from __future__ import annotations

import sys
from collections import deque

import pytest

from hoststack.boundary import messages as m
from hoststack.quic.seam import CloseInfo, Handshake
from hoststack.vcl import VclConfig, connecting
from hoststack.vcl.session import State, VclSession
from hoststack.vcl.worker import VclWorker

HERE, THERE = ("10.0.0.1", 80), ("10.0.0.2", 5000)
LISTENER, CONNECTION, STREAM = 4, 2, 3
ACCEPTED = m.Accepted(LISTENER, CONNECTION, HERE, THERE, None, Handshake())
STREAM_ACCEPTED = m.StreamAccepted(CONNECTION, STREAM, 0, None, None)


class Side:
    """The workers of a daemon, as a script of notices."""

    def __init__(self) -> None:
        self.notices: deque[list[m.Notice]] = deque()
        self.requests: list[m.Request] = []
        self.taken: list[int] = []

    @property
    def has_notices(self) -> bool:
        return bool(self.notices)

    def take_notices(self) -> list[m.Notice]:
        return self.notices.popleft() if self.notices else []

    def take_events(self) -> list[tuple[int, int, int]]:
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
def worker(monkeypatch: pytest.MonkeyPatch) -> VclWorker:
    monkeypatch.setattr(sys.modules[VclWorker.__module__], "DaemonClient", Client)
    return VclWorker(0, VclConfig(), "early")


def side_of(worker: VclWorker) -> Side:
    side: object = worker.side
    assert isinstance(side, Side)
    return side


def listen(worker: VclWorker, *batches: list[m.Notice]) -> VclSession:
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
def test_it_waits_for_its_listener(worker: VclWorker, batches: list[list[m.Notice]]) -> None:
    listener = listen(worker, *batches)
    (accepted,) = listener.accepted
    assert (accepted.handle, accepted.stream_handle) == (CONNECTION, STREAM)
    assert accepted.state is State.READY
    assert side_of(worker).closes() == []


def test_what_happens_to_it_meanwhile_is_handled_later(worker: VclWorker) -> None:
    closed = m.Closed(CONNECTION, CloseInfo(0, True, "", True))
    listener = listen(
        worker,
        [ACCEPTED, STREAM_ACCEPTED, m.StreamReset(STREAM, 7), closed],
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
