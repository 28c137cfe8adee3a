"""Paths of the af_xdp link: made from the headers of received frames, turned into sent headers."""

from __future__ import annotations

import ipaddress
import struct
from collections import Counter
from typing import Any, Final, NamedTuple

from hoststack.link.base import Endpoint, LinkError, Path
from hoststack.link.kernel.next_hop import Neighbour, NextHops
from hoststack.link.zones import without_zone, zoned
from hoststack.native.wire._wire import ffi, lib

#: struct hs_frame_flow (hoststack/native/wire/frames.h).
_FLOW: Final = struct.Struct("=BB2H2HHH6s6s16s16s6x")

_HOP_LIMIT: Final = 64  # what the kernel uses (RFC 1700)
_UDP_BYTES: Final = 8
_IP_BYTES: Final = {4: 20, 6: 40}

#: Datagrams sent back to a path's origin before the route is looked up. A spoofed address is sent
#: a few datagrams at most (RFC 9000 section 8.1), and should cost no system call.
_SENT_BEFORE_LOOKUP: Final = 16

#: Paths in the table. Anyone can make new ones by spoofing addresses, so the table is bounded; a
#: path that is evicted stays valid for those that hold it.
_MAX_PATHS: Final = 1 << 16


class Origin(NamedTuple):
    """Where a path's received frames come from, on the link layer."""

    mac: bytes
    vlan_tpids: tuple[int, ...]
    """Outermost first, one for each tag."""
    vlan_ids: tuple[int, ...]


class FramePath:
    """A path's `link_data`: the headers of its frames and where they go."""

    __slots__ = (
        "flow",
        "generation",
        "header",
        "is_routed",
        "max_datagram_bytes",
        "neighbour",
        "origin",
        "sent",
    )

    def __init__(self) -> None:
        self.header: Any = None
        """struct hs_frame_header *, or None while no next hop is known."""
        self.max_datagram_bytes = 0
        self.generation = -1
        """NextHops.generation when the header was made."""
        self.neighbour: Neighbour | None = None
        self.is_routed = False
        """Whether the next hop is looked up in the kernel; if not, frames return to `origin`."""
        self.origin: Origin | None = None
        self.flow = b""
        """This path's key in PathTable.by_flow."""
        self.sent = 0


