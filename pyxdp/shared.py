"""One UMEM for several processes: one makes it and the sockets, the others adopt them.

The frames lie in a memfd, followed by the state that the processes share. The process that makes
the sockets needs privileges, and keeps the sockets open; a process that adopts them needs none. The
sockets of a killed worker remain for its successor, and `reclaim` recovers the frames that it had
in hand.

A ledger records what a worker holds: one memfd per worker, shared with the maker only. Shapes and
sizes are never read from shared memory: each process gets them from its parent.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Sequence
from typing import Any, Final, TypedDict

from pyxdp._extension import ffi, require
from pyxdp.errors import PyxdpError
from pyxdp.umem import BindMode, Umem
from pyxdp.xsk import BURST, Socket

_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class SharedShape(TypedDict):
    """What a process needs, beside the memfd, to adopt a UMEM."""

    queues: int
    workers: int
    rx_frames: int
    tx_frames: int
    frame_bytes: int
    headroom_bytes: int
    need_wakeup: bool


class _MemfdUmem(Umem):
    """Frames in a memfd, followed by the control memory."""

    def __init__(self, fd: int, shape: SharedShape, bind_mode: BindMode, *, debug: bool) -> None:
        self.fd: Final = fd
        self.shape: Final = shape
        frame_count = shape["queues"] * shape["rx_frames"] + shape["workers"] * shape["tx_frames"]
        self._control_bytes = int(require().pyxdp_shared_bytes(_c_shape(shape)))
        super().__init__(
            frame_count,
            shape["frame_bytes"],
            shape["headroom_bytes"],
            bind_mode=bind_mode,
            need_wakeup=shape["need_wakeup"],
            debug=debug,
        )

    def _map(self) -> mmap.mmap:
        flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
        return mmap.mmap(self.fd, self.size_bytes + self._control_bytes, flags)

    def close(self) -> None:
        """Close the UMEM (see Umem) and the memfd."""
        is_open = bool(self._umem)
        super().close()
        if is_open:
            os.close(self.fd)


class SharedUmem(_MemfdUmem):
    """A UMEM for the sockets of `workers` processes on `queues` queues.

    Each queue has `rx_frames` to receive into, each worker `tx_frames` to send from. `fd` is its
    memfd, `ledger_fds` are those of the workers' ledgers.
    """

    def __init__(
        self,
        queues: int,
        workers: int,
        *,
        rx_frames: int,
        tx_frames: int,
        frame_bytes: int = 2048,
        headroom_bytes: int = 0,
        bind_mode: BindMode = "auto",
        need_wakeup: bool = True,
    ) -> None:
        """As Umem; also raises ValueError for more workers than queues."""
        if not 1 <= workers <= queues:
            raise ValueError(f"workers are 1 to as many as queues ({queues}), not {workers}")
        if min(rx_frames, tx_frames) < 1:
            raise ValueError("a UMEM needs frames to receive and to send")
        shape = SharedShape(
            queues=queues,
            workers=workers,
            rx_frames=rx_frames,
            tx_frames=tx_frames,
            frame_bytes=frame_bytes,
            headroom_bytes=headroom_bytes,
            need_wakeup=need_wakeup,
        )
        frames = queues * rx_frames + workers * tx_frames
        library = require()
        c_shape = _c_shape(shape)
        self._ledgers: list[tuple[int, mmap.mmap, Any]] = []
        fd = -1
        try:
            fd = _memfd("umem", frames * frame_bytes + int(library.pyxdp_shared_bytes(c_shape)))
            for _ in range(workers):
                self._ledgers.append(_make_ledger(int(library.pyxdp_ledger_bytes(c_shape))))
            super().__init__(fd, shape, bind_mode, debug=False)
        except BaseException:
            if fd >= 0:
                os.close(fd)
            self._close_ledgers()
            raise

    @property
    def ledger_fds(self) -> list[int]:
        """Descriptors by worker; this object owns them."""
        return [fd for fd, _, _ in self._ledgers]

    def _make(self, library: Any, flags: int, made: Any) -> int:
        return int(
            library.pyxdp_umem_share(
                self.base,
                self.size_bytes,
                self.frame_bytes,
                self.headroom_bytes,
                flags,
                _c_shape(self.shape),
                self.base + self.size_bytes,
                [ffi.cast("void *", base) for _, _, base in self._ledgers],
                made,
            )
        )

    def close(self) -> None:
        """Close the UMEM (see Umem) and the ledgers."""
        super().close()
        self._close_ledgers()

    def _close_ledgers(self) -> None:
        while self._ledgers:
            fd, memory, base = self._ledgers.pop()
            ffi.release(base)
            memory.close()
            os.close(fd)

    def reclaim(self, worker: int, sockets: Sequence[SharedSocket]) -> int:
        """Release the received frames that a worker had in hand; return how many.

        Call it only after the worker's process has ended. `sockets` are all of that worker's. Never
        blocks: if another process holds the lock of a FILL ring, `unreclaimed` is set, and it must
        be called again before another process adopts the sockets.
        """
        left = ffi.new("int *")
        result = require().pyxdp_reclaim(
            self.c_umem, worker, [each.c_socket for each in sockets], len(sockets), left
        )
        if result < 0:
            self.raise_error(result, f"cannot reclaim the frames of worker {worker}")
        self.unreclaimed = int(left[0])
        return int(result)

    unreclaimed: int = 0
    """How many queues the last `reclaim` could not look at."""

    def break_locks(self) -> int:
        """Break FILL ring locks that a process has held since the last call; return how many.

        Call it about once a second: a process that still holds one then is stopped, or malicious.
        """
        return int(require().pyxdp_break_locks(self.c_umem))


class SharedSocket(Socket):
    """A socket that is made here, and used by the process that adopts it."""

    def __init__(
        self, umem: SharedUmem, interface: str, queue: int, *, rx_size: int, tx_size: int
    ) -> None:
        """As Socket; the first socket on a queue fills it with the queue's frames."""
        self.rx_size: Final = rx_size
        self.tx_size: Final = tx_size
        super().__init__(umem, interface, queue, rx_size=rx_size, tx_size=tx_size, fill_frames=0)

    @property
    def fill_level(self) -> int:
        """How many frames are in the queue's FILL ring."""
        return int(require().pyxdp_fill_level(self.c_socket))


