"""Streams of a connection, as trio streams.

An operation is a call in C (native/session/end.h), and a cancellation point. It is a schedule
point too if it waits; of those that need not wait, `Router.must_yield` chooses some.
"""

from __future__ import annotations

import trio
from trio.lowlevel import cancel_shielded_checkpoint, checkpoint_if_cancelled

from hoststack.api.about_stream import (
    BYTES,
    CUT,
    FOR_BYTES,
    FOR_ROOM,
    HINTS,
    RECEIVE_BYTES,
    WAIT,
    AboutReceiving,
    AboutSending,
    AboutStream,
)
from hoststack.api.leaving import Leaving
from hoststack.native.session._session import ffi, lib
from hoststack.quic.seam import ABORTED_CODE


class StreamBase(Leaving, AboutStream, trio.abc.AsyncResource):
    """Base of all streams: how they are closed."""

    __slots__ = ("__weakref__",)

    async def _on_block_end(self, *, aborts: bool) -> None:
        """Close the stream; when an exception leaves the block, abort it (`ABORTED_CODE`)."""
        if not aborts:
            await self.aclose()
        else:
            self._close(aborts=True)
            await cancel_shielded_checkpoint()

    async def aclose(self) -> None:
        """Finish sending: written data still reaches the peer, followed by the FIN. Stop receiving:
        a peer that has not finished gets a STOP_SENDING with code 0.

        After an interrupted `send_all`, sending is reset with `ABORTED_CODE` instead. In a
        cancelled scope, as with `trio.aclose_forcefully`, and when an exception leaves the `async
        with` block, abort: reset (RESET_STREAM) or stop (STOP_SENDING) each direction whose end was
        not sent or received before, with that code.
        """
        try:
            await checkpoint_if_cancelled()
        except BaseException:
            self._close(aborts=True)
            raise
        self._close()
        if self._router.must_yield():
            await cancel_shielded_checkpoint()


