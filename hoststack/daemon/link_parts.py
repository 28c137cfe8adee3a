"""The supervisor's part of the links: what needs privileges, or outlives a worker."""

from __future__ import annotations

import errno
from typing import Any, Protocol

from hoststack.daemon.config import DaemonConfig
from hoststack.link.base import Endpoint, LinkError
from hoststack.link.udp_group import UdpGroup


class LinkPart(Protocol):
    """Opens ports (daemon/ports.py, PortOwner), and makes the workers' links possible."""

    name: str

    def hand_over(self, worker: int) -> tuple[dict[str, Any], list[int]]:
        """What a worker's link is made from; the descriptors stay here."""

    def open_port(self, endpoint: Endpoint) -> Endpoint: ...
    def close_port(self, endpoint: Endpoint) -> None: ...
    def socket_of(self, worker: int, endpoint: Endpoint) -> int: ...
    def reclaim(self, worker: int) -> None:
        """A worker died: what it had in hand comes back."""

    def close(self) -> None: ...


class UdpPart(UdpGroup):
    """The udp link: a group of sockets for each port, one for each worker."""

    name = "udp"

    def hand_over(self, worker: int) -> tuple[dict[str, Any], list[int]]:
        """See LinkPart; sockets are handed over as ports are opened."""
        return {}, []

    def reclaim(self, worker: int) -> None:
        """See LinkPart; what waits in its sockets waits for the next one."""


def make_link_part(config: DaemonConfig, rotation: int) -> tuple[LinkPart, str]:
    """The link of a configuration, and why it is not a better one. Raises LinkError."""
    if config.link == "af_xdp":
        raise LinkError(
            errno.ENOTSUP, "a daemon can't serve over af_xdp yet: take link udp, or open_stack()"
        )
    reason = "" if config.link == "udp" else "link udp: a daemon can't serve over af_xdp yet"
    return UdpPart(config.workers, host=config.host, rotation=rotation), reason
