"""In a worker: whatever one application makes a handler raise ends that application alone, and is
logged."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trio
import trio.testing

from hoststack.boundary import messages as m
from hoststack.boundary import remote_application
from hoststack.boundary.channel import Channel
from hoststack.boundary.codec import (
    FifosReleased,
    Unparsed,
    decode_request,
    encode,
)
from hoststack.boundary.fifo_pool import BlockName
from hoststack.boundary.loading import Loaded
from hoststack.boundary.remote_application import RemoteApplication
from hoststack.control.worker_side import WorkerSide
from hoststack.daemon import commands, orders
from hoststack.native.session._session import lib
from hoststack.quic.seam import Event, EventKind
from hoststack.quic.tls import TlsConfig
from tests.daemon.echoing import TLS, TRUSTING
from tests.daemon.faulty import HOST, Bench, on_bench, raiser
from tests.support.exceptions import exceptions

#: For where each exception would take long.
SOME = (RecursionError("x"), MemoryError(), KeyError("x"), ExceptionGroup("x", [OSError(24, "x")]))

REQUESTS: tuple[m.Request, ...] = (
    m.Listen(1, (HOST, 1), TLS, ("x",), None),
    m.Bind(1, (HOST, 1), None),
    m.Connect(1, (HOST, 1), "x", TRUSTING, ("x",), None),
    m.Cancel(1),
    m.Unlisten(1),
    m.ReplaceTls(1, 1, TLS, ("x",)),
    m.ReplaceTls(1, 1, TlsConfig(), ("x",)),
    m.CloseConnection(1, 0, ""),
    m.UpdateKey(1),
    m.Migrate(1, 1, None),
    m.GetStatistics(1, 1),
)


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


class Faulty:
    """A module in C of which one function raises."""

    def __init__(self, module: Any, name: str, error: Exception) -> None:
        self._module = module
        setattr(self, name, raiser(error))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


@pytest.mark.parametrize(
    "place", ["decode", "release", "command", "open", "commands", "arm", "wake-up", "receive"]
)
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
                        case "command":
                            patch.setattr(bench.layer, "_on_command", raiser(error))
                        case "open":
                            patch.setattr(bench.layer.streams, "open_remote", raiser(error))
                        case "commands" | "arm":
                            name = f"hs_application_{place}"
                            patch.setattr(remote_application, "lib", Faulty(lib, name, error))
                        case "wake-up":
                            patch.setattr(application._wakes_worker, "clear", raiser(error))
                        case "receive":
                            patch.setattr(application._channel, "receive_now", raiser(error))
                    other._send(encode(FifosReleased((BlockName(0, 0, 4096),))))
                    other.signal_sent(6)
                    other.open_stream(6, False, 1)
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


@pytest.mark.parametrize(
    "place", ["encode", "push", "tell", "queue_message", "take_armed", "ring", "segment"]
)
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
                        case "push" | "tell" | "queue_message" | "take_armed":
                            name = f"hs_application_{place}"
                            patch.setattr(remote_application, "lib", Faulty(lib, name, error))
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
