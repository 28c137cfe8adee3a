"""The supervisor's part of the links: what needs privileges, or outlives a worker."""

from __future__ import annotations

import errno
import socket
from typing import Any, Protocol

from hoststack.control.worker_side import Data
from hoststack.daemon.config import DaemonConfig
from hoststack.link.base import Endpoint, KernelProtocol, LinkError
from hoststack.link.kernel.sockets import open_kernel_socket
from hoststack.link.udp.group import UdpGroup


class LinkPart(Protocol):
    """Opens ports (daemon/ports.py, PortOwner), and makes the workers' links possible."""

    name: str
    trouble: str

    def look(self) -> str:
        """Return why packets no longer flow, or "". Called once a second. See SharedAfXdp."""

    def take_again(self) -> None:
        """See SharedAfXdp."""

    def hand_over(self, worker: int) -> tuple[dict[str, Any], list[int]]:
        """Return what a worker's link is made from; the descriptors stay open here."""

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
        """Recover what a dead worker held. False means that it must be called again."""

    def break_locks(self) -> int:
        """Break locks that workers hold too long; return how many. Called once a second."""

    def describe(self) -> Data:
        """Return what `show xdp` prints beside the workers' sockets."""

    def close(self) -> None: ...


class UdpPart(UdpGroup):
    """The udp link: a group of sockets for each port, one for each worker."""

    name = "udp"
    trouble = ""

    def look(self) -> str:
        """See LinkPart; the kernel handles interfaces that come and go."""
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
        """See PortSource (link/base.py); the kernel resolves neighbours itself when it sends."""

    def reclaim(self, worker: int) -> bool:
        """See LinkPart; datagrams in the sockets wait for the next worker."""
        return True

    def break_locks(self) -> int:
        """See LinkPart; there are none."""
        return 0

    def describe(self) -> Data:
        """See LinkPart."""
        return {}


def make_link_part(config: DaemonConfig, rotation: int) -> tuple[LinkPart, str]:
    """Return the link of a configuration, and why it is not a better one.

    As for an embedded stack (link/auto.py), an interface that does not exist is a mistake to
    report. Raises LinkError.
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


def _make_af_xdp(config: DaemonConfig, rotation: int) -> LinkPart:
    if config.interface is None:
        raise LinkError(errno.EINVAL, "AF_XDP needs an interface (-i IFACE)")
    # A daemon over UDP sockets does without libxdp.
    from hoststack.daemon.af_xdp_part import AfXdpPart

    return AfXdpPart.open(
        config.interface,
        config.workers,
        mode=config.mode,
        host=config.host,
        rotation=rotation,
    )
