"""The server's side of a connection, in every loop."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, Self, TypeVar

from hoststack.api.about_stream import LEAST_URGENT, WAIT
from hoststack.http3.about_connection import LOST, AboutHttp3Connection, Spawn, Tasks
from hoststack.http3.config import SLOW_BYTES, Http3Config
from hoststack.http3.errors import ErrorCode, MessageError, NotSupportedError, ProtocolError
from hoststack.http3.exchange import Exchange
from hoststack.http3.fields import Fields, FieldsToSend, get, to_bytes, to_fields
from hoststack.http3.seam import BLOCKED, Section
from hoststack.http3.webtransport import wire
from hoststack.http3.webtransport.session import Session

logger = logging.getLogger(__name__)

#: Read of a new request at once: its header section, and the beginning of its content.
_HEAD_BYTES: Final = 16384
_CONNECT: Final = b"CONNECT"
#: Statuses without content, and without a content-length (RFC 9110 section 6.4.1, 8.6).
_WITHOUT_CONTENT: Final = frozenset((204, 304))
#: Pseudo-header fields, which come first (RFC 9114 section 4.3), and attributes of a Request.
_PSEUDO: Final = {
    f":{name}".encode(): name for name in ("method", "scheme", "authority", "path", "protocol")
}


class Request(Exchange):
    """A request, and its response: `respond`, or `send_headers`, `send_all` and `send_eof`.

    When it is closed without a complete response, its stream is reset (H3_INTERNAL_ERROR).
    """

    _abort_code = ErrorCode.INTERNAL_ERROR
    _http: AboutServerConnection

    def __init__(self, http: AboutServerConnection, stream: Any) -> None:
        super().__init__(http, stream)
        self.method: bytes = b""
        self.scheme: bytes | None = None
        """None of a CONNECT without `protocol`."""
        self.authority: bytes | None = None
        """Host and port; None if the client sent a `host` field alone."""
        self.path: bytes | None = None
        """Path and query; None of a CONNECT without `protocol`."""
        self.protocol: bytes | None = None
        """Of an extended CONNECT (RFC 9220)."""
        self.headers: Fields = []
        """Without pseudo-header fields."""
        self.is_answered = False
        """The header section of the response was sent."""
        self.is_slow = False
        """It was given up, for the client was too slow: `Http3Config.slow_seconds`."""
        self._taken_bytes = 0
        """What the client has taken while the response waited for it."""

    @property
    def may_be_replayed(self) -> bool:
        """Whether this may be a replay of recorded packets: see `Connection.early_data`."""
        return bool(self._stream.may_be_replayed)

    @property
    def priority(self) -> tuple[int, bool]:
        """Urgency, 0 (first) to 7, and whether the response is of use in parts (RFC 9218)."""
        return self._http._layer.priority(self.stream_id)

    def set_priority(self, urgency: int, *, is_incremental: bool = False) -> None:
        """Overrule the client's priority. Raises ValueError."""
        if not 0 <= urgency <= LEAST_URGENT:
            raise ValueError(f"urgency must be between 0 and {LEAST_URGENT}")
        self._http._layer.set_priority(self.stream_id, urgency, is_incremental=is_incremental)

    async def respond(
        self, status: int, headers: FieldsToSend = (), body: bytes | bytearray | memoryview = b""
    ) -> None:
        """Send a complete response; `content-length` is added where it is missing. The content is
        not sent in answer to HEAD. Raises ValueError, and as `send_all`."""
        fields = to_fields(headers)
        if status not in _WITHOUT_CONTENT and all(name != b"content-length" for name, _ in fields):
            fields.append((b"content-length", b"%d" % len(body)))
        await self._respond(status, fields, body)

    async def _respond(
        self, status: int, fields: Fields, body: bytes | bytearray | memoryview
    ) -> None:
        """Send a complete response, whose fields `to_fields` has checked."""
        if not len(body) or self.method == b"HEAD" or status in _WITHOUT_CONTENT:
            await self._send_section(
                Section.RESPONSE, [(b":status", b"%d" % status), *fields], is_last=True
            )
            self.is_answered = True
            return
        await self._begin_sending()
        try:
            data = body if isinstance(body, bytes) else memoryview(body)
            fields.insert(0, (b":status", b"%d" % status))
            written = self._http._layer.respond(self.stream_id, fields, data)
            self.is_answered = self._has_sent_end = True
            self._http._on_written(written)
            await self._finish_writing()
        finally:
            self._is_sending = False

    async def send_headers(
        self, status: int, headers: FieldsToSend = (), *, is_last: bool = False
    ) -> None:
        """Send the header section of the response. Content follows by `send_all`, and `send_eof` or
        `send_trailers`; with `is_last` there is none. Raises as `respond`."""
        if status < 200:
            raise ValueError("an informational response is sent by `inform`")
        fields = _with_status(status, to_fields(headers))
        await self._send_section(Section.RESPONSE, fields, is_last=is_last)
        self.is_answered = True

    async def inform(self, status: int, headers: FieldsToSend = ()) -> None:
        """Send an informational response, such as 103 (Early Hints). Raises as `respond`."""
        if not 100 <= status < 200 or status == 101:
            raise ValueError(f"{status} is the status of no informational response of HTTP/3")
        fields = _with_status(status, to_fields(headers))
        await self._send_section(Section.INFORMATIONAL, fields)

    def header(self, name: bytes | str) -> bytes | None:
        """Return the first value of a header field."""
        return get(self.headers, to_bytes(name).lower())

    @property
    def is_webtransport(self) -> bool:
        """Whether this asks for a WebTransport session that `Http3Config` allows."""
        return self._session is not None

    @property
    def webtransport_protocols(self) -> list[str]:
        """Application protocols that the client offers for a session, the preferred one first."""
        return wire.available(self.headers)

    async def accept_webtransport(
        self, headers: FieldsToSend = (), *, protocol: str | None = None
    ) -> Session:
        """Accept a WebTransport session, with one of the client's application protocols.

        Raises RuntimeError if this asks for none, ValueError for a protocol that the client does
        not offer, NotSupportedError if its settings lack datagrams or WebTransport, and as
        `send_headers`.
        """
        if self._session is None:
            raise RuntimeError("this request asks for no WebTransport session that is allowed")
        fields = [*to_fields(headers), *wire.choice(self.headers, protocol)]
        if not wire.is_offered(await self._http._wait_for_settings()):
            raise NotSupportedError("the client's settings lack WebTransport, or datagrams")
        await self.send_headers(200, fields)
        self._session._establish(protocol)
        return self._session

    async def wait_gone(self) -> None:
        """Wait until the client has all of the response, or does not want it any more."""
        try:
            await self._stream.wait_acknowledged()
        except LOST as error:
            self._sending_error = self._sending_error or error

    def _on_section(self, fields: Fields) -> None:
        count = 0
        for name, value in fields:
            attribute = _PSEUDO.get(name)
            if attribute is None:
                break
            setattr(self, attribute, value)
            count += 1
        self.headers = fields[count:]
        self._http._on_request(self)

    def _stop_code(self) -> int:
        # RFC 9114 section 4.1: the response does not need the rest of the request.
        return ErrorCode.NO_ERROR if self.is_answered else self._abort_code

    def _close(self) -> None:
        if not self._is_closed:
            self._http._count(self)
        super()._close()


