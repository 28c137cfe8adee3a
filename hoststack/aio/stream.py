"""Streams of a connection, as asyncio's readers and writers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

from hoststack.api.about_stream import (
    BYTES,
    CLOSED,
    FOR_BYTES,
    FOR_ROOM,
    HINTS,
    RECEIVE_BYTES,
    AboutReceiving,
    AboutSending,
    AboutStream,
)
from hoststack.api.leaving import Leaving
from hoststack.native.session._session import ffi, lib

if TYPE_CHECKING:
    from hoststack.aio.router import AsyncioRouter


class _Closing(Leaving, AboutStream):
    """How all streams are closed."""

    __slots__ = ("__weakref__",)

    def close(self) -> None:
        """Close the stream as its class describes; never blocks."""
        raise NotImplementedError

    async def wait_closed(self) -> None:
        """Return once the stack has all that was written before `close`."""

    def abort(self) -> None:
        """Close both directions at once: reset (RESET_STREAM) and stop (STOP_SENDING) each whose
        end was not sent or received before, with `ABORTED_CODE`."""
        self._close(aborts=True)

    def _abandon(self) -> None:
        self.abort()

    async def _on_block_end(self, *, aborts: bool) -> None:
        """Close the stream, and wait; when an exception leaves the block, abort it."""
        if not aborts:
            self.close()
            await self.wait_closed()
        else:
            self.abort()


class SendStream(AboutSending, _Closing):
    """A stream that only sends: a unidirectional one that this side opened."""

    __slots__ = ("_buffer", "_drained", "_failure", "_has_end", "_is_closing")

    _router: AsyncioRouter

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._buffer = bytearray()
        """What the stack had no room for yet."""
        self._drained = self._router.new_lot()
        self._failure: Exception | None = None
        self._has_end = False
        self._is_closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`; never blocks.

        What the stack has no room for is kept here: await `drain` now and then. Raises ClosedError
        after `write_eof` and `close`. What else can happen to a stream, `drain` raises.
        """
        if self._has_end or self._is_closing:
            raise self._sending_error(CLOSED)
        if self._failure is not None:
            return
        if self._buffer:
            self._buffer += data
            return
        if type(data) is not bytes:
            data = memoryview(data).cast("B")
        pointer = data if type(data) is bytes else ffi.from_buffer("uint8_t[]", data)
        result = lib.hs_end_write(self._end, pointer, len(data))
        if result < 0:
            self._fail(result)
            return
        taken = result & BYTES
        if result >> HINTS:
            self._act(result)
        if taken < len(data):
            self._buffer += memoryview(data)[taken:]
            lib.hs_end_set_cut(self._end, True)
            # The worker may have run a turn, and made room.
            self._flush()

    async def drain(self) -> None:
        """Wait until the stack has all that was written. Raises StreamStoppedError,
        ConnectionClosedError, and BrokenError after `reset`."""
        while self._buffer and self._failure is None:
            if not self._router.has_turned():
                await self._drained.park()
        if self._failure is not None:
            raise self._failure

    def write_eof(self) -> None:
        """Finish sending (FIN) after all that was written; never blocks. Idempotent."""
        if not self._has_end:
            self._has_end = True
            if not self._buffer:
                self._finish()

    def can_write_eof(self) -> bool:
        """True, as in asyncio's writers."""
        return True

    def is_closing(self) -> bool:
        """Whether `close` was called, or the stream can't send any more."""
        return self._is_closing or self._failure is not None

    def reset(self, code: int = 0) -> None:
        """Stop sending at once with an application code (RESET_STREAM); never blocks. What was
        written and not sent is dropped."""
        self._drop()
        super().reset(code)

    def abort(self) -> None:
        self._drop()
        super().abort()

    def close(self) -> None:
        """Finish sending: what was written still reaches the peer, followed by the FIN."""
        if self._is_closing:
            return
        self._is_closing = True
        if self._buffer:
            lib.hs_end_close_receiving(self._end, 0)
        else:
            self._close()

    async def wait_closed(self) -> None:
        """Return once the stack has all that was written before `close`; `wait_acknowledged` waits
        until the peer has it."""
        while self._buffer and self._failure is None:
            await self._drained.park()

    def _finish(self) -> None:
        result = lib.hs_end_finish(self._end)
        if result < 0:
            self._fail(result)
        else:
            self._act(result)

    def _fail(self, result: int) -> None:
        self._drop()
        self._failure = self._sending_error(result)

    def _drop(self) -> None:
        self._buffer.clear()
        self._drained.unpark_all()

    def _flush(self) -> None:
        """Send what was kept, as far as there is room."""
        while self._buffer:
            with memoryview(self._buffer) as data:
                pointer = ffi.from_buffer("uint8_t[]", data)
                result = lib.hs_end_write(self._end, pointer, len(data))
                ffi.release(pointer)
            if result < 0:
                self._fail(result)
                break
            del self._buffer[: result & BYTES]
            if result >> HINTS:
                self._act(result)
            elif self._buffer:
                self._router.when_woken(self._handle << 2 | FOR_ROOM, self._flush)
                return
        lib.hs_end_set_cut(self._end, self._failure is not None)
        if self._failure is None and self._has_end:
            self._finish()
        if self._is_closing:
            self._close()
        self._drained.unpark_all()


class ReceiveStream(AboutReceiving, _Closing):
    """A stream that only receives: a unidirectional one that the peer opened."""

    __slots__ = ()

    async def read(self, n: int = -1) -> bytes:
        """Receive up to `n` bytes, at least one; b"" only at the end of the stream. With -1, all up
        to the end.

        Raises StreamResetError, ConnectionClosedError, ClosedError after `close`, BrokenError after
        `stop_sending`, and RuntimeError if another task is receiving.
        """
        if n >= 0:
            return await self._receive(n) if n else b""
        return b"".join([chunk async for chunk in self])

    async def readexactly(self, n: int) -> bytes:
        """Receive `n` bytes. Raises asyncio.IncompleteReadError if the stream ends before, and as
        `read` does."""
        parts = bytearray()
        while len(parts) < n:
            chunk = await self._receive(n - len(parts))
            if not chunk:
                raise asyncio.IncompleteReadError(bytes(parts), n)
            parts += chunk
        return bytes(parts)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        chunk = await self._receive(RECEIVE_BYTES)
        if not chunk:
            raise StopAsyncIteration
        return chunk

    async def _receive(self, max_bytes: int) -> bytes:
        if self._is_receiving:
            raise RuntimeError("another task is receiving from this stream already")
        self._is_receiving = True
        try:
            while (data := self._read(max_bytes)) is None:
                if not self._router.has_turned():
                    await self._router.sleep(self._handle << 2 | FOR_BYTES)
            return data
        finally:
            self._is_receiving = False

    def close(self) -> None:
        """Stop receiving. A peer that has not finished gets a STOP_SENDING with code 0."""
        self._close()


class Stream(SendStream, ReceiveStream):
    """A bidirectional stream; each half can be finished separately. `close` finishes both."""

    __slots__ = ()
