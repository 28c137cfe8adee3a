"""HTTP/1.1 and HTTP/2 on the same ports by TCP: hypercorn as a library.

Browsers come by TCP first, and find out there, from `Alt-Svc` (RFC 7838), that HTTP/3 is offered.
"""

from __future__ import annotations

import logging
import os
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from itertools import groupby
from typing import Any, Final

import hypercorn
from cryptography import x509

from hoststack.asgi import Application, Entry
from hoststack.asgi.core import Core
from hoststack.asgi.loading import Message, Receive, Scope, Send
from hoststack.serve.certificates import Pair, tcp_context
from hoststack.serve.settings import ServeSettings

_ALT_SVC_S: Final = 86400
_SERVER_ERROR: Final = 500

#: hypercorn.asyncio.serve, or hypercorn.trio.serve.
Serve = Callable[..., Coroutine[Any, Any, None]]


class Contexts:
    """The TLS of TCP connections: a certificate is chosen by the name that the client asks for."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.front = tcp_context(pairs[0])
        self.front.sni_callback = self._choose
        self.replace(pairs)

    def replace(self, pairs: Sequence[Pair]) -> None:
        """Use these from the next handshake on."""
        made = [tcp_context(pair) for pair in pairs]
        names = [(name, c) for pair, c in zip(pairs, made, strict=True) for name in _names(pair)]
        self._first, self._by_name = made[0], dict(reversed(names))

    def _choose(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        # As TlsConfig.certificates: the exact name, then a wildcard, then the first of all.
        asked = (name or "").lower()
        wildcard = f"*.{asked.partition('.')[2]}"
        connection.context = self._by_name.get(asked) or self._by_name.get(wildcard, self._first)


def _names(pair: Pair) -> list[str]:
    leaf = x509.load_pem_x509_certificates(pair.certificate)[0]
    try:
        found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return [name.lower() for name in found.value.get_values_for_type(x509.DNSName)]


class _Config(hypercorn.Config):
    """hypercorn's settings, with TLS of our own."""

    context: ssl.SSLContext

    @property
    def ssl_enabled(self) -> bool:
        return True

    def create_ssl_context(self) -> ssl.SSLContext:
        return self.context


def companions(
    serve: Serve,
    application: Application,
    settings: ServeSettings,
    fds: Sequence[int],
    contexts: Contexts,
    shutdown_trigger: Callable[[], Awaitable[object]],
) -> list[Callable[[], Coroutine[Any, Any, None]]]:
    """Return what serves the listening sockets, one for each port, until the trigger returns."""
    by_port = groupby(sorted(fds, key=_port_of), key=_port_of)
    return [
        partial(
            serve,
            application,
            _config(settings, port, list(those), contexts),
            shutdown_trigger=shutdown_trigger,
            mode="asgi",
        )
        for port, those in by_port
    ]


def _port_of(fd: int) -> int:
    with socket.socket(fileno=os.dup(fd)) as listening:
        return int(listening.getsockname()[1])


def _config(
    settings: ServeSettings, port: int, fds: Sequence[int], contexts: Contexts
) -> hypercorn.Config:
    config = _Config()
    config.context = contexts.front
    # Duplicates: hypercorn closes what it listens on.
    config.bind = [f"fd://{os.dup(fd)}" for fd in fds]
    config.alt_svc_headers = [f'h3=":{port}"; ma={_ALT_SVC_S}']
    config.include_server_header = False
    config.root_path = settings.root_path
    config.graceful_timeout = settings.graceful_timeout
    config.keep_alive_timeout = settings.idle_timeout
    config.h2_max_concurrent_streams = settings.limit_streams
    config.h2_max_header_list_size = settings.limit_header_bytes
    config.h11_max_incomplete_size = settings.limit_header_bytes
    config.errorlog = logging.getLogger("hoststack.serve.tcp")
    config.errorlog.setLevel(logging.WARNING)
    config.accesslog = None
    return config


def for_tcp(server: Core) -> Application:
    """Return a server's application for hypercorn: its lifespan runs once, for HTTP/3 and TCP
    together, and its requests are counted and logged together."""
    application = server.application

    async def called(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        scope["state"] = server.state.copy()
        if scope["type"] == "http":
            await _counted(server, scope, receive, send)
        else:
            await application(scope, receive, send)

    return called


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


async def _counted(server: Core, scope: Scope, receive: Receive, send: Send) -> None:
    began, status, body_bytes = time.monotonic(), _SERVER_ERROR, 0

    async def counted(message: Message) -> None:
        nonlocal status, body_bytes
        if message["type"] == "http.response.start":
            status = message["status"]
        elif message["type"] == "http.response.body":
            body_bytes += len(message.get("body", b""))
        await send(message)

    try:
        await server.application(scope, receive, counted)
    finally:
        statistics = server.statistics
        statistics.requests += 1
        statistics.body_bytes += body_bytes
        statistics.errors += status >= _SERVER_ERROR
        if server.access_log is not None:
            server.access_log.add(_entry(scope, status, body_bytes, time.monotonic() - began))


def _entry(scope: Scope, status: int, body_bytes: int, seconds: float) -> Entry:
    query = scope["query_string"]
    return Entry(
        client=scope["client"][0] if scope["client"] else "-",
        method=scope["method"],
        target=scope["raw_path"] + (b"?" + query if query else b""),
        protocol=f"HTTP/{scope['http_version']}",
        status=status,
        body_bytes=body_bytes,
        seconds=seconds,
        headers=list(scope["headers"]),
        request_id="-",
    )
