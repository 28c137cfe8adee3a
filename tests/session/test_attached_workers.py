"""Listeners of an application that is attached, as its workers come, refuse and go."""

from __future__ import annotations

import errno
from typing import cast

import pytest

from hoststack import TlsConfig
from hoststack.session import messages as m
from hoststack.session.attached import AttachedWorker
from hoststack.session.attached_workers import AttachedWorkers
from hoststack.session.protocols import Protocol

LOCAL = ("127.0.0.1", 7)


class FakeWorker:
    """Answers what it is told to."""

    def __init__(self, index: int) -> None:
        self._first = index << 32
        self._listens: list[m.Listen] = []
        self._notices: list[m.Notice] = []

    def request(self, request: m.Request) -> None:
        if isinstance(request, m.Listen):
            self._listens.append(request)

    @property
    def is_asked(self) -> bool:
        return bool(self._listens)

    def grant(self) -> None:
        self._notices.append(m.Listening(self._listens.pop().token, self._first, LOCAL))

    def refuse(self) -> None:
        self._notices.append(m.Failed(self._listens.pop().token, errno.EMFILE, "full"))

    def take_notices(self) -> list[m.Notice]:
        taken, self._notices = self._notices, []
        return taken


def add(workers: AttachedWorkers, index: int) -> FakeWorker:
    worker = FakeWorker(index)
    workers.add(index, cast(AttachedWorker, worker))
    return worker


def listen(workers: AttachedWorkers, protocol: Protocol) -> None:
    workers.request(m.Listen(1, LOCAL, TlsConfig(), (), None, protocol))


@pytest.fixture
def workers() -> AttachedWorkers:
    return AttachedWorkers("native")


def test_a_port_whose_next_worker_refuses_it_is_lost(workers: AttachedWorkers) -> None:
    first, second = add(workers, 0), add(workers, 1)
    listen(workers, "tcp")
    owner, other = (first, second) if first.is_asked else (second, first)
    owner.grant()
    (listening,) = workers.take_notices()
    assert isinstance(listening, m.Listening)
    assert not other.is_asked, "a port has one worker"
    workers.remove(0 if owner is first else 1)
    other.refuse()
    assert workers.take_notices() == [m.ListenerLost(listening.handle, "full")]
    # Nobody asks for it any more.
    assert not add(workers, 0 if owner is first else 1).is_asked


def test_a_listener_lives_on_where_it_is_not_refused(workers: AttachedWorkers) -> None:
    both = [add(workers, index) for index in range(2)]
    listen(workers, "quic")
    both[0].grant()
    assert not workers.take_notices()
    both[1].grant()
    assert [type(notice) for notice in workers.take_notices()] == [m.Listening]
    workers.remove(1)
    add(workers, 1).refuse()
    assert not workers.take_notices()


def test_a_listener_without_any_worker_waits_for_one(workers: AttachedWorkers) -> None:
    worker = add(workers, 0)
    listen(workers, "quic")
    worker.grant()
    (listening,) = workers.take_notices()
    assert isinstance(listening, m.Listening)
    workers.remove(0)
    again = add(workers, 0)
    assert again.is_asked
    workers.remove(0)  # before it has answered
    assert not workers.take_notices()
    last = add(workers, 0)
    last.refuse()
    assert workers.take_notices() == [m.ListenerLost(listening.handle, "full")]


def test_all_are_lost_with_the_daemon(workers: AttachedWorkers) -> None:
    worker = add(workers, 0)
    listen(workers, "quic")
    worker.grant()
    (listening,) = workers.take_notices()
    assert isinstance(listening, m.Listening)
    workers.remove(0)
    workers.end()
    assert workers.take_notices() == [m.ListenerLost(listening.handle, "the daemon has ended")]
