"""A stream by itself: what the worker does within the application's calls, and what it holds."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from hoststack import CloseInfo, ConnectionClosedError, StreamResetError, StreamStoppedError
from hoststack.api.datagrams import Datagrams
from hoststack.api.in_trio import TrioRouter
from hoststack.api.stream import Stream
from hoststack.boundary import messages as m
from hoststack.boundary.application import Application
from hoststack.native.memory.fifo import Fifo
from hoststack.native.session._session import ffi, lib
from tests.api.conftest import run

HANDLE = 0x80000001


class Side:
    """The application's side of a worker in another process that does what a test says."""

    plane = None

    def __init__(self) -> None:
        self.side = ffi.gc(lib.hs_side_new(), lib.hs_side_free)
        self.wake_application: Callable[[], None] = lambda: None
        self.acts: list[int] = []
        self.on_act: Callable[[], None] = lambda: None
        self.notices: list[Any] = []

    def act(self, handle: int, hints: int, reset_code: int = 0, stop_code: int = 0) -> None:
        """Note what an operation asks for."""
        self.acts.append(hints)
        self.on_act()

    def before_sleep(self) -> bool:
        """No turn."""
        return False

    def take_notices(self) -> list[Any]:
        """What the worker has said."""
        notices, self.notices = self.notices, []
        return notices

    def take_events(self) -> list[tuple[int, int, int]]:
        """None: only notices."""
        return []


def stream_on(side: Side) -> Stream:
    """A stream over FIFOs of 4 KiB."""
    router = TrioRouter(side)  # type: ignore[arg-type]
    connection: Any = SimpleNamespace(
        _side=router.hold(1), _held={}, handle=1, close_info=CloseInfo(7, True, "why", True)
    )
    notice = m.StreamReady(1, 1, HANDLE, 0, Fifo(4096), Fifo(4096))
    held = router._hold_stream(connection, notice, is_peers=False)
    assert notice.tx is not None
    notice.tx.arm_read()
    return Stream(router, connection, held.end, HANDLE, 0, held)


def test_an_end_that_comes_with_what_is_sent_is_heard() -> None:
    """Telling the worker may have its turn at once, and that may find that the peer reads no
    more: the rest, for which there is no room, must not wait for a wake-up that was before it."""
    side = Side()
    stream = stream_on(side)

    def stop() -> None:
        side.notices.append(m.StreamStopped(HANDLE, 9))
        side.wake_application()

    side.on_act = stop

    async def main() -> None:
        with trio.fail_after(1), pytest.raises(StreamStoppedError) as caught:
            await stream.send_all(bytes(10_000))
        assert caught.value.code == 9

    run(main)
    assert side.acts == [lib.HS_END_SEND]


def test_room_that_is_made_while_the_worker_is_told_is_used() -> None:
    side = Side()
    stream = stream_on(side)
    sent = bytearray()

    def read() -> None:
        tx = stream._held.tx  # type: ignore[attr-defined]
        sent.extend(tx.read(4096))
        tx.arm_read()

    side.on_act = read

    async def main() -> None:
        with trio.fail_after(1):
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

    async def main() -> list[weakref.ref[Fifo]]:
        side = Side()
        stream = stream_on(side)
        if kind is ConnectionClosedError:
            lib.hs_end_connection_gone(stream.connection._side)
        else:
            side.notices += [m.StreamReset(HANDLE, 7), m.StreamStopped(HANDLE, 7)]
            side.wake_application()
        held: Any = stream._held
        with pytest.raises(kind) as caught:
            await use(stream)
        assert getattr(caught.value, "code", 7) == 7
        fifos = [weakref.ref(held.rx), weakref.ref(held.tx)]
        stream._router._held.clear()
        del caught, held, stream, side
        return fifos

    gc.disable()
    try:
        assert [fifo() for fifo in run(main)] == [None, None]
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
