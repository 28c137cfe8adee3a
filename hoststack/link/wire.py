"""Wires in C (hoststack/native/wire/wire.h): a link's table of paths, and its bursts.

An engine in C owns the wire and moves datagrams by itself. For an engine in Python the link owns
it, and the functions here move them.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import ip_address
from struct import Struct
from typing import Any, Final, cast

from hoststack.link.base import BURST, Endpoint, LinkError, Outgoing, Path, Received
from hoststack.link.zones import scope_of, without_zone, zoned
from hoststack.native.wire._wire import ffi, lib

#: struct hs_path_ends (hoststack/native/wire/wire.h).
_ENDS: Final = Struct("=B3xHHII16s16s")
#: Paths that are kept for their next datagram.
_KEPT_PATHS: Final = 4096
_COUNTERS: Final = ("rx_datagrams", "rx_bytes", "tx_datagrams", "tx_bytes")


@lru_cache(maxsize=_KEPT_PATHS)
def _pack_ends(local: Endpoint, remote: Endpoint, local_scope: int, remote_scope: int) -> bytes:
    """Return struct hs_path_ends."""
    here, there = ip_address(without_zone(local.host)), ip_address(without_zone(remote.host))
    return _ENDS.pack(
        there.version,
        local.port,
        remote.port,
        local_scope,
        remote_scope,
        here.packed,
        there.packed,
    )


def pack_ends(local: Endpoint, remote: Endpoint) -> bytes:
    """Return struct hs_path_ends; raises LinkError for a zone that does not exist."""
    return _pack_ends(local, remote, scope_of(local.host), scope_of(remote.host))


def unpack_ends(packed: bytes) -> tuple[Endpoint, Endpoint]:
    """Return the local and the remote endpoint of a struct hs_path_ends."""
    # An interface's name may change.
    return _unpack_ends(packed) if any(packed[8:16]) else _without_zones(packed)


def _unpack_ends(packed: bytes) -> tuple[Endpoint, Endpoint]:
    version, local_port, remote_port, *scopes, local_ip, remote_ip = _ENDS.unpack(packed)
    size = 4 if version == 4 else 16
    local, remote = (
        zoned(str(ip_address(ip[:size])), scope)
        for ip, scope in zip((local_ip, remote_ip), scopes, strict=True)
    )
    return Endpoint(local, local_port), Endpoint(remote, remote_port)


_without_zones = lru_cache(maxsize=_KEPT_PATHS)(_unpack_ends)


class _Held:
    """A path's `link_data`: its number in the table, where it stays as long as this exists."""

    __slots__ = ("number", "wire")

    def __init__(self, wire: CWire, number: int) -> None:
        self.wire = wire
        self.number = number
        lib.hs_wire_hold_path(wire.c, number)

    def __del__(self) -> None:
        if self.wire.c is not None:
            lib.hs_wire_let_go(self.wire.c, self.number)


class CWire:
    """Implements Wire."""

    bursts = 8

    def __init__(self, c: Any, drops: dict[int, str]) -> None:
        """`drops` names the reasons of the wire's counters."""
        if not c:
            raise MemoryError("no memory for a link's paths and buffers")
        self.c = c
        """struct hs_wire *; None after `close`."""
        self._drops = drops
        self._is_lent = False
        self._kept: dict[int, Path] = {}
        self._datagrams: Any = ffi.new("struct hs_wire_datagram[]", BURST)
        self._ends: Any = ffi.new("struct hs_path_ends *")
        self._last: dict[str, int] = {}

    @property
    def address(self) -> int:
        """See Wire."""
        self._is_lent = True
        return int(ffi.cast("uintptr_t", self.c))

    # --- paths ---

    def path(self, local: Endpoint, remote: Endpoint) -> Path:
        """Return the path between two endpoints; raises LinkError."""
        ends = ffi.from_buffer("struct hs_path_ends *", pack_ends(local, remote))
        number = lib.hs_wire_add_path(self.c, ends)
        if number < 0:
            raise LinkError(
                errno.ENOBUFS, "there is no room for another path: close some connections"
            )
        return self._path(number)

    def _path(self, number: int) -> Path:
        path = self._kept.get(number)
        if path is None:
            if len(self._kept) >= _KEPT_PATHS:
                self._kept.clear()
            lib.hs_wire_path_ends(self.c, number, self._ends)
            local, remote = unpack_ends(bytes(ffi.buffer(self._ends)))
            path = self._kept[number] = Path(local, remote, _Held(self, number))
        return path

    def path_of_key(self, key: bytes) -> Path | None:
        """Return the path of datagrams with this key; None if the table is full."""
        number = lib.hs_wire_learn(self.c, key)
        return None if number < 0 else self._path(number)

    def number(self, path: Path) -> int:
        """See Wire."""
        held = path.link_data
        assert isinstance(held, _Held), "this path belongs to another link"
        return held.number

    def endpoints(self, number: int) -> tuple[Endpoint, Endpoint] | None:
        """See Wire."""
        if self.c is None:
            return None
        lib.hs_wire_path_ends(self.c, number, self._ends)
        return unpack_ends(bytes(ffi.buffer(self._ends)))

    @property
    def path_count(self) -> int:
        """How many paths the table has."""
        return int(lib.hs_wire_path_count(self.c))

    def path_bytes(self, path: Path) -> int:
        """Return the largest datagram that can be sent along a path now; 0 for none."""
        return int(lib.hs_wire_path_bytes(self.c, self.number(path)))

    # --- for an engine in C ---

    def before_turn(self, now_ns: int) -> int:
        """See Wire."""
        return 0

    def after_turn(self) -> bool:
        """See Wire."""
        return False

    # --- for an engine in Python ---

    def receive(self, budget: int) -> list[Received]:
        """Return datagrams that have arrived; never blocks."""
        datagrams = self._datagrams
        count = lib.hs_wire_receive(self.c, datagrams, min(budget, BURST))
        if not count:
            return []
        received = [
            (bytes(ffi.buffer(each.data, each.bytes)), self._path(each.path_id), each.ecn)
            for each in datagrams[0:count]
        ]
        lib.hs_wire_release(self.c)
        return received

    def send(self, burst: Sequence[Outgoing]) -> int:
        """Send datagrams from the front of a burst; return how many were taken."""
        c, send = self.c, lib.hs_wire_send
        taken = 0
        for data, path in burst:
            if not send(c, cast(_Held, path.link_data).number, data, len(data)):
                break
            taken += 1
            if taken % BURST == 0:
                lib.hs_wire_flush(c)
        lib.hs_wire_flush(c)
        self.after_turn()
        return taken

    # --- the rest ---

    def statistics(self) -> dict[str, int]:
        """Return counters by name, as Link.statistics has them."""
        if self.c is not None:
            figures = ffi.new("struct hs_wire_figures *")
            lib.hs_wire_get_figures(self.c, figures)
            self._last = {name: int(getattr(figures, name)) for name in _COUNTERS}
            if figures.tx_full:
                self._last["tx_full"] = int(figures.tx_full)
            for number, name in self._drops.items():
                if figures.drops[number]:
                    self._last[name] = int(figures.drops[number])
        return self._last

    def close(self) -> None:
        """Close with the link; the counters stay readable."""
        if self.c is None:
            return
        self.statistics()
        self._kept.clear()
        c, self.c = self.c, None
        if not self._is_lent:
            lib.hs_wire_free(c)
