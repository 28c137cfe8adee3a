"""Peers' handshakes in progress, for the aioquic engine, and packets that wait for one.

The rules are those of hoststack/native/quic/half_open.c and quic/held.c, which give the reasons;
here a handshake costs more, so fewer new ones may replace older ones.
"""

from __future__ import annotations

from collections import deque
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Final, NamedTuple

from hoststack.link.base import Endpoint, Path
from hoststack.quic.seam import EngineCounters

if TYPE_CHECKING:
    from hoststack.quic.aioquic.connection import HostConnection

#: Each uses some 90 KB.
MAX_HALF_OPEN: Final = 1024
#: Limit of one source, whatever `QuicConfig.half_open_per_source` says: a handshake costs 3 ms of
#: CPU time, and its retransmissions as much again.
_MOST_PER_SOURCE: Final = 64
_REPLACEMENTS_PER_SECOND: Final = 64
_REPLACEMENTS_OF_BUSY_PORTS: Final = 16
_REPLACED_AFTER_S: Final = 3.0
_HELD: Final = 256
_HELD_BYTES: Final = 512 * 1024
_HELD_S: Final = 2.0

#: An IPv4 address, or the first 8 bytes of an IPv6 address.
_Source = bytes


def _source(host: str) -> _Source:
    address = ip_address(host)
    if isinstance(address, IPv6Address):
        mapped = address.ipv4_mapped
        return address.packed[:8] if mapped is None else mapped.packed
    return address.packed


class RefusedError(Exception):
    """There is no room for another handshake."""


class _Part:
    """The handshakes in progress of one source, the oldest first."""

    def __init__(self) -> None:
        self.connections: dict[HostConnection, None] = {}
        self.second_began = 0.0
        self.replacements = 0

    def may_replace(self, oldest_began: float, remote: Endpoint, now: float) -> bool:
        if now - self.second_began >= 1:
            self.second_began, self.replacements = now, 0
        most = _REPLACEMENTS_PER_SECOND
        if any(each.first_path.remote == remote for each in self.connections):
            if now - oldest_began < _REPLACED_AFTER_S:
                return False
            most = _REPLACEMENTS_OF_BUSY_PORTS
        if self.replacements >= most:
            return False
        self.replacements += 1
        return True


class HalfOpen:
    """All handshakes in progress of an engine."""

    def __init__(self) -> None:
        self._began: dict[HostConnection, tuple[float, _Source | None]] = {}
        """The oldest first, with the source of those whose address is validated."""
        self._parts: dict[_Source, _Part] = {}

    def __len__(self) -> int:
        return len(self._began)

    def __contains__(self, connection: HostConnection) -> bool:
        return connection in self._began

    def make_room(
        self, remote: Endpoint, *, is_proven: bool, per_source: int, is_full: bool, now: float
    ) -> HostConnection | None:
        """Return the handshake to replace by another one, if any; raises RefusedError.

        `is_full` means that the limit of connections is reached.
        """
        part = self._parts.get(_source(remote.host)) if is_proven else None
        if part is not None and len(part.connections) >= min(per_source, _MOST_PER_SOURCE):
            oldest = next(iter(part.connections))
            if not part.may_replace(self._began[oldest][0], remote, now):
                raise RefusedError
            return oldest
        if len(self._began) >= MAX_HALF_OPEN or is_full:
            if not self._began:
                raise RefusedError
            return next(iter(self._began))
        return None

    def begin(self, connection: HostConnection, *, is_proven: bool, now: float) -> None:
        """Add a peer's handshake."""
        source = _source(connection.first_path.remote.host) if is_proven else None
        self._began[connection] = (now, source)
        if source is not None:
            self._parts.setdefault(source, _Part()).connections[connection] = None

    def end(self, connection: HostConnection) -> None:
        """Remove a handshake that is complete, or was given up. Idempotent."""
        _, source = self._began.pop(connection, (0.0, None))
        if source is None:
            return
        part = self._parts[source]
        del part.connections[connection]
        if not part.connections:
            del self._parts[source]


class _Packet(NamedTuple):
    until: float
    dcid: bytes
    data: bytes
    path: Path


class HeldPackets:
    """0-RTT packets that arrived before their ClientHello (RFC 9000 section 5.2.2)."""

    def __init__(self, counters: EngineCounters) -> None:
        self._counters = counters
        self._packets: deque[_Packet] = deque()
        self._bytes = 0

    def __bool__(self) -> bool:
        return bool(self._packets)

    def add(self, dcid: bytes, data: bytes, path: Path, now: float) -> None:
        """Store a datagram, replacing older ones if needed."""
        while self._packets and (
            len(self._packets) >= _HELD or self._bytes + len(data) > _HELD_BYTES
        ):
            self._drop_oldest()
        self._packets.append(_Packet(now + _HELD_S, dcid, data, path))
        self._bytes += len(data)

    def expire(self, now: float) -> None:
        """Drop packets that were held too long."""
        while self._packets and self._packets[0].until <= now:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        self._bytes -= len(self._packets.popleft().data)
        self._counters.drop("unknown_cid")

    def take(self, dcid: bytes) -> list[tuple[bytes, Path]]:
        """Return and remove the packets held for a connection ID."""
        taken = [(each.data, each.path) for each in self._packets if each.dcid == dcid]
        if taken:
            self._packets = deque(each for each in self._packets if each.dcid != dcid)
            self._bytes -= sum(len(data) for data, _ in taken)
        return taken
