"""A WebTransport session of an application, by messages as those of a WebSocket.

ASGI has no such scope yet: names and shapes are those that servers and frameworks have in common.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from hoststack.api.about_stream import AboutReceiving, AboutSending
from hoststack.api.errors import StreamResetError, StreamStoppedError
from hoststack.asgi.exchange import GONE, DisconnectedError, Exchange, logger
from hoststack.http3.webtransport import streams
from hoststack.http3.webtransport.session import Session

# States, of the application's side.
_CONNECTING: Final = 0
_OPEN: Final = 1
_CLOSED: Final = 2
_NEXT: Final = (
    "webtransport.accept or webtransport.close comes first",
    "webtransport.stream.*, webtransport.datagram.send or webtransport.close comes next",
    "the session is closed, and nothing comes after that",
)

_CHUNK_BYTES: Final = 65536
_OK: Final = 200
_FORBIDDEN: Final = 403
#: As WebSocket's codes for the same (RFC 6455 section 7.4.1); WebTransport defines none.
_FAILED: Final = 1011
_RESTART: Final = 1012


class _Open:
    """A stream of the session that is not over."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.can_send = isinstance(stream, AboutSending)
        self.can_receive = isinstance(stream, AboutReceiving)


class WebTransportExchange(Exchange):
    """One call of the application for a session."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._state = _CONNECTING
        self._session: Session | None = None
        self._is_announced = False
        """The application has received webtransport.connect."""
        self._open: dict[int, _Open] = {}
        """By stream ID."""
        self._queue: deque[dict[str, Any]] = deque()
        self._changed = self.request.connection._router.new_lot()
        """Tasks that wait for a message, for room in the queue, or for the end."""
        self._ending: tuple[int, str] | None = None
        self._verbs: dict[str, Callable[[Any], Awaitable[None]]] = {
            "webtransport.stream.send": self._send,
            "webtransport.stream.open": self._open_stream,
            "webtransport.stream.reset": self._reset,
            "webtransport.stream.stop": self._stop,
            "webtransport.datagram.send": self._send_datagram,
            "webtransport.close": self._close,
        }

    def make_scope(self) -> dict[str, Any]:
        return self.peer.webtransport_scope(self.request, self.core.state)

    # --- receiving ---

    async def receive(self) -> dict[str, Any]:
        if not self._is_announced:
            self._is_announced = True
            return {"type": "webtransport.connect"}
        if self._state == _CONNECTING:
            await self.request.wait_gone()
            if self._state == _CONNECTING:
                self.is_gone = True
                self._end(0, "")
        while not self._queue:
            if self._ending is not None:
                code, reason = self._ending
                return {"type": "webtransport.disconnect", "code": code, "reason": reason}
            await self._changed.park()
        message = self._queue.popleft()
        self._changed.unpark_all()
        return message

    async def _put(self, kind: str, **fields: Any) -> None:
        """Queue a message for the application; waits for room, so that the client does."""
        while self._ending is None and len(self._queue) >= self.core.config.max_queued_messages:
            await self._changed.park()
        if self._ending is None:
            self._tell(kind, **fields)

    def _tell(self, kind: str, **fields: Any) -> None:
        """Queue the answer to what the application sends, which can't wait for itself."""
        self._queue.append({"type": f"webtransport.{kind}", **fields})
        self._changed.unpark_all()

    def _end(self, code: int, reason: str) -> None:
        if self._ending is None:
            self._ending = code, reason
            self._changed.unpark_all()

    async def _follow(self, session: Session) -> None:
        """Wait for the session's end."""
        try:
            self._end(*await session.wait_closed())
        except GONE as error:
            self._on_gone(error)
            self._end(0, "")

    async def _take_streams(self, session: Session) -> None:
        try:
            async for stream in session.streams():
                self._add(stream)
        except GONE as error:
            logger.debug("%s: %s", self, error)

    async def _take_datagrams(self, session: Session) -> None:
        try:
            async for data in session.datagrams():
                await self._put("datagram.receive", data=data)
        except GONE as error:
            logger.debug("%s: %s", self, error)

    def _add(self, stream: Any) -> None:
        made = self._open[stream.stream_id] = _Open(stream)
        if made.can_receive:
            self.core.spawn(partial(self._read, stream.stream_id, made))

    async def _read(self, number: int, open_: _Open) -> None:
        """Read a stream to its end; a task of its own."""
        more = True
        try:
            while more:
                data = await streams.receive(open_.stream, _CHUNK_BYTES)
                more = bool(data)
                await self._put("stream.receive", stream=number, data=data, more_data=more)
        except StreamResetError as error:
            await self._put("stream.reset", stream=number, code=error.code)
        except GONE as error:
            logger.debug("%s: %s", self, error)
        open_.can_receive = False
        self._forget_if_over(number)

    def _forget_if_over(self, number: int) -> None:
        open_ = self._open.get(number)
        if open_ is not None and not open_.can_send and not open_.can_receive:
            del self._open[number]
            open_.stream._close()

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
            if state == _OPEN and kind in self._verbs:
                await self._verbs[kind](message)
            elif state == _CONNECTING and kind == "webtransport.accept":
                await self._accept(message)
            elif state == _CONNECTING and kind == "webtransport.close":
                await self._refuse()
            else:
                raise self._out_of_order(kind, _NEXT[state])
        except StreamStoppedError as error:
            self._on_stopped(message["stream"], error.code)
        except GONE as error:
            self._on_gone(error)
            self._end(0, "")
            raise DisconnectedError from error

    async def _accept(self, message: Any) -> None:
        fields = self._made(message.get("headers") or ())
        session = await self.request.accept_webtransport(
            fields, protocol=message.get("subprotocol")
        )
        self.status = _OK
        self._session = session
        self._state = _OPEN
        self.is_waiting = False
        for task in (self._follow, self._take_streams, self._take_datagrams):
            self.core.spawn(partial(task, session))

    async def _refuse(self) -> None:
        self._state = _CLOSED
        self.is_waiting = False
        await self.answer(_FORBIDDEN)
        self.is_complete = True
        self._end(0, "")

    async def _close(self, message: Any) -> None:
        self._state = _CLOSED
        await self._end_session(message.get("code", 0), message.get("reason") or "")

    async def _end_session(self, code: int, reason: str) -> None:
        assert self._session is not None
        await self._session.close(code, reason)
        self._end(code, reason)

    def _sending(self, message: Any) -> _Open:
        open_ = self._open.get(message["stream"])
        if open_ is None or not open_.can_send:
            raise ValueError(f"nothing can be sent on stream {message['stream']!r}")
        return open_

    async def _send(self, message: Any) -> None:
        open_, data = self._sending(message), message.get("data", b"")
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"`data` is bytes, not {type(data).__name__}")
        await streams.send(open_.stream, bytes(data))
        self.sent_bytes += len(data)
        if not message.get("more_data", True):
            streams.finish(open_.stream)
            self._on_sent(message["stream"], open_)

    def _on_sent(self, number: int, open_: _Open) -> None:
        open_.can_send = False
        self._forget_if_over(number)

    def _on_stopped(self, number: int, code: int) -> None:
        """The client wants no more of a stream."""
        open_ = self._open.get(number)
        if open_ is not None and open_.can_send:
            open_.stream.reset(code)
            self._on_sent(number, open_)
        self._tell("stream.stop", stream=number, code=code)

    async def _open_stream(self, message: Any) -> None:
        assert self._session is not None
        stream = await self._session.open_stream(
            unidirectional=bool(message.get("unidirectional", False))
        )
        self._add(stream)
        self._tell("stream.opened", stream=stream.stream_id, id=message.get("id"))

    async def _reset(self, message: Any) -> None:
        open_ = self._sending(message)
        open_.stream.reset(message.get("code", 0))
        self._on_sent(message["stream"], open_)

    async def _stop(self, message: Any) -> None:
        open_ = self._open.get(message["stream"])
        if open_ is None or not open_.can_receive:
            raise ValueError(f"nothing can be received on stream {message['stream']!r}")
        open_.stream.stop_sending(message.get("code", 0))

    async def _send_datagram(self, message: Any) -> None:
        assert self._session is not None
        await self._session.send_datagram(bytes(message["data"]))

    # --- the end ---

    async def on_returned(self) -> None:
        if self._state == _CONNECTING:
            if not self.is_gone:
                logger.error(
                    "%s: the application returned without an answer, and 500 is sent: have it send "
                    "webtransport.accept or webtransport.close",
                    self,
                )
                await self.answer(500, "Internal Server Error")
            return
        await self._leave(0)

    async def on_failed(self, error: BaseException) -> None:
        if self._state == _CONNECTING or self.is_complete:
            await super().on_failed(error)
            return
        if self._ending is not None:
            logger.debug("%s: the application ended with its client: %r", self, error)
        else:
            logger.error("%s: the application failed, code 1011 is sent", self, exc_info=error)
        await self._leave(_FAILED)

    def on_server_leaving(self) -> None:
        if self._state == _OPEN:
            self.core.spawn(partial(self._leave, _RESTART))

    async def _leave(self, code: int) -> None:
        """Close the session, unless it is closed."""
        self._state = _CLOSED
        try:
            await self._end_session(code, "")
        except GONE as error:
            self._on_gone(error)
