"""Streams of a QUIC connection, as trio streams."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import trio

from hoststack.errors import StreamResetError, StreamStoppedError
from hoststack.halves import ReceivingHalf, SendingHalf
from hoststack.session import messages as m

if TYPE_CHECKING:
    from hoststack.connection import Connection
    from hoststack.router import Router

#: The notices that a stream begins with.
Opened = m.StreamReady | m.StreamAccepted


class StreamBase:
    """What all streams have: identity, and the way to the worker.

    A stream's halves know the router, and not the stream: no cycle keeps the FIFOs of one that is
    not used any more.
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

    def _forget_if_over(self) -> None:
        """Have the router forget a stream that can have no more events."""
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
        self._sending = SendingHalf(opened.tx, partial(router.signal_sent, opened.handle))

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`; returns when the stack has taken it.

        Raises StreamStoppedError, ConnectionClosedError (both BrokenResourceError),
        ClosedResourceError, BusyResourceError.
        """
        await self._sending.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until `send_all` of a little would not block; raises as `send_all` does."""
        await self._sending.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """Say that no more will be sent (FIN); raises as `send_all` does."""
        await self._sending.send_eof()

    async def wait_acknowledged(self) -> None:
        """Wait until the peer has acknowledged every byte and the end.

        Use it after `send_eof` or `aclose`. Raises BrokenResourceError if that cannot come.
        """
        await self._sending.wait_finished()

    def reset(self, code: int = 0) -> None:
        """Give up sending at once with an application code (RESET_STREAM); never blocks."""
        if not self._sending.is_finished:
            self._router.post(m.ResetStream(self._handle, code))
        self._sending.fail(trio.BrokenResourceError(f"this side reset the stream (code {code:#x})"))

    async def aclose(self) -> None:
        """Finish sending: what was sent still reaches the peer, followed by the end."""
        self._sending.close()
        self._forget_if_over()
        await trio.lowlevel.checkpoint()

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
        """The next bytes, at least one; b"" at the end of the stream alone.

        Raises StreamResetError, ConnectionClosedError (both BrokenResourceError),
        ClosedResourceError, BusyResourceError.
        """
        return await self._receiving.receive_some(max_bytes)

    async def receive_into(self, buffer: bytearray | memoryview) -> int:
        """As `receive_some`, into a buffer: how many bytes came; 0 at the end alone."""
        return await self._receiving.receive_into(buffer)

    @property
    def may_be_replayed(self) -> bool:
        """Whether what was received until now may be a replay: it came as early data, and the
        handshake is not complete (see `Connection.early_data`)."""
        return self.connection.early_data == "pending"

    def stop_sending(self, code: int = 0) -> None:
        """Ask the peer to send no more, with an application code (STOP_SENDING)."""
        if not self._receiving.has_end:
            self._router.post(m.StopSending(self._handle, code))

    async def aclose(self) -> None:
        """Stop receiving; the peer is told if it is not done."""
        self.stop_sending()
        self._receiving.close()
        self._forget_if_over()
        await trio.lowlevel.checkpoint()

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
    """A bidirectional stream: both halves, and each can be finished by itself."""

    async def aclose(self) -> None:
        """Finish both directions: what was sent still reaches the peer; receiving stops."""
        self._sending.close()
        await ReceiveStream.aclose(self)

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
