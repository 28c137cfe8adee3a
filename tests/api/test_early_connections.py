"""A connection that is accepted before the program is told of its listener: of two workers of a
daemon, one serves while the other is still asked."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from hoststack import Connection, Listener, TlsConfig
from hoststack.api.in_trio import TrioRouter
from hoststack.boundary import messages as m
from hoststack.quic.seam import Handshake
from tests.support.lone_worker import LoneWorker

HERE, THERE = ("10.0.0.1", 443), ("10.0.0.2", 5000)
ACCEPTED = m.Accepted(4, 2, HERE, THERE, "test", Handshake())


class Stackless:
    """A router, and what its program asked for."""

    def __init__(self) -> None:
        self.worker = LoneWorker()
        self.router = TrioRouter(self.worker.attached)
        self.replies: list[object] = []

    async def listen(self) -> None:
        tls = TlsConfig()
        self.replies.append(
            await self.router.call(lambda token: m.Listen(token, HERE, tls, ("test",), None))
        )

    def tell(self, *notices: m.Notice) -> None:
        for notice in notices:
            self.worker.notify(notice)
        self.worker.attached.flush()

    def closes(self) -> list[int]:
        return [
            request.handle
            for request in self.worker.requests()
            if isinstance(request, m.CloseConnection)
        ]


def test_it_waits_for_its_listener() -> None:
    async def main() -> None:
        it = Stackless()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.listen)
            await trio.testing.wait_all_tasks_blocked()
            it.tell(ACCEPTED)
            assert it.closes() == []
            it.tell(m.Listening(1, 4, HERE))
        (listener,) = it.replies
        assert isinstance(listener, Listener)
        accepted = await listener.accept()
        assert isinstance(accepted, Connection)
        assert accepted.handle == 2
        assert it.closes() == []

    trio.run(main)


def test_it_is_closed_where_the_listener_fails() -> None:
    async def main() -> None:
        it = Stackless()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.listen)
            await trio.testing.wait_all_tasks_blocked()
            it.tell(ACCEPTED, m.Failed(1, 98, "no"))
        assert it.closes() == [2]

    trio.run(main)


@pytest.mark.parametrize("is_another_there", [False, True])
def test_it_is_closed_where_no_listener_is_asked_for(*, is_another_there: bool) -> None:
    async def main() -> None:
        it = Stackless()
        it.tell(*([m.Listening(9, 6, HERE)] if is_another_there else []), ACCEPTED)
        assert it.closes() == [2]

    trio.run(main)
