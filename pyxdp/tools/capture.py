"""Capture: copies of the packets that an interface receives."""

from __future__ import annotations

import select
import struct
import time
from importlib.resources import files
from typing import Final

from pyxdp.attach import Mode, WantedMode
from pyxdp.closing import Closing
from pyxdp.program import Program
from pyxdp.ring import Ring
from pyxdp.tools.filters import load_filter
from pyxdp.tools.packets import Packet

#: The most of a packet that can be captured: MOST_BYTES in pyxdp/capture.bpf.c.
MOST_SNAP_BYTES: Final = 9216
_HEADER: Final = struct.Struct("=QII48s")
# enum in pyxdp/capture.bpf.c
_SEEN, _LOST = 0, 1


class Capture(Closing):
    """Copies of what an interface receives; the packets go their way, too. Use it in a `with`.

    An XDP program filters and copies. It sees what the interface receives, before the kernel does,
    and nothing that it sends.
    """

    def __init__(
        self,
        interface: str,
        filter: str = "",
        *,
        snap_bytes: int = MOST_SNAP_BYTES,
        mode: WantedMode = "auto",
    ) -> None:
        """Attach to an interface; `filter` is as in pyxdp.tools.filters.

        Raises FilterError, and what Program.load and Program.attach raise: NoPrivilegeError,
        NoInterfaceError, ForeignProgramError.
        """
        if not 1 <= snap_bytes <= MOST_SNAP_BYTES:
            raise ValueError(f"snap_bytes is 1 to {MOST_SNAP_BYTES}, not {snap_bytes}")
        self._program = Program.load(files("pyxdp").joinpath("capture.bpf.o").read_bytes())
        self._ring: Ring | None = None
        try:
            load_filter(self._program, filter)
            self._program.maps["snap_bytes"].update(0, snap_bytes)
            self._ring = Ring(self._program.maps["samples"])
            self._since_1970_ns = time.time_ns() - time.monotonic_ns()
            self.mode: Final[Mode] = self._program.attach(interface, mode).mode
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """The descriptor that is readable when there are packets, for select and trio."""
        return self._program.maps["samples"].fd

    def read(self) -> list[Packet]:
        """Return the packets that came since the last call, perhaps none; never blocks."""
        packets: list[Packet] = []
        for record in self._ring.read() if self._ring else ():
            time_ns, length_bytes, captured_bytes, key = _HEADER.unpack_from(record)
            data = record[_HEADER.size : _HEADER.size + captured_bytes]
            packets.append(Packet(time_ns + self._since_1970_ns, data, length_bytes, key))
        return packets

    def wait(self, timeout_s: float | None = None) -> list[Packet]:
        """The same, but wait until there is a packet, or until the timeout."""
        if not (packets := self.read()):
            select.select([self], [], [], timeout_s)
            packets = self.read()
        return packets

    @property
    def seen(self) -> int:
        """How many packets the filter accepted."""
        return self._program.maps["counters"].sum_per_cpu(_SEEN)

    @property
    def lost(self) -> int:
        """How many of them were not copied, for nobody read the others in time."""
        return self._program.maps["counters"].sum_per_cpu(_LOST)

    def close(self) -> None:
        """Detach; idempotent."""
        if self._ring is not None:
            self._ring.close()
        self._program.close()
