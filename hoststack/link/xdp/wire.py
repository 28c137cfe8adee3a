"""The af_xdp link's wire: its rings, for an engine in C (hoststack/native/wire/xdp.h)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Any, Final

import pyxdp
from hoststack.link.base import Endpoint, Path, WireRoute
from hoststack.link.kernel.next_hop import NextHops
from hoststack.link.udp.wire import read_figures
from hoststack.link.xdp.frame_path import FramePath, PathTable
from hoststack.native.wire._wire import ffi, lib

_MAX_PATHS: Final = 1 << 16
_DROPS: Final = {
    value: f"rx_{name.removeprefix('HS_FRAME_').lower()}"
    for value, name in ffi.typeof("enum hs_frame_drop").elements.items()
    if name not in ("HS_FRAME_GOOD", "HS_FRAME_DROPS")
} | {
    value: name.removeprefix("HS_WIRE_XDP_").lower()
    for value, name in ffi.typeof("enum hs_wire_xdp_drop").elements.items()
}


class XdpWire:
    """Implements Wire. `on_left` is called when a kick left frames on the TX ring."""

    def __init__(
        self,
        sockets: Sequence[pyxdp.Socket],
        umem: pyxdp.Umem,
        paths: PathTable,
        hops: NextHops,
        on_left: Callable[[], None],
    ) -> None:
        self._paths = paths
        self._hops = hops
        self._on_left = on_left
        self._umem = umem
        self._wire: Any = lib.hs_wire_xdp_new(
            ffi.cast("void *", pyxdp.c_verbs()),
            [socket.c_address for socket in sockets],
            len(sockets),
            ffi.cast("void *", umem.base),
            umem.size_bytes,
            umem.frame_bytes,
            _MAX_PATHS,
        )
        if not self._wire:
            raise MemoryError("no memory for the native engine's paths")
        self._last: dict[str, int] = {}

    @property
    def address(self) -> int:
        """See Wire."""
        return int(ffi.cast("uintptr_t", self._wire))

    @property
    def generation(self) -> int:
        """See Wire."""
        return self._hops.generation

    def admit(self, key: bytes) -> Path | None:
        """See Wire."""
        return self._paths.admit(key)

    def route(self, path: Path) -> WireRoute:
        """See Wire."""
        data = self._paths.current(path)
        header = None if data.header is None else bytes(ffi.buffer(data.header))
        return WireRoute(data.max_datagram_bytes, header=header)

    def note_sent(self, path: Path, count: int) -> bool:
        """See Wire."""
        data = path.link_data
        assert isinstance(data, FramePath), "this path belongs to another link"
        was_routed = data.is_routed
        self._paths.count_sent(path, data, count)
        return data.is_routed != was_routed

    def after_turn(self) -> None:
        """See Wire."""
        if lib.hs_wire_xdp_left(self._wire):
            self._on_left()

    # --- plain datagrams ---

    def open_datagrams(self, local: Endpoint) -> None:
        """Collect an endpoint's datagrams for `take_datagrams`. Raises MemoryError."""
        if lib.hs_wire_xdp_open_datagrams(self._wire, *_packed(local)):
            raise MemoryError("no memory for another UDP port")

    def close_datagrams(self, local: Endpoint) -> None:
        """Stop collecting an endpoint's datagrams; no effect if it is not open."""
        if self._wire is not None:
            lib.hs_wire_xdp_close_datagrams(self._wire, *_packed(local))

    def take_datagrams(self) -> memoryview:
        """Return the datagrams since the last call, as struct hs_datagram_record's.

        The memory is valid until the engine's next turn.
        """
        if self._wire is None:
            return memoryview(b"")
        size = ffi.new("size_t *")
        records = lib.hs_wire_xdp_take_datagrams(self._wire, size)
        return memoryview(ffi.buffer(records, size[0])) if size[0] else memoryview(b"")

    def send_datagram(self, header: Any, max_bytes: int, data: bytes) -> bool:
        """Send with a struct hs_frame_header, then `flush`; False while the TX ring is full."""
        if self._wire is None:
            return True  # lost with the link
        return bool(lib.hs_wire_xdp_send_datagram(self._wire, header, max_bytes, data, len(data)))

    def flush(self) -> None:
        """Kick the kernel to send what `send_datagram` queued."""
        if self._wire is not None:
            lib.hs_wire_xdp_flush(self._wire)
            self.after_turn()

    def statistics(self) -> dict[str, int]:
        """Return counters by name, as Link.statistics has them."""
        if self._wire is not None:
            self._last = read_figures(self._wire, _DROPS)
        return self._last

    def detach(self) -> None:
        """Stop using sockets that are about to be closed; nothing is sent until `attach`."""
        if self._wire is not None:
            lib.hs_wire_xdp_detach(self._wire)

    def attach(self, sockets: Sequence[pyxdp.Socket], umem: pyxdp.Umem) -> None:
        """Continue with other sockets, on another UMEM."""
        self._umem = umem
        if self._wire is not None:
            lib.hs_wire_xdp_attach(
                self._wire,
                [socket.c_address for socket in sockets],
                len(sockets),
                ffi.cast("void *", umem.base),
                umem.size_bytes,
                umem.frame_bytes,
            )

    def close(self) -> None:
        """Release the sockets; the counters stay readable."""
        self.statistics()
        if self._wire is not None:
            lib.hs_wire_xdp_detach(self._wire)
            self._wire = None


def _packed(local: Endpoint) -> tuple[int, bytes, int]:
    address = ip_address(local.host.partition("%")[0])
    return address.version, address.packed, local.port
