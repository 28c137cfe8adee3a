"""Limits on the endpoints of an application's UDP listeners, and which one a new peer replaces.

A UDP datagram proves nothing about its source address, so an attacker can create a peer with each
forged address. Endpoints of peers therefore have their own limits, which leave most of the
application's resources to its other sessions. At the limit, a new peer replaces the one that was
silent for longest. Peers that sent again after the application answered them are proven; unproven
ones are replaced first, and have a lower limit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from hoststack.boundary.application import Application
    from hoststack.transport.kernel.udp import UdpConnection

#: Most endpoints of peers, and most of those that have not sent again after an answer.
MOST_PEERS: Final = 4096
MOST_UNPROVEN: Final = 256


class UdpPeers:
    """The endpoints of one application's listeners, the one that was silent for longest first."""

    def __init__(self) -> None:
        self._unproven: dict[UdpConnection, None] = {}
        self._proven: dict[UdpConnection, None] = {}

    def __len__(self) -> int:
        return len(self._unproven) + len(self._proven)

    @staticmethod
    def may_add(application: Application, block_bytes: int) -> bool:
        """Return whether the application keeps up: it has read most notices about peers, and
        released most FIFOs of closed ones. `block_bytes` is the memory of an endpoint's two
        FIFOs.

        Three eighths of the memory are left to others: in the last quarter, connections that have
        streams get no further ones (boundary/shares.py).
        """
        most_bytes, held = application.max_fifo_bytes, application.peer_fifo_bytes
        if most_bytes is not None and held:
            used = application.fifo_bytes + block_bytes
            if held + block_bytes > most_bytes // 2 or used > most_bytes * 5 // 8:
                return False
        return not application.is_behind

    def whose_place(self, application: Application, block_bytes: int) -> UdpConnection | None:
        """Return the endpoint that a new one with FIFOs of this memory replaces; None if there
        is room."""
        most = _most_of(application, block_bytes)
        if self._unproven and len(self._unproven) >= min(MOST_UNPROVEN, max(1, most // 2)):
            return next(iter(self._unproven))
        if len(self) >= most:
            return next(iter(self._unproven or self._proven))
        return None

    def add(self, connection: UdpConnection) -> None:
        """Add the endpoint of a new peer."""
        self._unproven[connection] = None

    def heard(self, connection: UdpConnection, *, is_answered: bool) -> None:
        """Record a datagram from a peer; `is_answered`: whether the application had answered
        before."""
        if connection in self._proven or is_answered:
            self._unproven.pop(connection, None)
            self._proven.pop(connection, None)
            self._proven[connection] = None
        elif connection in self._unproven:
            del self._unproven[connection]
            self._unproven[connection] = None

    def remove(self, connection: UdpConnection) -> None:
        """Remove an endpoint. Idempotent."""
        self._unproven.pop(connection, None)
        self._proven.pop(connection, None)


def _most_of(application: Application, block_bytes: int) -> int:
    """Return how many endpoints an application may have: half of its sessions, and three eighths of
    its FIFO memory. `may_add` reserves another eighth for closed endpoints whose FIFOs the
    application has not released yet."""
    most = MOST_PEERS
    if application.max_sessions is not None:
        most = min(most, application.max_sessions // 2)
    if application.max_fifo_bytes is not None:
        most = min(most, application.max_fifo_bytes * 3 // 8 // block_bytes)
    return max(1, most)
