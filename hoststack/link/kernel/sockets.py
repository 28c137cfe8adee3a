"""Bound kernel sockets, which carry TCP, and UDP that is not QUIC."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket

from hoststack.link.base import Endpoint, KernelProtocol, LinkError
from hoststack.link.zones import scope_of, without_zone

_TYPES = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


def open_kernel_socket(
    protocol: KernelProtocol, endpoint: Endpoint, ifindex: int = 0
) -> socket.socket:
    """Open a bound socket; see SocketSource. `ifindex` is the scope of a link-local address without
    a zone. Raises LinkError."""
    address = ipaddress.ip_address(endpoint.host)
    scope = scope_of(endpoint.host)
    if not scope and address.is_link_local:
        scope = ifindex
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    made = socket.socket(family, _TYPES[protocol] | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if protocol == "tcp":
            # Without it the port is unavailable while earlier connections are in TIME_WAIT.
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # "::" means IPv6 only, as in the steering map.
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if scope and address.version == 6:
            made.bind((without_zone(endpoint.host), endpoint.port, 0, scope))
        else:
            made.bind(endpoint)
    except OSError as error:
        made.close()
        raise bind_error(error, endpoint, protocol) from None
    return made


def bind_error(error: OSError, endpoint: Endpoint, protocol: KernelProtocol = "udp") -> LinkError:
    """Turn a failed bind into a LinkError that says what to do."""
    number = error.errno or errno.EIO
    where = f"{protocol.upper()} port {endpoint.port} on {endpoint.host}"
    match number:
        case errno.EADDRINUSE:
            flags = "-ulpn" if protocol == "udp" else "-tlpn"
            line = f"{where} is in use: `ss {flags}` shows the program; stop it or use another port"
        case errno.EADDRNOTAVAIL:
            line = (
                f"{endpoint.host} is not an address of this machine: "
                "use one that `ip address` shows"
            )
        case errno.EACCES:
            line = f"{where} needs CAP_NET_BIND_SERVICE: run as root or use a port above 1023"
        case _:
            line = f"cannot bind {where}: {os.strerror(number)}"
    return LinkError(number, line)


class OwnSockets:
    """Sockets that this process opens for itself. Implements SocketSource."""

    def open_socket(self, protocol: KernelProtocol, endpoint: Endpoint) -> socket.socket:
        """See SocketSource."""
        return open_kernel_socket(protocol, endpoint)

    def close_socket(self, protocol: KernelProtocol, endpoint: Endpoint) -> None:
        """See SocketSource; the kernel needs no notice."""
