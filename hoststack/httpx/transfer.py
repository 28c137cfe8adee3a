"""One request on a connection of the pool, with httpx's timeouts and exceptions."""

from __future__ import annotations

from collections.abc import AsyncIterable
from dataclasses import dataclass
from typing import Any, Final

import anyio
import trio

from hoststack.api.errors import ConnectionClosedError, StreamResetError
from hoststack.http3 import ErrorCode, GoingAwayError, Response
from hoststack.http3.fields import Fields
from hoststack.httpx.library import translated
from hoststack.httpx.pool import Key, Pool, Pooled

#: Sent at a time: the write timeout is for each.
_PIECE_BYTES: Final = 64 * 1024
_FOREVER: Final = float("inf")
_TOO_EARLY: Final = 425

#: What ends a request or a connection, in every loop.
_LOST: Final = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, ValueError)

#: Content that is there as a whole, or comes in parts.
Content = bytes | AsyncIterable[bytes]


class NotProcessedError(Exception):
    """The server has certainly not processed the request: it may be sent again (RFC 9114 section
    4.1.1). The cause says why."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


@dataclass(frozen=True)
class Head:
    """A request without its content, and the library that it comes from."""

    library: Any
    key: Key
    method: bytes
    url: bytes
    fields: Fields
    timeouts: dict[str, float | None]

    def timeout_s(self, kind: str) -> float:
        """Return one of httpx's timeouts: connect, read, write or pool."""
        timeout_s = self.timeouts.get(kind)
        return _FOREVER if timeout_s is None else timeout_s


class Transfer:
    """A request that was sent, and its response."""

    def __init__(
        self, head: Head, pool: Pool, pooled: Pooled, response: Response, *, was_early: bool
    ) -> None:
        self.was_early = was_early
        """Sent before the handshake was complete (0-RTT)."""
        self._head = head
        self._pool = pool
        self._pooled = pooled
        self._response = response
        self._library = head.library
        self._is_sending = False
        self._sending_error: Exception | None = None
        self._waiting: anyio.CancelScope | None = None
        """Of the task that waits for the response."""
        self._is_closed = False
        self.trailers: Fields = []
        """The response's trailer section, once its content has ended."""

    @property
    def status(self) -> int:
        """The response's; 0 before `wait_headers`."""
        return self._response.status

    @property
    def headers(self) -> Fields:
        """The response's, without pseudo-header fields."""
        return self._response.headers

    def extensions(self) -> dict[str, Any]:
        """Return httpx's extensions of the response."""
        return {
            "http_version": b"HTTP/3",
            "stream_id": self._response.stream_id,
            "informational": list(self._response.informational),
            "trailers": self.trailers,
        }

    # --- the request's content ---

    def send_in_background(self, content: Content) -> None:
        """Send the content while the response is received. An exception of the content's own is
        raised by the task that receives."""
        self._is_sending = True
        self._pool.spawn(self._send_content, content)

    async def _send_content(self, content: Content) -> None:
        try:
            if isinstance(content, bytes):
                await self.send(content)
            else:
                async for chunk in content:
                    if not await self.send(chunk):
                        break
            await self.end()
        except Exception as error:
            self._fail(error)
        finally:
            self._is_sending = False
            if self._waiting is not None and self._sending_error is None:
                # From now on the server makes the client wait.
                self._waiting.deadline = anyio.current_time() + self._head.timeout_s("read")

    def _fail(self, error: Exception) -> None:
        self._sending_error = error
        self._response.reset(ErrorCode.REQUEST_CANCELLED)
        if self._waiting is not None:
            self._waiting.cancel()

    async def send(self, chunk: bytes) -> bool:
        """Send some content; returns False if the server does not want more of it: it may answer
        before the end of a request (RFC 9114 section 4.1). Raises the library's exceptions."""
        for begin in range(0, len(chunk), _PIECE_BYTES):
            piece = memoryview(chunk)[begin : begin + _PIECE_BYTES]
            with anyio.move_on_after(self._head.timeout_s("write")) as scope:
                try:
                    await self._response.send_all(piece)
                except (*_LOST, RuntimeError):
                    return False  # the response, or its loss, says why
            if scope.cancelled_caught:
                raise self._library.WriteTimeout("the server did not read the request in time")
        return True

    async def end(self) -> None:
        """End the content."""
        try:
            await self._response.send_eof()
        except (*_LOST, RuntimeError):
            return

    # --- the response ---

    async def wait_headers(self) -> None:
        """Wait for the response's header section. Raises NotProcessedError, and the library's
        exceptions."""
        try:
            await self._receive(self._response.wait_headers)
        except (GoingAwayError, StreamResetError) as error:
            code = getattr(error, "code", None)
            if isinstance(error, GoingAwayError) or code == ErrorCode.REQUEST_REJECTED:
                raise NotProcessedError(error) from None
            raise translated(self._library, error) from error
        except _LOST as error:
            raise translated(self._library, error) from error

    async def receive(self) -> bytes:
        """Return the next content of the response; b"" at its end. Raises the library's
        exceptions."""
        try:
            chunk: bytes = await self._receive(self._response.receive_some)
        except _LOST as error:
            raise translated(self._library, error) from error
        if not chunk:
            self.trailers += self._response.trailers or []
        return chunk

    async def _receive(self, function: Any) -> Any:
        if self._sending_error is not None:
            raise self._sending_error
        timeout_s = _FOREVER if self._is_sending else self._head.timeout_s("read")
        with anyio.CancelScope(deadline=anyio.current_time() + timeout_s) as scope:
            self._waiting = scope
            try:
                return await function()
            finally:
                self._waiting = None
        if self._sending_error is not None:
            raise self._sending_error
        raise self._library.ReadTimeout("the server did not answer in time")

    def close(self) -> None:
        """Let the stream go, reset if something is left; the connection stays. Never blocks."""
        if not self._is_closed:
            self._is_closed = True
            self._response._close()
            self._pool.release(self._pooled)


