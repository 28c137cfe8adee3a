"""A session of WebTransport, at either end and in every loop."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from weakref import WeakSet

from hoststack.api.incoming import Incoming
from hoststack.api.leaving import Leaving
from hoststack.http3.errors import Http3Error
from hoststack.http3.webtransport import streams, wire
from hoststack.http3.webtransport.limits import SessionLimits
from hoststack.http3.webtransport.wire import WebTransportCode
from hoststack.text import printable

if TYPE_CHECKING:
    from hoststack.http3.exchange import Exchange

logger = logging.getLogger(__name__)

_CHUNK_BYTES: Final = 4096


class SessionEnd(NamedTuple):
    """How a session ended."""

    code: int
    reason: str


class SessionClosedError(Http3Error):
    """The session ended with a code that is not 0, or without one."""

    def __init__(self, end: SessionEnd | None) -> None:
        detail = "" if end is None else f" (code {end.code:#x}): {printable(end.reason)}"
        super().__init__(f"the WebTransport session has ended{detail}")
        self.end = end
        """None if the session was reset, or its connection is gone."""
        self.code = end.code if end is not None else WebTransportCode.SESSION_GONE


class Session(Leaving):
    """Streams and datagrams between a client and a server, on a connection that others share.

    Its end ends its streams. An `async with` block closes it with code 0, and when an exception
    leaves the block, aborts it.
    """

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        """The request or response that the session began with."""
        self.session_id = exchange.stream_id
        """The stream ID of its CONNECT request."""
        self.protocol: str | None = None
        """The application protocol that the server chose."""
        self.is_draining = False
        """The peer asked to end the session soon."""
        self._http = exchange._http
        self._router = exchange._router
        self._arrived: deque[Any] = deque()
        self._streams: WeakSet[Any] = WeakSet()
        self._changed = self._router.new_lot()
        self._limits: SessionLimits | None = None
        """None: there is no flow control, or not yet."""
        self._end: SessionEnd | None = None
        self._is_over = False
        self._is_established = False
        self._has_closed = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.session_id} of {self._http.connection!r}>"

    @property
    def connection(self) -> Any:
        """The QUIC connection."""
        return self._http.connection

    # --- streams ---

    async def open_stream(self, *, unidirectional: bool = False) -> Any:
        """Open a stream: a Stream, or a SendStream. Waits while the peer's limits forbid it, those
        of QUIC and those of the session. Codes of its `reset` and `stop_sending`, and of its
        exceptions, are below 2**32. Raises SessionClosedError, ConnectionClosedError."""
        self._check()
        limits = self._limits
        while limits is not None and not limits.take_stream(is_unidirectional=unidirectional):
            await self._changed.park()
            self._check()
        try:
            stream = await self.connection.open_stream(unidirectional=unidirectional)
        except BaseException:
            if limits is not None:
                limits.return_stream(is_unidirectional=unidirectional)
                self._changed.unpark_all()
            raise
        try:
            self._check()
            head = wire.head(self.session_id, is_unidirectional=unidirectional)
            await streams.send(stream, head)
        except BaseException:
            streams.refuse(stream, WebTransportCode.SESSION_GONE)
            raise
        self._streams.add(stream)
        if limits is not None:
            limits.limit(stream)
        return streams.adopt(stream)

    def streams(self) -> Incoming[Any]:
        """Return the streams that the peer opens, for `async for`: each is a Stream or a
        ReceiveStream. Ends when the session is closed, with any code (`wait_closed` tells which);
        raises SessionClosedError if it is reset, and what ended its connection."""
        return Incoming(
            self._router, self._next_stream, self._changed.park, self._changed.unpark_all
        )

    def _next_stream(self) -> Any:
        if not self._arrived:
            self._check_iterating()
            return None
        return self._arrived.popleft()

    def _on_stream(self, stream: Any) -> None:
        self._streams.add(stream)
        if self._limits is not None:
            self._limits.limit(stream)
        self._arrived.append(streams.adopt(stream))
        self._changed.unpark_all()

    # --- datagrams ---

    @property
    def max_datagram_bytes(self) -> int:
        """Of a datagram, as far as the peer and the path allow now."""
        prefix_bytes = len(wire.number(self.session_id >> 2))
        return max(0, int(self.connection.max_datagram_bytes) - prefix_bytes)

    async def send_datagram(self, data: bytes) -> None:
        """Send a datagram. It arrives whole, in no order, or is lost. Raises ValueError if it is
        too large, and as `open_stream`."""
        self._check()
        await self.exchange.send_datagram(data)

    async def receive_datagram(self) -> bytes:
        """Receive the next datagram. While 64 wait, new ones are dropped. Raises
        SessionClosedError."""
        await self._router.checkpoint_if_cancelled()
        while not self.exchange._datagrams:
            self._check()
            await self.exchange._park()
        await self._http._checkpoint()
        return self.exchange._next_datagram()

    def datagrams(self) -> Incoming[bytes]:
        """Return the peer's datagrams, for `async for`. Ends and raises as `streams` does."""
        exchange = self.exchange
        return Incoming(self._router, self._next_datagram, exchange._park, exchange._wake)

    def _next_datagram(self) -> bytes | None:
        if not self.exchange._datagrams:
            self._check_iterating()
            return None
        return self.exchange._next_datagram()

    # --- the end ---

    def _check(self) -> None:
        """Raise if the session is over."""
        if self._is_over:
            if self._end is not None and not self._end.code:
                raise self._router.closed_error("this session was closed")
            raise SessionClosedError(self._end)
        self._http._check()

    def _check_iterating(self) -> None:
        if self._end is not None:
            raise self._router.closed_error("this session was closed")
        self._check()

    async def drain(self) -> None:
        """Ask the peer to end the session soon. Raises as `open_stream`."""
        self._check()
        await self.exchange.send_all(wire.drain_session())

    async def wait_draining(self) -> None:
        """Wait until the peer asks to end the session, or it has ended."""
        while not self.is_draining and not self._is_over and self._http._error is None:
            await self._changed.park()

    async def close(self, code: int = 0, reason: str = "") -> None:
        """End the session and its streams with a code, below 2**32, and a reason of at most 1,024
        bytes in UTF-8. Raises ValueError. Idempotent: the first end counts."""
        capsule = wire.close_session(code, reason)
        if not self._is_over:
            self._finish(SessionEnd(code, reason))
            await self._send_end(capsule)

    async def _send_end(self, capsule: bytes) -> None:
        if self._has_closed:
            return
        self._has_closed = True
        try:
            if capsule:
                await self.exchange.send_all(capsule)
            await self.exchange.send_eof()
        except (self._router.broken_error, self._router.closed_error, RuntimeError) as error:
            logger.debug("%r: %s", self, error)

    def abort(self) -> None:
        """End the session without a code: reset its stream. Never blocks."""
        if not self._is_over:
            self._finish(None)
        self.exchange._close()

    async def wait_closed(self) -> SessionEnd:
        """Wait until the session ends, and return how. Raises SessionClosedError if it ended
        without a code, and what ended its connection."""
        while not self._is_over:
            self._http._check()
            await self._changed.park()
        if self._end is None:
            raise SessionClosedError(None)
        return self._end

    async def aclose(self) -> None:
        """Close the session with code 0."""
        await self.close()

    async def _on_block_end(self, *, aborts: bool) -> None:
        if aborts:
            self.abort()
        else:
            await self.close()

    # --- from the connection ---

    def _establish(self, protocol: str | None) -> None:
        """Begin: the server has accepted the session."""
        self.protocol = protocol
        self._is_established = True
        settings = self._http._settings
        assert settings is not None, "sessions are accepted and opened after the peer's settings"
        if wire.has_flow_control(settings):
            self._limits = SessionLimits(self.connection._side, settings)
            for stream in self._arrived:
                self._limits.limit(stream)
        self._http._spawn(self._read_capsules)

    def _leave(self) -> None:
        """Close the session, as the program has left it; never blocks."""
        if not self._is_established:
            self.exchange._close()
        elif not self._is_over:
            self._finish(SessionEnd(0, ""))
            try:
                self._http._spawn(self._send_end, wire.close_session(0, ""))
            except RuntimeError:  # the connection's tasks have ended
                self.exchange._close()

    def _finish(self, end: SessionEnd | None) -> None:
        """Note the end of the session, and end its streams."""
        if self._is_over:
            return
        self._is_over, self._end = True, end
        for stream in self._arrived:
            streams.refuse(stream, WebTransportCode.SESSION_GONE)
        for stream in list(self._streams):
            streams.end(stream, WebTransportCode.SESSION_GONE)
        self._arrived.clear()
        self._wake()

    def _wake(self) -> None:
        self._changed.unpark_all()
        self.exchange._wake()

    async def _read_capsules(self) -> None:
        """Read the session's own stream to its end."""
        capsules = wire.Capsules()
        is_ended = False
        try:
            while chunk := await self.exchange.receive_some(_CHUNK_BYTES):
                if is_ended:
                    raise wire.CapsuleError("data follows the end of a session")
                for kind, value in capsules.feed(chunk):
                    if kind == wire.CLOSE_SESSION:
                        is_ended = True
                        self._finish(SessionEnd(*wire.read_close(value)))
                    elif (limit := wire.read_limit(kind, value)) is None:
                        self.is_draining = True
                        self._changed.unpark_all()
                    elif self._limits is not None:
                        self._limits.on_capsule(kind, limit)
                        self._changed.unpark_all()
            if not capsules.is_complete:
                raise wire.CapsuleError("the stream of a session ends within a capsule")
            self._finish(SessionEnd(0, ""))
            await self._send_end(b"")
        except wire.CapsuleError as error:
            logger.debug("%r: %s", self, error)
            self.exchange.reset(error.code)
            self.exchange._stream.stop_sending(error.code)
        except (self._router.broken_error, self._router.closed_error) as error:
            logger.debug("%r: %s", self, error)
        self._finish(None)
        self.exchange._close()
