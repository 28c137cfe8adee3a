"""Which of the peers of an application's UDP listeners have an endpoint, and which make room.

A UDP datagram proves nothing about its source address, so whoever writes random addresses into
datagrams makes a peer with each. Endpoints of peers therefore have bounds of their own, which leave
most of what the application may have to its other sessions, and a new peer takes the place of the
one that was silent for longest. Peers that came back after the application had answered them rank
above those that did not: these go first, and have a smaller bound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hoststack.native.memory.fifo import Fifo

if TYPE_CHECKING:
    from hoststack.boundary.application import Application
    from hoststack.transport.kernel.udp import UdpConnection

#: Endpoints of peers, and of those that have not come back after an answer.
MOST_PEERS: Final = 4096
MOST_UNPROVEN: Final = 256


class UdpPeers:
    """The endpoints that the listeners of one application made, those that were silent for longest
    first."""

    def __init__(self) -> None:
        self._unproven: dict[UdpConnection, None] = {}
        self._proven: dict[UdpConnection, None] = {}

    def __len__(self) -> int:
        return len(self._unproven) + len(self._proven)

    @staticmethod
    def may_add(application: Application, fifo_bytes: int) -> bool:
        """Whether the application keeps up: it has taken notice of most peers before this one, and
        released most FIFOs of those that are gone. `fifo_bytes` is the size of each of the two
        FIFOs of an endpoint."""
        most_bytes, held = application.max_fifo_bytes, application.peer_fifo_bytes
        has_room = (
            most_bytes is None
            or not held
            or held + 2 * Fifo.block_bytes(fifo_bytes) <= most_bytes // 2
        )
        return has_room and not application.is_behind

    def whose_place(self, application: Application, fifo_bytes: int) -> UdpConnection | None:
        """The endpoint that has to go before another one with such FIFOs is added."""
        most = _most_of(application, fifo_bytes)
        if self._unproven and len(self._unproven) >= min(MOST_UNPROVEN, max(1, most // 2)):
            return next(iter(self._unproven))
        if len(self) >= most:
            return next(iter(self._unproven or self._proven))
        return None

    def add(self, connection: UdpConnection) -> None:
        """A new peer has an endpoint."""
        self._unproven[connection] = None

    def heard(self, connection: UdpConnection, *, is_answered: bool) -> None:
        """The peer has sent something; whether that was after an answer."""
        if connection in self._proven or is_answered:
            self._unproven.pop(connection, None)
            self._proven.pop(connection, None)
            self._proven[connection] = None
        elif connection in self._unproven:
            del self._unproven[connection]
            self._unproven[connection] = None

    def remove(self, connection: UdpConnection) -> None:
        """An endpoint is gone. Idempotent."""
        self._unproven.pop(connection, None)
        self._proven.pop(connection, None)


def _most_of(application: Application, fifo_bytes: int) -> int:
    """How many endpoints an application may have: half of its sessions, and three eighths of its
    FIFO memory. `may_add` leaves another eighth to those that are gone, until the application has
    released their FIFOs."""
    most = MOST_PEERS
    if application.max_sessions is not None:
        most = min(most, application.max_sessions // 2)
    if application.max_fifo_bytes is not None:
        block_bytes = 2 * Fifo.block_bytes(fifo_bytes)
        most = min(most, application.max_fifo_bytes * 3 // 8 // block_bytes)
    return max(1, most)
