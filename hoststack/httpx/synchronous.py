"""The transport for httpx.Client: a thread runs a trio loop, in which the connections are."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal

from hoststack.http3 import Http3Config
from hoststack.httpx.alternatives import Origin
from hoststack.httpx.core import Core
from hoststack.httpx.library import base, content_class, translated
from hoststack.httpx.messages import known_content
from hoststack.httpx.transfer import Head, NotProcessedError, Transfer, fetch, open_transfer
from hoststack.httpx.trust import Certificate, Verify
from hoststack.quic.seam import QuicConfig

if TYPE_CHECKING:
    import httpx
else:
    httpx = base()

T = TypeVar("T")


class Background:
    """A thread with a trio loop, from the first call on."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._lock = threading.Lock()
        self._resources = ExitStack()
        self._portal: BlockingPortal | None = None
        self._process = os.getpid()
        self._is_closed = False

    def run(self, function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Run a function in the loop, and return its result. An exception in this thread, such as
        KeyboardInterrupt, cancels it. Raises RuntimeError after `close`, and after a fork."""
        future = self._running().start_task_soon(function, *arguments)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def run_sync(self, function: Callable[[], None]) -> None:
        """Run a function that does not wait; does nothing after `close`."""
        if self._portal is not None and self._process == os.getpid():
            self._portal.call(function)

    def _running(self) -> BlockingPortal:
        if self._process != os.getpid():
            raise RuntimeError(
                "this HTTP/3 transport was made before a fork, and its thread is in the other "
                "process: make one in each process"
            )
        with self._lock:
            if self._is_closed:
                raise RuntimeError("this HTTP/3 transport was closed: make another one")
            if self._portal is None:
                self._portal = self._resources.enter_context(start_blocking_portal("trio"))
            return self._portal

    def close(self) -> None:
        """Close all connections, and end the thread."""
        with self._lock:
            self._is_closed = True
            portal, self._portal = self._portal, None
        if portal is not None and self._process == os.getpid():
            try:
                portal.call(self._core.aclose)
            finally:
                self._resources.close()


class Content:
    """A response's content, as it arrives."""

    def __init__(self, background: Background, transfer: Transfer) -> None:
        self._background = background
        self._transfer = transfer

    def __iter__(self) -> Iterator[bytes]:
        while chunk := self._background.run(self._transfer.receive):
            yield chunk

    def close(self) -> None:
        """Let the request go: what is left of the response is not received."""
        self._background.run_sync(self._transfer.close)


def _as_async(function: Callable[..., T]) -> Callable[..., Awaitable[T]]:
    async def call(*arguments: Any) -> T:
        return function(*arguments)

    return call


def _run_at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run what awaits nothing but blocking functions that `_as_async` has made."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise AssertionError("it waits")


class HTTP3Transport(httpx.BaseTransport):
    """Sends the requests of an `httpx.Client` over HTTP/3; see AsyncHTTP3Transport for arguments.

    It may be used by several threads. `close`, or the end of the client's `with` block, ends its
    thread; so does the end of the program. `fallback` is a transport such as
    `httpx.HTTPTransport(http2=True)`.
    """

    def __init__(
        self,
        verify: Verify = True,
        cert: Certificate | None = None,
        trust_env: bool = True,
        *,
        limits: httpx.Limits | None = None,
        proxy: object = None,
        fallback: httpx.BaseTransport | None = None,
        early_data: bool = False,
        quic: QuicConfig | None = None,
        http3: Http3Config | None = None,
    ) -> None:
        self._core = Core(
            verify,
            cert,
            trust_env=trust_env,
            limits=limits,
            proxy=proxy,
            early_data=early_data,
            stack=None,
            quic=quic,
            http3=http3,
        )
        self._background = Background(self._core)
        self._fallback = fallback
        weakref.finalize(self, self._background.close)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; returns when the response's header section is there."""
        fallback = self._fallback
        made: httpx.Response = _run_at_once(
            self._core.answer(
                request,
                _as_async(self._send),
                None if fallback is None else _as_async(fallback.handle_request),
                _as_async(lambda response: response.close()),
            )
        )
        return made

    def _send(
        self, library: Any, request: httpx.Request, origin: Origin, place: Origin | None = None
    ) -> httpx.Response:
        head = self._core.head_for(library, request, origin, place)
        content = known_content(library, request)
        if content is not None:
            transfer = self._background.run(self._fetch, head, content)
        else:
            transfer = self._stream(library, head, request)
        made: httpx.Response = library.Response(
            transfer.status,
            headers=transfer.headers,
            stream=content_class(library, Content, is_async=False)(self._background, transfer),
            extensions=transfer.extensions(),
        )
        return made

    async def _fetch(self, head: Head, content: bytes) -> Transfer:
        return await fetch(await self._core.pool(), head, content)

    async def _open(self, head: Head) -> Transfer:
        pool = await self._core.pool()
        try:
            return await open_transfer(pool, head, has_content=True)
        except NotProcessedError:
            return await open_transfer(pool, head, has_content=True)

    def _stream(self, library: Any, head: Head, request: httpx.Request) -> Transfer:
        """Send a request whose content comes in parts: this thread asks for them."""
        if not isinstance(request.stream, library.SyncByteStream):
            raise RuntimeError("a synchronous client can't send the content of an asynchronous one")
        run = self._background.run
        transfer: Transfer | None = None
        try:
            transfer = run(self._open, head)
            for chunk in request.stream:
                if not run(transfer.send, chunk):
                    break
            run(transfer.end)
            run(transfer.wait_headers)
        except NotProcessedError as error:
            if transfer is not None:
                self._background.run_sync(transfer.close)
            raise translated(library, error.cause) from error.cause
        except BaseException:
            if transfer is not None:
                self._background.run_sync(transfer.close)
            raise
        return transfer

    def close(self) -> None:
        """Close all connections, end the thread, and close the fallback."""
        try:
            self._background.close()
        finally:
            if self._fallback is not None:
                self._fallback.close()
