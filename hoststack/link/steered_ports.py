"""UDP ports whose datagrams go past the kernel: reserved with it, and steered."""

from __future__ import annotations

from hoststack.link.base import Endpoint
from hoststack.link.port_reservation import PortReservation
from hoststack.link.rtnetlink import Rtnetlink
from hoststack.link.steering import Steering


class SteeredPorts:
    """Implements PortSource (link/base.py), in the process that has the steering program."""

    def __init__(self, steering: Steering, ifindex: int) -> None:
        """Both stay the caller's."""
        self._steering = steering
        self._ifindex = ifindex
        self._kernel: Rtnetlink | None = None
        self._reservations: dict[Endpoint, PortReservation] = {}

    def open_port(self, endpoint: Endpoint) -> tuple[Endpoint, int]:
        """See PortSource."""
        reservation = PortReservation(endpoint, self._ifindex)
        try:
            self._steering.open_port(reservation.endpoint)
        except BaseException:
            reservation.close()
            raise
        self._reservations[reservation.endpoint] = reservation
        return reservation.endpoint, -1

    def close_port(self, endpoint: Endpoint) -> None:
        """See PortSource; nothing happens if it is not open."""
        reservation = self._reservations.pop(endpoint, None)
        if reservation is not None:
            self._steering.close_port(endpoint)
            reservation.close()

    def use_neighbour(self, host: str) -> None:
        """See PortSource."""
        if self._kernel is None:
            self._kernel = Rtnetlink(follows_changes=False)
        self._kernel.use_neighbour(self._ifindex, host)

    def close(self) -> None:
        """All ports; idempotent."""
        for endpoint in list(self._reservations):
            self.close_port(endpoint)
        if self._kernel is not None:
            self._kernel.close()
            self._kernel = None
