"""UDP ports whose datagrams bypass the kernel: reserved with it, and steered."""

from __future__ import annotations

import errno
import socket
from typing import Final

from hoststack.link.base import Endpoint, KernelProtocol, LinkError
from hoststack.link.kernel.port_reservation import PortReservation
from hoststack.link.kernel.rtnetlink import Rtnetlink
from hoststack.link.kernel.sockets import open_kernel_socket
from hoststack.link.xdp.steering import MAX_PORTS, Steering

#: Most ports of plain datagrams that are steered, and most QUIC ports: the halves of the map.
_MOST_DATAGRAM_PORTS: Final = MAX_PORTS // 2
MOST_QUIC_PORTS: Final = MAX_PORTS - _MOST_DATAGRAM_PORTS


class SteeredPorts:
    """Implements PortSource (link/base.py), in the process that has the steering program."""

    def __init__(self, steering: Steering, ifindex: int) -> None:
        """The caller still owns both."""
        self._steering: Steering | None = steering
        self._ifindex = ifindex
        self._kernel: Rtnetlink | None = None
        self._reservations: dict[Endpoint, PortReservation] = {}
        self._datagram_ports: dict[Endpoint, int] = {}
        """The worker of each endpoint."""

    def open_port(self, endpoint: Endpoint) -> tuple[Endpoint, int]:
        """See PortSource."""
        reservation = PortReservation(endpoint, self._ifindex)
        try:
            self._in_charge().open_port(reservation.endpoint)
        except BaseException:
            reservation.close()
            raise
        self._reservations[reservation.endpoint] = reservation
        return reservation.endpoint, -1

    def close_port(self, endpoint: Endpoint) -> None:
        """See PortSource; no effect if it is not open."""
        reservation = self._reservations.pop(endpoint, None)
        if reservation is not None:
            if self._steering is not None:
                self._steering.close_port(endpoint)
            reservation.close()

    def open_socket(
        self, protocol: KernelProtocol, endpoint: Endpoint, worker: int = 0
    ) -> socket.socket:
        """See SocketSource; a UDP socket's datagrams are steered to `worker`."""
        opened = open_kernel_socket(protocol, endpoint, self._ifindex)
        local = Endpoint(endpoint.host, opened.getsockname()[1])
        if protocol == "udp" and len(self._datagram_ports) < _MOST_DATAGRAM_PORTS:
            try:
                self._in_charge().open_port(local, worker)
            except LinkError:
                opened.close()
                raise
            self._datagram_ports[local] = worker
        return opened

    def close_socket(self, protocol: KernelProtocol, endpoint: Endpoint) -> None:
        """See SocketSource; no effect if its datagrams are not steered."""
        if protocol == "udp" and endpoint in self._datagram_ports:
            del self._datagram_ports[endpoint]
            if self._steering is not None:
                self._steering.close_port(endpoint)

    def use_neighbour(self, host: str) -> None:
        """See PortSource."""
        if self._kernel is None:
            self._kernel = Rtnetlink(follows_changes=False)
        self._kernel.use_neighbour(self._ifindex, host)

    def _in_charge(self) -> Steering:
        if self._steering is None:
            raise LinkError(errno.ENODEV, "the interface is gone: wait until it is back")
        return self._steering

    def let_go(self) -> None:
        """Detach from a program that is about to be closed; `move` steers the ports again."""
        self._steering = None

    def move(self, steering: Steering, ifindex: int) -> None:
        """Steer the ports with another program, on another interface. Raises LinkError."""
        for endpoint in self._reservations:
            steering.open_port(endpoint)
        for endpoint, worker in self._datagram_ports.items():
            steering.open_port(endpoint, worker)
        self._steering = steering
        self._ifindex = ifindex

    def close(self) -> None:
        """Close all ports; idempotent."""
        for endpoint in list(self._reservations):
            self.close_port(endpoint)
        for endpoint in list(self._datagram_ports):
            self.close_socket("udp", endpoint)
        if self._kernel is not None:
            self._kernel.close()
            self._kernel = None
