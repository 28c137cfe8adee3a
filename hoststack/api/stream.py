"""Streams of a connection, as trio streams."""

from __future__ import annotations

from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING

import trio

from hoststack.api.errors import StreamResetError, StreamStoppedError
from hoststack.api.halves import ReceivingHalf, SendingHalf
from hoststack.boundary import messages as m
from hoststack.quic.seam import ABORTED_CODE

if TYPE_CHECKING:
    from hoststack.api.connection import Connection
    from hoststack.api.router import Router

#: The notices about a new stream.
Opened = m.StreamReady | m.StreamAccepted


class StreamBase(trio.abc.AsyncResource):
    """Base of all streams: identity, access to the worker, and the handling of exceptions.

    A stream's halves refer to the router but not to the stream, so that no cycle holds the FIFOs of
    an unused stream.
    """

    def __init__(self, router: Router, connection: Connection, opened: Opened) -> None:
        self._router = router
        self._connection = connection
        self._handle = opened.handle
        self._stream_id = opened.stream_id

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
            self._abort()
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def aclose(self) -> None:
        """Close the stream as its class describes. In a cancelled scope, as with
        `trio.aclose_forcefully`, abort it.

        Aborting resets (RESET_STREAM) or stops (STOP_SENDING) each direction whose end was not sent
        or received before, with `ABORTED_CODE`.
        """
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
        except BaseException:
            self._abort()
            raise
        self._close()
        await trio.lowlevel.cancel_shielded_checkpoint()

    def _close(self) -> None:
        raise NotImplementedError

    def _abort(self) -> None:
        raise NotImplementedError

    def _forget_if_over(self) -> None:
        """Remove a stream that can have no more events from the router."""
        if self._is_over:
            self._router.forget_stream(self)

    @property
    def _is_over(self) -> bool:
        raise NotImplementedError


