"""BPF ring buffers (BPF_MAP_TYPE_RINGBUF): records that a program sends, in order.

Kernel: Documentation/bpf/ringbuf.rst.
"""

from __future__ import annotations

import errno
import struct
from typing import Any, Final

from pyxdp._extension import ffi, require
from pyxdp.errors import ClosedError, os_error
from pyxdp.maps import Map

_READ_BYTES: Final = 1 << 20
_LENGTH: Final = struct.Struct("=I")


class Ring:
    """Reads the records of a ring buffer map; the map stays the caller's, and open."""

    def __init__(self, source: Map) -> None:
        """Map it into memory; raises PyxdpError if the map is no ring buffer."""
        self._map = source
        made = ffi.new("struct pyxdp_ring **")
        error = require().pyxdp_ring_open(source.fd, source.max_entries, made)
        if error < 0:
            raise os_error(f"cannot read map {source.name} as a ring buffer", -error)
        self._ring: Any = made[0]
        self._room = ffi.new("uint8_t[]", _READ_BYTES)

    def fileno(self) -> int:
        """The map's file descriptor: readable when there are records."""
        return self._map.fd

    def read(self) -> list[bytes]:
        """Return the next records, at most 1 MiB of them, perhaps none; never blocks."""
        if not self._ring:
            raise ClosedError(errno.EBADF, f"the ring buffer {self._map.name} is closed")
        written = require().pyxdp_ring_read(self._ring, self._room, _READ_BYTES)
        if written < 0:
            raise os_error(f"cannot read the ring buffer {self._map.name}", -written)
        data = ffi.unpack(ffi.cast("char *", self._room), written) if written else b""
        records: list[bytes] = []
        at = 0
        while at < written:
            (length,) = _LENGTH.unpack_from(data, at)
            start = at + _LENGTH.size
            records.append(data[start : start + length])
            at = (start + length + 7) & ~7
        return records

    def close(self) -> None:
        """Unmap it; idempotent."""
        if self._ring:
            ring, self._ring = self._ring, ffi.NULL
            require().pyxdp_ring_close(ring)
