"""Streams of a connection, as trio streams.

A stream's state and its bytes are in C (native/session/end.h): an operation is a call there, and a
checkpoint. Only a task that has to wait is known here.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import trio
from trio.lowlevel import cancel_shielded_checkpoint, checkpoint_if_cancelled

from hoststack.api.errors import (
    ConnectionClosedError,
    StreamResetError,
    StreamStoppedError,
)
from hoststack.native.session._session import ffi, lib
from hoststack.quic.seam import ABORTED_CODE

if TYPE_CHECKING:
    from hoststack.api.connection import Connection
    from hoststack.api.router import Router

#: Most bytes that `receive_some` returns without a size.
RECEIVE_BYTES: Final = 256 * 1024
#: Up to so many bytes are copied once more rather than looked at in two calls.
FEW_BYTES: Final = 8192

_HINTS: Final = int(lib.HS_END_BYTES_BITS)
_BYTES: Final = (1 << _HINTS) - 1
_WAIT: Final = int(lib.HS_END_WAIT)
_MUCH: Final = int(lib.HS_END_MUCH)
_CLOSED: Final = int(lib.HS_END_CLOSED)
_RESET: Final = int(lib.HS_END_RESET)
_STOPPED: Final = int(lib.HS_END_STOPPED)
_GONE: Final = int(lib.HS_END_GONE)
_CUT: Final = int(lib.HS_END_CUT)
_FOR_BYTES: Final = int(lib.HS_WAIT_READ)
_FOR_ROOM: Final = int(lib.HS_WAIT_WRITE)
_FOR_FINISHED: Final = int(lib.HS_WAIT_FINISHED)
_CORRUPT: Final = "the other side broke this stream's FIFO"


class StreamBase(trio.abc.AsyncResource):
    """Base of all streams: identity, waiting, and the handling of exceptions."""

    __slots__ = (
        "__weakref__",
        "_connection",
        "_end",
        "_handle",
        "_held",
        "_is_receiving",
        "_is_sending",
        "_router",
        "_stream_id",
    )

    def __init__(
        self,
        router: Router,
        connection: Connection,
        end: Any,
        handle: int,
        stream_id: int,
        held: object = None,
    ) -> None:
        """`end` is the struct hs_end, `held` what it needs to exist."""
        self._router = router
        self._connection = connection
        self._end = end
        self._handle = handle
        self._stream_id = stream_id
        self._held = held
        self._is_receiving = False
        self._is_sending = False

    @property
    def connection(self) -> Connection:
        """The connection that this stream belongs to."""
        return self._connection

    @property
    def handle(self) -> int:
        """The session's 64-bit handle: worker << 32 | index."""
        return self._handle

    @property
    def stream_id(self) -> int:
        """The QUIC stream ID (RFC 9000 section 2.1)."""
        return self._stream_id

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._stream_id} of {self._connection!r}>"

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the stream; when an exception leaves the block, abort it (`ABORTED_CODE`)."""
        if error is None:
            await self.aclose()
        else:
            self._close(aborts=True)
            await cancel_shielded_checkpoint()

    async def aclose(self) -> None:
        """Close the stream as its class describes. In a cancelled scope, as with
        `trio.aclose_forcefully`, abort it.

        Aborting resets (RESET_STREAM) or stops (STOP_SENDING) each direction whose end was not sent
        or received before, with `ABORTED_CODE`.
        """
        try:
            await checkpoint_if_cancelled()
        except BaseException:
            self._close(aborts=True)
            raise
        self._close()
        await cancel_shielded_checkpoint()

    def _close(self, *, aborts: bool = False) -> None:
        result = lib.hs_end_close(self._end, aborts, ABORTED_CODE)
        if result:
            self._act(result, ABORTED_CODE, ABORTED_CODE if aborts else 0)
        self._router.forget_if_over(self._handle)

    def _state(self) -> Any:
        state = ffi.new("struct hs_end_state *")
        lib.hs_end_state(self._end, state)
        return state

    def _act(self, hints: int, reset_code: int = 0, stop_code: int = 0) -> None:
        """Do what an operation's result asks for."""
        self._router.act(self._handle, hints >> _HINTS, reset_code, stop_code)

    def _error(self, result: int) -> Exception:
        """Return the exception for an operation that ended with an enum hs_end_result."""
        if result == _GONE:
            info = self._connection.close_info
            assert info is not None
            return ConnectionClosedError(info)
        if result == _CLOSED:
            return trio.ClosedResourceError("this stream was closed")
        return trio.BrokenResourceError(_CORRUPT)


