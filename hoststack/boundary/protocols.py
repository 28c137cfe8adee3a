"""The table of transport protocols for sessions, and their features."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Final, Literal

Protocol = Literal["quic", "tcp", "udp"]


@dataclass(frozen=True, slots=True)
class Features:
    """Features of a protocol's connections."""

    streams: Literal["many", "one", "none"]
    datagrams: bool
    """Whether they carry messages with boundaries."""
    tls: bool
    accepts: bool = True
    """Whether a listener accepts connections."""
    unconnected: bool = False
    """Whether endpoints without a fixed peer are possible."""
    is_kernels: bool = True
    """Whether kernel sockets carry it; XDP then passes its packets to the kernel."""


PROTOCOLS: Final[dict[Protocol, Features]] = {
    "quic": Features(streams="many", datagrams=True, tls=True, is_kernels=False),
    "tcp": Features(streams="one", datagrams=False, tls=False),
    "udp": Features(streams="none", datagrams=True, tls=False, unconnected=True),
}


def not_supported(protocol: str, what: str) -> OSError:
    """Return the error for a feature that a protocol does not have."""
    return OSError(errno.ENOTSUP, f"{protocol} has no {what}")
