"""Paths, as the native engine numbers them, and the link in Python that carries its datagrams."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any, Final

from hoststack.link.base import BURST, Link, Outgoing, Path, Received
from hoststack.native._quic import ffi, lib

#: Paths that are kept; one that a connection uses always is.
MAX_PATHS: Final = 1 << 16


class PathTable:
    """The numbers that the C side knows paths by."""

    def __init__(self, quic: Any) -> None:
        self._quic = quic
        self._ids: dict[Path, int] = {}
        self.by_id: list[Path] = []

    def number(self, path: Path) -> int | None:
        """A path's number, one that is new if need be; None if no more can be used at once."""
        known = self._ids.get(path)
        if known is not None and self.by_id[known] is path:
            return known
        local, remote = ip_address(path.local.host), ip_address(path.remote.host)
        number: int = lib.hs_quic_add_path(
            self._quic,
            local.version,
            local.packed,
            path.local.port,
            remote.packed,
            path.remote.port,
            _scope(remote),
        )
        if number < 0:
            return None
        if number == len(self.by_id):
            self.by_id.append(path)
        else:
            # It may be another path's, which nobody used any more.
            self._ids.pop(self.by_id[number], None)
            self.by_id[number] = path
        self._ids[path] = number
        return number


def _scope(remote: Any) -> int:
    scope = getattr(remote, "scope_id", None)
    if scope is None:
        return 0
    return int(scope) if scope.isdigit() else socket.if_nametoindex(scope)


class HandedWire:
    """The wire of a link that is written in Python: bursts are handed over before a turn and
    taken after it."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.wire: Any = lib.hs_wire_handed_new(MAX_PATHS)
        """struct hs_wire *, for the engine to keep."""
        if not self.wire:
            raise MemoryError("no memory for the native engine's bursts")
        self._bytes = ffi.new("uint32_t *")
        self._path = ffi.new("uint32_t *")
        self._held: list[Any] = []

    def before_turn(self, paths: PathTable, quic: Any) -> int:
        """Hand over what has come; how many datagrams that were."""
        received: Sequence[Received] = self._link.receive(BURST)
        self._held.clear()
        for data, path, ecn in received:
            number = paths.number(path)
            if number is None:
                continue
            lib.hs_path_set_size(quic, number, self._link.max_datagram_bytes(path))
            buffer = ffi.from_buffer("uint8_t[]", data)
            self._held.append(buffer)
            lib.hs_wire_handed_put(self.wire, buffer, len(data), ecn, number)
        return len(received)

    def after_turn(self, paths: PathTable) -> bool:
        """Send what the turn wrote; whether something has to wait."""
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
