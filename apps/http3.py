"""HTTP/3 (RFC 9114) over hoststack's streams: aioquic's HTTP/3 layer, and its transport."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, cast

import pylsqpack
import trio
from aioquic.h3.connection import ErrorCode, H3Connection
from aioquic.h3.events import DataReceived, H3Event, Headers, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import (
    StopSendingReceived,
    StreamDataReceived,
    StreamReset,
)

from hoststack import (
    Connection,
    ConnectionClosedError,
    ReceiveStream,
    SendStream,
    Stream,
    StreamResetError,
    StreamStoppedError,
    printable,
)

logger = logging.getLogger(__name__)

ALPN: Final = "h3"
#: Bytes read from a stream at once, and sent in one DATA frame.
CHUNK_BYTES: Final = 256 * 1024

#: The control stream and QPACK's two (RFC 9114 section 6.2, RFC 9204 section 4.2).
_CRITICAL_STREAMS: Final = 3
#: How much of one frame may be buffered until the rest of it arrives: aioquic sets no limit.
_MAX_HELD_BYTES: Final = 64 * 1024
#: How much may be queued for a peer that does not read a critical stream.
_MAX_PENDING_BYTES: Final = 64 * 1024

#: A part of a message from the peer.
Part = HeadersReceived | DataReceived
Responder = Callable[["Exchange"], Awaitable[None]]


class Http3Error(trio.BrokenResourceError):
    """The peer violated HTTP/3, so this side closes the connection with `code`."""

    def __init__(self, code: int, reason: str) -> None:
        detail = f": {printable(reason)}" if reason else ""
        super().__init__(f"the peer broke HTTP/3's rules ({_code_name(code)}){detail}")
        self.code = code


class _StaticEncoder:
    """Compresses header sections with only QPACK's static table.

    aioquic's encoder inserts entries into the dynamic table while it encodes a section, and the
    section refers to them at once. The insertions travel on another stream, and may come later:
    the receiver has to wait for them (RFC 9204 section 2.1.2), which some clients don't. An encoder
    without the peer's table capacity has no entries to refer to.
    """

    def __init__(self, encoder: pylsqpack.Encoder) -> None:
        self._encoder = encoder

    def apply_settings(self, max_table_capacity: int, blocked_streams: int) -> bytes:
        return b""

    def encode(self, stream_id: int, headers: Headers) -> tuple[bytes, bytes]:
        return self._encoder.encode(stream_id, headers)

    def feed_decoder(self, data: bytes) -> None:
        self._encoder.feed_decoder(data)


class _Quic:
    """H3Connection's QuicConnection: it queues data until it is sent."""

    _quic_logger = None
    #: A peer with HTTP datagrams (RFC 9297) must allow QUIC's. This class does not know if it does.
    _remote_max_datagram_frame_size = 65535

    def __init__(
        self, connection: Connection, critical: list[SendStream], *, is_client: bool
    ) -> None:
        self.configuration = QuicConfiguration(is_client=is_client)
        self.error: Http3Error | None = None
        self.streams: dict[int, SendStream] = {stream.stream_id: stream for stream in critical}
        self._connection = connection
        self._unused_ids = deque(self.streams)
        self._pending: dict[int, deque[bytes]] = {}
        self._ended: set[int] = set()
        self._has_pending = {stream_id: trio.Event() for stream_id in self.streams}

    def get_next_available_stream_id(self, is_unidirectional: bool = False) -> int:
        assert is_unidirectional, "requests have streams already"
        return self._unused_ids.popleft()

    def send_stream_data(self, stream_id: int, data: bytes, end_stream: bool = False) -> None:
        if data:
            self._pending.setdefault(stream_id, deque()).append(data)
        if end_stream:
            self._ended.add(stream_id)
        event = self._has_pending.get(stream_id)
        if event is not None and data:
            event.set()
            if sum(map(len, self._pending[stream_id])) > _MAX_PENDING_BYTES:
                self.close(ErrorCode.H3_EXCESSIVE_LOAD, "a critical stream is not read")

    def reset_stream(self, stream_id: int, error_code: int) -> None:
        stream = self.streams.get(stream_id)
        if stream is not None:
            stream.reset(error_code)

    def close(self, error_code: int, reason_phrase: str = "") -> None:
        if self.error is None:
            self.error = Http3Error(error_code, reason_phrase)
            self._connection.close_now(error_code, reason_phrase)

    async def flush(self, stream_id: int) -> None:
        """Send the queued data of a stream; blocks while the stream has no room."""
        stream = self.streams[stream_id]
        pending = self._pending.pop(stream_id, ())
        for data in pending:
            await stream.send_all(data)
        if stream_id in self._ended:
            self._ended.remove(stream_id)
            await stream.send_eof()

    async def flush_forever(self, stream_id: int) -> None:
        """Send the data of a critical stream whenever there is some."""
        while True:
            await self._has_pending[stream_id].wait()
            self._has_pending[stream_id] = trio.Event()
            await self.flush(stream_id)

    def forget(self, stream_id: int) -> None:
        """Drop a stream's queue: nothing more is sent on it."""
        del self.streams[stream_id]
        self._pending.pop(stream_id, None)
        self._ended.discard(stream_id)


