"""The two directions of a stream: one FIFO each, and the rules of trio's stream contracts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

import trio

from hoststack.api.errors import renewed
from hoststack.native.memory.fifo import Fifo, FifoCorruptError
from hoststack.quic.seam import ABORTED_CODE

#: Most bytes that `receive_some` returns without a size.
RECEIVE_BYTES = 256 * 1024


@contextmanager
def breaks_if_corrupt(what: str) -> Iterator[None]:
    """Turn FifoCorruptError into trio.BrokenResourceError: the other side of a FIFO may be another
    application (cut-through), which can write invalid data there."""
    try:
        yield
    except FifoCorruptError as error:
        raise trio.BrokenResourceError(f"the other side broke this {what}'s FIFO") from error


class _OneAtATime:
    """Raises trio.BusyResourceError when two tasks use one direction at once."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._is_busy = False

    def __enter__(self) -> None:
        if self._is_busy:
            raise trio.BusyResourceError(f"another task is {self._what} this stream already")
        self._is_busy = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_busy = False
        if isinstance(error, FifoCorruptError):
            raise trio.BrokenResourceError("the other side broke this stream's FIFO") from error


class SendingHalf:
    """The sending direction: writes into the tx FIFO. `signal` notifies the worker that the FIFO
    changed, and `post_reset` requests a reset of the stream with a code.

    A `send_all` that did not return has sent an unknown part of its data. From then on the stream
    cannot be finished: a request for its end resets it instead.
    """

    def __init__(
        self, tx: Fifo, signal: Callable[[], None], post_reset: Callable[[int], None]
    ) -> None:
        self._tx = tx
        self._signal = signal
        self._post_reset = post_reset
        self._is_cut = False
        """A `send_all` was interrupted, or is still running."""
        self._busy = _OneAtATime("sending on")
        self._sleepers = trio.lowlevel.ParkingLot()
        self._closed = False
        self._error: trio.BrokenResourceError | None = None
        self.is_ended = False
        """The end was set, by `send_eof` or by closing."""
        self.is_finished = False
        """The peer acknowledged the FIN."""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with self._busy:
            view = memoryview(data).cast("B")
            was_cut = self._is_cut
            self._is_cut = was_cut or bool(view)
            await trio.lowlevel.checkpoint_if_cancelled()
            self._check()
            has_slept = False
            while view:
                taken = self._tx.write(view)
                if taken:
                    self._tell()
                    view = view[taken:]
                if view:
                    has_slept |= await self._wait_for_room()
            self._is_cut = was_cut
            if not has_slept:
                await trio.lowlevel.cancel_shielded_checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        with self._busy:
            await trio.lowlevel.checkpoint_if_cancelled()
            self._check()
            has_slept = False
            while not self._tx.writable:
                has_slept |= await self._wait_for_room()
            if not has_slept:
                await trio.lowlevel.cancel_shielded_checkpoint()

    async def send_eof(self) -> None:
        with self._busy:
            await trio.lowlevel.checkpoint()
            if self._closed:
                raise trio.ClosedResourceError("this stream was closed")
            if self._error is not None:
                raise renewed(self._error)
            if self.is_cut_short:
                self.reset(ABORTED_CODE)
                raise trio.BrokenResourceError(
                    "an earlier send_all was interrupted, so a FIN would make incomplete data look "
                    f"complete: this side reset the stream (code {ABORTED_CODE:#x})"
                )
            self._end()

    @property
    def is_cut_short(self) -> bool:
        """Whether the end has not been set, and must not be: some of the data is missing."""
        return self._is_cut and not self.is_ended

    @property
    def is_over(self) -> bool:
        """Whether nothing about this direction can change any more."""
        return self.is_finished or self._error is not None

    def close(self) -> None:
        """Stop sending: written data is still sent, followed by the FIN. If a `send_all` was
        interrupted, the stream is reset instead. Idempotent."""
        if self._error is None and self.is_cut_short:
            self.reset(ABORTED_CODE)
        self._closed = True
        if self._error is None:
            self._end()
        self.wake()

    def abort(self) -> None:
        """Stop sending, and reset the stream unless its end was set. Idempotent."""
        if self._error is None and not self.is_ended:
            self.reset(ABORTED_CODE)
        self.close()

    def reset(self, code: int) -> None:
        """Reset the stream, and discard data that is not acknowledged."""
        if not self.is_finished:
            self._post_reset(code)
        self.fail(trio.BrokenResourceError(f"this side reset the stream (code {code:#x})"))

    def wake(self) -> None:
        """Wake the sending task: the FIFO has room, or the state of this direction changed."""
        self._sleepers.unpark_all()

    def fail(self, error: trio.BrokenResourceError) -> None:
        """End sending with an error that further calls raise; later errors are ignored."""
        if self._error is None:
            self._error = error
        self.wake()

    async def wait_finished(self) -> None:
        """Wait until the FIN is acknowledged; raises the error if the stream breaks before."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self.is_finished:
            if self._error is not None:
                raise renewed(self._error)
            await self._sleepers.park()
        await trio.lowlevel.cancel_shielded_checkpoint()

    def _check(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this stream was closed")
        if self.is_ended:
            raise trio.ClosedResourceError("this stream's end was sent already")
        if self._error is not None:
            raise renewed(self._error)

    def _end(self) -> None:
        if not self.is_ended:
            self.is_ended = True
            self._tx.set_eof()
            # Signal even if the reader is not waiting (cut-through): the session layer needs it.
            self._tx.take_read_armed()
            self._signal()

    def _tell(self) -> None:
        if self._tx.take_read_armed():
            self._signal()

    async def _wait_for_room(self) -> bool:
        """Wait until the FIFO has room; return whether this slept, and so was a checkpoint."""
        self._tx.arm_write()
        must_sleep = not self._tx.writable
        if must_sleep:
            # `_tell` may have run a worker's turn inline. If that ended the stream, the wake-up
            # for it is already past.
            self._check()
            await self._sleepers.park()
        self._check()
        return must_sleep


class ReceivingHalf:
    """The receiving direction: reads from the rx FIFO. `signal` notifies the worker that the FIFO
    changed, and whether the peer may be waiting for that."""

    def __init__(self, rx: Fifo, signal: Callable[[bool], None]) -> None:
        self._rx = rx
        self._untold_bytes = 0
        self._has_told_lazily = False
        self._signal = signal
        self._busy = _OneAtATime("receiving from")
        self._sleepers = trio.lowlevel.ParkingLot()
        self._error: trio.BrokenResourceError | None = None
        self.is_closed = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if max_bytes is None:
            max_bytes = RECEIVE_BYTES
        elif not isinstance(max_bytes, int):
            raise TypeError("max_bytes must be an integer")
        elif max_bytes < 1:
            raise ValueError("max_bytes must be 1 or more")
        with self._busy:
            has_slept = await self._wait_for_bytes()
            data = self._rx.read(max_bytes)
            self._tell(len(data))
            if not has_slept:
                await trio.lowlevel.cancel_shielded_checkpoint()
            return data

    async def receive_into(self, buffer: bytearray | memoryview) -> int:
        if not len(buffer):
            raise ValueError("the buffer must have room for 1 byte or more")
        with self._busy:
            has_slept = await self._wait_for_bytes()
            count = self._rx.read_into(buffer)
            self._tell(count)
            if not has_slept:
                await trio.lowlevel.cancel_shielded_checkpoint()
            return count

    @property
    def has_end(self) -> bool:
        """Whether the FIFO has all data of the stream and its end, or the direction failed."""
        if self._error is not None:
            return True
        try:
            return self._rx.at_end
        except FifoCorruptError:
            return False

    def close(self) -> None:
        """Stop receiving. Idempotent."""
        self.is_closed = True
        self.wake()

    def wake(self) -> None:
        """Wake the receiving task: the FIFO has bytes or its end, or the state changed."""
        self._sleepers.unpark_all()

    def fail(self, error: trio.BrokenResourceError) -> None:
        """End receiving with an error, after the bytes in the FIFO; later errors are ignored."""
        if self._error is None:
            self._error = error
        self.wake()

    async def _wait_for_bytes(self) -> bool:
        """Wait for bytes or the end of the stream; return whether this slept."""
        await trio.lowlevel.checkpoint_if_cancelled()
        has_slept = False
        while not self.is_closed:
            if self._rx.readable or self._rx.at_end:
                return has_slept
            if self._error is not None:
                raise renewed(self._error)
            self._rx.arm_read()
            # Bytes from before the flag was set raised no event.
            if not (self._rx.readable or self._rx.eof):
                await self._sleepers.park()
                has_slept = True
        raise trio.ClosedResourceError("this stream was closed")

    def _tell(self, count: int) -> None:
        """Signal that the window may grow; this is urgent if the peer has little of it left."""
        self._untold_bytes += count
        is_urgent = self._untold_bytes >= self._rx.size // 4
        # Signal again if a lazy signal is pending and much more was read since.
        if self._rx.take_write_armed() or (is_urgent and self._has_told_lazily):
            if is_urgent:
                self._untold_bytes = 0
            self._has_told_lazily = not is_urgent
            self._signal(is_urgent)
