"""A WebSocket over an extended CONNECT (RFC 9220), with frames by wsproto."""

from __future__ import annotations

import io
from typing import Any, Final

from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage
from wsproto.extensions import PerMessageDeflate
from wsproto.frame_protocol import CloseReason
from wsproto.handshake import server_extensions_handshake

from hoststack.asgi.conversation import (
    CLOSED,
    CONNECTING,
    DENYING,
    FORBIDDEN,
    OK,
    OPEN,
    Conversation,
    Verbs,
)
from hoststack.asgi.exchange import GONE, DisconnectedError, checked_bytes, logger
from hoststack.asgi.scopes import BadRequestError
from hoststack.http3.errors import ErrorCode
from hoststack.http3.fields import Fields, to_bytes

_VERSION: Final = b"13"
_ABNORMAL: Final = 1006  #: RFC 6455 section 7.4.1: there was no close frame
#: Fed to wsproto at once: what is compressed may become a thousand times as large.
_SLICE_BYTES: Final = 4096
#: RFC 6455 section 5.5: the payload of a control frame, less the code.
_MAX_REASON_BYTES: Final = 123
#: RFC 6455 section 7.4: of a close frame.
_CODES: Final = range(1000, 5000)
#: How long the client's close frame is waited for.
_CLOSE_SECONDS: Final = 5.0
_OF_HANDSHAKE: Final = frozenset(
    (b"sec-websocket-protocol", b"sec-websocket-extensions", b"sec-websocket-accept")
)


class WebSocketExchange(Conversation):
    """One call of the application for a WebSocket."""

    _kind = "websocket"
    _next = {  # noqa: RUF012 (never changed)
        CONNECTING: "websocket.accept, websocket.close or websocket.http.response.start comes "
        "first",
        DENYING: "websocket.http.response.body comes next",
        OPEN: "websocket.send or websocket.close comes next",
        CLOSED: "the WebSocket is closed, and nothing comes after that",
    }
    _normal = CloseReason.NORMAL_CLOSURE
    _abnormal = _ABNORMAL

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        router = self.request.connection._router
        self._within = router.within
        self._frames = Connection(ConnectionType.SERVER)
        self._queued_bytes = 0
        self._part: io.StringIO | io.BytesIO | None = None
        """The beginning of a message, as far as it has arrived."""
        self._part_bytes = 0
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

    def _take(self) -> dict[str, Any]:
        data: str | bytes = self._queue.popleft()
        self._queued_bytes -= len(data)
        return {
            "type": "websocket.receive",
            "text" if isinstance(data, str) else "bytes": data,
        }

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
        self._part_bytes += _size_of(event.data)
        config = self.core.config
        if self._part_bytes > config.max_message_bytes:
            logger.debug("%s: a message is above max_message_bytes", self)
            await self._close(CloseReason.MESSAGE_TOO_BIG, "the message is too large")
            return False
        if self._part is None:
            self._part = io.StringIO(newline="") if isinstance(event, TextMessage) else io.BytesIO()
        part: Any = self._part  # of any number of frames, also empty ones, one piece
        part.write(event.data)
        if event.message_finished:
            message = part.getvalue()
            self._part, self._part_bytes = None, 0
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

    def _verbs(self, state: int) -> Verbs:
        if state == OPEN:
            return {"websocket.send": self._send_message, "websocket.close": self._on_close}
        if state == DENYING:
            return {"websocket.http.response.body": self._continue_denial}
        if state == CLOSED:
            return {}
        return {
            "websocket.accept": self._accept,
            "websocket.close": self._forbid,
            "websocket.http.response.start": self._begin_denial,
        }

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
        self.status = OK
        await self.request.send_headers(OK, fields)
        self._state = OPEN
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

    async def _send_message(self, message: Any) -> None:
        data, text = message.get("bytes"), message.get("text")
        if data is not None:
            await self._write(BytesMessage(data=bytes(checked_bytes(data, "bytes"))))
            self.sent_bytes += len(data)
        elif isinstance(text, str):
            await self._write(TextMessage(data=text))
            self.sent_bytes += len(text)
        else:
            raise TypeError("websocket.send has either `bytes` or `text`")

    async def _forbid(self, message: Any) -> None:
        await self._deny(FORBIDDEN, [], b"")

    async def _begin_denial(self, message: Any) -> None:
        self._denial = self._status_of(message), self._made(message.get("headers", ()))
        self._state = DENYING
        self.is_waiting = False

    async def _continue_denial(self, message: Any) -> None:
        self._denial_parts.append(bytes(checked_bytes(message.get("body", b""), "body")))
        if not message.get("more_body", False):
            await self._deny(*self._denial, b"".join(self._denial_parts))

    async def _deny(self, status: int, fields: Fields, body: bytes) -> None:
        self.status = status
        self._state = CLOSED
        self.is_waiting = False
        await self.request.respond(status, fields or self._made(()), body)
        self.sent_bytes = len(body)
        self.is_complete = True
        self._end(_ABNORMAL)
        self.log()
        self.request.close()

    async def _write(self, event: Event, *, is_last: bool = False) -> None:
        """Send a frame, whole and after the others. Raises DisconnectedError if a close frame was
        sent or received before its turn."""
        while self._is_writing:
            await self._writable.park()
        if not self._may_send(event):
            raise DisconnectedError
        self._is_writing = True
        try:
            await self.request.send_all(self._frames.send(event))
            if is_last:
                await self.request.send_eof()
        finally:
            self._is_writing = False
            self._writable.unpark(count=1)

    def _may_send(self, event: Event) -> bool:
        state = self._frames.state
        is_answer = isinstance(event, CloseConnection) and state == ConnectionState.REMOTE_CLOSING
        return state == ConnectionState.OPEN or is_answer

    def _check_close(self, code: int, reason: str) -> None:
        if code not in _CODES:
            raise ValueError(f"the code of a close frame is 1000 to 4999, not {code}")
        reason.encode()

    async def _close(self, code: int, reason: str) -> None:
        """Send a close frame, and end the stream."""
        cut = reason.encode()[:_MAX_REASON_BYTES].decode(errors="ignore")
        self._end(code, reason)
        await self._finish(CloseConnection(code=code, reason=cut))

    async def _finish(self, event: Event) -> None:
        """Send the close frame, unless one was sent, and end the stream."""
        if self._may_send(event):
            await self._write(event, is_last=True)

    # --- the end ---

    async def _leave(self, code: int) -> None:
        """Close the WebSocket, and wait for the client's close frame."""
        await super()._leave(code)
        if self._is_reading:
            await self._within(_CLOSE_SECONDS, self._until_read())

    async def _until_read(self) -> None:
        while self._is_reading:
            await self._changed.park()

    def close(self) -> None:
        if self._is_reading:
            self.request.reset(ErrorCode.REQUEST_CANCELLED)
        super().close()


def _size_of(data: str | bytes | bytearray) -> int:
    """Return the size in bytes, of a text in UTF-8."""
    return len(data.encode()) if isinstance(data, str) and not data.isascii() else len(data)