Handler = Callable[[Request], Awaitable[object]]


class AboutServerConnection(AboutHttp3Connection):
    """A client's connection. Iterate over it for its requests.

    The iteration ends when the client closes the connection, or when it was shut down; it raises
    ProtocolError or ConnectionClosedError when the connection ended in another way.
    """

    _is_server = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._requests: deque[Request] = deque()
        self._arrived = self._router.new_lot()
        self._answered = 0
        self._resets = 0
        self._activity = 0
        self._is_shut_down = False
        self._unread: dict[Request, int | None] = {}
        """Responses that wait for their client, and how much that had taken when it was last
        checked; None if they have not waited since."""
        self._unsent: dict[Request, int | None] = {}
        """Requests whose content was waited for, and the same of what had come."""
        self._is_watching = False

    async def start(self) -> None:
        await super().start()
        self._spawn(self._close_when_idle)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Request:
        await self._router.checkpoint_if_cancelled()
        while not self._requests:
            if self._error is not None:
                if self._has_ended_cleanly():
                    raise StopAsyncIteration
                raise self._error
            if self._is_shut_down and not self._exchanges:
                raise StopAsyncIteration
            await self._arrived.park()
        await self._checkpoint()
        return self._requests.popleft()

    # --- requests ---

    def _on_request_stream(self, stream: Any) -> None:
        request = Request(self, stream)
        self._exchanges[stream.stream_id] = request
        self._activity += 1
        self._layer.add(stream)
        try:
            self._read_head(request)
        except LOST as error:
            logger.debug("%r: %s", self.connection, error)

    def _read_head(self, request: Request) -> None:
        """Read a request as far as it is there. Raises ProtocolError."""
        result = self._read(request._stream, _HEAD_BYTES)
        if request.method or request._is_closed:
            return
        if result < 0 or request._receiving_error is not None:
            if request._receiving_error is None and result not in (WAIT, BLOCKED):
                request._on_lost(request._stream._receiving_error(result))
            if request._receiving_error is not None:
                self._drop(request)
                return
        self._spawn(self._await_head, request)

    async def _await_head(self, request: Request) -> None:
        await self._router.within(self.config.head_seconds, self._pull_head(request))
        if request.method or request._is_closed:
            return
        if request._receiving_error is None:
            request._abort_code = ErrorCode.REQUEST_INCOMPLETE
        self._drop(request)

    async def _pull_head(self, request: Request) -> None:
        try:
            while not (request.method or request._receiving_error or request._is_closed):
                if request._has_all:
                    break
                await request._pull(_HEAD_BYTES)
        except (*LOST, self._router.closed_error) as error:
            logger.debug("%r: %s", self.connection, error)

    def _drop(self, request: Request) -> None:
        """Give up a request that never became one."""
        error = request._receiving_error
        if isinstance(error, MessageError) and error.status == 431:
            self._spawn(self._answer_quietly, request, 431)
        else:
            request.close()

    async def _answer_quietly(self, request: Request, status: int) -> None:
        """Answer a request that the program does not get."""
        try:
            async with request:
                await request.respond(status)
        except (*LOST, RuntimeError) as error:  # its stream was reset meanwhile
            logger.debug("%r: %s", request, error)

    def _on_request(self, request: Request) -> None:
        if request.method not in self.config.early_methods and (
            request.may_be_replayed or (b"early-data", b"1") in request.headers
        ):
            self._spawn(self._answer_quietly, request, 425)
            return
        status = self._webtransport.admit(request) if self._webtransport is not None else 0
        if status:
            self._spawn(self._answer_quietly, request, status)
            return
        self._requests.append(request)
        self._arrived.unpark(count=1)

    def _count(self, request: Request) -> None:
        """Count how a request ended. A client that resets many costs more than it pays."""
        if request.is_answered and request._sending_error is None:
            self._answered += 1
            return
        self._resets += 1
        if self._resets > self.config.max_resets + self._answered:
            self._fail(ProtocolError.of(ErrorCode.EXCESSIVE_LOAD, "too many requests were reset"))

    def _on_starving(self, exchange: Exchange) -> None:
        assert isinstance(exchange, Request)
        # A CONNECT's stream may be silent: it has no content, but whatever its protocol says.
        if exchange.method and exchange.method != _CONNECT and not exchange._is_closed:
            self._watch(self._unsent, exchange)

    def _on_full(self, exchange: Exchange) -> None:
        assert isinstance(exchange, Request)
        self._watch(self._unread, exchange)

    def _watch(self, waiting: dict[Request, int | None], request: Request) -> None:
        if request in waiting or self.config.slow_seconds is None:
            return
        waiting[request] = None
        if not self._is_watching:
            self._is_watching = True
            self._spawn(self._watch_slow, self.config.slow_seconds)

    async def _watch_slow(self, seconds: float) -> None:
        """Give up exchanges with which the client is too slow, while there are any that wait."""
        while (self._unread or self._unsent) and self._error is None:
            await self._router.within(seconds, self._ended())
            for request in list(self._unread):
                # A less urgent response goes on slowly, and is woken for a quarter of its FIFO.
                taken = request._taken_bytes + max(0, request._stream._room())
                if _is_slow(self._unread, request, taken):
                    logger.debug("%r: its client does not read it", request)
                    request.reset(ErrorCode.EXCESSIVE_LOAD)
            for request in list(self._unsent):
                if request._is_closed or request._has_all or request._receiving_error is not None:
                    del self._unsent[request]
                elif not request._is_starving:
                    self._unsent[request] = None
                elif _is_slow(self._unsent, request, request._received_bytes):
                    logger.debug("%r: its content comes too slowly", request)
                    request._refuse("comes too slowly", 408)
                    request._stream.stop_sending(ErrorCode.EXCESSIVE_LOAD)
        self._is_watching = False

    def _on_room(self, exchange: Exchange) -> None:
        if exchange in self._unread:
            assert isinstance(exchange, Request)
            exchange._taken_bytes += max(0, exchange._stream._room())

    def _on_sent(self, exchange: Exchange) -> None:
        assert isinstance(exchange, Request)
        self._unread.pop(exchange, None)

    def _on_forgotten(self) -> None:
        super()._on_forgotten()
        if self._is_shut_down and not self._exchanges:
            self._arrived.unpark_all()

    # --- the end ---

    def _on_end(self, error: Exception) -> None:
        super()._on_end(error)
        self._arrived.unpark_all()

    def shut_down(self) -> None:
        """Accept no more requests (GOAWAY), soon; never blocks. Those that arrived before are still
        handed out, and the iteration ends after the last one was closed."""
        if not self._is_shut_down:
            self._is_shut_down = True
            self._layer.shutdown(is_notice=True)
            self._flush_quietly()
            self._spawn(self._shut_down)

    async def _shut_down(self) -> None:
        """Wait for requests that were on their way, then refuse all others."""
        await self._router.within(self.config.drain_seconds, self._ended())
        self._layer.shutdown(is_notice=False)
        self._flush_quietly()
        self._arrived.unpark_all()

    async def _ended(self) -> None:
        while self._error is None:
            await self._changed.park()

    async def _close_when_idle(self) -> None:
        while self._error is None:
            before = self._activity
            await self._router.within(self.config.idle_seconds, self._ended())
            if before == self._activity and not self._exchanges and self._error is None:
                self._layer.shutdown(is_notice=False)
                self._flush_quietly()
                self._is_shut_down = True
                self._arrived.unpark_all()
                return


