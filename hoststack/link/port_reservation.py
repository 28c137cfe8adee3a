"""Reserving a UDP port with the kernel, for a link that takes its packets before it does."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket

from hoststack.link.base import Endpoint, KernelProtocol, LinkError


class PortReservation:
    """A kernel UDP socket that holds a port and receives nothing.

    While it lives no other program can bind the port, and the kernel hands it out to nobody.
    """

    def __init__(self, endpoint: Endpoint, ifindex: int) -> None:
        """Bind; port 0 takes a free one. `ifindex` is the scope of a link-local address.

        Raises LinkError: EADDRINUSE, EADDRNOTAVAIL, EACCES.
        """
        address = ipaddress.ip_address(endpoint.host)
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        self._socket = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            # Packets for the port that come in elsewhere (the loopback interface) end up here,
            # unread: let them take no memory.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
            if family == socket.AF_INET:
                self._socket.bind((endpoint.host, endpoint.port))
            else:
                # "::" takes IPv6 alone, as the steering map does.
                self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                scope = ifindex if address.is_link_local else 0
                self._socket.bind((endpoint.host, endpoint.port, 0, scope))
        except OSError as error:
            self._socket.close()
            raise bind_error(error, endpoint) from None
        self.endpoint = Endpoint(endpoint.host, self._socket.getsockname()[1])

    def close(self) -> None:
        """Give the port back; idempotent."""
        self._socket.close()


def bind_error(error: OSError, endpoint: Endpoint, protocol: KernelProtocol = "udp") -> LinkError:
    """What to tell a user whose endpoint could not be bound."""
    number = error.errno or errno.EIO
    where = f"{protocol.upper()} port {endpoint.port} on {endpoint.host}"
    match number:
        case errno.EADDRINUSE:
            flags = "-ulpn" if protocol == "udp" else "-tlpn"
            line = f"{where} is in use: `ss {flags}` shows by whom; stop it or take another port"
        case errno.EADDRNOTAVAIL:
            line = (
                f"{endpoint.host} is not an address of this machine: "
                "take one that `ip address` shows"
            )
        case errno.EACCES:
            line = f"{where} needs CAP_NET_BIND_SERVICE: run as root or take a port above 1023"
        case _:
            line = f"cannot bind {where}: {os.strerror(number)}"
    return LinkError(number, line)
