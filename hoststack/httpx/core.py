"""What both transports have: settings, and a pool in the loop of their requests."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Final

import anyio

from hoststack.http3 import Http3Config
from hoststack.httpx.alternatives import Alternatives, Origin
from hoststack.httpx.host import Host, close_host, current_loop, open_host
from hoststack.httpx.library import library_of
from hoststack.httpx.messages import head_of, known_content, origin_of
from hoststack.httpx.pool import Limits, Pool
from hoststack.httpx.transfer import Head
from hoststack.httpx.trust import Certificate, Verify, tls_config
from hoststack.quic.seam import QuicConfig
from hoststack.quic.session_cache import SessionCache

logger = logging.getLogger(__name__)

#: A server may think for longer than QUIC's idle timeout (30 s), and httpx's timeout for connecting
#: is the one that counts.
_QUIC: Final = QuicConfig(keep_alive_s=15.0, handshake_timeout_s=25.0)
#: How long an alternative may take to answer before the fallback is used.
_PATIENCE_S: Final = 2.0
_MISDIRECTED: Final = 421


class Core:
    """Settings, the origins' alternatives, and a pool as soon as there is a loop."""

    def __init__(
        self,
        verify: Verify,
        cert: Certificate | None,
        *,
        trust_env: bool,
        limits: Any,
        proxy: object,
        early_data: bool,
        stack: Any,
        quic: QuicConfig | None,
        http3: Http3Config | None,
    ) -> None:
        if proxy is not None:
            raise ValueError(
                "proxy: HTTP/3 goes through no proxy: give httpx.HTTPTransport(proxy=...) to "
                "`mounts` for the hosts behind it, and this transport to the others"
            )
        tls = tls_config(verify, cert, trust_env=trust_env)
        if tls.sessions is None:
            tls = replace(tls, sessions=SessionCache())
        self._tls = tls
        self._limits = Limits()
        if limits is not None:
            self._limits = Limits(
                limits.max_connections, limits.max_keepalive_connections, limits.keepalive_expiry
            )
        self._quic = quic or _QUIC
        if early_data:
            self._quic = replace(self._quic, early_data=True)
        self._http3 = http3 or Http3Config()
        self._stack = stack
        self._loop: object = None
        self._starting: anyio.Lock | None = None
        self._host: Host | None = None
        self._pool: Pool | None = None
        self._is_closed = False
        self.alternatives = Alternatives()

    async def pool(self) -> Pool:
        """Return the pool. Raises RuntimeError in another loop, or when it was closed."""
        if self._loop is None:
            self._loop = current_loop()
            self._starting = anyio.Lock()
        elif self._loop != current_loop():
            raise RuntimeError(
                "this HTTP/3 transport was used in another event loop before: make one in each"
            )
        assert self._starting is not None
        async with self._starting:
            if self._is_closed:
                raise RuntimeError("this HTTP/3 transport was closed: make another one")
            if self._pool is None:
                self._host = await open_host(self._stack)
                self._pool = Pool(
                    self._host, self._tls, self._limits, quic=self._quic, http3=self._http3
                )
            return self._pool

    async def aclose(self) -> None:
        """Close all connections."""
        self._is_closed = True
        pool, host = self._pool, self._host
        self._pool = self._host = None
        if pool is not None and host is not None and self._loop == current_loop():
            try:
                await pool.aclose()
            finally:
                await close_host(host)

    # --- alternatives ---

    async def answer(
        self,
        request: Any,
        send: Callable[..., Awaitable[Any]],
        fall_back: Callable[[Any], Awaitable[Any]] | None,
        close: Callable[[Any], Awaitable[None]],
    ) -> Any:
        """Send a request over HTTP/3, or with a fallback where the origin's last response said so:
        to its alternative, and to the fallback if that does not answer. Returns the response."""
        library = library_of(request)
        if fall_back is None:
            return await send(library, request, origin_of(library, request))
        if request.url.scheme != "https":
            return await fall_back(request)
        origin = origin_of(library, request)
        place = self.alternatives.find(origin)
        if place is not None:
            try:
                response = await send(library, request, origin, place)
            except (library.ConnectError, library.ConnectTimeout) as error:
                logger.info("%s port %d: HTTP/3 does not work: %s", *place, error)
                self.alternatives.on_failed(origin)
            else:
                if response.status_code != _MISDIRECTED:
                    self.alternatives.on_answered(origin)
                    self.learn(origin, response)
                    return response
                self.alternatives.forget(origin)
                if known_content(library, request) is None:
                    return response
                await close(response)
        response = await fall_back(request)
        self.learn(origin, response)
        return response

    def head_for(self, library: Any, request: Any, origin: Origin, place: Origin | None) -> Head:
        """Return a request's head. An alternative gets less time to answer."""
        head = head_of(library, request, origin, place)
        if place is None:
            return head
        connect_s = min(head.timeout_s("connect"), _PATIENCE_S)
        return replace(head, timeouts={**head.timeouts, "connect": connect_s})

    def learn(self, origin: Origin, response: Any) -> None:
        """Take over a response's Alt-Svc."""
        age = response.headers.get("age", "0")
        age_s = float(age) if age.isdecimal() and len(age) <= 10 else 0.0
        self.alternatives.learn(origin, response.headers.get_list("alt-svc"), age_s)
