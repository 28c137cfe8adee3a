"""A stream by itself: what the worker does within the application's calls, and what it holds."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from hoststack import (
    CloseInfo,
    ConnectionClosedError,
    EmbeddedStack,
    StreamResetError,
    StreamStoppedError,
)
from hoststack.api.datagrams import Datagrams
from hoststack.api.in_trio import TrioRouter
from hoststack.api.stream import Stream
from hoststack.boundary import messages as m
from hoststack.boundary.application import Application
from hoststack.native.memory.fifo import Fifo
from hoststack.native.session._session import ffi, lib
from tests.api.conftest import SMALL, MakePair, first_stream, run
from tests.support.lone_worker import LoneWorker

HANDLE = 0x80000001


class Scene:
    """A stream of a worker in another process, over FIFOs of 4 KiB."""

    def __init__(self) -> None:
        self.worker = LoneWorker()
        router = TrioRouter(self.worker.attached)
        connection: Any = SimpleNamespace(
            _side=self.worker.connect(), handle=2, close_info=CloseInfo(7, True, "why", True)
        )
        end, self.rx, self.tx = self.worker.open_stream(HANDLE, 4096)
        self.stream = Stream(router, connection, end, HANDLE, 0)

    def report(self, events: int, code: int) -> None:
        """Tell the application what the peer did."""
        self.worker.tell(HANDLE, lib.HS_NEWS_STREAM, events, code, code)


def after_each_act(stream: Stream, deed: Callable[[], None]) -> None:
    """Do something whenever an operation has told the worker, and let no task sleep."""
    router = stream._router
    act = router.act

    def act_and_more(hints: int) -> None:
        act(hints)
        deed()

    def sleep(key: int) -> None:
        raise AssertionError("it waits for a wake-up that was before")

    router.act = act_and_more
    router.sleep = sleep  # type: ignore[assignment, method-assign]


@pytest.mark.parametrize("transport", ["quic"], indirect=True)
def test_an_end_that_comes_with_what_is_sent_is_heard(make_pair: MakePair) -> None:
    """The worker may run at once when it is told, and may find that the peer reads no
    more: the rest, for which there is no room, must not wait for a wake-up that was before it."""

    async def main() -> None:
        async with make_pair(SMALL) as pair:
            stream = await pair.connected.open_stream()
            assert isinstance(stream, Stream)
            assert isinstance(pair.client, EmbeddedStack)
            plane = pair.client._worker.layer.streams._plane
            session = lib.hs_session_find(plane, stream.handle)
            after_each_act(
                stream, lambda: lib.hs_session_report(session, lib.HS_STREAM_STOPPED, 9, 9)
            )
            with pytest.raises(StreamStoppedError) as caught:
                await stream.send_all(bytes(10_000))
            assert caught.value.code == 9

    run(main)


@pytest.mark.parametrize("transport", ["cut-through"], indirect=True)
def test_room_that_is_made_while_the_worker_is_told_is_used(make_pair: MakePair) -> None:
    sent = bytearray()
    room = ffi.new("uint8_t[4096]")

    async def main() -> None:
        async with make_pair(SMALL) as pair:
            stream = await pair.connected.open_stream()
            assert isinstance(stream, Stream)
            await stream.send_all(b"x")
            peer = await first_stream(pair.accepted)
            assert await peer.receive_some() == b"x"

            def read() -> None:
                got = lib.hs_end_read(peer._end, room, len(room), False)
                assert got > 0
                sent.extend(ffi.buffer(room, got & (1 << lib.HS_END_BYTES_BITS) - 1))

            after_each_act(stream, read)
            await stream.send_all(bytes(10_000))

    run(main)
    assert len(sent) == 10_000


async def receive(stream: Stream) -> None:
    await stream.receive_some()


async def send(stream: Stream) -> None:
    await stream.send_all(b"x")


async def send_eof(stream: Stream) -> None:
    await stream.send_eof()


async def wait_finished(stream: Stream) -> None:
    await stream.wait_acknowledged()


@pytest.mark.parametrize(
    ("use", "kind"),
    [
        (receive, StreamResetError),
        (send, StreamStoppedError),
        (send_eof, StreamStoppedError),
        (wait_finished, StreamStoppedError),
        (receive, ConnectionClosedError),
        (send, ConnectionClosedError),
        (send_eof, ConnectionClosedError),
        (wait_finished, ConnectionClosedError),
    ],
)
def test_a_broken_stream_that_was_used_is_freed_at_once(
    use: Callable[[Stream], Awaitable[None]], kind: type[Exception]
) -> None:
    """Its memory is the application's: with each stream that a peer breaks some would be missing
    until a garbage collection."""

    async def main() -> None:
        scene = Scene()
        if kind is ConnectionClosedError:
            lib.hs_end_connection_gone(scene.stream.connection._side)
        else:
            scene.report(lib.HS_STREAM_RESET | lib.HS_STREAM_STOPPED, 7)
        with pytest.raises(kind) as caught:
            await use(scene.stream)
        assert getattr(caught.value, "code", 7) == 7
        assert scene.worker.commands() == []
        del caught, scene.stream
        assert scene.worker.commands() == [(HANDLE, lib.HS_COMMAND_RELEASED)]

    gc.disable()
    try:
        run(main)
    finally:
        gc.enable()


def test_datagrams_of_a_closed_connection_are_freed_at_once() -> None:
    """The two know each other, so that nothing else would free them."""

    class Owner:
        def __init__(self) -> None:
            router = TrioRouter(Application("owner"))
            self.datagrams = Datagrams(router, self.ignore, self.ignore, self.ignore)

        def ignore(self) -> None:
            pass

    def fifos() -> list[weakref.ref[Fifo]]:
        owner = Owner()
        rx, tx = Fifo(4096), Fifo(4096)
        owner.datagrams.on_ready(m.DatagramsReady(1, rx, tx, 100))
        owner.datagrams.close()
        owner.datagrams.on_ready(m.DatagramsReady(1, rx, tx, 100))
        return [weakref.ref(rx), weakref.ref(tx)]

    gc.disable()
    try:
        assert [fifo() for fifo in fifos()] == [None, None]
    finally:
        gc.enable()
