"""A connection of HTTP/3, in every loop: its streams, what they bring, and its end."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

import trio

from hoststack.api.about_stream import HINTS, RESET, WAIT
from hoststack.http3.config import Http3Config
from hoststack.http3.errors import ErrorCode, NotSupportedError, ProtocolError
from hoststack.http3.exchange import CHUNK_BYTES, Exchange
from hoststack.http3.seam import FAILED, FULL, Event, Kind, Layer, Written
from hoststack.http3.webtransport.sessions import Sessions
from hoststack.http3.webtransport.wire import number

logger = logging.getLogger(__name__)

#: The protocol's name in TLS.
ALPN: Final = "h3"

_CRITICAL_STREAMS: Final = 3
#: A peer's unidirectional streams beside those, over a connection: reserved types, so few.
_MAX_OTHER_STREAMS: Final = 64
_SETTING_CONNECT_PROTOCOL: Final = 0x08
_SETTING_DATAGRAM: Final = 0x33
_NGHTTP3: Final = "hoststack.native.http3._http3"
_CLEAN_CODES: Final = (0, ErrorCode.NO_ERROR)

#: What ends a connection or a stream, in every loop.
LOST: Final = (trio.BrokenResourceError, ConnectionError)

Spawn = Callable[..., object]
#: A block with tasks of its own, which end with it.
Tasks = Callable[[], AbstractAsyncContextManager[Spawn]]


def available_layers() -> list[str]:
    """Return the layers that this installation has, the preferred one first."""
    has_nghttp3 = importlib.util.find_spec(_NGHTTP3) is not None
    return ["nghttp3", "aioquic"] if has_nghttp3 else ["aioquic"]


def make_layer(config: Http3Config, *, is_server: bool) -> Layer:
    """Return what knows the protocol, for a connection."""
    if available_layers()[0] == "nghttp3":
        from hoststack.http3.with_nghttp3 import Nghttp3Layer

        return Nghttp3Layer(config, is_server=is_server)
    from hoststack.http3.with_aioquic import AioquicLayer

    return AioquicLayer(config, is_server=is_server)


class AboutHttp3Connection:
    """Base of servers' and clients' connections."""

    _is_server: bool

    def __init__(self, connection: Any, config: Http3Config, spawn: Spawn) -> None:
        """`spawn(function, *arguments)` runs an asynchronous function in a task."""
        self.connection = connection
        """The QUIC connection."""
        self.config = config
        self._router = connection._router
        self._spawn = spawn
        self._layer = make_layer(config, is_server=self._is_server)
        self._error: Exception | None = None
        """Why the connection can't go on."""
        self._streams: dict[int, Any] = {}
        self._exchanges: dict[int, Exchange] = {}
        self._other_streams = 0
        self._datagram_bytes = 0
        """That wait for the program."""
        self._settings: dict[int, int] | None = None
        self._goaway: int | None = None
        """Identifier of the last GOAWAY from the peer."""
        self._webtransport = Sessions(self) if config.webtransport_sessions else None
        self._changed = self._router.new_lot()
        """Tasks that wait for settings, for the last exchange to end, for the connection's end."""

    async def start(self) -> None:
        """Open this side's streams, and begin to read the peer's. Raises ConnectionClosedError."""
        critical = [
            await self.connection.open_stream(unidirectional=True) for _ in range(_CRITICAL_STREAMS)
        ]
        self._streams.update((stream.stream_id, stream) for stream in critical)
        self._layer.bind(critical)
        self._flush()
        self._spawn(self._accept_streams)
        if self.config.has_datagrams:
            self._spawn(self._accept_datagrams)

    def close_now(self, code: int = ErrorCode.NO_ERROR, reason: str = "") -> None:
        """Close the connection at once with a code; never blocks."""
        self.connection.close_now(code, reason)

    async def _checkpoint(self) -> None:
        """Let other tasks run, in one of many calls."""
        if self._router.must_yield():
            await self._router.shielded_checkpoint()

    # --- what the peer opens ---

    async def _accept_streams(self) -> None:
        try:
            async for stream in self.connection.streams():
                self._on_stream(stream)
            self._on_end(self._router.closed_error("this connection was closed"))
        except LOST as error:
            self._on_end(error)

    def _on_stream(self, stream: Any) -> None:
        self._streams[stream.stream_id] = stream
        if stream.stream_id & 2:
            self._read_beside(stream)
        else:
            self._on_request_stream(stream)

    def _read_beside(self, stream: Any) -> None:
        """Read a stream that is no request's."""
        self._other_streams += 1
        if self._other_streams > _CRITICAL_STREAMS + _MAX_OTHER_STREAMS:
            self._fail(ProtocolError.of(ErrorCode.EXCESSIVE_LOAD, "too many streams"))
        else:
            self._layer.add(stream)
            self._spawn(self._read_to_end, stream)

    def _on_request_stream(self, stream: Any) -> None:
        raise NotImplementedError

    async def _read_to_end(self, stream: Any) -> None:
        """Read a stream of the peer to its end, for critical ones that of the connection; or until
        it belongs to a session."""
        try:
            result = WAIT
            while result == WAIT or result > 0:
                result = self._read(stream, CHUNK_BYTES)
                self._flush()
                if stream.stream_id not in self._streams:
                    return
                if result == WAIT:
                    await stream._wait_for_bytes()
            if result in (0, RESET):  # of a stream that nobody needs
                self._layer.close(stream.stream_id, ErrorCode.NO_ERROR)
                self._streams.pop(stream.stream_id, None)
                stream._close()
        except LOST as error:
            logger.debug("%r: %s", self.connection, error)

    def _read(self, stream: Any, max_bytes: int) -> int:
        """Read a stream, and act on what it brought. Raises ProtocolError."""
        result = self._layer.read(stream.stream_id, max_bytes)
        for event in self._layer.events():
            if event.kind == Kind.WEBTRANSPORT:
                self._on_session_stream(stream, event.code)
            else:
                self._on_event(event)
        if result > 0 and result >> HINTS:
            stream._act(result)
        elif result == FAILED:
            assert self._layer.error is not None
            raise self._fail(self._layer.error)
        return result

    def _on_event(self, event: Event) -> None:
        if event.kind == Kind.GOAWAY:
            self._goaway = event.code
            self._on_goaway(event.code)
        elif event.kind == Kind.SETTINGS:
            self._settings = event.settings
            self._changed.unpark_all()
        else:
            stream = self._streams.get(event.stream_id)
            if stream is None:
                return
            if event.kind == Kind.STOP:
                stream.stop_sending(event.code)
            elif event.kind == Kind.RESET:
                self._layer.abandon(event.stream_id)
                stream.reset(event.code)
            exchange = self._exchanges.get(event.stream_id)
            if exchange is not None:
                exchange._on_event(event)

    def _on_session_stream(self, stream: Any, session_id: int) -> None:
        """Give a stream of which the head was read to its session."""
        assert self._webtransport is not None
        exchange = self._exchanges.pop(stream.stream_id, None)
        del self._streams[stream.stream_id]
        self._layer.close(stream.stream_id, ErrorCode.NO_ERROR)
        if exchange is None:
            self._other_streams -= 1
        else:
            exchange._is_closed = True
            self._datagram_bytes -= sum(map(len, exchange._datagrams or ()))
            self._on_forgotten()
        self._webtransport.on_stream(stream, session_id)

    def _on_goaway(self, identifier: int) -> None:
        """Act on a GOAWAY."""

    # --- writing ---

    def _flush(self) -> None:
        """Write what the layer has to send. Raises ProtocolError."""
        self._on_written(self._layer.write())

    def _on_written(self, written: list[Written]) -> None:
        """Act on what the layer wrote. Raises ProtocolError."""
        for stream_id, state, hints in written:
            stream = self._streams.get(stream_id)
            if stream is None:
                continue
            exchange = self._exchanges.get(stream_id)
            if exchange is not None:
                exchange._on_written(state)
            elif state == FULL:
                self._spawn(self._make_room, stream)
            if hints:
                stream._act(hints << HINTS)
        if self._error is None and self._layer.error is not None:
            raise self._fail(self._layer.error)

    def _flush_quietly(self) -> None:
        try:
            self._flush()
        except LOST as error:
            logger.debug("%r: %s", self.connection, error)

    def _on_starving(self, exchange: Exchange) -> None:
        """A message's reader waits for the peer."""

    def _on_full(self, exchange: Exchange) -> None:
        """A message waits until the peer reads more of it."""

    def _on_room(self, exchange: Exchange) -> None:
        """The peer may have read some of it."""

    def _on_sent(self, exchange: Exchange) -> None:
        """The message waits no more."""

    def _unblock(self, exchange: Exchange) -> None:
        exchange._is_full = False
        self._layer.unblock(exchange.stream_id)
        self._flush()

    async def _make_room(self, stream: Any) -> None:
        """Go on with a critical stream when it has room again."""
        await stream._wait_for_room()
        self._layer.unblock(stream.stream_id)
        self._flush_quietly()

    # --- the end ---

    def _check(self) -> None:
        """Raise if the connection can't go on."""
        if self._error is not None:
            raise self._error

    def _fail(self, error: ProtocolError) -> ProtocolError:
        """Close the connection: the peer broke a rule. Returns the error."""
        if self._error is None:
            self.connection.close_now(error.code, error.reason)
            self._on_end(error)
        return error

    def _on_end(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
        for exchange in list(self._exchanges.values()):
            exchange._wake()
        if self._webtransport is not None:
            self._webtransport.on_end()
        self._changed.unpark_all()

    def _has_ended_cleanly(self) -> bool:
        info = self.connection.close_info
        if isinstance(self._error, ProtocolError):
            return False
        if isinstance(self._error, self._router.closed_error):
            return True  # this side's program closed it
        return info is None or (
            info.code in _CLEAN_CODES and (info.is_application or not info.code)
        )

    def _forget(self, exchange: Exchange) -> None:
        """Take leave of an exchange that was closed."""
        stream_id = exchange.stream_id
        del self._exchanges[stream_id]
        self._datagram_bytes -= sum(map(len, exchange._datagrams or ()))
        stream = self._streams.pop(stream_id)
        self._layer.close(stream_id, ErrorCode.NO_ERROR)
        stream._close()
        if exchange._receiving_error is not None or not exchange._has_all:
            self._flush_quietly()  # QPACK's Stream Cancellation
        if self._webtransport is not None:
            self._webtransport.forget(stream_id)
        self._on_forgotten()

    def _on_forgotten(self) -> None:
        """An exchange is gone."""
        if not self._exchanges:
            self._changed.unpark_all()

    # --- settings and datagrams ---

    async def _wait_for_settings(self) -> dict[int, int]:
        while self._settings is None:
            self._check()
            await self._changed.park()
        return self._settings

    async def _send_datagram(self, stream_id: int, data: bytes) -> None:
        settings = await self._wait_for_settings()
        if not self.config.has_datagrams or not settings.get(_SETTING_DATAGRAM):
            raise NotSupportedError("HTTP datagrams are not enabled on both sides")
        await self.connection.send_datagram(number(stream_id >> 2) + data)

    async def _accept_datagrams(self) -> None:
        try:
            async for datagram in self.connection.datagrams():
                self._on_datagram(datagram)
        except LOST as error:
            logger.debug("%r: %s", self.connection, error)

    def _on_datagram(self, datagram: bytes) -> None:
        size = 1 << (datagram[0] >> 6) if datagram else 0
        quarter = int.from_bytes(datagram[:size]) & ((1 << (8 * size - 2)) - 1) if size else 0
        if not size or len(datagram) < size or quarter >= 1 << 60:
            raise self._fail(ProtocolError.of(ErrorCode.DATAGRAM_ERROR, "no valid stream ID"))
        exchange = self._exchanges.get(quarter << 2)
        if exchange is not None:
            exchange._on_datagram(datagram[size:])
        elif self._webtransport is not None:
            self._webtransport.on_early_datagram(quarter << 2, datagram[size:])