class SendStream(StreamBase, trio.abc.SendStream):
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
            taken = result & _BYTES
            if taken == len(data):
                if taken:
                    self._act(result)
            elif await self._send_rest(memoryview(data)[taken:], result):
                return
            await cancel_shielded_checkpoint()
        finally:
            self._is_sending = False

    async def _send_rest(self, data: memoryview, result: int) -> bool:
        """Send what had no room at once; return whether this slept, and so was a checkpoint."""
        was_cut, has_slept = self._state().is_cut, False
        lib.hs_end_set_cut(self._end, True)
        while True:
            if result >> _HINTS:
                # The worker may have run a turn, and made room, or ended the stream.
                self._act(result)
            else:
                await self._router.sleep(self._handle << 2 | _FOR_ROOM)
                has_slept = True
            result = lib.hs_end_write(self._end, ffi.from_buffer("uint8_t[]", data), len(data))
            if result < 0:
                raise self._sending_error(result)
            data = data[result & _BYTES :]
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
                await self._router.sleep(self._handle << 2 | _FOR_ROOM)
            if room < 0:
                raise self._sending_error(room)
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
        await trio.lowlevel.checkpoint()
        result = lib.hs_end_finish(self._end)
        if result == _CUT:
            self.reset(ABORTED_CODE)
            raise trio.BrokenResourceError(
                "an earlier send_all was interrupted, so a FIN would make incomplete data look "
                f"complete: this side reset the stream (code {ABORTED_CODE:#x})"
            )
        if result < 0:
            raise self._sending_error(result)
        self._act(result)

    async def wait_acknowledged(self) -> None:
        """Wait until the peer has acknowledged every byte and the FIN.

        Use it after `send_eof` or `aclose`. Raises BrokenResourceError if that cannot happen.
        """
        await checkpoint_if_cancelled()
        while (result := lib.hs_end_wait_finished(self._end)) == 0:
            await self._router.park(self._handle << 2 | _FOR_FINISHED)
        if result < 0:
            raise self._sending_error(result)
        await cancel_shielded_checkpoint()

    def reset(self, code: int = 0) -> None:
        """Stop sending at once with an application code (RESET_STREAM); never blocks."""
        self._act(lib.hs_end_reset(self._end, code), code)
        self._router.forget_if_over(self._handle)

    async def aclose(self) -> None:
        """Finish sending: written data still reaches the peer, followed by the FIN.

        The stream is reset with `ABORTED_CODE` instead after an interrupted `send_all`, in a
        cancelled scope, and when an exception leaves its `async with` block.
        """
        await super().aclose()

    def _sending_error(self, result: int) -> Exception:
        if result == _STOPPED:
            return StreamStoppedError(self._state().stop_code)
        if result == _RESET:
            code = self._state().stop_code
            return trio.BrokenResourceError(f"this side reset the stream (code {code:#x})")
        if result == _CLOSED and self._state().tx != _CLOSED:
            return trio.ClosedResourceError("this stream's end was sent already")
        return self._error(result)


class ReceiveStream(StreamBase, trio.abc.ReceiveStream):
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
                    await self._router.sleep(self._handle << 2 | _FOR_BYTES)
                    has_slept = True
            if not has_slept:
                await cancel_shielded_checkpoint()
            return data
        finally:
            self._is_receiving = False

    def _read(self, max_bytes: int) -> bytes | None:
        """Return the next bytes; none at the end, None if there are none yet."""
        few = max_bytes if max_bytes < FEW_BYTES else FEW_BYTES
        router = self._router
        result = lib.hs_end_read(self._end, router.room, few, max_bytes > few)
        if result > 0:
            count = result & _BYTES
            if result != count:
                self._act(result)
            return router.room_bytes[:count]  # type: ignore[no-any-return]
        if result == _WAIT:
            return None
        if not result:
            self._router.forget_if_over(self._handle)
            return b""
        if result != _MUCH:
            raise self._receiving_error(result)
        place = ffi.new("uint8_t **")
        count = lib.hs_end_look(self._end, max_bytes, place)
        if count < 0:
            raise self._receiving_error(count)
        data: bytes = ffi.buffer(place[0], count)[:]
        result = lib.hs_end_skip(self._end, count)
        if result < 0:
            raise self._receiving_error(result)
        if result >> _HINTS:
            self._act(result)
        return data

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
            while (result := lib.hs_end_read(self._end, target, len(buffer), False)) == _WAIT:
                if not self._router.has_turned():
                    await self._router.sleep(self._handle << 2 | _FOR_BYTES)
                    has_slept = True
            if not has_slept:
                await cancel_shielded_checkpoint()
            if result < 0:
                raise self._receiving_error(result)
            if result >> _HINTS:
                self._act(result)
            elif not result:
                self._router.forget_if_over(self._handle)
            return int(result & _BYTES)
        finally:
            self._is_receiving = False

    @property
    def may_be_replayed(self) -> bool:
        """Whether the data received so far may be a replay: it was early data, and the handshake is
        not complete (see `Connection.early_data`)."""
        return self.connection.early_data == "pending"

    def stop_sending(self, code: int = 0) -> None:
        """Ask the peer to stop sending, with an application code (STOP_SENDING); never blocks.

        What has arrived can still be received; after that, receiving raises BrokenResourceError.
        """
        self._act(lib.hs_end_stop(self._end, code), stop_code=code)

    async def aclose(self) -> None:
        """Stop receiving. A peer that has not finished gets a STOP_SENDING: with code 0, or with
        `ABORTED_CODE` in a cancelled scope and when an exception leaves the `async with` block."""
        await super().aclose()

    def _receiving_error(self, result: int) -> Exception:
        if result == _RESET:
            return StreamResetError(self._state().reset_code)
        if result == _STOPPED:
            code = self._state().reset_code
            return trio.BrokenResourceError(f"this side stopped receiving (code {code:#x})")
        return self._error(result)


class Stream(SendStream, ReceiveStream, trio.abc.HalfCloseableStream):
    """A bidirectional stream; each half can be finished separately."""

    __slots__ = ()

    async def aclose(self) -> None:
        """Finish both directions: written data still reaches the peer, followed by the FIN;
        receiving stops.

        The stream is reset with `ABORTED_CODE` instead after an interrupted `send_all`, in a
        cancelled scope, and when an exception leaves its `async with` block.
        """
        await StreamBase.aclose(self)


def _busy(what: str) -> trio.BusyResourceError:
    return trio.BusyResourceError(f"another task is {what} this stream already")
