"""Datagrams of a connection (RFC 9221): messages that are sent once, and may be lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from hoststack.boundary import messages as m
from hoststack.native.memory.fifo import FifoCorruptError

if TYPE_CHECKING:
    from hoststack.api.router import Router
    from hoststack.native.memory.fifo import Fifo


@contextmanager
def breaks_if_corrupt(what: str) -> Iterator[None]:
    """Turn FifoCorruptError into trio.BrokenResourceError: the other side of a FIFO may be another
    application (cut-through), which can write invalid data there."""
    try:
        yield
    except FifoCorruptError as error:
        raise trio.BrokenResourceError(f"the other side broke this {what}'s FIFO") from error


class Datagrams:
    """Both directions, over a pair of FIFOs of messages.

    `signal_sent` signals the worker that there is a message to send, `signal_consumed` that there
    is room; `check` raises if the connection is closed. Several tasks may send and receive, since
    each message is complete.
    """

    def __init__(
        self,
        router: Router,
        signal_sent: Callable[[], None],
        signal_consumed: Callable[[], None],
        check: Callable[[], None],
    ) -> None:
        self._router = router
        self.max_bytes = 0
        self._signal_sent = signal_sent
        self._signal_consumed = signal_consumed
        self._check = check
        self._is_closed = False
        self._rx: Fifo | None = None
        self._tx: Fifo | None = None
        self._senders = router.new_lot()
        self._receivers = router.new_lot()

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        await self._router.checkpoint_if_cancelled()
        message = memoryview(data).cast("B")
        has_slept = False
        with breaks_if_corrupt("connection"):
            while not self._write(message):
                has_slept |= await self._wait_for_room(len(message))
        if not has_slept and self._router.must_yield(len(message)):
            await self._router.shielded_checkpoint()

    def _write(self, message: memoryview) -> bool:
        self._check()
        if len(message) > self.max_bytes or self._tx is None:
            raise ValueError(self._refusal(len(message)))
        if not self._tx.write_message(message):
            return False
        if self._tx.take_read_armed():
            self._signal_sent()
        return True

    def _refusal(self, size_bytes: int) -> str:
        if self._tx is None:
            return "this side offers no datagrams: set QuicConfig.datagram_fifo_bytes"
        if not self.max_bytes:
            return "the peer accepts no datagrams (RFC 9221): use a stream"
        return (
            f"a datagram of {size_bytes} bytes: this peer and path allow at most {self.max_bytes} "
            "(Connection.max_datagram_bytes)"
        )

    async def _wait_for_room(self, size_bytes: int) -> bool:
        """Wait until the FIFO has room; return whether this slept, and so was a checkpoint."""
        assert self._tx is not None
        self._tx.arm_write()
        # Room from before the flag was set raised no event.
        must_sleep = not self._tx.has_room_for(size_bytes)
        if must_sleep:
            await self._senders.park()
        return must_sleep

    async def receive(self) -> bytes:
        await self._router.checkpoint_if_cancelled()
        has_slept = False
        while (message := self.take()) is None:
            has_slept |= await self.wait()
        if not has_slept and self._router.must_yield(len(message)):
            await self._router.shielded_checkpoint()
        return message

    def take(self) -> bytes | None:
        """Return the next message, or None. Messages from before the peer's close can still be
        read."""
        if self._is_closed or self._rx is None:
            self._check()
            raise ValueError(self._refusal(0))
        with breaks_if_corrupt("connection"):
            message = self._rx.read_message()
        if message is None:
            self._check()
        elif self._rx.take_write_armed():
            # Only another application waits for room (cut-through); an engine drops datagrams.
            self._signal_consumed()
        return message

    async def wait(self) -> bool:
        """Wait until a message may be there; return whether this slept, and so was a
        checkpoint."""
        assert self._rx is not None
        with breaks_if_corrupt("connection"):
            self._rx.arm_read()
            must_sleep = not self._rx.readable
        if must_sleep:
            await self._receivers.park()
        return must_sleep

    def close(self) -> None:
        """Stop sending and receiving. Idempotent."""
        self._is_closed = True
        # The reference cycle with the connection would hold the FIFOs until a garbage collection.
        self._rx = self._tx = None
        self.wake()

    def wake(self) -> None:
        """Wake all tasks, which check the connection's state."""
        # Fast path: most connections use no datagrams.
        if self._senders:
            self._senders.unpark_all()
        if self._receivers:
            self._receivers.unpark_all()

    # --- from the router ---

    def on_ready(self, notice: m.DatagramsReady) -> None:
        if self._is_closed:
            return
        self._rx, self._tx = notice.rx, notice.tx
        self.max_bytes = notice.max_bytes
        # A waiting datagram may be too large now.
        self._senders.unpark_all()

    def on_event(self, code: int) -> None:
        if code == m.EventCode.WRITABLE:
            self._senders.unpark_all()
        else:
            self._receivers.unpark_all()
