"""The udp link's wire: its sockets, for an engine in C (hoststack/native/wire/sockets.h)."""

from __future__ import annotations

import errno
import math
import sys
from collections.abc import Callable
from typing import Any, Final

import trio

from hoststack.link.base import LinkError, Path, WireRoute
from hoststack.native.wire._wire import ffi, lib

_FLOW_BYTES: Final = 40  # struct hs_udp_flow
_MAX_PATHS: Final = 1 << 16
#: Least time between queries of all paths' sizes, which cost some system calls each.
_ASK_EVERY_S: Final = 0.1
_DROPS: Final = {
    value: name.removeprefix("HS_WIRE_UDP_").lower()
    for value, name in ffi.typeof("enum hs_wire_udp_drop").elements.items()
}


class UdpWire:
    """Implements Wire. `admit_flow`, `route_of` and `forget_sizes` are the link's."""

    def __init__(
        self,
        admit_flow: Callable[[bytes, int], Path | None],
        route_of: Callable[[Path], WireRoute],
        forget_sizes: Callable[[], None],
        *,
        segments: bool,
    ) -> None:
        self._wire: Any = lib.hs_wire_udp_new(_MAX_PATHS, segments)
        if not self._wire:
            raise MemoryError("no memory for the buffers of a UDP link")
        self._admit_flow = admit_flow
        self.route = route_of
        self._forget_sizes = forget_sizes
        self.generation = 0
        self._too_large = 0
        self._ask_at_s = -math.inf
        self._last: dict[str, int] = {}

    @property
    def address(self) -> int:
        """See Wire."""
        return int(ffi.cast("uintptr_t", self._wire))

    def add(self, fd: int, local_port: int) -> None:
        """Add a socket that was opened. Raises LinkError when there are too many."""
        if lib.hs_wire_udp_add(self._wire, fd, local_port):
            raise LinkError(
                errno.EMFILE,
                f"{lib.HS_WIRE_UDP_MAX_SOCKETS} UDP ports are open here: close some",
            )

    def remove(self, fd: int) -> None:
        """Remove a socket that is about to be closed."""
        if self._wire is not None:
            lib.hs_wire_udp_remove(self._wire, fd)

    @property
    def blocked_fd(self) -> int:
        """Return the socket whose buffer is full, or -1."""
        return int(lib.hs_wire_udp_blocked(self._wire))

    def admit(self, key: bytes) -> Path | None:
        """See Wire."""
        port = int.from_bytes(key[_FLOW_BYTES : _FLOW_BYTES + 2], sys.byteorder)
        return self._admit_flow(key[:_FLOW_BYTES], port)

    def note_sent(self, path: Path, count: int) -> bool:
        """See Wire; the kernel maintains its neighbours itself."""
        return False

    def after_turn(self) -> None:
        """See Wire: where an MTU has shrunk, query the paths' sizes."""
        too_large = lib.hs_wire_udp_too_large(self._wire)
        if too_large == self._too_large:
            return
        now_s = trio.current_time()
        if now_s >= self._ask_at_s:
            self._ask_at_s = now_s + _ASK_EVERY_S
            self._too_large = too_large
            self._forget_sizes()
            self.generation += 1

    def statistics(self) -> dict[str, int]:
        """Return counters by name, as Link.statistics has them."""
        if self._wire is not None:
            self._last = read_figures(self._wire, _DROPS)
        return self._last

    def close(self) -> None:
        """Close with the link; the counters stay readable."""
        self.statistics()
        self._wire = None


def read_figures(wire: Any, drops: dict[int, str]) -> dict[str, int]:
    """Return a C wire's counters by name; `drops` names the reasons that are not zero."""
    figures = ffi.new("struct hs_wire_figures *")
    lib.hs_wire_get_figures(wire, figures)
    counted = {
        name: int(getattr(figures, name))
        for name in ("rx_datagrams", "rx_bytes", "tx_datagrams", "tx_bytes")
    }
    if figures.tx_full:
        counted["tx_full"] = int(figures.tx_full)
    return counted | {
        name: int(figures.drops[number]) for number, name in drops.items() if figures.drops[number]
    }
