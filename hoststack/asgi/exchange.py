"""A call of the application, for HTTP or for a WebSocket: what both have in common."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, Final

import trio

from hoststack.asgi.scopes import Peer
from hoststack.http3.about_connection import LOST
from hoststack.http3.about_server import Request
from hoststack.http3.errors import ErrorCode
from hoststack.http3.fields import Fields
from hoststack.text import printable

if TYPE_CHECKING:
    from hoststack.asgi.core import Core

logger = logging.getLogger("hoststack.asgi")

#: What ends a request whose client is gone, or whose stream this side has closed.
GONE: Final = (*LOST, trio.ClosedResourceError)
#: Of a request whose client was gone before its response began: as nginx logs it.
CLIENT_GONE: Final = 499

_TEXT: Final = [(b"content-type", b"text/plain; charset=utf-8")]
#: Fields of HTTP/1's connections, which applications send for its servers: no part of HTTP/3
#: (RFC 9114 section 4.2).
_OF_CONNECTIONS: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)


class DisconnectedError(ConnectionError):
    """The client is gone: what the application sends reaches nobody."""

    def __init__(self) -> None:
        super().__init__("the client has disconnected, so nothing can be sent to it")


def checked_bytes(value: Any, name: str) -> bytes | bytearray | memoryview:
    """Return what an application sends as bytes; raises TypeError for anything else."""
    if type(value) is bytes:
        return value
    if isinstance(value, memoryview):
        return value.cast("B")  # its length counts bytes then
    if not isinstance(value, bytes | bytearray):
        raise TypeError(f"`{name}` is bytes, not {type(value).__name__}")
    return value


def is_failure(error: BaseException) -> bool:
    """Whether an application has failed with this, and was not cancelled or interrupted. SystemExit
    ends no server, also in the group that a nursery makes of it."""
    if isinstance(error, BaseExceptionGroup):
        return error.split((Exception, SystemExit))[1] is None
    return isinstance(error, Exception | SystemExit)


class _Date:
    """The `date` field, made once a second."""

    def __init__(self) -> None:
        self._second = -1
        self._field = b"date", b""

    def field(self) -> tuple[bytes, bytes]:
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._field = b"date", formatdate(second, usegmt=True).encode()
        return self._field


_date: Final = _Date()


class Exchange:
    """One call of the application, and its request."""

    is_waiting = True
    """The application has not begun to answer."""
    silent_since = math.inf
    """When the application last did something for its response; infinite while it waits for its
    client, and where it may be silent."""
    is_complete = False
    """It has answered."""

    def __init__(self, core: Core, peer: Peer, request: Request) -> None:
        self.core = core
        self.peer = peer
        self.request = request
        self.began = core.now()
        self.is_expired = False
        """The server gave up waiting for its response."""
        self.is_gone = False
        """The client is gone, or got another answer."""
        self.cancel: Callable[[], object] | None = None
        """Ends the application's task."""
        self.status = 0
        self.sent_bytes = 0
        self._is_logged = False

    def __str__(self) -> str:
        request = self.request
        return (
            f"{printable(request.method)} {printable(request.path or b'-')} "
            f"({self.peer.request_id(request)})"
        )

    def make_scope(self) -> dict[str, Any]:
        """Return the scope. Raises BadRequestError."""
        raise NotImplementedError

    async def receive(self) -> dict[str, Any]:
        """ASGI's receive."""
        raise NotImplementedError

    async def send(self, message: Any) -> None:
        """ASGI's send. Raises DisconnectedError; RuntimeError for what is sent in the wrong order,
        TypeError and ValueError for what can't be sent."""
        raise NotImplementedError

    def _no_kind(self, message: object) -> TypeError:
        return TypeError(f"send takes a dict with a `type`, not {printable(repr(message), 80)}")

    def _out_of_order(self, kind: object, expected: str) -> RuntimeError:
        return RuntimeError(f"the application sent {printable(repr(kind), 80)}, but {expected}")

    def _on_gone(self, error: BaseException) -> None:
        if not self.is_gone:
            self.is_gone = True
            logger.debug("%s: %s", self, error)

    def _status_of(self, message: Any) -> int:
        status = message.get("status")
        if type(status) is not int:
            try:
                status = int(status)  # such as http.HTTPStatus
            except (TypeError, ValueError):
                raise TypeError(f"the status is an int, not {status!r}") from None
        if not 200 <= status <= 999:
            raise ValueError(f"the status of a response is 200 to 999, not {status}")
        return status

    def _made(self, headers: Iterable[tuple[bytes, bytes]]) -> Fields:
        """Return a response's fields, with those that this server adds. Raises TypeError, and
        ValueError for pseudo-header fields."""
        fields = self._checked(headers)
        names = {name for name, _ in fields}
        for field in self.core.default_fields:
            if field[0] not in names:
                fields.append(field)
        if self.core.has_date and b"date" not in names:
            fields.append(_date.field())
        return fields

    def _checked(self, headers: Iterable[tuple[bytes, bytes]]) -> Fields:
        """Return an application's fields, without those that HTTP/3 does not have. Raises as
        `_made`."""
        try:
            fields = [(name.lower(), value) for name, value in headers]
            names = {name for name, _ in fields}
            for name, value in fields:
                if type(name) is not bytes or type(value) is not bytes:
                    raise TypeError
        except (TypeError, ValueError, AttributeError):
            raise TypeError("headers are pairs of bytes: (name, value)") from None
        for name in names:
            if name[:1] == b":":
                raise ValueError(f"a response has no such header field: {printable(name, 40)!r}")
        if not names.isdisjoint(_OF_CONNECTIONS):
            fields = [field for field in fields if field[0] not in _OF_CONNECTIONS]
        return fields

    # --- the end ---

    async def answer(self, status: int, text: str = "", fields: Fields | None = None) -> None:
        """Answer in the application's place; or reset the stream, if its response has begun."""
        request = self.request
        if request.is_answered:
            request.reset(ErrorCode.INTERNAL_ERROR)
        else:
            self.status = status
            body = text.encode() + b"\n" if text else b""
            try:
                headers = [*(_TEXT if body else ()), *(fields or ())]
                await request.respond(status, self._made(headers), body)
                self.sent_bytes = 0 if request.method == b"HEAD" else len(body)
            except (*GONE, RuntimeError) as error:
                self._on_gone(error)
        self.log()

    async def on_failed(self, error: BaseException) -> None:
        """The application raised."""
        if self.is_complete:
            logger.error("%s: the application failed after its response", self, exc_info=error)
        elif self.is_gone or isinstance(error, DisconnectedError):
            logger.debug("%s: the application ended without its client: %r", self, error)
        else:
            what = "its response is cut off" if self.request.is_answered else "500 is sent"
            logger.error("%s: the application failed, %s", self, what, exc_info=error)
            await self.answer(500, "Internal Server Error")

    async def on_returned(self) -> None:
        """The application returned before it was complete."""
        raise NotImplementedError

    def on_server_leaving(self) -> None:
        """The server waits for this exchange, not for long."""

    async def on_expired(self) -> None:
        """The application did not begin or continue a response in time, and was cancelled."""
        what, setting = "did not go on for", "silence_seconds"
        if self.is_waiting:
            what, setting = "sent no response within", "answer_seconds"
        logger.error(
            "%s: the application %s %g s, and %s: find out what it waits for, or set %s",
            self,
            what,
            getattr(self.core.config, setting),
            "it is cut off" if self.request.is_answered else "504 is sent",
            setting,
        )
        await self.answer(504, "Gateway Timeout")

    def log(self) -> None:
        """Count the request, and add its line to the access log, once."""
        if not self._is_logged:
            self._is_logged = True
            self.core.on_request_over(self)

    def close(self) -> None:
        """Reset what was not completed."""
        if not self.status:
            self.status = CLIENT_GONE
        self.log()
        self.request.close()