class SendStream(AboutSending, StreamBase, trio.abc.SendStream):
    """A stream that only sends: a unidirectional one that this side opened."""

    __slots__ = ()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`; returns when all of it is in the stack's buffer.

        If it is interrupted (cancelled, or any other exception), an unknown part of `data` was
        sent. The peer must not mistake that for everything: from then on `send_eof` fails, and
        closing the stream resets it with `ABORTED_CODE`. Closing its connection uses that code too.

        Raises StreamStoppedError, ConnectionClosedError (both BrokenResourceError),
        ClosedResourceError, BusyResourceError.
        """
        if self._is_sending:
            raise _busy("sending on")
        self._is_sending = True
        try:
            if type(data) is not bytes:
                data = memoryview(data).cast("B")
            try:
                await checkpoint_if_cancelled()
            except BaseException:
                if data:
                    lib.hs_end_set_cut(self._end, True)
                raise
            pointer = data if type(data) is bytes else ffi.from_buffer("uint8_t[]", data)
            result = lib.hs_end_write(self._end, pointer, len(data))
            if result < 0:
                raise self._sending_error(result)
            taken = result & BYTES
            if taken == len(data):
                if taken:
                    self._router.act(result >> HINTS)
            elif await self._send_rest(memoryview(data)[taken:], result):
                return
            if self._router.must_yield(len(data)):
                await cancel_shielded_checkpoint()
        finally:
            self._is_sending = False

    async def _send_rest(self, data: memoryview, result: int) -> bool:
        """Send what had no room at once; return whether this slept, and so was a checkpoint."""
        was_cut, has_slept = self._state().is_cut, False
        lib.hs_end_set_cut(self._end, True)
        while True:
            if result >> HINTS:
                # The worker may have run a turn, and made room, or ended the stream.
                self._act(result)
            else:
                await self._router.sleep(self._handle << 2 | FOR_ROOM)
                has_slept = True
            result = lib.hs_end_write(self._end, ffi.from_buffer("uint8_t[]", data), len(data))
            if result < 0:
                raise self._sending_error(result)
            data = data[result & BYTES :]
            if not data:
                break
        self._act(result)
        lib.hs_end_set_cut(self._end, was_cut)
        return has_slept

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until a small `send_all` would not block; raises as `send_all` does."""
        if self._is_sending:
            raise _busy("sending on")
        self._is_sending = True
        try:
            await checkpoint_if_cancelled()
            while (room := lib.hs_end_writable(self._end)) == 0:
                await self._router.sleep(self._handle << 2 | FOR_ROOM)
            if room < 0:
                raise self._sending_error(room)
            if self._router.must_yield():
                await cancel_shielded_checkpoint()
        finally:
            self._is_sending = False

    async def send_eof(self) -> None:
        """Finish the sending direction (FIN); raises as `send_all` does.

        After an interrupted `send_all` it resets the stream (`ABORTED_CODE`) instead, and raises
        trio.BrokenResourceError.
        """
        if self._is_sending:
            raise _busy("sending on")
        await checkpoint_if_cancelled()
        if self._router.must_yield():
            await cancel_shielded_checkpoint()
        result = lib.hs_end_finish(self._end)
        if result == CUT:
            self.reset(ABORTED_CODE)
            raise trio.BrokenResourceError(
                "an earlier send_all was interrupted, so a FIN would make incomplete data look "
                f"complete: this side reset the stream (code {ABORTED_CODE:#x})"
            )
        if result < 0:
            raise self._sending_error(result)
        self._act(result)


class ReceiveStream(AboutReceiving, StreamBase, trio.abc.ReceiveStream):
    """A stream that only receives: a unidirectional one that the peer opened."""

    __slots__ = ()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive the next bytes, at least one; b"" only at the end of the stream.

        Raises StreamResetError, ConnectionClosedError (both BrokenResourceError),
        ClosedResourceError, BusyResourceError.
        """
        if max_bytes is None:
            max_bytes = RECEIVE_BYTES
        elif not isinstance(max_bytes, int):
            raise TypeError("max_bytes must be an integer")
        elif max_bytes < 1:
            raise ValueError("max_bytes must be 1 or more")
        if self._is_receiving:
            raise _busy("receiving from")
        self._is_receiving = True
        try:
            await checkpoint_if_cancelled()
            has_slept = False
            while (data := self._read(max_bytes)) is None:
                if not self._router.has_turned():
                    await self._router.sleep(self._handle << 2 | FOR_BYTES)
                    has_slept = True
            if not has_slept and self._router.must_yield(len(data)):
                await cancel_shielded_checkpoint()
            return data
        finally:
            self._is_receiving = False

    async def receive_into(self, buffer: bytearray | memoryview) -> int:
        """Receive into a buffer, and return the number of bytes; 0 only at the end of the stream.
        Raises as `receive_some`."""
        if not len(buffer):
            raise ValueError("the buffer must have room for 1 byte or more")
        if self._is_receiving:
            raise _busy("receiving from")
        self._is_receiving = True
        try:
            await checkpoint_if_cancelled()
            target = ffi.from_buffer("uint8_t[]", buffer, require_writable=True)
            has_slept = False
            while (result := lib.hs_end_read(self._end, target, len(buffer), False)) == WAIT:
                if not self._router.has_turned():
                    await self._router.sleep(self._handle << 2 | FOR_BYTES)
                    has_slept = True
            if not has_slept and self._router.must_yield(max(0, result & BYTES)):
                await cancel_shielded_checkpoint()
            if result < 0:
                raise self._receiving_error(result)
            if result >> HINTS:
                self._act(result)
            return int(result & BYTES)
        finally:
            self._is_receiving = False


class Stream(SendStream, ReceiveStream, trio.abc.HalfCloseableStream):
    """A bidirectional stream; each half can be finished separately."""

    __slots__ = ()


def _busy(what: str) -> trio.BusyResourceError:
    return trio.BusyResourceError(f"another task is {what} this stream already")
