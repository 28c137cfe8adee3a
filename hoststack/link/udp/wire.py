"""The udp link's wire: its sockets (hoststack/native/wire/sockets.h)."""

from __future__ import annotations

import errno
from typing import Final

from hoststack.link.base import LinkError
from hoststack.link.wire import CWire
from hoststack.native.wire._wire import ffi, lib

_DROPS: Final = {
    value: name.removeprefix("HS_WIRE_UDP_").lower()
    for value, name in ffi.typeof("enum hs_wire_udp_drop").elements.items()
}


class UdpWire(CWire):
    """Sockets of open ports."""

    def __init__(self, *, segments: bool) -> None:
        super().__init__(lib.hs_wire_udp_new(lib.HS_MAX_PATHS, segments), _DROPS)

    def add(self, fd: int, local_port: int) -> None:
        """Add a socket that was opened. Raises LinkError when there are too many."""
        if lib.hs_wire_udp_add(self.c, fd, local_port):
            raise LinkError(
                errno.EMFILE,
                f"{lib.HS_WIRE_UDP_MAX_SOCKETS} UDP ports are open here: close some",
            )

    def remove(self, fd: int) -> None:
        """Remove a socket that is about to be closed."""
        lib.hs_wire_udp_remove(self.c, fd)

    @property
    def blocked_fd(self) -> int:
        """Return the socket whose buffer is full, or -1."""
        return int(lib.hs_wire_udp_blocked(self.c))
