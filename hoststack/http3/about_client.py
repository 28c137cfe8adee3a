"""The client's side of a connection, in every loop."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from hoststack.http3.about_connection import (
    _SETTING_CONNECT_PROTOCOL,
    LOST,
    AboutHttp3Connection,
    Spawn,
    Tasks,
)
from hoststack.http3.config import Http3Config
from hoststack.http3.errors import (
    ErrorCode,
    GoingAwayError,
    MessageError,
    NotSupportedError,
    ProtocolError,
    SessionRefusedError,
)
from hoststack.http3.exchange import CHUNK_BYTES, Exchange
from hoststack.http3.fields import Fields, FieldsToSend, get, to_bytes, to_fields
from hoststack.http3.seam import Section
from hoststack.http3.webtransport import wire
from hoststack.http3.webtransport.session import Session

logger = logging.getLogger(__name__)

#: What a request's content may be; an asynchronous iterable is sent while the response is received.
Body = bytes | bytearray | memoryview | AsyncIterable[bytes]

#: Informational responses that are kept: a server may send any number.
_MAX_INFORMATIONAL: Final = 16
_TOO_EARLY: Final = 425


class Response(Exchange):
    """A response, and the rest of its request. Iterate over it for its content."""

    _http: AboutClientConnection

    def __init__(self, http: AboutClientConnection, stream: Any) -> None:
        super().__init__(http, stream)
        self.status = 0
        self.headers: Fields = []
        """Without pseudo-header fields."""
        self.informational: deque[tuple[int, Fields]] = deque(maxlen=_MAX_INFORMATIONAL)
        """Status and headers of the responses before this one, such as 103; the last 16."""

    async def wait_headers(self) -> None:
        """Wait for the header section, without which `status` is 0; raises as `receive_some`."""
        await self._router.checkpoint_if_cancelled()
        while not self.status:
            if self._receiving_error is not None:
                raise self._receiving_error
            if self._has_all:
                raise MessageError(ErrorCode.MESSAGE_ERROR, "has no status", 502)
            await self._pull(CHUNK_BYTES)
        await self._http._checkpoint()

    def header(self, name: bytes | str) -> bytes | None:
        """Return the first value of a header field."""
        return get(self.headers, to_bytes(name).lower())

    def _on_section(self, fields: Fields) -> None:
        status = int(fields[0][1])
        if status < 200:
            self.informational.append((status, fields[1:]))
        else:
            self.status, self.headers = status, fields[1:]

    def update_priority(self, urgency: int = 3, *, is_incremental: bool = False) -> None:
        """Change the priority of the response (RFC 9218)."""
        value = f"u={urgency}, i" if is_incremental else f"u={urgency}"
        self._http._layer.update_priority(self.stream_id, value.encode())
        self._http._flush()


class AboutClientConnection(AboutHttp3Connection):
    """A connection to a server."""

    _is_server = False

    def __init__(self, authority: bytes, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.authority = authority
        """Host and port of requests that name none."""

    @property
    def is_going_away(self) -> bool:
        """Whether the server accepts no more requests, so that others need a new connection."""
        return self._goaway is not None or self._error is not None

    async def request(
        self,
        method: bytes | str,
        url: bytes | str,
        headers: FieldsToSend = (),
        body: Body = b"",
    ) -> Response:
        """Send a request, and return its response as soon as its header section is there.

        `url` is a path, or a URL with its host. What the server answers 425 (Too Early) is sent
        again after the handshake. Close the response, or read it in an `async with` block. Raises
        ValueError, GoingAwayError if the request is safe to repeat on another connection,
        MessageError, StreamResetError, ProtocolError, ConnectionClosedError.
        """
        method = to_bytes(method)
        is_early = self.connection.early_data == "pending"
        if is_early and method not in self.config.early_methods:
            await self.connection.wait_handshake()
            is_early = False
        response = await self._request(method, url, headers, body)
        if response.status == _TOO_EARLY and is_early and not isinstance(body, AsyncIterable):
            await response.aclose()
            await self.connection.wait_handshake()
            response = await self._request(method, url, headers, body)
        return response

    async def _request(
        self, method: bytes, url: bytes | str, headers: FieldsToSend, body: Body
    ) -> Response:
        fields = to_fields(headers)
        body_bytes = None if isinstance(body, AsyncIterable) else len(body)
        if body_bytes and get(fields, b"content-length") is None:
            fields.append((b"content-length", b"%d" % body_bytes))
        response = await self._open(method, url, fields, is_last=body_bytes == 0)
        try:
            if body_bytes != 0:
                self._spawn(self._send_body, response, body)
            await response.wait_headers()
        except BaseException:
            response.close()
            raise
        return response

    async def open(
        self,
        method: bytes | str,
        url: bytes | str,
        headers: FieldsToSend = (),
        *,
        protocol: bytes | str | None = None,
        is_last: bool = False,
    ) -> Response:
        """Send the header section of a request. Its content follows by `send_all`, and `send_eof`
        or `send_trailers`; with `is_last` there is none. `wait_headers` waits for the response.

        With the method CONNECT, `url` is host and port; with a `protocol` it is an extended CONNECT
        (RFC 9220), and a URL. Raises as `request`, and NotSupportedError if the server does not
        accept extended CONNECT.
        """
        method = to_bytes(method)
        if method not in self.config.early_methods:
            await self.connection.wait_handshake()
        if protocol is not None:
            settings = await self._wait_for_settings()
            if settings.get(_SETTING_CONNECT_PROTOCOL) != 1:
                raise NotSupportedError("the server does not accept extended CONNECT")
            protocol = to_bytes(protocol)
        return await self._open(method, url, to_fields(headers), protocol=protocol, is_last=is_last)

    async def open_webtransport(
        self, url: bytes | str, headers: FieldsToSend = (), *, protocols: Iterable[str] = ()
    ) -> Session:
        """Open a WebTransport session, and return it when the server has accepted it. `protocols`
        are those of the application, the preferred one first; `Session.protocol` is the server's
        choice. It needs `Http3Config.webtransport_sessions`.

        Raises SessionRefusedError, NotSupportedError if the server does not offer WebTransport or
        as many sessions, ValueError, and as `request`.
        """
        if self._webtransport is None:
            raise RuntimeError("set Http3Config.webtransport_sessions to use WebTransport")
        fields = [*to_fields(headers), *wire.offer(protocols)]
        settings = await self._wait_for_settings()
        if not wire.is_offered(settings):
            raise NotSupportedError("the server does not offer WebTransport")
        most = wire.most_sessions_now(settings)
        while len(self._webtransport) >= most:
            self._check()
            if self._webtransport.open_count >= most:
                raise NotSupportedError(f"the server accepts {most} WebTransport sessions at once")
            await self._changed.park()
        token = wire.PROTOCOL if wire.most_sessions(settings) else wire.PROTOCOL_15
        response = await self.open("CONNECT", url, fields, protocol=token)
        session = self._webtransport.add(response)
        try:
            await response.wait_headers()
            if not 200 <= response.status < 300:
                raise SessionRefusedError(response.status)
        except BaseException:
            response._close()
            raise
        session._establish(wire.chosen(response.headers))
        return session

    async def _open(
        self,
        method: bytes,
        url: bytes | str,
        headers: Fields,
        *,
        protocol: bytes | None = None,
        is_last: bool = False,
    ) -> Response:
        fields = [*self._pseudo_fields(method, to_bytes(url), protocol), *headers]
        self._check_going()
        stream = await self.connection.open_stream()
        try:
            self._check_going()
        except BaseException:
            stream.reset(ErrorCode.REQUEST_CANCELLED)
            stream._close()
            raise
        response = Response(self, stream)
        self._streams[stream.stream_id] = stream
        self._exchanges[stream.stream_id] = response
        try:
            self._layer.add(stream)
            await response._send_section(Section.REQUEST, fields, is_last=is_last)
        except BaseException:
            response.close()
            raise
        return response

    def _check_going(self) -> None:
        self._check()
        if self._goaway is not None:
            raise GoingAwayError

    def _pseudo_fields(self, method: bytes, url: bytes, protocol: bytes | None) -> Fields:
        if method == b"CONNECT" and protocol is None:
            return [(b":method", method), (b":authority", url)]
        authority, path = self.authority, url
        if url[:1] != b"/" and url != b"*":
            parts = urlsplit(url)
            if parts.scheme != b"https" or not parts.netloc or b"@" in parts.netloc:
                raise ValueError(f"{url!r} is no path, and no URL of https: without a user")
            authority = parts.netloc
            path = (parts.path or b"/") + (b"?" + parts.query if parts.query else b"")
        fields = [
            (b":method", method),
            (b":scheme", b"https"),
            (b":authority", authority),
            (b":path", path),
        ]
        return [*fields, (b":protocol", protocol)] if protocol is not None else fields

    async def _send_body(self, response: Response, body: Body) -> None:
        """Send a request's content beside its response. A server may answer before its end, and
        then stops the rest (RFC 9114 section 4.1)."""
        try:
            if isinstance(body, AsyncIterable):
                async for chunk in body:
                    await response.send_all(chunk)
            else:
                await response.send_all(body)
            await response.send_eof()
        except (*LOST, self._router.closed_error, RuntimeError) as error:
            logger.debug("%r: %s", response, error)
        except Exception as error:
            response.reset(ErrorCode.REQUEST_CANCELLED)
            response._on_lost(error)
            response._stream.stop_sending(ErrorCode.REQUEST_CANCELLED)

    def _on_request_stream(self, stream: Any) -> None:
        if self._webtransport is not None:
            self._read_beside(stream)
            return
        self._fail(ProtocolError.of(ErrorCode.STREAM_CREATION_ERROR, "a server opens no requests"))

    def _on_goaway(self, identifier: int) -> None:
        for stream_id, exchange in self._exchanges.items():
            if stream_id >= identifier:
                exchange._receiving_error = exchange._sending_error = GoingAwayError()
                exchange._stream.stop_sending(ErrorCode.REQUEST_CANCELLED)
                exchange._wake()
        self._changed.unpark_all()

    async def wait_going_away(self) -> None:
        """Wait until the server sends GOAWAY, or the connection ends."""
        while not self.is_going_away:
            await self._changed.park()


C = TypeVar("C", bound=AboutClientConnection)


@asynccontextmanager
async def speaking(
    make: Callable[[bytes, Any, Http3Config, Spawn], C],
    tasks: Tasks,
    connection: Any,
    authority: bytes | str,
    config: Http3Config | None,
) -> AsyncIterator[C]:
    """Speak HTTP/3 on a connection in any loop: see `client_on`."""
    name = authority if isinstance(authority, bytes) else authority.encode()
    async with tasks() as spawn:
        http = make(name, connection, config or Http3Config(), spawn)
        try:
            await http.start()
            yield http
        finally:
            connection.close_now(ErrorCode.NO_ERROR)


def with_port(authority: str) -> str:
    """Return host and port, 443 where none is named."""
    has_port = ":" in authority.rpartition("]")[2]
    return authority if has_port else f"{authority}:443"
