"""The kernel's own sockets, bound: what carries TCP, and UDP that is not QUIC."""

from __future__ import annotations

import errno
import ipaddress
import resource
import socket
from typing import Final

from hoststack.link.base import Endpoint, KernelProtocol, LinkError
from hoststack.link.port_reservation import bind_error

#: Descriptors that sockets of sessions leave to the rest of the process, which can't do without:
#: applications attach with some, and their FIFOs lie in segments.
_SPARED: Final = 256

_TYPES = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


def open_kernel_socket(
    protocol: KernelProtocol, endpoint: Endpoint, ifindex: int = 0
) -> socket.socket:
    """See SocketSource. `ifindex` is the scope of a link-local address. Raises LinkError."""
    address = ipaddress.ip_address(endpoint.host)
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    made = socket.socket(family, _TYPES[protocol] | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if protocol == "tcp":
            # Or the port could not be had while connections of before are in TIME_WAIT.
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if ifindex and address.version == 6 and address.is_link_local:
            made.bind((endpoint.host, endpoint.port, 0, ifindex))
        else:
            made.bind(endpoint)
    except OSError as error:
        made.close()
        raise bind_error(error, endpoint, protocol) from None
    return made


def check_room_for(descriptor: int) -> None:
    """Raises LinkError for one that was opened when there were hardly any left: the kernel gives
    the lowest number that is free."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and descriptor >= most - min(_SPARED, most // 4):
        raise LinkError(
            errno.EMFILE,
            f"too many sockets for the {most} open files that a process may have: close some, or "
            "raise the limit (`ulimit -n`, LimitNOFILE=)",
        )


class OwnSockets:
    """Sockets that this process opens for itself. Implements SocketSource."""

    def open_socket(self, protocol: KernelProtocol, endpoint: Endpoint) -> socket.socket:
        """See SocketSource."""
        return open_kernel_socket(protocol, endpoint)

    def close_socket(self, protocol: KernelProtocol, endpoint: Endpoint) -> None:
        """See SocketSource; the kernel knows."""
