"""The af_xdp link's wire: its rings (hoststack/native/wire/xdp.h), and the next hops of its paths.

The table of paths is in C. It asks for the next hop of those that the program or a proven peer
uses; frames along others go back to where theirs came from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Any, Final

import pyxdp
from hoststack.link.base import Endpoint, LinkError, Path
from hoststack.link.kernel.next_hop import Neighbour, NextHops
from hoststack.link.wire import CWire, unpack_ends
from hoststack.link.xdp.rings import ETHERNET_BYTES
from hoststack.link.zones import without_zone, zoned
from hoststack.native.wire._wire import ffi, lib

#: Paths in one call.
_SLICE: Final = 64
_REPORT_EVERY_S: Final = 0.5
_HEADERS_BYTES: Final = {4: 28, 6: 48}  # IP and UDP
_DROPS: Final = {
    value: f"rx_{name.removeprefix('HS_FRAME_').lower()}"
    for value, name in ffi.typeof("enum hs_frame_drop").elements.items()
    if name not in ("HS_FRAME_GOOD", "HS_FRAME_DROPS")
} | {
    value: name.removeprefix("HS_WIRE_XDP_").lower()
    for value, name in ffi.typeof("enum hs_wire_xdp_drop").elements.items()
}


class XdpWire(CWire):
    """`on_left` is called when a kick left frames on the TX ring."""

    def __init__(
        self,
        sockets: Sequence[pyxdp.Socket],
        umem: pyxdp.Umem,
        hops: NextHops,
        on_left: Callable[[], None],
    ) -> None:
        super().__init__(
            lib.hs_wire_xdp_new(
                ffi.cast("void *", pyxdp.c_verbs()), *_rings(sockets, umem), lib.HS_MAX_PATHS
            ),
            _DROPS,
        )
        self._hops = hops
        self._on_left = on_left
        self._umem = umem
        self._generation = -1
        self._neighbours: dict[int, Neighbour] = {}
        """The answers that were given, by path: kept current, and confirmed while in use."""
        self._report_at_s = 0.0
        self._questions: Any = ffi.new("struct hs_wire_xdp_question[]", _SLICE)
        self._used: Any = ffi.new("uint32_t[]", _SLICE)
        self._is_over: Any = ffi.new("int *")

    # --- next hops ---

    async def connect(self, local_port: int, remote: Endpoint) -> Path:
        """Return the path to an endpoint once its next hop is resolved; raises LinkError."""
        hop = await self._hops.resolve(without_zone(remote.host))
        local_host = zoned(hop.source, self._hops.interface.ifindex)
        return self.path(Endpoint(local_host, local_port), remote)

    def path(self, local: Endpoint, remote: Endpoint) -> Path:
        """Return the path between two endpoints, and start to resolve its next hop if needed.

        Raises LinkError if there is no route.
        """
        self._hops.look_for(without_zone(remote.host), without_zone(local.host))
        path = super().path(local, remote)
        self.update()
        return path

    def update(self) -> None:
        """Tell the C side the interface, this machine's addresses and next hops, as they are."""
        if self._generation != self._hops.generation:
            self._set_interface()
        while count := lib.hs_wire_xdp_asked(self.c, self._questions, _SLICE):
            for question in self._questions[0:count]:
                self._answer(question)
            if count < _SLICE:
                break

    def _set_interface(self) -> None:
        generation, interface = self._hops.generation, self._hops.interface
        prefixes = [
            (address.version, bits, is_broadcast, address.packed.ljust(16, b"\0"))
            for address, bits, is_broadcast in self._hops.own_addresses()
        ]
        if lib.hs_wire_xdp_set_interface(
            self.c, interface.mac, interface.ifindex, self._ip_bytes(), prefixes, len(prefixes)
        ):
            raise MemoryError("no memory for this machine's addresses")
        self._generation = generation

    def _ip_bytes(self) -> int:
        most: int = self._umem.largest_packet_bytes - ETHERNET_BYTES
        return min(self._hops.interface.mtu_bytes, most)

    def _answer(self, question: Any) -> None:
        number = question.path_id
        local, remote = unpack_ends(bytes(ffi.buffer(ffi.addressof(question, "ends"))))
        self._neighbours.pop(number, None)
        try:
            hop = self._hops.find(without_zone(remote.host), without_zone(local.host))
        except LinkError:
            # The reverse of the received frames' route may work all the same.
            lib.hs_wire_xdp_answer(self.c, number, ffi.NULL, 0)
            return
        self._neighbours[number] = hop.neighbour
        lib.hs_wire_xdp_answer(self.c, number, hop.neighbour.mac or ffi.NULL, hop.mtu_bytes)

    def _report_use(self) -> None:
        """Have the kernel confirm the neighbours that datagrams were sent to."""
        count = lib.hs_wire_xdp_used(self.c, self._used, _SLICE, self._is_over)
        for number in self._used[0:count]:
            neighbour = self._neighbours.get(number)
            if neighbour is not None:
                neighbour.is_used = True

    def bytes_from(self, local: Endpoint) -> int:
        """Return the largest UDP payload from a local address."""
        return self._ip_bytes() - _HEADERS_BYTES[6 if ":" in local.host else 4]

    # --- turns ---

    def before_turn(self, now_ns: int) -> int:
        """See Wire."""
        self.update()
        now_s = time.monotonic()
        if now_s >= self._report_at_s:
            self._report_use()
            if self._is_over[0]:
                self._report_at_s = now_s + _REPORT_EVERY_S
        return 0

    def after_turn(self) -> bool:
        """See Wire."""
        if lib.hs_wire_xdp_left(self.c):
            self._on_left()
        return False

    # --- plain datagrams ---

    def open_datagrams(self, local: Endpoint) -> None:
        """Collect an endpoint's datagrams for `take_datagrams`. Raises MemoryError."""
        if lib.hs_wire_xdp_open_datagrams(self.c, *_packed(local)):
            raise MemoryError("no memory for another UDP port")

    def close_datagrams(self, local: Endpoint) -> None:
        """Stop collecting an endpoint's datagrams; no effect if it is not open."""
        if self.c is not None:
            lib.hs_wire_xdp_close_datagrams(self.c, *_packed(local))

    def take_datagrams(self) -> memoryview:
        """Return the datagrams since the last call, as struct hs_datagram_record's.

        The memory is valid until the engine's next turn.
        """
        if self.c is None:
            return memoryview(b"")
        size = ffi.new("size_t *")
        records = lib.hs_wire_xdp_take_datagrams(self.c, size)
        return memoryview(ffi.buffer(records, size[0])) if size[0] else memoryview(b"")

    # --- an interface that disappears and returns ---

    def detach(self) -> None:
        """Stop using sockets that are about to be closed; nothing is sent until `attach`."""
        lib.hs_wire_xdp_detach(self.c)

    def attach(self, sockets: Sequence[pyxdp.Socket], umem: pyxdp.Umem) -> None:
        """Continue with other sockets, on another UMEM."""
        self._umem = umem
        self._generation = -1
        lib.hs_wire_xdp_attach(self.c, *_rings(sockets, umem))

    def close(self) -> None:
        """Release the sockets; the counters stay readable."""
        if self.c is not None:
            self.detach()
        super().close()


def _rings(sockets: Sequence[pyxdp.Socket], umem: pyxdp.Umem) -> tuple[Any, ...]:
    return (
        [socket.c_address for socket in sockets],
        len(sockets),
        ffi.cast("void *", umem.base),
        umem.size_bytes,
        umem.frame_bytes,
    )


def _packed(local: Endpoint) -> tuple[int, bytes, int]:
    address = ip_address(without_zone(local.host))
    return address.version, address.packed, local.port
