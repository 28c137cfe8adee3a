"""Whatever one application makes a handler raise ends that application alone, and is logged."""

from __future__ import annotations

import gc
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import msgspec
import pytest
import trio
import trio.testing

import hoststack
from hoststack.boundary import attaching, codec, remote_application
from hoststack.boundary import messages as m
from hoststack.boundary.attached_worker import AttachedWorker
from hoststack.boundary.channel import Channel
from hoststack.boundary.codec import (
    FifosReleased,
    SegmentCame,
    Unparsed,
    decode_request,
    encode,
)
from hoststack.boundary.fifo_pool import BlockName
from hoststack.boundary.loading import Loaded
from hoststack.boundary.remote_application import Limits, RemoteApplication
from hoststack.control.unix_listener import unix_listener
from hoststack.control.worker_side import WorkerSide
from hoststack.daemon import attach_server, commands, orders
from hoststack.daemon.attach_server import AttachServer
from hoststack.daemon.config import DaemonConfig
from hoststack.link.memory import MemoryNetwork
from hoststack.quic.seam import CloseInfo, Event, EventKind
from hoststack.session.namespaces import Namespaces
from tests.daemon.echoing import TLS, TRUSTING
from tests.support.attached import SEAL, both_ends, inline
from tests.support.exceptions import exceptions

HOST = "10.0.0.1"
#: For where each exception would take long.
SOME = (RecursionError("x"), MemoryError(), KeyError("x"), ExceptionGroup("x", [OSError(24, "x")]))

REQUESTS: tuple[m.Request, ...] = (
    m.Listen(1, (HOST, 1), TLS, ("x",), None),
    m.Bind(1, (HOST, 1), None),
    m.Connect(1, (HOST, 1), "x", TRUSTING, ("x",), None),
    m.OpenStream(1, 1, False),
    m.Cancel(1),
    m.Unlisten(1),
    m.CloseConnection(1, 0, ""),
    m.ResetStream(1, 0),
    m.StopSending(1, 0),
    m.UpdateKey(1),
    m.Migrate(1, 1, None),
    m.GetStatistics(1, 1),
)


def raiser(error: BaseException) -> Callable[..., NoReturn]:
    def throw(*_: object, **__: object) -> NoReturn:
        raise error

    return throw


# --- where applications attach ------------------------------------------------------------------


class Workers:
    """Stands for a worker process: takes what it is given."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.served = 0
        self.has_room = trio.Event()
        self.has_room.set()

    async def wait_for_room(self) -> None:
        await self.has_room.wait()

    def serve(self, order: orders.Serve, fds: list[int]) -> None:
        if self.error is not None:
            raise self.error
        self.served += 1


class Served:
    """An attach server that listens."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.worker = Workers()
        self.namespaces = Namespaces()
        about = attaching.Attached(1, "udp", "", "native")
        self.server = AttachServer(DaemonConfig(), about, self.namespaces)
        self.server.add_worker(0, self.worker)

    async def ask(self, *messages: bytes) -> list[bytes]:
        """All that it says to an application that says that, until it hangs up."""
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


def test_a_worker_that_stays_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach_server, "_PATIENCE_S", 0.2)

    async def main() -> None:
        async with attach_server_at(tmp_path) as served:
            served.worker.has_room = trio.Event()
            (answer,) = await served.ask(HELLO)
            refused = attaching.decode_answer(answer)
            assert isinstance(refused, attaching.Refused)
            assert "try again" in refused.text
            served.worker.has_room.set()
            assert await served.is_well()

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


# --- in a worker --------------------------------------------------------------------------------


class Bench:
    """A worker, and applications of it that do wrong one after the other."""

    def __init__(self, stack: hoststack.EmbeddedStack, nursery: trio.Nursery) -> None:
        self.worker = stack._worker
        self.layer = stack._worker.layer
        self.nursery = nursery

    @asynccontextmanager
    async def application(self) -> AsyncIterator[tuple[RemoteApplication, AttachedWorker]]:
        """One that has left, or is thrown out, at the end of the block."""
        ends, other = both_ends("it")
        application = RemoteApplication("it", ends, Limits(), SEAL, inline)
        over = trio.Event()

        async def serve() -> None:
            self.worker.attach(application)
            try:
                await application.run()
            finally:
                self.worker.detach(application)
                over.set()

        self.nursery.start_soon(serve)
        await trio.testing.wait_all_tasks_blocked()
        try:
            yield application, other
        finally:
            other.close()
            await over.wait()
            assert application not in self.layer.applications

    async def thrown_out(self, *messages: bytes) -> str:
        """Why one that sends these is."""
        async with self.application() as (application, other):
            for message in messages:
                other.channel.send(message)
            await trio.testing.wait_all_tasks_blocked()
            assert application.gone is not None, messages
        return application.gone

    async def is_well(self) -> bool:
        """Whether the next application is answered."""
        async with self.application() as (application, other):
            other.request(m.GetStatistics(7, 1))
            await trio.testing.wait_all_tasks_blocked()
            other.take_messages(other.channel.receive_now())
            (answer,) = other.take_notices()
            assert application.gone is None
        return isinstance(answer, m.Failed) and answer.token == 7


