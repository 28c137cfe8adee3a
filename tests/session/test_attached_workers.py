"""Listeners of an application that is attached, as its workers come, refuse and go."""

from __future__ import annotations

import errno
from typing import cast

import pytest

from hoststack import TlsConfig
from hoststack.boundary import messages as m
from hoststack.boundary.attached_worker import AttachedWorker
from hoststack.boundary.attached_workers import AttachedWorkers
from hoststack.boundary.protocols import Protocol

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

    def join(self, side: object) -> None: ...

    def hear_out(self) -> None: ...

    def take_sides(self) -> dict[int, object]:
        return {}

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


def test_a_port_that_no_worker_will_have_again_is_lost(workers: AttachedWorkers) -> None:
    both = [add(workers, index) for index in range(2)]
    listen(workers, "tcp")
    owner = next(index for index, worker in enumerate(both) if worker.is_asked)
    other = both[1 - owner]
    both[owner].grant()
    (listening,) = workers.take_notices()
    assert isinstance(listening, m.Listening)
    assert not other.is_asked, "a port has one worker"
    workers.remove(owner)
    other.refuse()
    # The dead one's successor may have it.
    assert not workers.take_notices()
    fresh = add(workers, owner)
    fresh.refuse()
    assert workers.take_notices() == [m.ListenerLost(listening.handle, "full")]
    assert not other.is_asked
    assert not fresh.is_asked


def test_a_port_goes_on_to_the_worker_that_has_it_then(workers: AttachedWorkers) -> None:
    all_ = [add(workers, index) for index in range(3)]
    listen(workers, "tcp")
    owner = next(index for index, worker in enumerate(all_) if worker.is_asked)
    all_[owner].grant()
    assert len(workers.take_notices()) == 1
    workers.remove(owner)
    asked = [worker for index, worker in enumerate(all_) if index != owner and worker.is_asked]
    asked[0].refuse()
    assert not workers.take_notices()
    others = [worker for index, worker in enumerate(all_) if index != owner and worker.is_asked]
    assert len(others) == 1
    others[0].grant()
    assert not workers.take_notices()
    assert not add(workers, owner).is_asked


@pytest.mark.parametrize("how", ["refused", "ended"])
def test_who_still_waits_for_a_listener_that_is_lost_hears_of_it(
    workers: AttachedWorkers, how: str
) -> None:
    one, other = (add(workers, index) for index in range(2))
    listen(workers, "quic")
    one.grant()
    assert not workers.take_notices()
    workers.remove(0)
    if how == "refused":
        other.refuse()
        assert not workers.take_notices()
        add(workers, 0).refuse()
        assert workers.take_notices() == [m.Failed(1, errno.ECONNRESET, "full")]
    else:
        workers.remove(1)
        workers.end()
        assert workers.take_notices() == [m.Failed(1, errno.ECONNRESET, "the daemon has ended")]


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
