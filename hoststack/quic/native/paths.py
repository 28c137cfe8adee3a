"""The native engine's path numbers, and how it receives and sends bursts."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any, Final

from hoststack.link.base import BURST, Link, Outgoing, Path, Received, Wire
from hoststack.link.zones import scope_of
from hoststack.native.quic._quic import ffi as quic_ffi
from hoststack.native.quic._quic import lib as quic_lib
from hoststack.native.wire._wire import ffi, lib

#: The most paths in the table; those that a connection uses are not evicted.
MAX_PATHS: Final = 1 << 16
#: Paths to examine in one turn, after a change of routes or to report what was sent.
_SLICE: Final = 256
_SWEEP_EVERY_NS: Final = 100_000_000


class PathTable:
    """The numbers by which the C side identifies paths."""

    def __init__(self, wire: Any) -> None:
        self._wire = wire
        self._ids: dict[Path, int] = {}
        self.by_id: list[Path] = []

    def number(self, path: Path) -> int | None:
        """Return a path's number, allocating one if needed; None if all are in use."""
        known = self._ids.get(path)
        if known is not None and self.by_id[known] is path:
            return known
        local, remote = ip_address(path.local.host), ip_address(path.remote.host)
        number: int = lib.hs_wire_add_path(
            self._wire,
            local.version,
            local.packed,
            path.local.port,
            remote.packed,
            path.remote.port,
            scope_of(path.remote.host),
        )
        if number < 0:
            return None
        if number == len(self.by_id):
            self.by_id.append(path)
        else:
            # The number may belong to a path that was evicted.
            self._ids.pop(self.by_id[number], None)
            self.by_id[number] = path
        self._ids[path] = number
        return number


class _EnginesWire:
    """Shared by both kinds of wires."""

    wire: Any

    @property
    def address(self) -> int:
        """The address of struct hs_wire, for another cffi module."""
        return int(ffi.cast("uintptr_t", self.wire))


class DirectWire(_EnginesWire):
    """A wire implemented in C. This keeps its routes current."""

    #: The most bursts that one turn may receive and send.
    bursts: Final = 8

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.wire: Any = ffi.cast("struct hs_wire *", wire.address)
        """struct hs_wire *; its engine owns it."""
        self._generation = wire.generation
        self._stale = 0
        """Paths below this number have to be asked for their routes anew."""
        self._swept = 0
        self._sweep_at_ns = 0
        self._told: list[int] = []

    def before_turn(self, paths: PathTable, now_ns: int) -> int:
        """Update routes; the wire receives by itself."""
        if self._generation != self._wire.generation:
            self._generation = self._wire.generation
            self._stale = len(paths.by_id)
        for number in range(max(0, self._stale - _SLICE), self._stale):
            self.prepare(paths.by_id[number], number)
        self._stale = max(0, self._stale - _SLICE)
        if now_ns >= self._sweep_at_ns:
            self._sweep(paths)
            if not self._swept:
                self._sweep_at_ns = now_ns + _SWEEP_EVERY_NS
        return 0

    def prepare(self, path: Path, number: int) -> None:
        """Tell the C side how to send datagrams along a path."""
        route = self._wire.route(path)
        lib.hs_wire_set_size(self.wire, number, route.max_datagram_bytes)
        if route.flow is not None:
            lib.hs_wire_set_socket(self.wire, number, route.fd, ffi.from_buffer(route.flow))
        else:
            header = ffi.NULL if route.header is None else ffi.from_buffer(route.header)
            lib.hs_wire_set_header(self.wire, number, header)

    def after_turn(self, paths: PathTable, quic: Any, unresolved: int) -> bool:
        """Resolve the paths of the datagrams that the engine queued."""
        for index in range(unresolved):
            key = bytes(
                quic_ffi.buffer(quic_lib.hs_quic_unresolved_key(quic, index), lib.HS_PATH_KEY_BYTES)
            )
            path = self._wire.admit(key)
            number = None if path is None else paths.number(path)
            if path is not None and number is not None:
                lib.hs_wire_set_key(self.wire, number, key)
                self.prepare(path, number)
                quic_lib.hs_quic_resolve_path(quic, index, number)
        self._wire.after_turn()
        return False

    def _sweep(self, paths: PathTable) -> None:
        """Report to the link what was sent along its paths, a slice of them at a time."""
        end = min(self._swept + _SLICE, len(paths.by_id))
        self._told.extend([0] * (end - len(self._told)))
        for number in range(self._swept, end):
            sent = lib.hs_wire_path_sent(self.wire, number)
            path = paths.by_id[number]
            # If the number was given to another path since, the count has restarted.
            if sent > self._told[number] and self._wire.note_sent(path, sent - self._told[number]):
                self.prepare(path, number)
            self._told[number] = sent
        self._swept = end if end < len(paths.by_id) else 0


class HandedWire(_EnginesWire):
    """The wire of a link written in Python: bursts are handed over before and after a turn."""

    #: The time does not change during a turn: a test's clock may jump.
    bursts: Final = 1

    def __init__(self, link: Link) -> None:
        self._link = link
        self.wire: Any = lib.hs_wire_handed_new(MAX_PATHS)
        """struct hs_wire *; its engine owns it."""
        if not self.wire:
            raise MemoryError("no memory for the native engine's bursts")
        self._bytes = ffi.new("uint32_t *")
        self._path = ffi.new("uint32_t *")
        self._held: list[Any] = []

    def before_turn(self, paths: PathTable, now_ns: int) -> int:
        """Pass received datagrams to the C side; return how many."""
        received: Sequence[Received] = self._link.receive(BURST)
        self._held.clear()
        for data, path, ecn in received:
            number = paths.number(path)
            if number is None:
                continue
            self.prepare(path, number)
            buffer = ffi.from_buffer("uint8_t[]", data)
            self._held.append(buffer)
            lib.hs_wire_handed_put(self.wire, buffer, len(data), ecn, number)
        return len(received)

    def prepare(self, path: Path, number: int) -> None:
        """Tell the C side the largest datagram for a path."""
        lib.hs_wire_set_size(self.wire, number, self._link.max_datagram_bytes(path))

    def after_turn(self, paths: PathTable, quic: Any, unresolved: int) -> bool:
        """Send what the turn wrote; return whether some datagrams are still queued."""
        burst: list[Outgoing] = []
        while True:
            data = lib.hs_wire_handed_take(self.wire, len(burst), self._bytes, self._path)
            if not data:
                break
            burst.append((bytes(ffi.buffer(data, self._bytes[0])), paths.by_id[self._path[0]]))
        if not burst:
            return False
        taken = self._link.send(burst)
        lib.hs_wire_handed_sent(self.wire, taken)
        return taken < len(burst)
