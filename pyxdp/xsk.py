"""AF_XDP sockets: bursts of packets received and sent, one C call each.

The verbs come in pairs, as in Knot DNS's libknot/xdp: the packets of `rx_burst` are released with
`rx_release` (or sent on with `tx_send`), the frames of `tx_alloc` are sent with `tx_send` (or
released with `tx_release`).
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from pyxdp._extension import ffi, require
from pyxdp.attach import interface_index
from pyxdp.closing import Closing
from pyxdp.errors import ClosedError, NoInterfaceError, PyxdpError, QueueBusyError
from pyxdp.umem import Umem

#: Packets of one burst, by default.
BURST: Final = 64

# The kernel releases a closed socket's queue a little later, from a work queue.
_BUSY_RETRIES: Final = 100
_BUSY_WAIT_S: Final = 0.005


class Statistics(NamedTuple):
    """A socket's counters: the kernel's (XDP_STATISTICS), then our own."""

    rx_dropped: int
    rx_invalid_descs: int
    tx_invalid_descs: int
    rx_ring_full: int
    rx_fill_ring_empty_descs: int
    tx_ring_empty_descs: int
    rx_frames: int
    tx_frames: int
    rx_bad_descs: int
    kicks: int
    kicks_again: int


class Burst:
    """Packets in UMEM frames that the caller owns: `descs[0]` to `descs[len - 1]`.

    A socket has one for receiving and one for sending, and reuses them. `descs` is a C array of
    `struct pyxdp_desc` (addr, len, options) for C code to read and write.
    """

    __slots__ = ("_area", "_frame_mask", "capacity", "count", "descs")

    def __init__(self, umem: Umem, capacity: int) -> None:
        self.capacity: Final = capacity
        self.descs: Any = ffi.new("struct pyxdp_desc[]", capacity)
        self.count = 0
        self._area = umem.area
        self._frame_mask = umem.frame_bytes - 1

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> memoryview:
        """Packet `index` in the UMEM, without a copy: valid until it is released or sent."""
        if not 0 <= index < self.count:
            raise IndexError(f"the burst has {self.count} packets, no number {index}")
        desc = self.descs[index]
        return self._area[desc.addr : desc.addr + desc.len]

    def __iter__(self) -> Iterator[memoryview]:
        for index in range(self.count):
            yield self[index]

    def write(self, index: int, packet: bytes | bytearray | memoryview) -> None:
        """Write a whole packet into frame `index`; raises ValueError if it does not fit."""
        if not 0 <= index < self.count:
            raise IndexError(f"the burst has {self.count} packets, no number {index}")
        desc = self.descs[index]
        room = self._frame_mask + 1 - (desc.addr & self._frame_mask)
        if len(packet) > room:
            raise ValueError(f"a packet of {len(packet)} bytes does not fit {room}")
        self._area[desc.addr : desc.addr + len(packet)] = packet
        desc.len = len(packet)

    def drop_front(self, taken: int) -> None:
        """Remove packets that have another owner now."""
        rest = self.count - taken
        if taken and rest:
            size = ffi.sizeof("struct pyxdp_desc")
            ffi.memmove(self.descs, self.descs + taken, rest * size)
        self.count = rest


class Socket(Closing):
    """An AF_XDP socket on one queue of an interface; close it, or use it in a `with`.

    Several may share a queue, on one UMEM: the XDP program decides which one gets a packet, by the
    entry of its XSKMAP (`map.update(key, socket.fd)`).
    """

    def __init__(
        self,
        umem: Umem,
        interface: str,
        queue: int = 0,
        *,
        rx_size: int = 2048,
        tx_size: int = 2048,
        fill_frames: int | None = None,
        burst: int = BURST,
    ) -> None:
        """Bind to a queue, with `fill_frames` frames to receive into.

        Ring sizes are powers of two. By default `fill_frames` is `rx_size`, but at most half of the
        free frames. `burst` is the most packets that a call moves. Raises NoInterfaceError,
        NoPrivilegeError, QueueBusyError if a socket of another UMEM uses the queue, and PyxdpError
        with errno EOPNOTSUPP if zero-copy is impossible.
        """
        for name, size in (("rx_size", rx_size), ("tx_size", tx_size)):
            if size < 1 or size & (size - 1) or size > 1 << 16:
                raise ValueError(f"{name} is a power of two up to 65536, not {size}")
        if fill_frames is None:
            fill_frames = min(rx_size, umem.free_frames // 2)
        if not 0 <= fill_frames <= umem.frame_count:
            raise ValueError(
                f"fill_frames is 0 to the UMEM's {umem.frame_count} frames, not {fill_frames}"
            )
        if burst < 1:
            raise ValueError(f"burst is at least 1, not {burst}")
        if queue < 0:
            raise ValueError(f"queue is a number from 0, not {queue}")
        self._library = require()
        interface_index(interface)
        self.left_frames = 0
        """What the last kick left on the TX ring: wait until writable, and kick again."""
        self.umem: Final = umem
        self.interface: Final = interface
        self.queue: Final = queue
        self._socket: Any = self._open(rx_size, tx_size, fill_frames)
        self._rx = Burst(umem, burst)
        self._tx = Burst(umem, burst)
        umem.add_socket(self)

    def _open(self, rx_size: int, tx_size: int, fill_frames: int) -> Any:
        made = ffi.new("struct pyxdp_socket **")
        name = self.interface.encode()
        arguments = (self.umem.c_umem, name, self.queue, rx_size, tx_size, fill_frames, made)
        error = self._library.pyxdp_socket_open(*arguments)
        for _ in range(_BUSY_RETRIES):
            if error != -errno.EBUSY:
                break
            time.sleep(_BUSY_WAIT_S)
            error = self._library.pyxdp_socket_open(*arguments)
        what = f"cannot bind to queue {self.queue} of {self.interface}"
        if error == 0:
            return made[0]
        if error == -errno.EBUSY:
            raise QueueBusyError(
                errno.EBUSY,
                f"{what}: another AF_XDP socket uses it; `ss --xdp -e -p` shows which; end that or"
                " use another queue",
            )
        if error == -errno.ESHUTDOWN:
            raise PyxdpError(
                errno.ESHUTDOWN,
                f"{what}: this UMEM used it before and its frames are lost; make a new UMEM",
            )
        if error == -errno.EINVAL:
            raise NoInterfaceError(
                errno.EINVAL,
                f"{what}: it has no such queue; `ethtool -l {self.interface}` shows how many",
            )
        self.umem.raise_error(error, what)

    @property
    def c_socket(self) -> Any:
        """The `struct pyxdp_socket *` for pyxdp.h's functions; raises ClosedError."""
        if not self._socket:
            raise ClosedError(
                errno.EBADF, f"the socket on queue {self.queue} of {self.interface} is closed"
            )
        return self._socket

    @property
    def c_address(self) -> int:
        """`c_socket` as a number, for another module's C code, which calls through `c_verbs`."""
        return int(ffi.cast("uintptr_t", self.c_socket))

    @property
    def fd(self) -> int:
        """The file descriptor: to poll, and for an XSKMAP."""
        return int(self._library.pyxdp_socket_fd(self.c_socket))

    def fileno(self) -> int:
        """The same as `fd`, for select and trio."""
        return self.fd

    @property
    def is_zero_copy(self) -> bool:
        """Whether packets pass between driver and UMEM without a copy."""
        return (
            self._checked(
                self._library.pyxdp_socket_is_zero_copy(self.c_socket), "cannot ask for zero-copy"
            )
            == 1
        )

    def busy_poll(self, microseconds: int, budget: int = BURST) -> None:
        """Make `rx_burst` poll the driver when it finds nothing, `budget` packets at a time.

        For programs that receive continuously instead of waiting (SO_PREFER_BUSY_POLL,
        SO_BUSY_POLL, SO_BUSY_POLL_BUDGET). It has an effect only if the driver has a NAPI instance
        for the queue, so not in generic mode. Raises NoPrivilegeError without CAP_NET_ADMIN, and
        PyxdpError with errno ENOPROTOOPT if the kernel has no busy polling.
        """
        result = self._library.pyxdp_socket_busy_poll(self.c_socket, microseconds, budget)
        self._checked(result, "cannot enable busy polling")

    def _checked(self, result: int, what: str) -> int:
        if result < 0:
            self.umem.raise_error(result, f"{what} (queue {self.queue} of {self.interface})")
        return result

    def rx_burst(self, budget: int = BURST) -> Burst:
        """Receive up to `budget` packets, perhaps none; never blocks.

        Returns the same Burst each time: release it with `rx_release`, or send it on with
        `tx_send`, before the next call, which else raises ValueError.
        """
        burst = self._rx
        if burst.count:
            raise ValueError("the last burst's packets were neither released nor sent on")
        result = self._library.pyxdp_rx_burst(
            self.c_socket, burst.descs, min(budget, burst.capacity)
        )
        if result < 0:
            self._checked(result, "receiving")
        burst.count = result
        return burst

    def rx_release(self, burst: Burst) -> None:
        """Release received packets; the burst is empty afterwards."""
        result = self._library.pyxdp_rx_release(self.c_socket, burst.descs, burst.count)
        if result < 0:
            self._checked(result, "releasing received packets")
        burst.count = 0

    def tx_alloc(self, n: int = BURST) -> Burst:
        """Reserve up to `n` free frames to write packets into, perhaps none; never blocks.

        Returns the same Burst each time: send it or release it before the next call, which else
        raises ValueError.
        """
        burst = self._tx
        if burst.count:
            raise ValueError("the last burst's frames were neither sent nor released")
        result = self._library.pyxdp_tx_reserve(self.c_socket, burst.descs, min(n, burst.capacity))
        if result < 0:
            self._checked(result, "reserving frames to send")
        burst.count = result
        return burst

    def tx_send(self, burst: Burst, count: int | None = None) -> int:
        """Put a burst, or its first `count` packets, on the TX ring and notify the kernel.

        Returns how many packets fitted; the others stay in the burst. If the kernel can't send all
        at once (`left_frames`), wait until the socket is writable and `kick` again.
        """
        wanted = burst.count if count is None else min(count, burst.count)
        taken = self._library.pyxdp_tx_submit(self.c_socket, burst.descs, wanted)
        if taken < 0:
            self._checked(taken, "sending")
        burst.drop_front(taken)
        self.kick()
        return int(taken)

    def tx_release(self, burst: Burst) -> None:
        """Release frames that are not to be sent; the burst is empty afterwards."""
        result = self._library.pyxdp_tx_release(self.c_socket, burst.descs, burst.count)
        if result < 0:
            self._checked(result, "releasing frames")
        burst.count = 0

    def kick(self) -> int:
        """Have the kernel send the packets on the TX ring. Returns how many it left there.

        If any, wait until the socket is writable and call this again. Raises PyxdpError with errno
        ENETDOWN if the interface is down.
        """
        result = self._library.pyxdp_kick(self.c_socket)
        if result < 0:
            self._checked(result, "sending")
        self.left_frames = int(result)
        return self.left_frames

    def reap(self) -> int:
        """Free the frames of sent packets; `tx_alloc` does that too. Returns how many."""
        return self._checked(self._library.pyxdp_tx_reap(self.c_socket), "reaping sent packets")

    def statistics(self) -> Statistics:
        """The kernel's counters of this socket and our own."""
        found = ffi.new("struct pyxdp_statistics *")
        error = self._library.pyxdp_socket_statistics(self.c_socket, found)
        self._checked(error, "cannot read the counters")
        return Statistics(*(int(getattr(found, name)) for name in Statistics._fields))

    def close(self) -> None:
        """Close the socket; idempotent. Its frames come back when the UMEM is closed."""
        if self._socket:
            socket, self._socket = self._socket, ffi.NULL
            self._rx.count = self._tx.count = 0
            self._library.pyxdp_socket_close(socket)
            self.umem.drop_socket(self)
