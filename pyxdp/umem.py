"""A UMEM: the memory that AF_XDP sockets and the kernel share, divided into frames.

Kernel: Documentation/networking/af_xdp.rst. Every frame has one owner at any time; with
`debug=True` each step is checked and a wrong one raises FrameOwnershipError.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn

from pyxdp._extension import ffi, require
from pyxdp.closing import Closing
from pyxdp.errors import ClosedError, FrameOwnershipError, os_error

if TYPE_CHECKING:
    from pyxdp.xsk import Socket

#: Whether packets are copied between kernel and UMEM; auto is zero-copy if the driver has it.
BindMode = Literal["auto", "copy", "zero-copy"]

# linux/if_xdp.h
_BIND_FLAGS: Final[dict[BindMode, int]] = {"auto": 0, "copy": 1 << 1, "zero-copy": 1 << 2}
_XDP_USE_NEED_WAKEUP: Final = 1 << 3

_MIN_FRAME_BYTES: Final = 2048
_MAX_FRAME_BYTES: Final = 4096
_MAX_FRAMES: Final = 1 << 20
_KERNEL_HEADROOM_BYTES: Final = 256

_CAPABILITIES: Final = "CAP_NET_RAW (and CAP_IPC_LOCK where `ulimit -l` is small)"


def largest_packet_bytes(frame_bytes: int, headroom_bytes: int = 0) -> int:
    """Return the largest Ethernet frame that the kernel can put into a UMEM frame."""
    return frame_bytes - _KERNEL_HEADROOM_BYTES - headroom_bytes


class Umem(Closing):
    """Frames of `frame_bytes` each, for the sockets made on it; close it, or use it in a `with`.

    `area` is the whole memory; `base` the same as a C pointer, valid until `close`. A view of
    `area` keeps the memory mapped, so a late reader sees old bytes, never another object's.
    """

    def __init__(
        self,
        frame_count: int,
        frame_bytes: int = 2048,
        headroom_bytes: int = 0,
        *,
        bind_mode: BindMode = "auto",
        need_wakeup: bool = True,
        debug: bool = False,
    ) -> None:
        """Make a UMEM of `frame_count` frames of 2048 or 4096 bytes.

        `headroom_bytes` stay free in front of each received packet, in addition to the kernel's
        256. `bind_mode` and `need_wakeup` (the kernel says when sending needs a wake-up) apply to
        all its sockets. Raises ValueError for sizes out of range, NoPrivilegeError, and PyxdpError
        with errno ENOBUFS if the limit of locked memory is too low.
        """
        if frame_bytes not in (_MIN_FRAME_BYTES, _MAX_FRAME_BYTES):
            raise ValueError(f"frame_bytes is 2048 or 4096, not {frame_bytes}")
        if not 1 <= frame_count <= _MAX_FRAMES:
            raise ValueError(f"frame_count is 1 to {_MAX_FRAMES}, not {frame_count}")
        if not 0 <= headroom_bytes < frame_bytes - _KERNEL_HEADROOM_BYTES:
            raise ValueError(f"headroom_bytes does not fit a frame: {headroom_bytes}")
        library = require()
        self.frame_count: Final = frame_count
        self.frame_bytes: Final = frame_bytes
        self.headroom_bytes: Final = headroom_bytes
        self.size_bytes: Final = frame_count * frame_bytes
        self.debug: Final = debug
        self._sockets: list[Socket] = []
        self._memory = self._map()
        self.area: Final = memoryview(self._memory)[: self.size_bytes]
        self.base: Any = ffi.from_buffer("uint8_t[]", self._memory, require_writable=True)
        flags = _BIND_FLAGS[bind_mode] | (_XDP_USE_NEED_WAKEUP if need_wakeup else 0)
        made = ffi.new("struct pyxdp_umem **")
        error = self._make(library, flags, made)
        self._umem: Any = made[0]
        if error < 0:
            self._release_memory()
            raise os_error(
                f"cannot make a UMEM of {self.size_bytes // 1024} KiB", -error, _CAPABILITIES
            )

    def _map(self) -> mmap.mmap:
        return mmap.mmap(
            -1, self.size_bytes, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
        )

    def _make(self, library: Any, flags: int, made: Any) -> int:
        """Return 0 with `made[0]`, or a negative errno."""
        return int(
            library.pyxdp_umem_create(
                self.base,
                self.size_bytes,
                self.frame_bytes,
                self.headroom_bytes,
                flags,
                self.debug,
                made,
            )
        )

    @property
    def c_umem(self) -> Any:
        """The `struct pyxdp_umem *`; raises ClosedError."""
        if not self._umem:
            raise ClosedError(errno.EBADF, "the UMEM is closed")
        return self._umem

    @property
    def largest_packet_bytes(self) -> int:
        """The largest Ethernet frame that fits into a frame."""
        return largest_packet_bytes(self.frame_bytes, self.headroom_bytes)

    @property
    def free_frames(self) -> int:
        """How many frames are free."""
        return int(require().pyxdp_umem_free_frames(self.c_umem))

    def owned_frames(self) -> dict[str, int]:
        """Return the number of frames by owner: free, fill, rx, reserved, tx. Only with `debug`."""
        if not self.debug:
            raise ValueError("only a UMEM with debug=True tracks the owners of its frames")
        library = require()
        return {
            name: int(library.pyxdp_umem_owned(self.c_umem, owner))
            for owner, name in _owner_names().items()
        }

    def raise_error(self, error: int, what: str) -> NoReturn:
        """Raise the exception for a negative result of a burst function."""
        if -error == errno.EPROTO:
            seen = ffi.new("struct pyxdp_violation *")
            require().pyxdp_umem_violation(self.c_umem, seen)
            names = _owner_names()
            expected = " or ".join(
                name for owner, name in names.items() if owner & int(seen.expected)
            )
            raise FrameOwnershipError(
                errno.EPROTO,
                f"{what}: the frame at {seen.addr:#x} should be {expected}, but it is"
                f" {names.get(int(seen.found), 'unknown')}; it is used twice",
            )
        if -error == errno.EINVAL:
            raise ValueError(
                f"{what}: a descriptor lies outside the UMEM or its frame, or is shorter than an"
                " Ethernet header"
            )
        raise os_error(what, -error, _CAPABILITIES)

    def add_socket(self, socket: Socket) -> None:
        """Register a socket, to be closed with this UMEM."""
        self._sockets.append(socket)

    def drop_socket(self, socket: Socket) -> None:
        """Unregister a closed socket."""
        with contextlib.suppress(ValueError):
            self._sockets.remove(socket)

    def close(self) -> None:
        """Close the sockets on it and release the memory; idempotent."""
        for socket in list(self._sockets):
            socket.close()
        if self._umem:
            umem, self._umem = self._umem, ffi.NULL
            error = require().pyxdp_umem_delete(umem)
            self._release_memory()
            if error < 0:
                raise os_error("cannot close the UMEM", -error, _CAPABILITIES)

    def _release_memory(self) -> None:
        if self.base is not None:
            ffi.release(self.base)
            self.base = None
        # While views of the memory exist it stays mapped; the last one frees it.
        with contextlib.suppress(BufferError):
            self.area.release()
            self._memory.close()


def _owner_names() -> dict[int, str]:
    library = require()
    return {
        library.PYXDP_FREE: "free",
        library.PYXDP_FILL: "fill",
        library.PYXDP_RX: "rx",
        library.PYXDP_RESERVED: "reserved",
        library.PYXDP_TX: "tx",
    }