class SendStream(StreamBase, trio.abc.SendStream):
    """A stream that only sends: a unidirectional one that this side opened."""

    def __init__(self, router: Router, connection: Connection, opened: Opened) -> None:
        super().__init__(router, connection, opened)
        assert opened.tx is not None
        self._sending = SendingHalf(
            opened.tx,
            partial(router.signal_sent, opened.handle),
            lambda code: router.post(m.ResetStream(opened.handle, code)),
        )

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`; returns when all of it is in the stack's buffer.

        If it is interrupted (cancelled, or any other exception), an unknown part of `data` was
        sent. The peer must not mistake that for everything: from then on `send_eof` fails, and
        closing the stream resets it with `ABORTED_CODE`. Closing its connection uses that code too.

        Raises StreamStoppedError, ConnectionClosedError (both BrokenResourceError),
        ClosedResourceError, BusyResourceError.
        """
        await self._sending.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until a small `send_all` would not block; raises as `send_all` does."""
        await self._sending.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """Finish the sending direction (FIN); raises as `send_all` does.

        After an interrupted `send_all` it resets the stream (`ABORTED_CODE`) instead, and raises
        trio.BrokenResourceError.
        """
        await self._sending.send_eof()

    async def wait_acknowledged(self) -> None:
        """Wait until the peer has acknowledged every byte and the FIN.

        Use it after `send_eof` or `aclose`. Raises BrokenResourceError if that cannot happen.
        """
        await self._sending.wait_finished()

    def reset(self, code: int = 0) -> None:
        """Stop sending at once with an application code (RESET_STREAM); never blocks."""
        self._sending.reset(code)

    async def aclose(self) -> None:
        """Finish sending: written data still reaches the peer, followed by the FIN.

        The stream is reset with `ABORTED_CODE` instead after an interrupted `send_all`, in a
        cancelled scope, and when an exception leaves its `async with` block.
        """
        await super().aclose()

    def _close(self) -> None:
        self._sending.close()
        self._forget_if_over()

    def _abort(self) -> None:
        self._sending.abort()
        self._forget_if_over()

    @property
    def _is_cut_short(self) -> bool:
        return self._sending.is_cut_short and not self._sending.is_over

    # --- from the router ---

    def _on_event(self, code: int) -> None:
        self._sending.wake()

    def _on_stopped(self, code: int) -> None:
        self._sending.fail(StreamStoppedError(code))

    def _on_send_finished(self) -> None:
        self._sending.is_finished = True
        self._sending.wake()
        self._forget_if_over()

    def _on_broken(self, error: trio.BrokenResourceError) -> None:
        self._sending.fail(error)

    @property
    def _is_over(self) -> bool:
        return self._sending.is_over

    @property
    def _is_unacknowledged(self) -> bool:
        return self._sending.is_ended and not self._sending.is_finished


class ReceiveStream(StreamBase, trio.abc.ReceiveStream):
    """A stream that only receives: a unidirectional one that the peer opened."""

    def __init__(self, router: Router, connection: Connection, opened: Opened) -> None:
        super().__init__(router, connection, opened)
        assert opened.rx is not None
        self._receiving = ReceivingHalf(opened.rx, partial(router.signal_consumed, opened.handle))

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive the next bytes, at least one; b"" only at the end of the stream.

        Raises StreamResetError, ConnectionClosedError (both BrokenResourceError),
        ClosedResourceError, BusyResourceError.
        """
        return await self._receiving.receive_some(max_bytes)

    async def receive_into(self, buffer: bytearray | memoryview) -> int:
        """Receive into a buffer, and return the number of bytes; 0 only at the end of the stream.
        Raises as `receive_some`."""
        return await self._receiving.receive_into(buffer)

    @property
    def may_be_replayed(self) -> bool:
        """Whether the data received so far may be a replay: it was early data, and the handshake is
        not complete (see `Connection.early_data`)."""
        return self.connection.early_data == "pending"

    def stop_sending(self, code: int = 0) -> None:
        """Ask the peer to stop sending, with an application code (STOP_SENDING)."""
        if not self._receiving.has_end:
            self._router.post(m.StopSending(self._handle, code))

    async def aclose(self) -> None:
        """Stop receiving. A peer that has not finished gets a STOP_SENDING: with code 0, or with
        `ABORTED_CODE` in a cancelled scope and when an exception leaves the `async with` block."""
        await super().aclose()

    def _close(self) -> None:
        self._stop_receiving(0)

    def _abort(self) -> None:
        self._stop_receiving(ABORTED_CODE)

    def _stop_receiving(self, code: int) -> None:
        self.stop_sending(code)
        self._receiving.close()
        self._forget_if_over()

    # --- from the router ---

    def _on_event(self, code: int) -> None:
        self._receiving.wake()

    def _on_reset(self, code: int) -> None:
        self._receiving.fail(StreamResetError(code))

    @property
    def _is_over(self) -> bool:
        return self._receiving.is_closed

    def _on_broken(self, error: trio.BrokenResourceError) -> None:
        self._receiving.fail(error)


class Stream(SendStream, ReceiveStream, trio.abc.HalfCloseableStream):
    """A bidirectional stream; each half can be finished separately."""

    async def aclose(self) -> None:
        """Finish both directions: written data still reaches the peer, followed by the FIN;
        receiving stops.

        The stream is reset with `ABORTED_CODE` instead after an interrupted `send_all`, in a
        cancelled scope, and when an exception leaves its `async with` block.
        """
        await StreamBase.aclose(self)

    def _close(self) -> None:
        self._sending.close()
        self._stop_receiving(0)

    def _abort(self) -> None:
        self._sending.abort()
        self._stop_receiving(ABORTED_CODE)

    @property
    def _is_over(self) -> bool:
        return self._sending.is_over and self._receiving.is_closed

    def _on_event(self, code: int) -> None:
        if code == m.EventCode.WRITABLE:
            self._sending.wake()
        else:
            self._receiving.wake()

    def _on_broken(self, error: trio.BrokenResourceError) -> None:
        self._sending.fail(error)
        self._receiving.fail(error)
