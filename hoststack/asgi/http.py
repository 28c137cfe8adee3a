"""An HTTP request, between its stream and the application."""

from __future__ import annotations

import math
from contextlib import closing
from typing import Any, Final

from hoststack.asgi.exchange import GONE, DisconnectedError, Exchange, checked_bytes, logger
from hoststack.asgi.file_parts import CHUNK_BYTES, Part, open_path, parts_of
from hoststack.http3.errors import MessageError
from hoststack.http3.fields import Fields, get
from hoststack.text import printable

# States of a response.
_WAITING: Final = 0  #: for http.response.start
_HELD: Final = 1  #: the start, until there is content
_SENDING: Final = 2
_TRAILING: Final = 3  #: the content is over, trailers follow
_COMPLETE: Final = 4
_NEXT: Final = (
    "http.response.start comes first",
    "http.response.body comes next",
    "http.response.body comes next, with more_body false at the end",
    "http.response.trailers comes next",
    "the response is complete, and nothing comes after it",
)

_WITHOUT_CONTENT: Final = frozenset((204, 304))


class HttpExchange(Exchange):
    """One call of the application for an HTTP request."""

    _state = _WAITING
    _calls = 0
    """Of `send` and `receive`, which have not returned."""
    _fields: Fields
    _left: int | None = None
    """Content that the announced length still allows."""
    _has_length = False
    """The response announces its length."""
    _is_bare = False
    """The response has no content: to HEAD, or by its status."""
    _has_trailers = False
    _has_body_end = False
    """The application has received all content."""
    _has_continued = False
    """100 was sent."""
    _trailers: Fields = []  # noqa: RUF012 (never changed in place)

    def make_scope(self) -> dict[str, Any]:
        return self.peer.scope(self.request, self.core.state)

    # --- receiving ---

    async def receive(self) -> dict[str, Any]:
        request = self.request
        if self._state == _COMPLETE or self.is_gone:
            return {"type": "http.disconnect"}
        if self._has_body_end:
            await self._wait_gone()
            return {"type": "http.disconnect"}
        if request.is_received:
            self._has_body_end = True
            return {"type": "http.request", "body": b"", "more_body": False}
        try:
            await self._continue_if_expected()
            self._begin_call()
            try:
                chunk = await request.receive_some()
            finally:
                self._end_call()
        except MessageError as error:
            await self._refuse(error.status)
        except GONE as error:
            self._on_gone(error)
        else:
            self._has_body_end = request.is_received
            return {"type": "http.request", "body": chunk, "more_body": not self._has_body_end}
        return {"type": "http.disconnect"}

    async def _continue_if_expected(self) -> None:
        """Ask for the content that the client holds back (RFC 9110 section 10.1.1)."""
        request = self.request
        if (
            get(request.headers, b"expect") == b"100-continue"
            and not self._has_continued
            and not request.has_content
            and not request.is_answered
        ):
            self._has_continued = True
            await request.inform(100)

    def _begin_call(self) -> None:
        """The application sends, or waits for the client's content: it is not silent."""
        self._calls += 1
        self.silent_since = math.inf

    def _end_call(self) -> None:
        self._calls -= 1
        # After its response, an application may do what it likes.
        if not self._calls and not self.is_complete:
            self.silent_since = self.core.now()

    async def _wait_gone(self) -> None:
        await self.request.wait_gone()
        if self._state != _COMPLETE:
            self.is_gone = True

    # --- sending ---

    async def send(self, message: Any) -> None:
        try:
            kind = message["type"]
        except (TypeError, KeyError):
            raise self._no_kind(message) from None
        if self.is_gone:
            raise DisconnectedError
        state = self._state
        self._begin_call()
        try:
            if kind == "http.response.body" and _HELD <= state <= _SENDING:
                await self._send_body(message)
            elif kind == "http.response.start" and state == _WAITING:
                self._start(message)
            elif kind == "http.response.trailers" and state == _TRAILING:
                await self._send_trailers(message)
            elif kind == "http.response.early_hint" and state <= _HELD:
                links = [checked_bytes(link, "link") for link in message.get("links", ())]
                await self.request.inform(103, [(b"link", bytes(link)) for link in links])
            elif kind == "http.response.pathsend" and state == _HELD:
                await self._send_path(message)
            elif kind == "http.response.zerocopysend" and _HELD <= state <= _SENDING:
                await self._send_parts(
                    parts_of(message["file"], message.get("offset"), message.get("count")),
                    more=bool(message.get("more_body", False)),
                )
            else:
                raise self._out_of_order(kind, _NEXT[state])
        except GONE as error:
            self._on_gone(error)
            raise DisconnectedError from error
        finally:
            self._end_call()

    def _start(self, message: Any) -> None:
        self.status = status = self._status_of(message)
        self._fields = self._made(message.get("headers", ()))
        for name, value in self._fields:
            if name == b"content-length":
                if not value.isdigit():
                    raise ValueError(f"content-length is a number, not {printable(value, 40)!r}")
                if self._has_length:
                    raise ValueError("a response has one content-length, and no other one")
                self._has_length = True
                self._left = int(value)
        if self.request.method == b"HEAD" or status in _WITHOUT_CONTENT:
            self._is_bare = True
            self._left = None
        self._has_trailers = bool(message.get("trailers", False))
        self._state = _HELD
        self.is_waiting = False

    async def _send_body(self, message: Any) -> None:
        body = checked_bytes(message.get("body", b""), "body")
        more = message.get("more_body", False)
        self._count(len(body))
        if more or self._has_trailers or self._state == _SENDING:
            await self._continue(body, more=more)
            return
        if self._left:
            raise self._too_short()
        request = self.request
        if not self._has_length and self.status not in _WITHOUT_CONTENT:
            self._fields.append((b"content-length", b"%d" % len(body)))
        await request._respond(self.status, self._fields, body)
        if not self._is_bare:
            self.sent_bytes = len(body)
        self._on_complete()

    def _count(self, size: int) -> None:
        if self._left is not None:
            self._left -= size
            if self._left < 0:
                self._left = None
                raise ValueError("the content is longer than the announced content-length")

    def _too_short(self) -> ValueError:
        return ValueError(
            f"the content is {self._left} bytes shorter than the announced content-length"
        )

    async def _continue(self, body: bytes | bytearray | memoryview, *, more: bool) -> None:
        """Send some of a response that has several parts."""
        request = self.request
        if self._state == _HELD:
            await request.send_headers(self.status, self._fields, is_last=self._is_bare)
            self._state = _SENDING
        is_over = request.is_sent
        if len(body) and not is_over:
            await request.send_all(body)
            self.sent_bytes += len(body)
        if more:
            return
        if self._left:
            raise self._too_short()
        if self._has_trailers:
            self._state = _TRAILING
            return
        if not is_over:
            await request.send_eof()
        self._on_complete()

    async def _send_trailers(self, message: Any) -> None:
        self._trailers = [*self._trailers, *self._checked(message.get("headers", ()))]
        if message.get("more_trailers", False):
            return
        if not self.request.is_sent:
            if self._trailers:
                await self.request.send_trailers(self._trailers)
            else:
                await self.request.send_eof()
        self._on_complete()

    # --- files ---

    async def _send_path(self, message: Any) -> None:
        with closing(open_path(message["path"])) as file:
            size = file.size_bytes
            if not self._has_length and self.status not in _WITHOUT_CONTENT:
                self._fields.append((b"content-length", b"%d" % size))
                self._has_length = True
                self._left = None if self._is_bare else size
            if size <= CHUNK_BYTES and not self._is_bare:
                await self._send_body({"body": await file.read(0, size)})
                return
            await self._send_parts(file.part(0, size), more=False)

    async def _send_parts(self, part: Part, *, more: bool) -> None:
        if self._is_bare:
            await self._continue(b"", more=more)
            return
        async for data in part:
            self._count(len(data))
            await self._continue(data, more=True)
        await self._continue(b"", more=more)

    # --- the end ---

    def _on_complete(self) -> None:
        self._state = _COMPLETE
        self.is_complete = True
        self.log()
        self.request.close()

    async def _refuse(self, status: int) -> None:
        """Answer in the application's place, if it has not begun."""
        self.is_gone = True
        await self.answer(status)

    async def on_returned(self) -> None:
        """The application returned before its response was complete."""
        if self.is_gone:
            return
        what, wanted = "before its response was complete", "body with more_body false at the end"
        if self._state == _WAITING:
            what, wanted = "without a response", "start and http.response.body"
        elif self._state == _TRAILING:
            wanted = "trailers at the end"
        logger.error(
            "%s: the application returned %s, and %s: have it send http.response.%s",
            self,
            what,
            "it is cut off" if self.request.is_answered else "500 is sent",
            wanted,
        )
        await self.answer(500, "Internal Server Error")
