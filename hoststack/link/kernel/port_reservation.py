"""Reserving a UDP port with the kernel, for a link that receives its packets before the kernel."""

from __future__ import annotations

import socket

from hoststack.link.base import Endpoint
from hoststack.link.kernel.sockets import open_kernel_socket


class PortReservation:
    """A kernel UDP socket that holds a port and receives nothing.

    While it is open no other program can bind the port, and the kernel assigns it to no socket.
    """

    def __init__(self, endpoint: Endpoint, ifindex: int) -> None:
        """Bind; port 0 picks a free one. `ifindex` is the scope of a link-local address.

        Raises LinkError: EADDRINUSE, EADDRNOTAVAIL, EACCES.
        """
        self._socket = open_kernel_socket("udp", endpoint, ifindex)
        # Packets for the port from other interfaces (loopback) end up here, unread: they should
        # take no memory.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
        self.endpoint = Endpoint(endpoint.host, self._socket.getsockname()[1])

    def close(self) -> None:
        """Release the port; idempotent."""
        self._socket.close()
