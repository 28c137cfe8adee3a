"""Plain UDP datagrams over AF_XDP: they share the rings with the engine's datagrams.

Each port has a kernel socket, too. It reserves the port, and carries what the rings can't: packets
that arrive by another interface or in fragments, or that this machine sends to itself.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

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
from hoststack.link.xdp.frame_path import PathTable
from hoststack.link.zones import without_zone, zoned

if TYPE_CHECKING:
    from hoststack.link.xdp.wire import XdpWire

#: struct hs_datagram_record (hoststack/native/wire/datagram_ports.h), its flow as bytes.
_RECORD: Final = struct.Struct("=I4x64s")
_ALIGNMENT: Final = 8


class XdpDatagrams:
    """Implements SocketSource and DatagramWay for one link."""

    def __init__(
        self,
        ports: PortSource,
        hops: NextHops,
        paths: PathTable,
        send: Callable[[Sequence[Outgoing]], int],
    ) -> None:
        """`send` is the link's own, used as long as no engine in C owns the rings."""
        self._ports = ports
        self._hops = hops
        self._paths = paths
        self._send = send
        self._wire: XdpWire | None = None
        self._open: set[Endpoint] = set()
        self._aside: list[Received] = []

    def use_wire(self, wire: XdpWire) -> None:
        """Use the C wire: an engine in C owns the rings from now on."""
        self._wire = wire

    # --- sockets ---

    def open_socket(self, protocol: KernelProtocol, endpoint: Endpoint) -> socket.socket:
        """See SocketSource."""
        opened = self._ports.open_socket(protocol, endpoint)
        if protocol == "udp":
            local = Endpoint(endpoint.host, opened.getsockname()[1])
            try:
                if self._wire is not None:
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
            if self._wire is not None:
                self._wire.close_datagrams(endpoint)
        self._ports.close_socket(protocol, endpoint)

    # --- in ---

    def put_aside(self, received: Received) -> None:
        """Store a datagram for `take` instead of the engine."""
        self._aside.append(received)

    def has(self, local: Endpoint) -> bool:
        """Return whether datagrams for an endpoint are for `take`; called by the link."""
        if not self._open:
            return False
        if local in self._open:
            return True
        wildcard = UNSPECIFIED[":" in local.host]
        return Endpoint(wildcard, local.port) in self._open

    def take(self) -> Sequence[Received]:
        """See DatagramWay."""
        if self._wire is not None:
            return self._parsed(self._wire) if self._open else ()
        aside, self._aside = self._aside, []
        return aside

    def _parsed(self, wire: XdpWire) -> list[Received]:
        received: list[Received] = []
        records, at = wire.take_datagrams(), 0
        while at < len(records):
            payload_bytes, flow = _RECORD.unpack_from(records, at)
            at += _RECORD.size
            path = self._paths.by_flow.get(flow) or wire.admit(flow)
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
            path = self._paths.route(local, remote)
        except LinkError:
            return None
        way = self._paths.current(path)
        if way.header is None or payload_bytes > way.max_datagram_bytes:
            return None
        return path

    def send(self, burst: Sequence[Outgoing]) -> int:
        """See DatagramWay."""
        if self._wire is None:
            return self._send(burst)
        count = 0
        for data, path in burst:
            way = self._paths.current(path)
            # A datagram whose next hop was just lost is dropped, like any other on a network.
            if way.header is not None:
                if not self._wire.send_datagram(way.header, way.max_datagram_bytes, data):
                    break
                self._paths.count_sent(path, way, 1)
            count += 1
        self._wire.flush()
        return count
