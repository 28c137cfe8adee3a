"""The wire of a link written in Python: bursts are handed over before and after a turn."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

from hoststack.link.base import BURST, Endpoint, Link, LinkError, Outgoing, Path, Received
from hoststack.link.zones import scope_of, without_zone
from hoststack.native.wire._wire import ffi, lib


class HandedWire:
    """Implements Wire."""

    #: The time does not change during a turn: a test's clock may jump.
    bursts = 1

    def __init__(self, link: Link) -> None:
        self._link = link
        self._wire: Any = lib.hs_wire_handed_new(lib.HS_MAX_PATHS)
        if not self._wire:
            raise MemoryError("no memory for the native engine's bursts")
        self._paths: dict[int, Path] = {}
        """The link's own objects, by the numbers that C gives them."""
        self._bytes = ffi.new("uint32_t *")
        self._path = ffi.new("uint32_t *")
        self._held: list[Any] = []

    @property
    def address(self) -> int:
        """See Wire."""
        return int(ffi.cast("uintptr_t", self._wire))

    def number(self, path: Path) -> int:
        """See Wire."""
        local, remote = ip_address(without_zone(path.local.host)), without_zone(path.remote.host)
        fields = {
            "ip_version": local.version,
            "local_port": path.local.port,
            "remote_port": path.remote.port,
            "local_scope": scope_of(path.local.host),
            "remote_scope": scope_of(path.remote.host),
            "local_ip": local.packed.ljust(16, b"\0"),
            "remote_ip": ip_address(remote).packed.ljust(16, b"\0"),
        }
        number: int = lib.hs_wire_add_path(self._wire, ffi.new("struct hs_path_ends *", fields))
        if number < 0:
            raise LinkError("there is no room for another path: close some connections")
        self._paths[number] = path
        lib.hs_wire_handed_set_size(self._wire, number, self._link.max_datagram_bytes(path))
        return number

    def endpoints(self, number: int) -> tuple[Endpoint, Endpoint]:
        """See Wire."""
        path = self._paths[number]
        return path.local, path.remote

    def before_turn(self, now_ns: int) -> int:
        """Pass received datagrams to the C side; return how many."""
        received: Sequence[Received] = self._link.receive(BURST)
        self._held.clear()
        for data, path, ecn in received:
            buffer = ffi.from_buffer("uint8_t[]", data)
            self._held.append(buffer)
            lib.hs_wire_handed_put(self._wire, buffer, len(data), ecn, self.number(path))
        return len(received)

    def after_turn(self) -> bool:
        """Send what the turn wrote; return whether some datagrams are still queued."""
        burst: list[Outgoing] = []
        while True:
            data = lib.hs_wire_handed_take(self._wire, len(burst), self._bytes, self._path)
            if not data:
                break
            burst.append((bytes(ffi.buffer(data, self._bytes[0])), self._paths[self._path[0]]))
        if not burst:
            return False
        taken = self._link.send(burst)
        lib.hs_wire_handed_sent(self._wire, taken)
        return taken < len(burst)