def on_bench(main: Callable[[Bench], Any]) -> None:
    async def run() -> None:
        with trio.fail_after(120):
            async with (
                hoststack.open_stack(link=MemoryNetwork().link(HOST)) as stack,
                trio.open_nursery() as nursery,
            ):
                await main(Bench(stack, nursery))
                nursery.cancel_scope.cancel()

    trio.run(run)


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: type(request).__name__)
def test_no_exception_leaves_the_handler_of_a_request(
    request_: m.Request, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)

    async def main(bench: Bench) -> None:
        some = exceptions() if isinstance(request_, m.Cancel) else iter(SOME)
        for error in some:
            with monkeypatch.context() as patch:
                has_keys = isinstance(decode_request(encode(request_)), Unparsed)
                kind = Loaded if has_keys else type(request_)
                patch.setitem(bench.layer._requests, kind, raiser(error))
                await bench.thrown_out(encode(request_))
        assert await bench.is_well()

    on_bench(main)


@pytest.mark.parametrize("place", ["decode", "release", "signal", "pop", "wake-up", "receive"])
def test_no_exception_leaves_what_a_worker_does_for_an_application(
    place: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)

    async def main(bench: Bench) -> None:
        for error in exceptions():
            async with bench.application() as (application, other):
                with monkeypatch.context() as patch:
                    match place:
                        case "decode":
                            patch.setattr(remote_application, "decode_request", raiser(error))
                        case "release":
                            patch.setattr(application._pool, "release", raiser(error))
                        case "signal":
                            patch.setattr(bench.layer, "_on_signal", raiser(error))
                        case "pop":
                            ring = SimpleNamespace(pop_many=raiser(error), arm=lambda: None)
                            patch.setattr(application._signals, "ring", ring)
                        case "wake-up":
                            patch.setattr(application._wakes_worker, "clear", raiser(error))
                        case "receive":
                            patch.setattr(application._channel, "receive_now", raiser(error))
                    other._send(encode(FifosReleased((BlockName(0, 0, 4096),))))
                    other.signal_sent(7)
                    other._wakes_worker.ring()
                    await trio.testing.wait_all_tasks_blocked()
                assert application.gone is not None, repr(error)
        assert await bench.is_well()

    on_bench(main)


async def is_over(application: RemoteApplication, error: BaseException) -> None:
    """It leaves: at once, or when what it said before has been read."""
    with trio.move_on_after(5):
        while application.gone is None:
            await trio.testing.wait_all_tasks_blocked()
    assert application.gone is not None, repr(error)


@pytest.mark.parametrize("place", ["encode", "push", "settle", "ring", "segment"])
def test_no_exception_leaves_what_is_told_to_an_application(
    place: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)

    async def main(bench: Bench) -> None:
        for error in exceptions():
            async with bench.application() as (application, other):
                with monkeypatch.context() as patch:
                    other.arm_events()
                    match place:
                        case "encode":
                            patch.setattr(remote_application, "encode", raiser(error))
                        case "push":
                            patch.setattr(application._events, "push", raiser(error))
                        case "settle":
                            patch.setattr(application._events, "settle", raiser(error))
                        case "ring":
                            patch.setattr(application._wakes_application, "ring", raiser(error))
                        case "segment":
                            patch.setattr(remote_application, "SegmentCame", raiser(error))
                    application.notify(m.Failed(1, 1, "x"))
                    application.raise_event(7, m.EventCode.READABLE)
                    application.flush()
                    if place == "segment":
                        application.make_fifo(4096)
                await is_over(application, error)
        assert await bench.is_well()

    on_bench(main)


def test_an_event_that_can_not_be_told_ends_its_application_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)

    class Context:
        session = 0
        alpn = None

    async def main(bench: Bench) -> None:
        for error in exceptions():
            async with bench.application() as (application, _):
                with other_session(bench, application), monkeypatch.context() as patch:
                    patch.setattr(bench.layer, "_give_one", raiser(error))
                    bench.layer._give([Event(EventKind.READABLE, bench.context, None)])  # type: ignore[attr-defined]
                await is_over(application, error)
        assert await bench.is_well()

    @contextmanager
    def other_session(bench: Bench, application: RemoteApplication) -> Iterator[None]:
        context: Any = Context()
        bench.context = context  # type: ignore[attr-defined]
        session = bench.layer.sessions.add(m_session(application, context))
        yield
        bench.layer.sessions.remove(session)

    on_bench(main)


def m_session(application: RemoteApplication, context: Any) -> Any:
    from hoststack.session.session import ConnectionSession, SessionState

    return ConnectionSession(application, SessionState.READY, context)


