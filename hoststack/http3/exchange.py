"""A request and its response, on a stream of their own: what both sides do with it."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final, Self

from hoststack.api.about_stream import WAIT
from hoststack.api.leaving import Leaving
from hoststack.http3.errors import ErrorCode, MessageError
from hoststack.http3.fields import Fields, FieldsToSend, to_fields
from hoststack.http3.seam import BLOCKED, Event, Kind, Section

if TYPE_CHECKING:
    from hoststack.api.router import Lot
    from hoststack.http3.about_connection import AboutHttp3Connection
    from hoststack.http3.webtransport.session import Session

#: Most content that is received at a time, unless the program says how much.
CHUNK_BYTES: Final = 256 * 1024
_MAX_DATAGRAMS: Final = 64
#: That wait on a connection, for all of its requests.
_MAX_DATAGRAM_BYTES: Final = 1 << 20


class Exchange(Leaving):
    """Base of requests and responses: content in both directions, trailers, the end.

    One task may receive while another one sends. Close it when done: `aclose`, or the end of an
    `async with` block. Each call is a cancellation point; those that need not wait are
    schedule points as a stream's are (docs/decisions/schedule-points.md).
    """

    #: The code for what this side did not send to its end.
    _abort_code: int = ErrorCode.REQUEST_CANCELLED

    def __init__(self, http: AboutHttp3Connection, stream: Any) -> None:
        self._http = http
        self._stream = stream
        self._router = stream._router
        self.stream_id: int = stream.stream_id
        """The QUIC stream ID."""
        self.trailers: Fields | None = None
        """The peer's trailer section, once its content has ended."""
        self._chunks: deque[bytes] = deque()
        self._received_bytes = 0
        self._has_all = False
        """The peer's message has ended."""
        self._receiving_error: Exception | None = None
        self._sending_error: Exception | None = None
        self._is_sending = False
        self._is_full = False
        """The stream has no room for what was given to the layer."""
        self._has_sent_end = False
        self._is_closed = False
        self._is_starving = False
        """A task waits for the peer's bytes."""
        self._waiting: Lot | None = None
        """Tasks that wait for an event that comes by way of another stream."""
        self._datagrams: deque[bytes] | None = None
        self._session: Session | None = None
        """The WebTransport session that this began."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.stream_id} of {self._http.connection!r}>"

    @property
    def connection(self) -> Any:
        """The QUIC connection."""
        return self._http.connection

    @property
    def has_content(self) -> bool:
        """Some of the peer's content has arrived."""
        return self._received_bytes > 0

    @property
    def is_received(self) -> bool:
        """The peer's message has ended, and all of its content was received."""
        return self._has_all and not self._chunks

    @property
    def is_sent(self) -> bool:
        """The end of this side's message was sent, or it was reset."""
        return self._has_sent_end

    # --- receiving ---

    async def receive_some(self, max_bytes: int = CHUNK_BYTES) -> bytes:
        """Receive the next content, at least one byte; b"" only at the end.

        It reads from the stream only when it is called, so the reader's speed limits the peer.
        Raises MessageError, StreamResetError, ProtocolError, ConnectionClosedError.
        """
        await self._router.checkpoint_if_cancelled()
        while not self._chunks:
            if self._receiving_error is not None:
                raise self._receiving_error
            if self._has_all:
                await self._http._checkpoint()
                return b""
            await self._pull(max_bytes)
        chunk = self._chunks.popleft()
        if len(chunk) > max_bytes:
            self._chunks.appendleft(chunk[max_bytes:])
            chunk = chunk[:max_bytes]
        await self._http._checkpoint()
        return chunk

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        chunk = await self.receive_some()
        if not chunk:
            raise StopAsyncIteration
        return chunk

    async def read(self, max_bytes: int | None = None) -> bytes:
        """Receive all content that is left. Raises MessageError if it is more than `max_bytes`, and
        what `receive_some` raises."""
        chunks: list[bytes] = []
        left = max_bytes
        async for chunk in self:
            if left is not None:
                left -= len(chunk)
                if left < 0:
                    raise self._refuse("is too long", 413)
            chunks.append(chunk)
        return b"".join(chunks)

    async def _pull(self, max_bytes: int) -> None:
        """Read from the stream, or wait until that is possible. Raises as `receive_some`."""
        if self._is_closed:
            raise self._router.closed_error("this exchange was closed")
        result = self._http._read(self._stream, max_bytes)
        if result == WAIT:
            self._http._on_starving(self)
            self._is_starving = True
            try:
                await self._stream._wait_for_bytes()
            finally:
                self._is_starving = False
        elif result == BLOCKED:
            self._http._check()
            await self._park()
        elif result < 0:
            self._on_lost(self._stream._receiving_error(result))
        elif not result and not self._has_all and self._receiving_error is None:
            self._has_all = True  # the layer reads no more

    async def _park(self) -> None:
        if self._waiting is None:
            self._waiting = self._router.new_lot()
        await self._waiting.park()

    def _wake(self) -> None:
        if self._waiting is not None:
            self._waiting.unpark_all()

    def _on_lost(self, error: Exception) -> None:
        """Note that no more of the peer's message follows."""
        if self._receiving_error is None:
            self._receiving_error = error
            self._http._layer.stop(self.stream_id)

    def _refuse(self, what: str, status: int) -> MessageError:
        """Receive no more of a message that is above the limits."""
        error = MessageError(ErrorCode.EXCESSIVE_LOAD, what, status)
        self._chunks.clear()
        self._on_lost(error)
        return error

    def _on_event(self, event: Event) -> None:
        kind = event.kind
        if kind == Kind.DATA:
            self._received_bytes += len(event.data)
            limit = self._http.config.max_body_bytes
            if limit is not None and self._received_bytes > limit:
                self._refuse("is too long", 413)
            else:
                self._chunks.append(event.data)
        elif kind == Kind.TRAILERS:
            self.trailers = event.fields
        elif kind == Kind.SECTION:
            assert event.fields is not None
            self._on_section(event.fields)
        elif kind == Kind.TOO_LARGE:
            self._refuse("has a header section above the limits", 431)
        elif kind in (Kind.STOP, Kind.RESET):
            self._on_rejected(event.code)
        if event.is_last:
            self._has_all = True
        self._wake()

    def _on_section(self, fields: Fields) -> None:
        raise NotImplementedError

    def _on_rejected(self, code: int) -> None:
        error = MessageError(code, "is malformed", 400)
        self._receiving_error = self._receiving_error or error
        self._sending_error = self._sending_error or error
        self._has_sent_end = True

    # --- sending ---

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send some of the content; returns when the stream has accepted it. `data` must not change
        until then.

        If it is interrupted (cancelled, or any other exception), the stream is reset: an unknown
        part was sent. Raises StreamStoppedError, ProtocolError, ConnectionClosedError, and
        RuntimeError before the header section and after the end.
        """
        if not len(data):
            await self._router.checkpoint()
            return
        await self._begin_sending()
        try:
            self._http._layer.send_data(
                self.stream_id, data if isinstance(data, bytes) else memoryview(data), is_last=False
            )
            await self._drain()
        finally:
            self._is_sending = False

    async def send_eof(self) -> None:
        """End the content; raises as `send_all`."""
        await self._begin_sending()
        try:
            self._http._layer.send_data(self.stream_id, b"", is_last=True)
            self._has_sent_end = True
            await self._drain()
        finally:
            self._is_sending = False

    async def send_trailers(self, fields: FieldsToSend) -> None:
        """End the content with a trailer section. Raises ValueError, and as `send_all`."""
        await self._send_section(Section.TRAILER, to_fields(fields))
        self._has_sent_end = True

    async def _send_section(self, kind: Section, fields: Fields, *, is_last: bool = False) -> None:
        await self._begin_sending()
        try:
            self._http._layer.send_section(self.stream_id, kind, fields, is_last=is_last)
            self._has_sent_end = is_last
            await self._drain()
        finally:
            self._is_sending = False

    async def _begin_sending(self) -> None:
        """Check that this task may send. `_is_sending` is set, unless it raises."""
        if self._is_sending:
            raise RuntimeError("another task is sending this message already")
        await self._router.checkpoint_if_cancelled()
        if self._sending_error is not None:
            raise self._sending_error
        if self._is_closed:
            raise self._router.closed_error("this exchange was closed")
        self._http._check()
        self._is_sending = True

    async def _drain(self) -> None:
        """Write, and wait until the stream has accepted everything."""
        self._http._flush()
        await self._finish_writing()

    async def _finish_writing(self) -> None:
        """Wait until the stream has accepted everything that was given to the layer."""
        try:
            if self._is_full:
                await self._wait_for_room()
            if self._sending_error is not None:
                raise self._sending_error
            await self._http._checkpoint()
        except BaseException:
            if self._is_full:
                self.reset(self._abort_code)
            raise

    async def _wait_for_room(self) -> None:
        try:
            while self._is_full and self._sending_error is None:
                self._http._on_full(self)
                await self._stream._wait_for_room()
                self._http._on_room(self)
                self._http._unblock(self)
        finally:
            self._http._on_sent(self)

    def _on_written(self, state: int) -> None:
        if state < 0:
            self._sending_error = self._stream._sending_error(state)
            self._is_full = False
        else:
            self._is_full = state != 0

    def reset(self, code: int = ErrorCode.REQUEST_CANCELLED) -> None:
        """Send nothing more, and reset the stream with a code; never blocks."""
        if self._is_closed:
            return
        self._http._layer.abandon(self.stream_id)
        self._is_full = False
        self._has_sent_end = True
        if self._sending_error is None:
            self._sending_error = self._router.broken_error(
                f"this side reset the stream (code {int(code):#x})"
            )
        self._stream.reset(code)

    # --- the end ---

    async def aclose(self) -> None:
        """Finish. What was not sent to its end is reset, what was not received is stopped. A
        session that it began is closed with code 0."""
        self.close()
        await self._http._checkpoint()

    async def _on_block_end(self, *, aborts: bool) -> None:
        await self.aclose()

    def close(self) -> None:
        """Finish as `aclose` does, without a checkpoint."""
        if self._session is not None and not self._is_closed:
            self._session._leave()
        else:
            self._close()

    def _close(self) -> None:
        if self._is_closed:
            return
        if not self._has_sent_end or self._is_full:
            self.reset(self._abort_code)
        if not self._has_all and self._receiving_error is None:
            self._stream.stop_sending(self._stop_code())
            self._http._layer.stop(self.stream_id)
        self._is_closed = True
        self._http._forget(self)

    def _stop_code(self) -> int:
        """Return the code for what is not received to its end."""
        return ErrorCode.REQUEST_CANCELLED

    # --- datagrams ---

    async def send_datagram(self, data: bytes) -> None:
        """Send an HTTP datagram (RFC 9297). It arrives whole, in no order, or is lost. Raises
        NotSupportedError, ValueError if it is too large, and as `Connection.send_datagram`."""
        await self._http._send_datagram(self.stream_id, data)

    async def receive_datagram(self) -> bytes:
        """Receive the next HTTP datagram of this request. While 64 wait, or 1 MiB on
        the connection, new ones are dropped. Raises ConnectionClosedError, or ProtocolError."""
        await self._router.checkpoint_if_cancelled()
        while not self._datagrams:
            self._http._check()
            if self._is_closed:
                raise self._router.closed_error("this exchange was closed")
            await self._park()
        await self._http._checkpoint()
        return self._next_datagram()

    def _next_datagram(self) -> bytes:
        """Return the first datagram that waits."""
        assert self._datagrams
        data = self._datagrams.popleft()
        if not self._is_closed:  # or they were given back already
            self._http._datagram_bytes -= len(data)
        return data

    def _on_datagram(self, data: bytes) -> None:
        if self._datagrams is None:
            self._datagrams = deque()
        waiting_bytes = self._http._datagram_bytes + len(data)
        if len(self._datagrams) < _MAX_DATAGRAMS and waiting_bytes <= _MAX_DATAGRAM_BYTES:
            self._http._datagram_bytes = waiting_bytes
            self._datagrams.append(data)
            self._wake()
