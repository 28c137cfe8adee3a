"""A WebTransport session of an application, by messages as those of a WebSocket.

ASGI has no such scope yet: names and shapes are those that servers and frameworks have in common.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from hoststack.api.about_stream import AboutReceiving, AboutSending
from hoststack.api.errors import StreamResetError, StreamStoppedError
from hoststack.asgi.conversation import (
    CLOSED,
    CONNECTING,
    FORBIDDEN,
    OK,
    OPEN,
    Conversation,
    Verbs,
)
from hoststack.asgi.exchange import GONE, checked_bytes, logger
from hoststack.http3.webtransport import streams, wire
from hoststack.http3.webtransport.session import Session

_CHUNK_BYTES: Final = 65536


class _Open:
    """A stream of the session that is not over."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.can_send = isinstance(stream, AboutSending)
        self.can_receive = isinstance(stream, AboutReceiving)


class WebTransportExchange(Conversation):
    """One call of the application for a session."""

    _kind = "webtransport"
    _next = {  # noqa: RUF012 (never changed)
        CONNECTING: "webtransport.accept or webtransport.close comes first",
        OPEN: "webtransport.stream.*, webtransport.datagram.send or webtransport.close comes next",
        CLOSED: "the session is closed, and nothing comes after that",
    }
    _normal = 0
    _abnormal = 0

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._session: Session | None = None
        self._open: dict[int, _Open] = {}
        """By stream ID."""
        self._by_state: dict[int, Verbs] = {
            CONNECTING: {
                "webtransport.accept": self._accept,
                "webtransport.close": self._refuse,
            },
            OPEN: {
                "webtransport.stream.send": self._send,
                "webtransport.stream.open": self._open_stream,
                "webtransport.stream.reset": self._reset,
                "webtransport.stream.stop": self._stop,
                "webtransport.datagram.send": self._send_datagram,
                "webtransport.close": self._on_close,
            },
        }

    def make_scope(self) -> dict[str, Any]:
        return self.peer.webtransport_scope(self.request, self.core.state)

    # --- receiving ---

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

    async def _follow(self, session: Session) -> None:
        """Wait for the session's end."""
        try:
            self._end(*await session.wait_closed())
        except GONE as error:
            self._on_gone(error)
            self._end(self._abnormal)

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

    def _verbs(self, state: int) -> Verbs:
        return self._by_state.get(state, {})

    async def _accept(self, message: Any) -> None:
        fields = self._made(message.get("headers") or ())
        session = await self.request.accept_webtransport(
            fields, protocol=message.get("subprotocol")
        )
        self.status = OK
        self._session = session
        self._state = OPEN
        self.is_waiting = False
        for task in (self._follow, self._take_streams, self._take_datagrams):
            self.core.spawn(partial(task, session))

    async def _refuse(self, message: Any) -> None:
        self._state = CLOSED
        self.is_waiting = False
        await self.answer(FORBIDDEN)
        self.is_complete = True
        self._end(self._normal)

    def _check_close(self, code: int, reason: str) -> None:
        wire.close_session(code, reason)

    async def _close(self, code: int, reason: str) -> None:
        assert self._session is not None
        await self._session.close(code, reason)
        self._end(code, reason)

    def _sending(self, message: Any) -> _Open | None:
        """Return the stream of a message, or None if the client wants no more of it, and the
        application can't know that yet. Raises ValueError."""
        number = message["stream"]
        open_ = self._open.get(number)
        if open_ is not None and open_.can_send:
            return open_
        if self._is_queued(number, "webtransport.stream.stop"):
            return None
        raise ValueError(f"nothing can be sent on stream {number!r}")

    def _is_queued(self, number: int, *kinds: str) -> bool:
        return any(each["type"] in kinds and each["stream"] == number for each in self._queue)

    async def _send(self, message: Any) -> None:
        open_, data = self._sending(message), checked_bytes(message.get("data", b""), "data")
        if open_ is None:
            return
        try:
            await streams.send(open_.stream, bytes(data))
            self.sent_bytes += len(data)
            if not message.get("more_data", True):
                streams.finish(open_.stream)
                self._on_sent(message["stream"], open_)
        except StreamStoppedError as error:
            self._on_stopped(message["stream"], error.code)

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
        if open_ is not None:
            open_.stream.reset(message.get("code", 0))
            self._on_sent(message["stream"], open_)

    async def _stop(self, message: Any) -> None:
        number = message["stream"]
        open_ = self._open.get(number)
        if open_ is not None and open_.can_receive:
            open_.stream.stop_sending(message.get("code", 0))
        elif not self._is_queued(
            number, "webtransport.stream.receive", "webtransport.stream.reset"
        ):
            raise ValueError(f"nothing can be received on stream {number!r}")

    async def _send_datagram(self, message: Any) -> None:
        assert self._session is not None
        await self._session.send_datagram(bytes(checked_bytes(message["data"], "data")))