class Exchange:
    """A request and its response, on a stream of their own. Close it when done."""

    def __init__(self, http: Http3Connection, stream: Stream) -> None:
        self._http = http
        self._stream = stream
        self._parts: deque[Part] = deque()
        self._blocked = trio.CancelScope()
        self._has_end = False
        self._has_sent_end = False

    @property
    def stream_id(self) -> int:
        """The QUIC stream ID."""
        return self._stream.stream_id

    async def receive(self) -> Part | None:
        """Return the next part of the peer's message, None at its end.

        Reads from the stream only when it is called, so the reader's speed limits the peer.
        Raises BrokenResourceError (Http3Error, StreamResetError, ConnectionClosedError).
        """
        while not self._parts:
            if self._http._is_blocked(self):
                await self._wait_while_blocked()
            elif self._has_end:
                return None
            else:
                await self._read()
        return self._parts.popleft()

    async def send_headers(self, headers: Headers, *, end_stream: bool = False) -> None:
        """Send a header section; raises BrokenResourceError as `Stream.send_all` does."""
        self._http._h3.send_headers(self.stream_id, headers, end_stream)
        await self._flush(end_stream)

    async def send_data(self, data: bytes, *, end_stream: bool = False) -> None:
        """Send some of the content; returns when the stream has accepted it."""
        self._http._h3.send_data(self.stream_id, data, end_stream)
        await self._flush(end_stream)

    async def aclose(self, code: int = ErrorCode.H3_NO_ERROR) -> None:
        """Finish. An unfinished direction is aborted with a code, which is H3_INTERNAL_ERROR for
        this side's message unless another one is given."""
        if not self._has_sent_end:
            is_fault = code == ErrorCode.H3_NO_ERROR
            self._stream.reset(ErrorCode.H3_INTERNAL_ERROR if is_fault else code)
        if not self._has_end:
            self._stream.stop_sending(code)
        self._http._forget(self)
        await self._stream.aclose()

    def _put(self, part: Part) -> None:
        self._parts.append(part)
        self._blocked.cancel()

    async def _read(self) -> None:
        try:
            data = await self._stream.receive_some(CHUNK_BYTES)
        except StreamResetError as error:
            self._has_end = True
            self._http._feed(StreamReset(error_code=error.code, stream_id=self.stream_id))
            raise
        self._has_end = not data
        self._http._feed(StreamDataReceived(data, self._has_end, self.stream_id))

    async def _wait_while_blocked(self) -> None:
        """Wait until QPACK's encoder stream has delivered what a header section refers to.

        Nothing is read meanwhile, because it would have to be buffered.
        """
        with trio.CancelScope() as self._blocked:
            raise ConnectionClosedError(await self._stream.connection.wait_closed())

    async def _flush(self, end_stream: bool) -> None:
        try:
            await self._http._quic.flush(self.stream_id)
        except StreamStoppedError as error:
            self._http._feed(StopSendingReceived(error.code, self.stream_id))
            raise
        self._has_sent_end = end_stream


