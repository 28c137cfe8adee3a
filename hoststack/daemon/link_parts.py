"""The supervisor's part of the links: what needs privileges, or outlives a worker."""

from __future__ import annotations

import errno
import socket
from typing import Any, Protocol

from hoststack.control.counters import describe_program
from hoststack.control.worker_side import Data
from hoststack.daemon.config import DaemonConfig
from hoststack.link.base import Endpoint, KernelProtocol, LinkError
from hoststack.link.kernel.sockets import open_kernel_socket
from hoststack.link.udp.group import UdpGroup
from hoststack.link.xdp.shared import SharedAfXdp


class LinkPart(Protocol):
    """Opens ports (daemon/ports.py, PortOwner), and makes the workers' links possible."""

    name: str
    trouble: str

    def look(self) -> str:
        """Every second or so: why no packet comes or goes any more, or "". See SharedAfXdp."""

    def take_again(self) -> None:
        """See SharedAfXdp."""

    def hand_over(self, worker: int) -> tuple[dict[str, Any], list[int]]:
        """What a worker's link is made from; the descriptors stay here."""

    @property
    def sockets_of_port(self) -> int: ...
    def open_port(self, endpoint: Endpoint) -> Endpoint: ...
    def close_port(self, endpoint: Endpoint) -> None: ...
    def open_socket(
        self, protocol: KernelProtocol, endpoint: Endpoint, worker: int
    ) -> socket.socket: ...
    def close_socket(self, protocol: KernelProtocol, endpoint: Endpoint) -> None: ...
    def use_neighbour(self, host: str) -> None: ...
    def socket_of(self, worker: int, endpoint: Endpoint) -> int: ...
    def reclaim(self, worker: int) -> bool:
        """A worker died: what it had in hand comes back. False where it is to be called again."""

    def break_locks(self) -> int:
        """Every second or so: what workers lock and keep locked is free again. How many it were."""

    def describe(self) -> Data:
        """What `show xdp` says beside the workers' sockets."""

    def close(self) -> None: ...


class UdpPart(UdpGroup):
    """The udp link: a group of sockets for each port, one for each worker."""

    name = "udp"
    trouble = ""

    def look(self) -> str:
        """See LinkPart; the kernel knows which interfaces there are."""
        return ""

    def take_again(self) -> None:
        """See LinkPart."""

    def hand_over(self, worker: int) -> tuple[dict[str, Any], list[int]]:
        """See LinkPart; sockets are handed over as ports are opened."""
        return {}, []

    def open_socket(
        self, protocol: KernelProtocol, endpoint: Endpoint, worker: int
    ) -> socket.socket:
        """See PortOwner; the kernel carries its datagrams."""
        return open_kernel_socket(protocol, endpoint)

    def close_socket(self, protocol: KernelProtocol, endpoint: Endpoint) -> None:
        """See PortOwner; the kernel knows."""

    def use_neighbour(self, host: str) -> None:
        """See PortSource (link/base.py); the kernel sends, and looks for them unasked."""

    def reclaim(self, worker: int) -> bool:
        """See LinkPart; what waits in its sockets waits for the next one."""
        return True

    def break_locks(self) -> int:
        """See LinkPart; there are none."""
        return 0

    def describe(self) -> Data:
        """See LinkPart."""
        return {}


class AfXdpPart(SharedAfXdp):
    """The af_xdp link: the program, the UMEM and all sockets of an interface."""

    name = "af_xdp"
    #: See LinkPart: a reservation.
    sockets_of_port = 1

    def socket_of(self, worker: int, endpoint: Endpoint) -> int:
        """See LinkPart; workers have their sockets from the start."""
        return -1

    def describe(self) -> Data:
        """See LinkPart."""
        if self.trouble:
            return {"trouble": self.trouble}
        return describe_program(self.steering) | {"fill_levels": self.fill_levels()}


def make_link_part(config: DaemonConfig, rotation: int) -> tuple[LinkPart, str]:
    """The link of a configuration, and why it is not a better one.

    As for an embedded stack (link/auto.py), an interface that does not exist is a mistake to tell
    of. Raises LinkError.
    """
    reason = ""
    if config.link != "udp":
        try:
            return _make_af_xdp(config, rotation), ""
        except LinkError as error:
            if config.link == "af_xdp" or error.errno == errno.ENODEV:
                raise
            reason = f"link udp instead of af_xdp: {error.strerror}"
    return UdpPart(config.workers, host=config.host, rotation=rotation), reason


def _make_af_xdp(config: DaemonConfig, rotation: int) -> AfXdpPart:
    if config.interface is None:
        raise LinkError(errno.EINVAL, "AF_XDP needs an interface (-i IFACE)")
    return AfXdpPart.open(
        config.interface,
        config.workers,
        mode=config.mode,
        host=config.host,
        rotation=rotation,
    )