def _is_slow(waiting: dict[Request, int | None], request: Request, done_bytes: int) -> bool:
    before = waiting[request]
    waiting[request] = done_bytes
    is_slow = before is not None and done_bytes - before < SLOW_BYTES
    request.is_slow |= is_slow  # the response to a slow request may be read in time
    return is_slow


C = TypeVar("C", bound=AboutServerConnection)


@asynccontextmanager
async def serving(
    make: Callable[[Any, Http3Config, Spawn], C],
    tasks: Tasks,
    connection: Any,
    config: Http3Config | None,
) -> AsyncIterator[C]:
    """Serve HTTP/3 on a connection in any loop: see `serve_connection`."""
    async with tasks() as spawn:
        http = make(connection, config or Http3Config(), spawn)
        try:
            await http.start()
            yield http
            await connection.aclose(ErrorCode.NO_ERROR)
        except BaseException as error:
            if not isinstance(error, ProtocolError):  # those have closed it
                connection.close_now(ErrorCode.INTERNAL_ERROR)
            raise


def _with_status(status: int, fields: Fields) -> Fields:
    return [(b":status", b"%d" % status), *fields]


async def answer(handler: Handler, request: Request) -> None:
    """Run a handler for a request, and answer what it does not: see `serve`."""
    async with request:
        try:
            await handler(request)
        except MessageError as error:
            await _give_up(request, error.status)
        except LOST as error:
            logger.debug("%r: %s", request, error)
        except Exception:
            logger.exception("%r: its handler failed", request)
            await _give_up(request, 500)


async def _give_up(request: Request, status: int) -> None:
    if not request.is_answered and not request._is_closed:
        try:
            await request.respond(status)
        except (*LOST, RuntimeError) as error:  # it was reset, or another task sends
            logger.debug("%r: %s", request, error)
