"""Where applications attach: whatever one makes a handler raise ends that application alone, and
is logged."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from hoststack.boundary import attaching
from hoststack.control.unix_listener import unix_listener
from hoststack.daemon import attach_server, orders
from hoststack.daemon.attach_server import AttachServer
from hoststack.daemon.config import DaemonConfig
from hoststack.daemon.leaving import MOST_LEAVING, OnLetGo
from hoststack.session.namespaces import Namespaces
from tests.daemon.faulty import raiser
from tests.support.exceptions import exceptions


class Workers:
    """Stands for a worker process: takes what it is given."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.served = 0
        self.on_let_go: OnLetGo = lambda number: None
        self.held: list[int] = []
        self.is_holding = False
        self.has_room = trio.Event()
        self.has_room.set()

    async def wait_for_room(self) -> None:
        await self.has_room.wait()

    def serve(self, order: orders.Serve, fds: list[int]) -> None:
        if self.error is not None:
            raise self.error
        self.served += 1
        self.held.append(order.number)

    def let_go(self) -> None:
        """Let go of all applications."""
        while self.held:
            self.on_let_go(self.held.pop())


class Served:
    """An attach server that listens."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.worker = Workers()
        self.namespaces = Namespaces()
        about = attaching.Attached(1, "udp", "", "native")
        self.server = AttachServer(DaemonConfig(), about, self.namespaces)
        self.server.add_worker(0, self.worker)

    def _let_go(self) -> None:
        """The worker lets go of those who have left."""
        if not self.worker.is_holding:
            self.worker.let_go()

    async def ask(self, *messages: bytes) -> list[bytes]:
        """All that it says to an application that says that, until it hangs up."""
        self._let_go()
        answers = []
        end = trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with end:
            await end.connect(self.path)
            for message in messages:
                with suppress(BrokenPipeError):
                    await end.send(message)
            with suppress(ConnectionResetError):
                while answer := await end.recv(65536):
                    answers.append(answer)
        return answers

    async def is_well(self) -> bool:
        """Whether it serves a well-behaved application."""
        self._let_go()
        before = self.worker.served
        with trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as end:
            await end.connect(self.path)
            await end.send(HELLO)
            answer = attaching.decode_answer(await end.recv(65536))
            offer = attaching.decode_answer(await end.recv(65536))
        return (
            isinstance(answer, attaching.Attached)
            and isinstance(offer, attaching.WorkerOffered)
            and self.worker.served == before + 1
        )

    async def all_gone(self) -> None:
        """Until no application is attached."""
        while self.server.clients or self.server._waiting:
            await trio.testing.wait_all_tasks_blocked()


@asynccontextmanager
async def attach_server_at(folder: Path) -> AsyncIterator[Served]:
    path = str(folder / "api.sock")
    with unix_listener(path, socket.SOCK_SEQPACKET, None) as listener, trio.fail_after(60):
        listener.setblocking(False)
        served = Served(path)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.server.serve, listener)
            yield served
            nursery.cancel_scope.cancel()


HELLO = attaching.encode(attaching.Attach(version=attaching.PROTOCOL_VERSION, name="well"))


def hello(**more: object) -> bytes:
    return msgspec.msgpack.encode(
        {"type": "Attach", "version": attaching.PROTOCOL_VERSION, "name": "x", **more}
    )


def deep(levels: int) -> msgspec.Raw:
    return msgspec.Raw(b"\x91" * levels + b"\x01")


NO_GREETINGS = {
    "deep array": hello(zz=deep(2000)),
    "as deep as may be": hello(zz=deep(60_000)),
    "deep map": hello(zz=msgspec.Raw(b"\x81\xa1x" * 15_000 + b"\x01")),
    "deep known field": hello(scopes=deep(30_000)),
    "deep type": msgspec.msgpack.encode({"type": deep(2000)}),
    "not closed": hello()[:-1] + b"\x91" * 2000,
    "huge array": hello(scopes=msgspec.Raw(b"\xdd\xff\xff\xff\xff")),
    "huge map": b"\xdf\xff\xff\xff\xff",
    "huge text": hello(secret=msgspec.Raw(b"\xdb\xff\xff\xff\xff")),
    "huge number": hello(version=(1 << 64) - 1),
    "negative number": hello(version=-(1 << 63)),
    "no number": hello(version=float("nan")),
    "no text": hello(namespace=msgspec.Raw(b"\xa3\xed\xa0\x80")),  # a surrogate
    "NUL": hello(namespace="\0"),
    "escape": hello(namespace="\x1b[31m\r\nhoststack.daemon: forged"),
    "extension": hello(name=msgspec.msgpack.Ext(1, b"x")),
    "timestamp": hello(name=msgspec.Raw(b"\xd6\xff\0\0\0\0")),
    "one key twice": b"\x85" + HELLO[1:] + b"\xa4name\xa1y",
    "no map": msgspec.msgpack.encode([1]),
    "another message": attaching.encode(attaching.WorkerLost(0)),
    "bytes": bytes(range(256)),
    "empty": b"",
    "too long": bytes(70_000),
}


@pytest.mark.parametrize("what", NO_GREETINGS)
def test_no_greeting_ends_more_than_itself(tmp_path: Path, what: str) -> None:
    async def main() -> None:
        async with attach_server_at(tmp_path) as served:
            with trio.move_on_after(5) as patience:
                answers = await served.ask(NO_GREETINGS[what], b"")
                for answer in answers:
                    assert not isinstance(attaching.decode_answer(answer), attaching.WorkerLost)
            assert not patience.cancelled_caught
            assert await served.is_well()

    trio.run(main)


def test_an_application_waits_for_a_worker_that_is_behind(tmp_path: Path) -> None:
    """So does one that comes while others attach by the hundred."""

    async def main() -> None:
        async with attach_server_at(tmp_path) as served, trio.open_nursery() as nursery:
            served.worker.has_room = trio.Event()
            nursery.start_soon(served.ask, HELLO, b"")
            with trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as end:
                await end.connect(served.path)
                await end.send(HELLO)
                with trio.move_on_after(0.2) as told:
                    await end.recv(65536)
                assert told.cancelled_caught
                assert served.worker.served == 0
                served.worker.has_room.set()
                answer = attaching.decode_answer(await end.recv(65536))
                assert isinstance(answer, attaching.Attached)
            assert await served.is_well()

    trio.run(main)


def test_a_process_that_comes_and_goes_waits_until_the_workers_have_let_go(tmp_path: Path) -> None:
    async def main() -> None:
        async with attach_server_at(tmp_path) as served:
            served.worker.is_holding = True
            for _ in range(MOST_LEAVING):
                assert await served.is_well()
            await served.all_gone()
            with trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as end:
                await end.connect(served.path)
                await end.send(HELLO)
                await trio.testing.wait_all_tasks_blocked(0.1)
                assert served.worker.served == MOST_LEAVING
                served.worker.let_go()
                answer = attaching.decode_answer(await end.recv(65536))
                assert isinstance(answer, attaching.Attached)

    trio.run(main)


def test_one_that_opens_many_connections_meanwhile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attach_server, "_MOST_WAITING", 2)

    async def main() -> None:
        async with attach_server_at(tmp_path) as served, trio.open_nursery() as nursery:
            served.worker.has_room = trio.Event()
            for _ in range(2):
                nursery.start_soon(served.ask, HELLO, b"")
            await trio.testing.wait_all_tasks_blocked(0.1)
            (answer,) = await served.ask(HELLO)
            assert isinstance(attaching.decode_answer(answer), attaching.Refused)
            served.worker.has_room.set()
            await served.all_gone()
            assert not len(served.server._waiting)

    trio.run(main)


def test_a_worker_that_dies_has_let_go_of_all(tmp_path: Path) -> None:
    async def main() -> None:
        async with attach_server_at(tmp_path) as served:
            served.worker.is_holding = True
            for _ in range(MOST_LEAVING):
                assert await served.is_well()
            await served.all_gone()
            served.server.remove_worker(0)
            served.server.add_worker(0, served.worker)
            assert await served.is_well()
            served.worker.let_go()  # what it no longer has, too
            await served.all_gone()
            assert not len(served.server._attachments)

    trio.run(main)


def test_messages_after_the_greeting_detach(tmp_path: Path) -> None:
    async def main() -> None:
        async with attach_server_at(tmp_path) as served:
            for more in (HELLO, b"x", NO_GREETINGS["deep array"], bytes(70_000), b""):
                await served.ask(HELLO, more)
                assert await served.is_well()
            with trio.fail_after(10):
                while served.server.clients:
                    await trio.testing.wait_all_tasks_blocked()

    trio.run(main)


@pytest.mark.parametrize("place", ["decode", "admit", "share", "serve", "encode"])
def test_no_exception_leaves_the_handler_of_an_application(
    tmp_path: Path,
    place: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)  # of a record without a text

    async def main() -> None:
        async with attach_server_at(tmp_path) as served:
            for error in exceptions():
                caplog.clear()
                caplog.set_level(logging.DEBUG)
                with monkeypatch.context() as patch:
                    match place:
                        case "decode":
                            patch.setattr(attaching, "decode_attach", raiser(error))
                        case "admit":
                            patch.setattr(served.namespaces, "admit", raiser(error))
                        case "share":
                            patch.setattr(attach_server, "shared_ends", raiser(error))
                        case "serve":
                            patch.setattr(served.worker, "error", error)
                        case "encode":
                            patch.setattr(attaching, "encode", raiser(error))
                    await served.ask(HELLO)
                assert caplog.records, f"{error!r} was not logged"
                assert await served.is_well(), repr(error)

    trio.run(main)


def test_workers_that_come_and_go_meet_no_exception_of_an_application(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with attach_server_at(tmp_path) as served:
            for error in exceptions():
                end = trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                with end, monkeypatch.context() as patch:
                    await end.connect(served.path)
                    await end.send(HELLO)
                    while not served.server.clients:
                        await end.recv(65536)
                    (client,) = served.server.clients
                    patch.setattr(client.channel, "send", raiser(error))
                    served.server.remove_worker(0)
                    served.server.add_worker(0, served.worker)
                    with suppress(ConnectionResetError):
                        while await end.recv(65536):
                            pass
                while served.server.clients:
                    await trio.testing.wait_all_tasks_blocked()
            assert await served.is_well()

    trio.run(main)


def test_an_application_that_a_worker_drops_is_told(tmp_path: Path) -> None:
    async def main() -> None:
        async with attach_server_at(tmp_path) as served:
            with trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as end:
                await end.connect(served.path)
                await end.send(HELLO)
                answers = [attaching.decode_answer(await end.recv(65536)) for _ in range(2)]
                served.worker.on_let_go(1 << 70)  # no such one
                served.worker.let_go()
                answers.append(attaching.decode_answer(await end.recv(65536)))
                assert answers[1:] == [attaching.WorkerOffered(0), attaching.WorkerLeft(0)]

    trio.run(main)


def test_an_application_that_waits_long_hears_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attaching, "WAITING_S", 0.001)

    async def main() -> None:
        async with attach_server_at(tmp_path) as served:
            served.worker.has_room = trio.Event()
            with trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as end:
                await end.connect(served.path)
                await end.send(HELLO)
                for _ in range(2):
                    answer = attaching.decode_answer(await end.recv(65536))
                    assert isinstance(answer, attaching.Waiting)
                served.worker.has_room.set()
                while isinstance(answer, attaching.Waiting):
                    answer = attaching.decode_answer(await end.recv(65536))
                assert isinstance(answer, attaching.Attached)

    trio.run(main)
