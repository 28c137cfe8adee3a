"""What a stack does in every loop: it opens connections and listeners."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar, cast

from hoststack.api.about_connection import AboutConnection
from hoststack.api.about_listener import AboutListener
from hoststack.api.errors import ConnectError, ListenError
from hoststack.api.resolving import Address
from hoststack.api.router import Router
from hoststack.boundary import messages as m
from hoststack.boundary.protocols import CONFIGS, PROTOCOLS, Config, not_supported
from hoststack.boundary.uri import Uri, parse_uri
from hoststack.quic.seam import QuicConfig, check_protocols
from hoststack.quic.tls import TlsConfig, checked_server_name

C = TypeVar("C", bound=AboutConnection[Any, Any, Any])
L = TypeVar("L", bound=AboutListener[Any])


class AboutStack(ABC, Generic[C, L]):
    """Opens connections and listeners. Created by `open_stack` and `attach`."""

    def __init__(
        self,
        router: Router,
        config: QuicConfig | None,
        *,
        link_name: str,
        link_reason: str,
        engine_name: str,
    ) -> None:
        self._router = router
        self._config = config
        self._link_name = link_name
        self._link_reason = link_reason
        self._engine_name = engine_name

    @abstractmethod
    async def _resolve(
        self, uri: Uri, make_error: Callable[[int, str], OSError]
    ) -> Sequence[Address]:
        """Return the addresses of a URI; see api/resolving.py."""

    @abstractmethod
    async def _first_connection(
        self,
        addresses: Sequence[Address],
        attempt: Callable[[Address], Coroutine[Any, Any, C]],
        describe: str,
    ) -> C:
        """Return the first connection of these attempts; see api/racing.py."""

    @property
    def link_name(self) -> str:
        """ "af_xdp", "udp" or "memory"."""
        return self._link_name

    @property
    def engine_name(self) -> str:
        """ "native" or "aioquic"."""
        return self._engine_name

    @property
    def link_reason(self) -> str:
        """Why a better link was not chosen, in one line; empty if this is the best."""
        return self._link_reason

    @asynccontextmanager
    async def connect(
        self,
        uri: str,
        *,
        tls: TlsConfig | None = None,
        alpn: Sequence[str] = (),
        config: Config | None = None,
    ) -> AsyncIterator[C]:
        """Connect as `open_connection` does, and close the connection at the end of the block: with
        code 0, or with `ABORTED_CODE` when an exception leaves it."""
        async with await self.open_connection(uri, tls=tls, alpn=alpn, config=config) as connection:
            yield connection

    async def open_connection(
        self,
        uri: str,
        *,
        tls: TlsConfig | None = None,
        alpn: Sequence[str] = (),
        config: Config | None = None,
    ) -> C:
        """Connect to `quic://host:port`, and return the connection, which the caller closes.

        A name is looked up, and connections to all of its addresses race each other, started a
        quarter of a second apart, alternating between IPv6 and IPv4 (RFC 8305); the first one
        established is used. A link-local address includes its interface:
        `quic://[fe80::1%eth0]:4433`.

        For QUIC, `alpn` names the application protocols (RFC 7301), the preferred one first, for
        example `["h3"]`: the native engine offers at most 8 names of 31 ASCII characters, aioquic
        32 of 255. Without `tls` the peer's certificate is checked against the system's CAs and the
        URI's host. `tcp://` and `udp://` use kernel sockets and accept neither `tls` nor `alpn`: a
        TCP connection has one stream, which `open_stream` returns, and UDP has only datagrams.
        `config` is a QuicConfig, TcpConfig or UdpConfig; without it the stack's, or the default.

        Raises ConnectError, whose `kind` says why. For wrong arguments it raises UriError,
        TypeError, ValueError (no `alpn`, or names that can't be offered), TlsConfigError (an
        invalid server name), and OSError with ENOTSUP for a feature that a protocol does not have.
        """
        parsed = parse_uri(uri, PROTOCOLS)
        config = self._checked(parsed, tls, alpn, config)
        tls = tls or TlsConfig()
        if PROTOCOLS[parsed.scheme].tls:
            checked_server_name(tls.server_name or parsed.host)
        server_name = tls.server_name or parsed.host.partition("%")[0]

        async def connect_to(remote: Address) -> C:
            reply = await self._router.call(
                lambda token: m.Connect(
                    token,
                    remote,
                    server_name,
                    tls,
                    tuple(alpn),
                    config,
                    protocol=parsed.scheme,
                )
            )
            if isinstance(reply, m.Failed):
                raise ConnectError(reply.errno, reply.text)
            return cast(C, reply)

        addresses = await self._resolve(parsed, ConnectError)
        return await self._first_connection(addresses, connect_to, uri)

    async def listen(
        self,
        uri: str,
        *,
        tls: TlsConfig | None = None,
        alpn: Sequence[str] = (),
        config: Config | None = None,
    ) -> L:
        """Listen on `quic://address:port`; port 0 picks a free one (see `Listener.local`). For a
        name, the first address is used.

        QUIC needs `tls` with a certificate, and `alpn` as in `open_connection`: a client that
        offers none of these protocols is refused. `tcp://` and `udp://` accept neither: their
        connections have one stream that the peer opened, or datagrams from one peer.

        Raises ListenError if the port or address is unavailable (its `kind` says why), and for
        wrong arguments what `open_connection` raises.
        """
        parsed = parse_uri(uri, PROTOCOLS)
        config = self._checked(parsed, tls, alpn, config)
        own_tls = tls or TlsConfig()
        local = (await self._resolve(parsed, ListenError))[0]
        reply = await self._router.call(
            lambda token: m.Listen(token, local, own_tls, tuple(alpn), config, parsed.scheme)
        )
        if isinstance(reply, m.Failed):
            raise ListenError(reply.errno, f"{uri}: {reply.text}")
        listener = cast(L, reply)
        listener._alpn = tuple(alpn)
        return listener

    def reload_requests(self) -> AsyncIterator[None]:
        """Iterate over the requests to read certificates again: `tls reload` in the debug CLI.

        An application that reads its certificates from files makes a TlsConfig of them and passes
        it to `Listener.replace_tls`. Requests that come while it is busy count as one, and each of
        a daemon's workers passes a request on, so one may be reported twice. Several tasks may
        iterate: each hears of all requests that come after it has begun. The iteration ends with
        the stack.
        """
        return self._router.reload_requests()

    def _checked(
        self, uri: Uri, tls: TlsConfig | None, alpn: Sequence[str], config: Config | None
    ) -> Config | None:
        """Return the settings for a connection or listener, None for the worker's default.

        Raises TypeError, ValueError or OSError for what the protocol of `uri` can't use.
        """
        class_ = CONFIGS[uri.scheme]
        if config is None and isinstance(self._config, class_):
            config = self._config
        if config is not None and not isinstance(config, class_):
            raise TypeError(
                f"{uri.scheme}:// needs a {class_.__name__}, not a {type(config).__name__}"
            )
        if PROTOCOLS[uri.scheme].tls:
            assert config is None or isinstance(config, QuicConfig)
            check_protocols(alpn, config, self.engine_name)
        elif tls is not None or alpn:
            raise not_supported(uri.scheme, "TLS here: omit `tls` and `alpn`, or use quic://")
        return config
