"""The supervisor's part of the af_xdp link: what workers share of an interface."""

from __future__ import annotations

from hoststack.control.counters import describe_program
from hoststack.control.worker_side import Data
from hoststack.link.base import Endpoint
from hoststack.link.xdp.shared import SharedAfXdp


class AfXdpPart(SharedAfXdp):
    """The af_xdp link: the program, the UMEM and all sockets of an interface."""

    name = "af_xdp"
    #: See LinkPart: the port reservation.
    sockets_of_port = 1

    def socket_of(self, worker: int, endpoint: Endpoint) -> int:
        """See LinkPart; workers have their sockets from the start."""
        return -1

    def describe(self) -> Data:
        """See LinkPart."""
        if self.trouble:
            return {"trouble": self.trouble}
        return describe_program(self.steering) | {"fill_levels": self.fill_levels()}
