"""What a session can be carried by, and what each protocol has: one table for all who ask."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Final, Literal

Protocol = Literal["quic", "tcp", "udp"]


@dataclass(frozen=True, slots=True)
class Features:
    """What connections of a protocol have."""

    streams: Literal["many", "one", "none"]
    datagrams: bool
    """Messages that keep their boundaries."""
    tls: bool
    accepts: bool = True
    """Whether a listener hands out connections."""
    unconnected: bool = False
    """Whether there are endpoints that talk to anybody."""
    is_kernels: bool = True
    """Whether it is the kernel's: XDP leaves it alone, and sockets carry it."""


PROTOCOLS: Final[dict[Protocol, Features]] = {
    "quic": Features(streams="many", datagrams=True, tls=True, is_kernels=False),
    "tcp": Features(streams="one", datagrams=False, tls=False),
    "udp": Features(streams="none", datagrams=True, tls=False, unconnected=True),
}


def not_supported(protocol: str, what: str) -> OSError:
    """The error of what a protocol does not have."""
    return OSError(errno.ENOTSUP, f"{protocol} has no {what}")