class PathTable:
    """All paths of one link."""

    def __init__(self, hops: NextHops, max_ip_bytes: int) -> None:
        """`max_ip_bytes` is the largest IP packet that a frame can hold."""
        self._hops = hops
        self._max_ip_bytes = max_ip_bytes
        self._paths: dict[tuple[Endpoint, Endpoint], Path] = {}
        self.by_flow: dict[bytes, Path] = {}
        """Paths by the bytes of struct hs_frame_flow; call `admit` for those that are missing."""
        self.refused: Counter[str] = Counter()
        """Frames for which `admit` returned None, by the names of Link.statistics."""

    def hold(self, max_ip_bytes: int) -> None:
        """Set the largest IP packet that a frame can hold."""
        self._max_ip_bytes = max_ip_bytes

    def admit(self, flow: bytes) -> Path | None:
        """Return the path of a received frame; None if it is not for this machine, or from it.

        A path is identified by its endpoints: another MAC address or VLAN tag changes where its
        frames go, not the path.
        """
        (
            version,
            tag_count,
            *vlan,
            local_port,
            remote_port,
            local_mac,
            remote_mac,
            local_ip,
            remote_ip,
        ) = _FLOW.unpack(flow)
        address_bytes = 4 if version == 4 else 16
        local_host = str(ipaddress.ip_address(local_ip[:address_bytes]))
        remote_host = str(ipaddress.ip_address(remote_ip[:address_bytes]))
        # A port open on all addresses also matches packets that a bridge or router forwards.
        if local_mac != self._hops.interface.mac or not self._hops.is_local(local_host):
            self.refused["rx_not_for_us"] += 1
            return None
        if self._hops.is_martian(remote_host):
            self.refused["rx_martian"] += 1
            return None
        scope = self._hops.interface.ifindex
        local = Endpoint(zoned(local_host, scope), local_port)
        remote = Endpoint(zoned(remote_host, scope), remote_port)
        path = self._path(local, remote)
        data = path.link_data
        assert isinstance(data, FramePath)
        # One flow a path: should the frames return to the old route, that is a change as well.
        self.by_flow.pop(data.flow, None)
        self.by_flow[flow] = path
        data.flow = flow
        data.origin = Origin(remote_mac, tuple(vlan[:tag_count]), tuple(vlan[2 : 2 + tag_count]))
        data.generation = -1
        return path

    async def connect(self, local_port: int, remote: Endpoint) -> Path:
        """Return the path to an endpoint once its next hop is resolved; raises LinkError."""
        hop = await self._hops.resolve(without_zone(remote.host))
        local_host = zoned(hop.source, self._hops.interface.ifindex)
        return self.route(Endpoint(local_host, local_port), remote)

    def route(self, local: Endpoint, remote: Endpoint) -> Path:
        """Return the path between two endpoints and start to resolve its next hop if needed.

        Raises LinkError if there is no route.
        """
        self._hops.look_for(without_zone(remote.host), without_zone(local.host))
        path = self._path(local, remote)
        data = path.link_data
        assert isinstance(data, FramePath)
        if not data.is_routed or data.generation != self._hops.generation:
            data.is_routed = True
            self.prepare(path, data)
        return path

    def current(self, path: Path) -> FramePath:
        """Return a path's data, with its header made again if something has changed since."""
        data = path.link_data
        assert isinstance(data, FramePath), "this path belongs to another link"
        if data.generation != self._hops.generation:
            self.prepare(path, data)
        return data

    def count_sent(self, path: Path, data: FramePath, count: int) -> None:
        """Count datagrams sent along a path, so that its neighbour stays confirmed."""
        if data.neighbour is not None:
            data.neighbour.is_used = True
        elif not data.is_routed:
            data.sent += count
            # Frames with VLAN tags belong to an interface that the kernel does not have, so it
            # has no route for them.
            if data.sent >= _SENT_BEFORE_LOOKUP and not (data.origin and data.origin.vlan_ids):
                data.is_routed = True
                self.prepare(path, data)

    def prepare(self, path: Path, data: FramePath) -> None:
        """Make a path's header and datagram size from the current route."""
        interface = self._hops.interface
        mtu_bytes, mac = interface.mtu_bytes, b""
        data.neighbour = None
        if data.is_routed:
            try:
                hop = self._hops.find(without_zone(path.remote.host), without_zone(path.local.host))
            except LinkError:
                pass  # the reverse of the received frames' route may work all the same
            else:
                mtu_bytes, data.neighbour = hop.mtu_bytes, hop.neighbour
                mac = hop.neighbour.mac
        origin = data.origin or Origin(b"", (), ())
        local = ipaddress.ip_address(path.local.host)
        remote = ipaddress.ip_address(path.remote.host)
        data.max_datagram_bytes = self._payload_bytes(mtu_bytes, local.version)
        data.generation = self._hops.generation
        data.header = None
        if not (mac or origin.mac):
            return
        tags = len(origin.vlan_ids)
        flow = _FLOW.pack(
            local.version,
            tags,
            *(*origin.vlan_tpids, 0, 0)[:2],
            *(*origin.vlan_ids, 0, 0)[:2],
            path.local.port,
            path.remote.port,
            interface.mac,
            mac or origin.mac,
            local.packed,
            remote.packed,
        )
        data.header = ffi.new("struct hs_frame_header *")
        lib.hs_frame_header_init(
            data.header, ffi.from_buffer("struct hs_frame_flow *", flow), _HOP_LIMIT, 0
        )

    def max_datagram_bytes(self, local: Endpoint) -> int:
        """Return the largest UDP payload from a local address."""
        version = 6 if ":" in local.host else 4
        return self._payload_bytes(self._hops.interface.mtu_bytes, version)

    def _payload_bytes(self, mtu_bytes: int, ip_version: int) -> int:
        return min(mtu_bytes, self._max_ip_bytes) - _IP_BYTES[ip_version] - _UDP_BYTES

    def _path(self, local: Endpoint, remote: Endpoint) -> Path:
        path = self._paths.get((local, remote))
        if path is None:
            if len(self._paths) >= _MAX_PATHS:
                self._paths.clear()
                self.by_flow.clear()
            path = Path(local, remote, FramePath())
            self._paths[local, remote] = path
        return path
