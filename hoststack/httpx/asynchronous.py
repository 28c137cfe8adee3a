"""The transport for httpx.AsyncClient."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from hoststack.http3 import Http3Config
from hoststack.httpx.alternatives import Origin
from hoststack.httpx.core import Core
from hoststack.httpx.library import base, content_class
from hoststack.httpx.messages import async_content
from hoststack.httpx.transfer import Transfer, fetch
from hoststack.httpx.trust import Certificate, Verify
from hoststack.quic.seam import QuicConfig

if TYPE_CHECKING:
    import httpx
else:
    httpx = base()


class AsyncContent:
    """A response's content, as it arrives."""

    def __init__(self, transfer: Transfer) -> None:
        self._transfer = transfer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while chunk := await self._transfer.receive():
            yield chunk

    async def aclose(self) -> None:
        """Let the request go: what is left of the response is not received."""
        self._transfer.close()


class AsyncHTTP3Transport(httpx.AsyncBaseTransport):
    """Sends the requests of an `httpx.AsyncClient` over HTTP/3, in trio or asyncio.

    `verify` is True for the authorities that httpx trusts, False, the path of a PEM file or folder,
    or a `hoststack.TlsConfig`; `cert` is a PEM file, or certificate and key. `limits` is
    httpx.Limits.

    With a `fallback`, a transport such as `httpx.AsyncHTTPTransport(http2=True)`, requests go there
    until an origin's response has `Alt-Svc: h3=...` (RFC 7838), then over HTTP/3, and to the
    fallback again for a time if QUIC does not answer. Without one, all requests go over HTTP/3, and
    http: URLs raise UnsupportedProtocol.

    `early_data` sends GET, HEAD, OPTIONS and TRACE before the handshake is complete (0-RTT) to
    servers that were visited before. `stack` is one of this loop (`hoststack.open_stack`,
    `hoststack.attach`); without it, the transports of a loop share one, over UDP sockets.

    Raises TypeError, ValueError, and TlsConfigError.
    """

    def __init__(
        self,
        verify: Verify = True,
        cert: Certificate | None = None,
        trust_env: bool = True,
        *,
        limits: httpx.Limits | None = None,
        proxy: object = None,
        fallback: httpx.AsyncBaseTransport | None = None,
        early_data: bool = False,
        stack: Any = None,
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
            stack=stack,
            quic=quic,
            http3=http3,
        )
        self._fallback = fallback

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; returns when the response's header section is there."""
        fallback = self._fallback
        made: httpx.Response = await self._core.answer(
            request,
            self._send,
            None if fallback is None else fallback.handle_async_request,
            lambda response: response.aclose(),
        )
        return made

    async def _send(
        self, library: Any, request: httpx.Request, origin: Origin, place: Origin | None = None
    ) -> httpx.Response:
        head = self._core.head_for(library, request, origin, place)
        content = async_content(library, request)
        transfer = await fetch(await self._core.pool(), head, content)
        made: httpx.Response = library.Response(
            transfer.status,
            headers=transfer.headers,
            stream=content_class(library, AsyncContent, is_async=True)(transfer),
            extensions=transfer.extensions(),
        )
        return made

    async def aclose(self) -> None:
        """Close all connections, and the fallback."""
        try:
            await self._core.aclose()
        finally:
            if self._fallback is not None:
                await self._fallback.aclose()
