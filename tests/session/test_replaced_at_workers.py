"""Other certificates for a listener of an application that is attached, at all of its workers."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import cast

import pytest

from hoststack import TlsConfig
from hoststack.boundary import messages as m
from hoststack.boundary.attached_worker import AttachedWorker
from hoststack.boundary.attached_workers import AttachedWorkers

LOCAL = ("127.0.0.1", 7)
OLD, NEW, NEWER = (TlsConfig(server_name=name) for name in ("old", "new", "newer"))


class FakeWorker:
    """Answers what it is told to."""

    def __init__(self, index: int) -> None:
        self.handle = index << 32
        self.tls: list[TlsConfig] = []
        """What its listener was told to use."""
        self._asked: list[m.Listen | m.ReplaceTls] = []
        self._notices: list[m.Notice] = []

    def request(self, request: m.Request) -> None:
        if isinstance(request, m.Listen | m.ReplaceTls):
            self._asked.append(request)
            self.tls.append(request.tls)

    @property
    def is_asked(self) -> bool:
        return bool(self._asked)

    def grant(self) -> None:
        asked = self._asked.pop(0)
        self._notices.append(
            m.Listening(asked.token, self.handle, LOCAL)
            if isinstance(asked, m.Listen)
            else m.Done(asked.token)
        )

    def refuse(self) -> None:
        self._notices.append(m.Failed(self._asked.pop(0).token, errno.EINVAL, "bad"))

    def join(self, side: object) -> None: ...

    def hear_out(self) -> None: ...

    def take_sides(self) -> dict[int, object]:
        return {}

    def take_notices(self) -> list[m.Notice]:
        taken, self._notices = self._notices, []
        return taken


@pytest.fixture
def workers() -> AttachedWorkers:
    return AttachedWorkers("native")


def add(workers: AttachedWorkers, index: int) -> FakeWorker:
    worker = FakeWorker(index)
    workers.add(index, cast(AttachedWorker, worker))
    return worker


def listening(workers: AttachedWorkers, count: int) -> tuple[list[FakeWorker], int]:
    """Workers that listen, and the listener's handle."""
    all_ = [add(workers, index) for index in range(count)]
    workers.request(m.Listen(1, LOCAL, OLD, ("x",), None))
    all_[0].grant()
    notices = workers.take_notices()
    for worker in all_[1:]:
        worker.grant()
    notices += workers.take_notices()
    (told,) = notices
    assert isinstance(told, m.Listening)
    return all_, told.handle


def replace(workers: AttachedWorkers, handle: int, tls: TlsConfig = NEW, token: int = 2) -> None:
    workers.request(m.ReplaceTls(token, handle, tls, ("x",)))


def test_all_workers_get_what_one_has_accepted(workers: AttachedWorkers) -> None:
    (first, *others), handle = listening(workers, 3)
    replace(workers, handle)
    assert first.is_asked
    assert not any(other.is_asked for other in others)
    first.grant()
    assert not workers.take_notices()
    for other in others:
        assert other.is_asked
        other.grant()
    assert workers.take_notices() == [m.Done(2)]
    assert add(workers, 3).tls == [NEW]


def test_what_one_refuses_no_other_hears_of(workers: AttachedWorkers) -> None:
    (first, other), handle = listening(workers, 2)
    replace(workers, handle)
    first.refuse()
    assert workers.take_notices() == [m.Failed(2, errno.EINVAL, "bad")]
    assert other.tls == [OLD]
    assert add(workers, 2).tls == [OLD]


def test_a_worker_that_refuses_what_another_has_accepted_is_named(workers: AttachedWorkers) -> None:
    (first, other), handle = listening(workers, 2)
    replace(workers, handle)
    first.grant()
    workers.take_notices()
    other.refuse()
    (failed,) = workers.take_notices()
    assert isinstance(failed, m.Failed)
    assert "worker 1 keeps the old certificates" in failed.text


@pytest.mark.parametrize("accepts_first", [False, True])
def test_a_worker_that_dies_meanwhile_is_not_waited_for(
    workers: AttachedWorkers, accepts_first: bool
) -> None:
    (first, other), handle = listening(workers, 2)
    replace(workers, handle)
    if accepts_first:
        first.grant()
        workers.take_notices()
        workers.remove(1)
        assert workers.take_notices() == [m.Done(2)]
        assert add(workers, 1).tls == [NEW]
    else:
        workers.remove(0)
        other.grant()
        assert workers.take_notices() == [m.Done(2)]
        assert add(workers, 0).tls == [NEW]


def test_without_any_worker_left_it_fails(workers: AttachedWorkers) -> None:
    _, handle = listening(workers, 1)
    replace(workers, handle)
    workers.remove(0)
    (failed,) = workers.take_notices()
    assert isinstance(failed, m.Failed)
    assert failed.token == 2


def test_a_worker_that_is_about_to_listen_is_told_afterwards(workers: AttachedWorkers) -> None:
    (first,), handle = listening(workers, 1)
    late = add(workers, 1)
    assert late.tls == [OLD]
    replace(workers, handle)
    first.grant()
    assert workers.take_notices() == [m.Done(2)]
    late.grant()
    assert not workers.take_notices()
    assert late.tls == [OLD, NEW]
    late.grant()
    assert not workers.take_notices(), "nobody waits for that"


def test_the_last_of_several_stays(workers: AttachedWorkers) -> None:
    (first, other), handle = listening(workers, 2)
    replace(workers, handle, NEW, 2)
    replace(workers, handle, NEWER, 3)
    for worker, answers in ((first, 2), (other, 2)):
        for _ in range(answers):
            worker.grant()
            workers.take_notices()
    assert [worker.tls[-1] for worker in (first, other)] == [NEWER, NEWER]
    assert add(workers, 2).tls == [NEWER]


@pytest.mark.parametrize("how", ["unlisten", "never"])
def test_a_listener_that_is_closed_is_none(workers: AttachedWorkers, how: str) -> None:
    _, handle = listening(workers, 1)
    if how == "unlisten":
        workers.request(m.Unlisten(handle))
    replace(workers, handle if how == "unlisten" else 77)
    assert workers.take_notices() == [m.Failed(2, errno.ENOTCONN, "the listener is closed")]


@pytest.mark.parametrize("answer", [FakeWorker.grant, FakeWorker.refuse])
def test_a_listener_may_be_closed_meanwhile(
    workers: AttachedWorkers, answer: Callable[[FakeWorker], None]
) -> None:
    (first, other), handle = listening(workers, 2)
    replace(workers, handle)
    workers.request(m.Unlisten(handle))
    answer(first)
    assert len(workers.take_notices()) in (0, 1)
    assert other.tls in ([OLD], [OLD, NEW])
