"""Plain UDP datagrams over AF_XDP: they share the rings with the engine's datagrams.

Each port has a kernel socket, too. It reserves the port, and carries what the rings can't: packets
that arrive by another interface or in fragments, or that this machine sends to itself.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from typing import Final

from hoststack.link.base import (
    UNSPECIFIED,
    Endpoint,
    KernelProtocol,
    LinkError,
    Outgoing,
    Path,
    PortSource,
    Received,
)
from hoststack.link.kernel.next_hop import NextHops
from hoststack.link.xdp.wire import XdpWire
from hoststack.link.zones import without_zone, zoned

#: struct hs_datagram_record (hoststack/native/wire/datagram_ports.h), its flow as bytes.
_RECORD: Final = struct.Struct("=I4x64s")
_ALIGNMENT: Final = 8


class XdpDatagrams:
    """Implements SocketSource and DatagramWay for one link."""

    def __init__(self, ports: PortSource, hops: NextHops, wire: XdpWire) -> None:
        self._ports = ports
        self._hops = hops
        self._wire = wire
        self._open: set[Endpoint] = set()

    # --- sockets ---

    def open_socket(self, protocol: KernelProtocol, endpoint: Endpoint) -> socket.socket:
        """See SocketSource."""
        opened = self._ports.open_socket(protocol, endpoint)
        if protocol == "udp":
            local = Endpoint(endpoint.host, opened.getsockname()[1])
            try:
                self._wire.open_datagrams(local)
            except BaseException:
                self._ports.close_socket(protocol, local)
                opened.close()
                raise
            self._open.add(local)
        return opened

    def close_socket(self, protocol: KernelProtocol, endpoint: Endpoint) -> None:
        """See SocketSource."""
        if endpoint in self._open and protocol == "udp":
            self._open.discard(endpoint)
            self._wire.close_datagrams(endpoint)
        self._ports.close_socket(protocol, endpoint)

    # --- in ---

    def take(self) -> Sequence[Received]:
        """See DatagramWay."""
        if not self._open:
            return ()
        received: list[Received] = []
        records, at = self._wire.take_datagrams(), 0
        while at < len(records):
            payload_bytes, flow = _RECORD.unpack_from(records, at)
            at += _RECORD.size
            path = self._wire.path_of_key(flow)
            if path is not None:
                received.append((bytes(records[at : at + payload_bytes]), path, 0))
            at += -(-payload_bytes // _ALIGNMENT) * _ALIGNMENT
        return received

    # --- out ---

    def path(self, local: Endpoint, remote: Endpoint, payload_bytes: int) -> Path | None:
        """See DatagramWay."""
        if (":" in local.host) != (":" in remote.host) or not remote.port:
            return None  # the kernel's socket reports the error
        zone = remote.host.partition("%")[2]
        if zone and zone != self._hops.interface.name:
            return None
        try:
            if local.host in UNSPECIFIED:
                source = self._hops.find(without_zone(remote.host)).source
                local = Endpoint(zoned(source, self._hops.interface.ifindex), local.port)
            path = self._wire.path(local, remote)
        except LinkError:
            return None
        return path if payload_bytes <= self._wire.path_bytes(path) else None

    def send(self, burst: Sequence[Outgoing]) -> int:
        """See DatagramWay."""
        return self._wire.send(burst)
