"""The table of transport protocols for sessions: their features and settings."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Final, Literal

from hoststack.quic.seam import FifoConfig, QuicConfig

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


@dataclass(frozen=True, slots=True)
class TcpConfig(FifoConfig):
    """Settings of TCP connections. Sizes in bytes, times in seconds."""

    connect_timeout_s: float = 10.0
    """A connection that takes longer to establish fails."""


@dataclass(frozen=True, slots=True)
class UdpConfig(FifoConfig):
    """Settings of UDP endpoints, whose FIFOs hold whole datagrams. Sizes in bytes, times in
    seconds."""

    idle_timeout_s: float = 30.0
    """Silence after which a listener ends the connection of a peer: at least a second, and up to
    twice this; 0 means never."""


Config = QuicConfig | TcpConfig | UdpConfig

#: The class of a protocol's settings.
CONFIGS: Final[dict[Protocol, type[Config]]] = {
    "quic": QuicConfig,
    "tcp": TcpConfig,
    "udp": UdpConfig,
}


def protocol_of(config: Config) -> Protocol:
    """Return the protocol whose settings these are."""
    return next(name for name, class_ in CONFIGS.items() if isinstance(config, class_))


def not_supported(protocol: str, what: str) -> OSError:
    """Return the error for a feature that a protocol does not have."""
    return OSError(errno.ENOTSUP, f"{protocol} has no {what}")
