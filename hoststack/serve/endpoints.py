"""The addresses and ports that a server listens on."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Final

from hoststack.boundary.uri import Uri, UriError, parse_uri
from hoststack.link.base import Endpoint, LinkError
from hoststack.link.kernel.sockets import open_kernel_socket
from hoststack.serve.settings import ServeError

_BACKLOG: Final = 1024


def resolve(binds: Iterable[str], *, tcp: bool) -> tuple[list[Uri], list[socket.socket]]:
    """Return the URIs to listen on, with a free port in place of 0, and with `tcp` a listening
    socket for each; of a name, all its addresses. Raises ServeError, also for a port in use."""
    uris: list[Uri] = []
    with ExitStack() as undo, ExitStack() as probes:
        sockets = []
        for host, port in _addresses(binds):
            udp, tcp_socket = _reserve(host, port, tcp=tcp)
            probes.enter_context(udp)
            uris.append(Uri("quic", host, udp.getsockname()[1]))
            if tcp_socket is not None:
                sockets.append(undo.enter_context(tcp_socket))
        undo.pop_all()
        return uris, sockets


def _addresses(binds: Iterable[str]) -> list[tuple[str, int]]:
    found: dict[tuple[str, int], None] = {}
    for text in binds:
        try:
            uri = parse_uri(f"quic://{text}")
        except UriError as error:
            raise ServeError(f"--bind {text}: {str(error).replace('quic://', '')}") from None
        try:
            addresses = socket.getaddrinfo(uri.host, uri.port, type=socket.SOCK_DGRAM)
        except OSError as error:
            raise ServeError(
                f"--bind {text}: {uri.host} can't be looked up: {error.strerror}: use an address"
            ) from None
        _, zone_mark, zone = uri.host.partition("%")
        for *_, address in addresses:
            host = str(address[0])
            found[host if "%" in host else host + zone_mark + zone, uri.port] = None
    return list(found)


def _reserve(host: str, port: int, *, tcp: bool) -> tuple[socket.socket, socket.socket | None]:
    """Return a bound UDP socket, and with `tcp` a listening one of the same port."""
    try:
        udp = open_kernel_socket("udp", Endpoint(host, port))
        if not tcp:
            return udp, None
        try:
            listening = open_kernel_socket("tcp", Endpoint(host, udp.getsockname()[1]))
            listening.listen(_BACKLOG)
        except BaseException:
            udp.close()
            raise
    except LinkError as error:
        raise ServeError(str(error.strerror)) from None
    return udp, listening
