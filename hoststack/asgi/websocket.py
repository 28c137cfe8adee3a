"""A WebSocket over an extended CONNECT (RFC 9220), with frames by wsproto."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage
from wsproto.extensions import PerMessageDeflate
from wsproto.frame_protocol import CloseReason
from wsproto.handshake import server_extensions_handshake

from hoststack.asgi.exchange import GONE, DisconnectedError, Exchange, logger
from hoststack.asgi.scopes import BadRequestError
from hoststack.http3.errors import ErrorCode
from hoststack.http3.fields import Fields, to_bytes

# States, of the application's side.
_CONNECTING: Final = 0
_OPEN: Final = 1
_DENYING: Final = 2  #: websocket.http.response.start was sent
_CLOSED: Final = 3
_NEXT: Final = (
    "websocket.accept, websocket.close or websocket.http.response.start comes first",
    "websocket.send or websocket.close comes next",
    "websocket.http.response.body comes next",
    "the WebSocket is closed, and nothing comes after that",
)

_VERSION: Final = b"13"
_ABNORMAL: Final = 1006  #: RFC 6455 section 7.4.1: there was no close frame
_OK: Final = 200
_FORBIDDEN: Final = 403
#: Fed to wsproto at once: what is compressed may become a thousand times as large.
_SLICE_BYTES: Final = 4096
#: RFC 6455 section 5.5: the payload of a control frame, less the code.
_MAX_REASON_BYTES: Final = 123
#: How long the client's close frame is waited for.
_CLOSE_SECONDS: Final = 5.0
_OF_HANDSHAKE: Final = frozenset(
    (b"sec-websocket-protocol", b"sec-websocket-extensions", b"sec-websocket-accept")
)


class WebSocketExchange(Exchange):
    """One call of the application for a WebSocket."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        router = self.request.connection._router
        self._within = router.within
        self._state = _CONNECTING
        self._is_announced = False
        """The application has received websocket.connect."""
        self._frames = Connection(ConnectionType.SERVER)
        self._queue: deque[str | bytes] = deque()
        self._queued_bytes = 0
        self._changed = router.new_lot()
        """Tasks that wait for a message, for room in the queue, or for the end."""
        self._parts: list[Any] = []
        self._part_bytes = 0
        self._ending: tuple[int, str] | None = None
        """Code and reason, once nothing more can be received."""
        self._is_reading = False
        self._is_writing = False
        self._writable = router.new_lot()
        self._denial: tuple[int, Fields] = (0, [])
        self._denial_parts: list[bytes] = []

    def make_scope(self) -> dict[str, Any]:
        versions = [v for name, v in self.request.headers if name == b"sec-websocket-version"]
        if versions != [_VERSION]:
            fields = [(b"sec-websocket-version", _VERSION)]
            raise BadRequestError("sec-websocket-version is 13 here", fields)
        return self.peer.websocket_scope(self.request, self.core.state)

    # --- receiving ---

    async def receive(self) -> dict[str, Any]:
        if not self._is_announced:
            self._is_announced = True
            return {"type": "websocket.connect"}
        if self._state == _CONNECTING:
            await self.request.wait_gone()
            if self._state == _CONNECTING:
                self._end(_ABNORMAL)
                self.is_gone = True
        while not self._queue:
            if self._ending is not None:
                code, reason = self._ending
                return {"type": "websocket.disconnect", "code": code, "reason": reason}
            await self._changed.park()
        data = self._queue.popleft()
        self._queued_bytes -= len(data)
        self._changed.unpark_all()
        if isinstance(data, str):
            return {"type": "websocket.receive", "text": data}
        return {"type": "websocket.receive", "bytes": data}

    def _end(self, code: int, reason: str = "") -> None:
        if self._ending is None:
            self._ending = int(code), reason
            self._changed.unpark_all()

    async def _read(self) -> None:
        """Read frames until the WebSocket has ended; a task of its own."""
        try:
            while self._frames.state in (ConnectionState.OPEN, ConnectionState.LOCAL_CLOSING):
                data = await self._next_data()
                if not data:
                    break
                await self._on_data(data)
        except GONE as error:
            self._on_gone(error)
        finally:
            self._is_reading = False
            if self._ending is None:
                self.is_gone = True
            self._end(_ABNORMAL)
            self._changed.unpark_all()

    async def _next_data(self) -> bytes:
        """Return what the client sends next, b"" at the end; ping it while it sends nothing."""
        seconds = self.core.config.ping_seconds
        if seconds is None:
            return await self.request.receive_some()
        data: bytes | None = await self._within(seconds, self.request.receive_some())
        if data is None:
            if self._frames.state == ConnectionState.OPEN:
                await self._write(Ping())
            data = await self._within(seconds, self.request.receive_some())
        if data is None:
            logger.debug("%s: the client has not answered a ping", self)
            await self._close(CloseReason.INTERNAL_ERROR, "no answer to a ping")
            return b""
        return data

    async def _on_data(self, data: bytes) -> None:
        for start in range(0, len(data), _SLICE_BYTES):
            if self._frames.state not in (ConnectionState.OPEN, ConnectionState.LOCAL_CLOSING):
                break
            self._frames.receive_data(data[start : start + _SLICE_BYTES])
            for event in self._frames.events():
                if not await self._on_event(event):
                    return

    async def _on_event(self, event: Event) -> bool:
        """Act on a frame; returns whether more may follow."""
        if isinstance(event, TextMessage | BytesMessage):
            return await self._on_part(event)
        if isinstance(event, Ping):
            if self._frames.state == ConnectionState.OPEN:
                await self._write(event.response())
        elif isinstance(event, CloseConnection):
            if self._frames.state == ConnectionState.REMOTE_CLOSING:
                self._end(event.code, event.reason or "")
                await self._finish(event.response())
            elif self._frames.state == ConnectionState.OPEN:  # it broke a rule
                logger.debug("%s: the client broke WebSocket's rules: %s", self, event.reason)
                await self._close(event.code, event.reason or "")
            return False
        return True

    async def _on_part(self, event: TextMessage | BytesMessage) -> bool:
        self._part_bytes += len(event.data)
        config = self.core.config
        if self._part_bytes > config.max_message_bytes:
            logger.debug("%s: a message is above max_message_bytes", self)
            await self._close(CloseReason.MESSAGE_TOO_BIG, "the message is too large")
            return False
        self._parts.append(event.data)
        if event.message_finished:
            empty: Any = "" if isinstance(event, TextMessage) else b""
            message = empty.join(self._parts)
            self._parts, self._part_bytes = [], 0
            while self._ending is None and (
                len(self._queue) >= config.max_queued_messages
                or self._queued_bytes > config.max_message_bytes
            ):
                await self._changed.park()
            self._queue.append(message)
            self._queued_bytes += len(message)
            self._changed.unpark_all()
        return True

    # --- sending ---

    async def send(self, message: Any) -> None:
        try:
            kind = message["type"]
        except (TypeError, KeyError):
            raise self._no_kind(message) from None
        state = self._state
        if self.is_gone or (state == _OPEN and self._ending is not None):
            raise DisconnectedError
        try:
            if kind == "websocket.send" and state == _OPEN:
                await self._send_message(message.get("bytes"), message.get("text"))
            elif kind == "websocket.accept" and state == _CONNECTING:
                await self._accept(message)
            elif kind == "websocket.close" and state == _CONNECTING:
                await self._deny(_FORBIDDEN, [], b"")
            elif kind == "websocket.close" and state == _OPEN:
                self._state = _CLOSED
                await self._close(message.get("code", 1000), message.get("reason") or "")
            elif kind == "websocket.http.response.start" and state == _CONNECTING:
                status = self._status_of(message)
                self._denial = status, self._made(message.get("headers", ()))
                self._state = _DENYING
                self.is_waiting = False
            elif kind == "websocket.http.response.body" and state == _DENYING:
                self._denial_parts.append(bytes(message.get("body", b"")))
                if not message.get("more_body", False):
                    await self._deny(*self._denial, b"".join(self._denial_parts))
            else:
                raise self._out_of_order(kind, _NEXT[state])
        except GONE as error:
            self._on_gone(error)
            self._end(_ABNORMAL)
            raise DisconnectedError from error

    async def _accept(self, message: Any) -> None:
        fields = [
            field
            for field in self._made(message.get("headers") or ())
            if field[0] not in _OF_HANDSHAKE
        ]
        subprotocol = message.get("subprotocol")
        if subprotocol is not None:
            fields.append((b"sec-websocket-protocol", to_bytes(subprotocol)))
        if self.core.config.websocket_compression:
            accepted = self._agree()
            if accepted is not None:
                fields.append((b"sec-websocket-extensions", accepted))
        self.status = _OK
        await self.request.send_headers(_OK, fields)
        self._state = _OPEN
        self.is_waiting = False
        self._is_reading = True
        self.core.spawn(self._read)

    def _agree(self) -> bytes | None:
        """Choose the extensions; returns what the client is told."""
        offers = [
            offer.strip()
            for name, value in self.request.headers
            if name == b"sec-websocket-extensions"
            for offer in value.decode("latin-1").split(",")
        ]
        deflate = PerMessageDeflate()
        try:
            accepted = server_extensions_handshake(offers[:1], [deflate])
        except ValueError:  # an offer with an invalid parameter
            return None
        if accepted is not None:
            self._frames = Connection(ConnectionType.SERVER, [deflate])
        return accepted

    async def _send_message(self, data: Any, text: Any) -> None:
        if data is not None:
            if not isinstance(data, bytes | bytearray | memoryview):
                raise TypeError(f"websocket.send has bytes as `bytes`, not {type(data).__name__}")
            await self._write(BytesMessage(data=bytes(data)))
            self.sent_bytes += len(data)
        elif isinstance(text, str):
            await self._write(TextMessage(data=text))
            self.sent_bytes += len(text)
        else:
            raise TypeError("websocket.send has either `bytes` or `text`")

    async def _deny(self, status: int, fields: Fields, body: bytes) -> None:
        self.status = status
        self._state = _CLOSED
        self.is_waiting = False
        await self.request.respond(status, fields or self._made(()), body)
        self.sent_bytes = len(body)
        self.is_complete = True
        self._end(_ABNORMAL)
        self.log()
        self.request.close()

    async def _write(self, event: Event, *, is_last: bool = False) -> None:
        """Send a frame, whole and after the others."""
        while self._is_writing:
            await self._writable.park()
        self._is_writing = True
        try:
            await self.request.send_all(self._frames.send(event))
            if is_last:
                await self.request.send_eof()
        finally:
            self._is_writing = False
            self._writable.unpark(count=1)

    async def _close(self, code: int, reason: str) -> None:
        """Send a close frame, and end the stream."""
        cut = reason.encode()[:_MAX_REASON_BYTES].decode(errors="ignore")
        self._end(code, reason)
        await self._finish(CloseConnection(code=code, reason=cut))

    async def _finish(self, event: Event) -> None:
        """Send the close frame, unless one was sent, and end the stream."""
        if self._frames.state in (ConnectionState.OPEN, ConnectionState.REMOTE_CLOSING):
            await self._write(event, is_last=True)

    # --- the end ---

    async def on_returned(self) -> None:
        if self._state in (_CONNECTING, _DENYING):
            if not self.is_gone:
                logger.error(
                    "%s: the application returned without an answer, and 500 is sent: have it send "
                    "websocket.accept or websocket.close",
                    self,
                )
                await self.answer(500, "Internal Server Error")
            return
        await self._leave(CloseReason.NORMAL_CLOSURE)

    async def on_failed(self, error: BaseException) -> None:
        if self._state in (_CONNECTING, _DENYING) or self.is_complete:
            await super().on_failed(error)
            return
        if self._ending is not None:
            logger.debug("%s: the application ended with its client: %r", self, error)
            await self._leave(CloseReason.NORMAL_CLOSURE)
            return
        logger.error("%s: the application failed, 1011 is sent", self, exc_info=error)
        await self._leave(CloseReason.INTERNAL_ERROR)

    def on_server_leaving(self) -> None:
        if self._state == _OPEN:
            self.core.spawn(self._restart)

    async def _restart(self) -> None:
        """Ask the client to come back."""
        try:
            await self._close(CloseReason.SERVICE_RESTART, "")
        except GONE as error:
            self._on_gone(error)

    async def _leave(self, code: int) -> None:
        """Close the WebSocket, and wait for the client's close frame."""
        try:
            if self._state == _OPEN and self._ending is None:
                await self._close(code, "")
            if self._is_reading:
                await self._within(_CLOSE_SECONDS, self._until_read())
        except GONE as error:
            self._on_gone(error)

    async def _until_read(self) -> None:
        while self._is_reading:
            await self._changed.park()

    def close(self) -> None:
        if self._is_reading:
            self.request.reset(ErrorCode.REQUEST_CANCELLED)
        super().close()