async def open_transfer(pool: Pool, head: Head, *, has_content: bool) -> Transfer:
    """Send the header section of a request; content may follow.

    Raises NotProcessedError if a connection ended before that, and the library's exceptions.
    """
    library = head.library
    with anyio.move_on_after(head.timeout_s("pool")) as scope:
        pooled = await pool.acquire(head.key)
    if scope.cancelled_caught:
        raise library.PoolTimeout("no connection was free in time")
    try:
        return await _open_on(pool, pooled, head, has_content=has_content)
    except BaseException:
        pool.release(pooled)
        raise


async def _open_on(pool: Pool, pooled: Pooled, head: Head, *, has_content: bool) -> Transfer:
    library = head.library
    with anyio.move_on_after(head.timeout_s("connect")) as scope:
        await pooled.ready.wait()
        if pooled.client is not None and has_content:
            # What was sent early and is refused could not be repeated.
            await _handshake(pooled, library)
    if scope.cancelled_caught:
        host, port = head.key.place
        raise library.ConnectTimeout(f"{host} port {port} did not answer QUIC in time")
    if pooled.client is None:
        assert pooled.error is not None
        if isinstance(pooled.error, ValueError):  # an impossible host name
            raise library.ConnectError(str(pooled.error)) from pooled.error
        raise translated(library, pooled.error) from pooled.error
    connection: Any = pooled.client.connection
    was_early = connection.early_data == "pending"
    with anyio.move_on_after(head.timeout_s("pool")) as scope:
        try:
            response = await pooled.client.open(
                head.method, head.url, head.fields, is_last=not has_content
            )
        except ValueError as error:
            raise translated(library, error) from error
        except _LOST as error:
            raise NotProcessedError(error) from None
    if scope.cancelled_caught:
        raise library.PoolTimeout(
            "the server allows no more requests at the same time: the ones before did not end in "
            "time"
        )
    return Transfer(head, pool, pooled, response, was_early=was_early)


async def _handshake(pooled: Pooled, library: Any) -> None:
    assert pooled.client is not None
    try:
        await pooled.client.connection.wait_handshake()
    except ConnectionClosedError as error:
        raise library.ConnectError(str(error)) from error


async def fetch(pool: Pool, head: Head, content: Content) -> Transfer:
    """Send a request, and return when the response's header section is there.

    A request that was certainly not processed is sent again once, and one that was answered 425
    (RFC 8470) after the handshake, if its content is there as a whole. Raises the library's
    exceptions.
    """
    can_repeat = isinstance(content, bytes)
    for is_last_try in (False, True):
        try:
            transfer = await _fetch(pool, head, content)
        except NotProcessedError as error:
            if is_last_try or not can_repeat:
                raise translated(head.library, error.cause) from error.cause
        else:
            return transfer
    raise AssertionError


async def _fetch(pool: Pool, head: Head, content: Content) -> Transfer:
    transfer = await open_transfer(pool, head, has_content=content != b"")
    try:
        if content != b"":
            transfer.send_in_background(content)
        await transfer.wait_headers()
        if transfer.status == _TOO_EARLY and transfer.was_early and content == b"":
            await _handshake(transfer._pooled, head.library)
            again = await open_transfer(pool, head, has_content=False)
            transfer.close()
            transfer = again
            await transfer.wait_headers()
    except BaseException:
        transfer.close()
        raise
    return transfer
