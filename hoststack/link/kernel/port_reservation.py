"""Reserving a UDP port with the kernel, for a link that takes its packets before it does."""

from __future__ import annotations

import socket

from hoststack.link.base import Endpoint
from hoststack.link.kernel.sockets import open_kernel_socket


class PortReservation:
    """A kernel UDP socket that holds a port and receives nothing.

    While it lives no other program can bind the port, and the kernel hands it out to nobody.
    """

    def __init__(self, endpoint: Endpoint, ifindex: int) -> None:
        """Bind; port 0 takes a free one. `ifindex` is the scope of a link-local address.

        Raises LinkError: EADDRINUSE, EADDRNOTAVAIL, EACCES.
        """
        self._socket = open_kernel_socket("udp", endpoint, ifindex)
        # Packets for the port that come in elsewhere (the loopback interface) end up here,
        # unread: let them take no memory.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
        self.endpoint = Endpoint(endpoint.host, self._socket.getsockname()[1])

    def close(self) -> None:
        """Give the port back; idempotent."""
        self._socket.close()