class Http3Connection:
    """HTTP/3 on a connection. Use `over`, and run `run` in a task beside its users."""

    def __init__(
        self, connection: Connection, critical: list[SendStream], *, is_client: bool
    ) -> None:
        self._connection = connection
        self._quic = _Quic(connection, critical, is_client=is_client)
        self._critical_ids = list(self._quic.streams)
        self._h3 = H3Connection(cast(QuicConnection, self._quic))
        self._h3._encoder = cast(pylsqpack.Encoder, _StaticEncoder(self._h3._encoder))
        self._exchanges: dict[int, Exchange] = {}

    @classmethod
    async def over(cls, connection: Connection, *, is_client: bool) -> Http3Connection:
        """Start HTTP/3 on a connection that negotiated it; raises ConnectionClosedError."""
        critical = [
            await connection.open_stream(unidirectional=True) for _ in range(_CRITICAL_STREAMS)
        ]
        return cls(connection, critical, is_client=is_client)

    async def run(self, respond: Responder | None = None) -> None:
        """Serve the connection until it ends, for any reason.

        A server passes `respond`, which is called with each request in a task of its own. A fault
        in one request ends only that request.
        """
        try:
            async with trio.open_nursery() as nursery:
                for stream_id in self._critical_ids:
                    nursery.start_soon(self._write_critical, stream_id)
                async for stream in self._connection.streams():
                    if not isinstance(stream, Stream):
                        nursery.start_soon(self._read_unidirectional, stream)
                    elif respond is not None:
                        nursery.start_soon(self._respond, respond, stream)
                    else:
                        self._quic.close(
                            ErrorCode.H3_STREAM_CREATION_ERROR, "servers open no such streams"
                        )
                nursery.cancel_scope.cancel()
        except* trio.BrokenResourceError as group:
            logger.debug("%r: %r", self._connection, group.exceptions)

    async def request(self, headers: Headers) -> Exchange:
        """Send a request without content; raises BrokenResourceError."""
        exchange = self._add(await self._connection.open_stream())
        try:
            await exchange.send_headers(headers, end_stream=True)
        except StreamStoppedError:
            pass  # A server may answer before the request's end (RFC 9114 section 4.1).
        except BaseException:
            await exchange.aclose(ErrorCode.H3_REQUEST_CANCELLED)
            raise
        return exchange

    async def _respond(self, respond: Responder, stream: Stream) -> None:
        exchange = self._add(stream)
        code = ErrorCode.H3_INTERNAL_ERROR
        try:
            await respond(exchange)
            code = ErrorCode.H3_NO_ERROR
        except trio.BrokenResourceError as error:
            logger.debug("%r: %s", stream, error)
        except Exception:
            logger.exception("%r: no response could be made", stream)
        finally:
            await exchange.aclose(code)

    async def _read_unidirectional(self, stream: ReceiveStream) -> None:
        # When cancelled, leave the stream alone: stopping a critical one would be an error.
        data = b"..."
        while data:
            try:
                data = await stream.receive_some(CHUNK_BYTES)
            except StreamResetError as error:
                self._feed(StreamReset(error_code=error.code, stream_id=stream.stream_id))
                break
            self._feed(StreamDataReceived(data, not data, stream.stream_id))
        await stream.aclose()

    async def _write_critical(self, stream_id: int) -> None:
        try:
            await self._quic.flush_forever(stream_id)
        except StreamStoppedError as error:
            self._feed(StopSendingReceived(error.code, stream_id))

    def _add(self, stream: Stream) -> Exchange:
        exchange = self._exchanges[stream.stream_id] = Exchange(self, stream)
        self._quic.streams[stream.stream_id] = stream
        return exchange

    def _forget(self, exchange: Exchange) -> None:
        if self._exchanges.pop(exchange.stream_id, None) is None:
            return
        self._quic.forget(exchange.stream_id)
        # H3Connection forgets a stream when both of its directions have ended.
        if exchange.stream_id in self._h3._stream:
            for ending in (
                StreamReset(ErrorCode.H3_REQUEST_CANCELLED, exchange.stream_id),
                StopSendingReceived(ErrorCode.H3_REQUEST_CANCELLED, exchange.stream_id),
            ):
                self._h3.handle_event(ending)

    def _is_blocked(self, exchange: Exchange) -> bool:
        stream = self._h3._stream.get(exchange.stream_id)
        return stream is not None and stream.blocked

    def _feed(self, event: StreamDataReceived | StreamReset | StopSendingReceived) -> None:
        """Pass an event to H3Connection, and its results to their exchanges."""
        for found in self._h3.handle_event(event):
            self._route(found)
        stream = self._h3._stream.get(event.stream_id)
        if stream is not None and not stream.blocked and len(stream.buffer) > _MAX_HELD_BYTES:
            self._quic.close(ErrorCode.H3_EXCESSIVE_LOAD, "a frame is too large")
        if self._quic.error is not None:
            raise self._quic.error

    def _route(self, event: H3Event) -> None:
        # Server pushes have no exchange, nor have the ends of streams that were forgotten.
        if isinstance(event, Part) and event.stream_id in self._exchanges:
            self._exchanges[event.stream_id]._put(event)


def _code_name(code: int) -> str:
    try:
        return ErrorCode(code).name
    except ValueError:
        return f"{code:#x}"