class AdoptedUmem(_MemfdUmem):
    """In a worker's process: the UMEM that another process made. Needs no privileges.

    It always tracks which frames it holds, so data written by others can't make it use one twice.
    """

    def __init__(self, fd: int, ledger_fd: int, shape: SharedShape, worker: int) -> None:
        """Take over the memfds; raises PyxdpError.

        `shape` comes from the maker, not from shared memory.
        """
        self.worker: Final = worker
        self._ledger_fd = ledger_fd
        size = int(require().pyxdp_ledger_bytes(_c_shape(shape)))
        self._ledger = mmap.mmap(ledger_fd, size, mmap.MAP_SHARED)
        self._ledger_base: Any = ffi.from_buffer("uint8_t[]", self._ledger, require_writable=True)
        try:
            super().__init__(fd, shape, "auto", debug=True)
        except BaseException:
            self._release_ledger()
            raise

    def _make(self, library: Any, flags: int, made: Any) -> int:
        return int(
            library.pyxdp_umem_adopt(
                self.base,
                self.size_bytes,
                self.frame_bytes,
                flags,
                _c_shape(self.shape),
                self.base + self.size_bytes,
                self._ledger_base,
                self.worker,
                made,
            )
        )

    def _release_ledger(self) -> None:
        ffi.release(self._ledger_base)
        self._ledger.close()

    def close(self) -> None:
        """Close the UMEM (see Umem) and the memfds."""
        is_open = bool(self._umem)
        super().close()
        if is_open:
            self._release_ledger()
            os.close(self._ledger_fd)


class AdoptedSocket(Socket):
    """In a worker's process: its socket on a queue. Only the one on queue `umem.worker` can send.

    Return received packets with `rx_release`; they can't be sent on in place.
    """

    def __init__(
        self,
        umem: AdoptedUmem,
        fd: int,
        interface: str,
        queue: int,
        *,
        rx_size: int,
        tx_size: int,
        burst: int = BURST,
    ) -> None:
        """Take over a socket's descriptor, with the sizes it was made with; raises PyxdpError."""
        self._adopted_fd = fd
        super().__init__(
            umem, interface, queue, rx_size=rx_size, tx_size=tx_size, fill_frames=0, burst=burst
        )

    def _open(self, rx_size: int, tx_size: int, fill_frames: int) -> Any:
        made = ffi.new("struct pyxdp_socket **")
        error = self._library.pyxdp_socket_adopt(
            self.umem.c_umem, self._adopted_fd, self.queue, rx_size, tx_size, made
        )
        if error < 0:
            raise PyxdpError(
                -error,
                f"cannot adopt the socket on queue {self.queue} of {self.interface}:"
                f" {os.strerror(-error)}",
            )
        return made[0]


def _memfd(name: str, size: int) -> int:
    """Create shared memory whose size no process can change."""
    fd = os.memfd_create(f"pyxdp-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        # A process that has it can write invalid data, but can't shrink it while others use it.
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _make_ledger(size: int) -> tuple[int, mmap.mmap, Any]:
    fd = _memfd("ledger", size)
    try:
        memory = mmap.mmap(fd, size, mmap.MAP_SHARED)
    except BaseException:
        os.close(fd)
        raise
    return fd, memory, ffi.from_buffer("uint8_t[]", memory, require_writable=True)


def _c_shape(shape: SharedShape) -> Any:
    return ffi.new(
        "struct pyxdp_shape *",
        {
            "queues": shape["queues"],
            "workers": shape["workers"],
            "rx_frames": shape["rx_frames"],
            "tx_frames": shape["tx_frames"],
        },
    )
