"""One direction of a stream by itself: what the worker does within the application's own calls."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from hoststack import CloseInfo, ConnectionClosedError, StreamResetError, StreamStoppedError
from hoststack.api.datagrams import Datagrams
from hoststack.api.halves import ReceivingHalf, SendingHalf
from hoststack.boundary import messages as m
from hoststack.native.memory.fifo import Fifo
from tests.api.conftest import run


def test_an_end_that_comes_with_what_is_sent_is_heard() -> None:
    """Telling the worker may have its turn at once, and that may find that the peer reads no
    more: the rest, for which there is no room, must not wait for a wake-up that was before it."""
    fifo = Fifo(4096)
    fifo.arm_read()
    half = SendingHalf(
        fifo,
        lambda: half.fail(trio.BrokenResourceError("stopped")),
        lambda code: pytest.fail("nobody resets it"),
    )

    async def main() -> None:
        with trio.fail_after(1), pytest.raises(trio.BrokenResourceError, match="stopped"):
            await half.send_all(bytes(10_000))

    run(main)


async def receive(fifo: Fifo, error: trio.BrokenResourceError) -> None:
    half = ReceivingHalf(fifo, lambda is_urgent: None)
    half.fail(error)
    await half.receive_some()


async def send(fifo: Fifo, error: trio.BrokenResourceError) -> None:
    half = SendingHalf(fifo, lambda: None, lambda code: None)
    half.fail(error)
    await half.send_all(b"x")


async def send_eof(fifo: Fifo, error: trio.BrokenResourceError) -> None:
    half = SendingHalf(fifo, lambda: None, lambda code: None)
    half.fail(error)
    await half.send_eof()


async def wait_finished(fifo: Fifo, error: trio.BrokenResourceError) -> None:
    half = SendingHalf(fifo, lambda: None, lambda code: None)
    half.fail(error)
    await half.wait_finished()


@pytest.mark.parametrize("use", [receive, send, send_eof, wait_finished])
@pytest.mark.parametrize(
    "error",
    [
        ConnectionClosedError(CloseInfo(7, True, "why", True)),
        StreamResetError(7),
        StreamStoppedError(7),
        trio.BrokenResourceError("broken"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_broken_direction_that_was_used_is_freed_at_once(
    use: Callable[[Fifo, trio.BrokenResourceError], Awaitable[None]],
    error: trio.BrokenResourceError,
) -> None:
    """Its memory is the application's: with each stream that a peer breaks some would be missing
    until a garbage collection."""

    async def main() -> weakref.ref[Fifo]:
        fifo = Fifo(4096)
        with pytest.raises(trio.BrokenResourceError) as caught:
            await use(fifo, error)
        assert caught.type is type(error)
        assert (str(caught.value), vars(caught.value)) == (str(error), vars(error))
        del caught
        return weakref.ref(fifo)

    gc.disable()
    try:
        assert trio.run(main)() is None
    finally:
        gc.enable()


def test_datagrams_of_a_closed_connection_are_freed_at_once() -> None:
    """The two know each other, so that nothing else would free them."""

    class Owner:
        def __init__(self) -> None:
            self.datagrams = Datagrams(self.ignore, self.ignore, self.ignore)

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