def test_no_exception_leaves_a_command_in_a_worker(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)

    async def main(bench: Bench) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        side = WorkerSide(bench.worker, bench.nursery, index=0, workers=1)
        running = commands.Commands(Channel(ours), side, bench.nursery)
        for number, error in enumerate(exceptions()):
            with monkeypatch.context() as patch:
                patch.setattr(commands, "run_line", raiser(error))
                running.start(orders.Command(number, "help"))
                await trio.testing.wait_all_tasks_blocked()
        running.start(orders.Command(1, "show workers"))
        await trio.testing.wait_all_tasks_blocked()
        with theirs:
            assert isinstance(orders.decode_report(theirs.recv(65536)), orders.Answer)

    on_bench(main)


def request_of(kind: type, *fields: bytes) -> bytes:
    """A message of a kind with these fields, which are msgpack already."""
    (tag,) = (each.tag for each in codec._KINDS if each.class_ is kind)
    return tag + bytes([0x90 | len(fields)]) + b"".join(fields)


E = msgspec.msgpack.encode
DEEP = b"\x91" * 3000 + b"\x01"
NO_REQUESTS = {
    "deep configuration": request_of(m.Bind, E(5), E([HOST, 0]), b"\x81\xa2zz" + DEEP),
    "deep field": request_of(m.Bind, E(5), DEEP, E(None)),
    "deep tuple": request_of(FifosReleased, DEEP),
    "as deep as may be": request_of(m.Cancel, b"\x91" * 60_000),
    "huge array": request_of(FifosReleased, b"\xdd\xff\xff\xff\xff"),
    "huge text": request_of(m.CloseConnection, E(1), E(0), b"\xdb\xff\xff\xff\xff"),
    "huge token": request_of(m.Cancel, E((1 << 64) - 1)),
    "negative token": request_of(m.Cancel, E(-1)),
    "no number": request_of(m.Cancel, E(float("nan"))),
    "a surrogate": request_of(m.CloseConnection, E(1), E(0), b"\xa3\xed\xa0\x80"),
    "an extension": request_of(m.Cancel, E(msgspec.msgpack.Ext(1, b"x"))),
    "no port": request_of(m.Bind, E(5), E([HOST, 65536]), E(None)),
    "no address": request_of(m.Bind, E(5), E(["x" * 4000, 1]), E(None)),
    "a field too many": request_of(m.Cancel, E(1), E(1)),
    "a field too few": request_of(m.Cancel),
    "something behind": encode(m.Cancel(1)) + b"x",
    "a notice": encode(m.Closed(1, CloseInfo(0, True, "", True))),
    "a segment": encode(SegmentCame(1)),
    "no kind": b"\xff",
    "empty": b"",
    "too long": bytes(70_000),
}


@pytest.mark.parametrize("what", NO_REQUESTS)
def test_a_message_that_is_none_detaches(what: str) -> None:
    async def main(bench: Bench) -> None:
        assert await bench.thrown_out(NO_REQUESTS[what])
        # Also where it comes at once with others.
        assert await bench.thrown_out(encode(m.Cancel(1)), NO_REQUESTS[what], encode(m.Cancel(2)))
        assert await bench.is_well()

    on_bench(main)


@pytest.mark.parametrize(
    "config",
    [
        {"idle_timeout_s": float("nan")},
        {"idle_timeout_s": float("inf")},
        {"idle_timeout_s": -1.0},
        {"handshake_timeout_s": float("nan")},
        {"handshake_timeout_s": float("inf")},
        {"rx_fifo_bytes": (1 << 64) - 1},
        {"rx_fifo_bytes": -1},
        {"congestion_control": "\x1b[31m"},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["Listen", "Bind", "Connect"])
def test_numbers_that_are_none_end_nobody_else(kind: str, config: dict[str, object]) -> None:
    none_at_all = E([None, None, None, False, None, "none", []])
    fields = {
        "Listen": (E(5), E([HOST, 0]), none_at_all, E(["x"]), E(config), E("quic")),
        "Bind": (E(5), E([HOST, 0]), E(config)),
        "Connect": (
            E(5), E([HOST, 9]), E("x"), none_at_all, E(["x"]), E(config), E(None), E("quic"),
        ),
    }  # fmt: skip

    async def main(bench: Bench) -> None:
        async with bench.application() as (_, other):
            other.channel.send(request_of(getattr(m, kind), *fields[kind]))
            await trio.testing.wait_all_tasks_blocked()
        assert await bench.is_well()

    on_bench(main)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_descriptors_of_an_application_do_not_stay() -> None:
    async def flood(bench: Bench, data: bytes, allowed: int) -> None:
        with socket.socket() as file:
            async with bench.application() as (_, other):
                with suppress(OSError):
                    socket.send_fds(other.channel._socket, [data], [file.fileno()] * 253)
                await trio.testing.wait_all_tasks_blocked()
                assert open_files() < allowed

    async def main(bench: Bench) -> None:
        assert await bench.is_well()
        gc.collect()
        before = open_files()
        for data in (b"", b"\xff", encode(m.Cancel(1)), bytes(70_000)):
            await flood(bench, data, before + 100)  # its own ends, and not the 253
        assert await bench.is_well()
        gc.collect()
        assert open_files() <= before + 5

    on_bench(main)
