"""A byte stream of a VCL session: its state and its bytes are in C (native/session/end.h).

Both directions look like FIFOs, as those of datagrams are.
"""

from __future__ import annotations

from typing import Any, Final

from hoststack.native.memory._memory import lib as memory
from hoststack.native.memory.fifo import FifoCorruptError
from hoststack.native.session._session import ffi, lib

_CORRUPT: Final = int(memory.HS_FIFO_CORRUPT)
_BYTES: Final = (1 << int(lib.HS_END_BYTES_BITS)) - 1
_RESET: Final = int(lib.HS_END_RESET)
_STOPPED: Final = int(lib.HS_END_STOPPED)


def _count(result: int) -> int:
    """Return a number of bytes; none for a stream that has none now, or no more."""
    if result == _CORRUPT:
        raise FifoCorruptError("an index in the FIFO's shared block is invalid")
    return result & _BYTES if result > 0 else 0


class ByteStream:
    """A stream; `end` is its struct hs_end."""

    def __init__(self, end: Any, *, has_tx: bool) -> None:
        self.end = end
        self.rx = Rx(end)
        self.tx = Tx(end) if has_tx else None

    @property
    def is_reset(self) -> bool:
        """Whether the peer reset its sending direction."""
        return bool(self._state().rx == _RESET)

    @property
    def is_stopped(self) -> bool:
        """Whether the peer asked to stop sending."""
        return bool(self._state().tx == _STOPPED)

    def _state(self) -> Any:
        state = ffi.new("struct hs_end_state *")
        lib.hs_end_state(self.end, state)
        return state

    def watch(self, *, reads: bool, writes: bool) -> None:
        """Have the session touched when it can be read or written, or its state changes."""
        lib.hs_end_watch(self.end, reads, writes)

    def finish(self) -> None:
        """End the sending direction, after what was written."""
        lib.hs_end_finish(self.end)

    def reset(self, code: int) -> None:
        lib.hs_end_reset(self.end, code)

    def stop(self, code: int) -> None:
        lib.hs_end_stop(self.end, code)

    def close(self) -> None:
        """Give the FIFOs back; what was written is still sent."""
        lib.hs_end_close(self.end, False, 0)


class Rx:
    """What the peer sends."""

    def __init__(self, end: Any) -> None:
        self._end = end

    @property
    def size(self) -> int:
        return _sizes(self._end)[0]

    @property
    def eof(self) -> bool:
        return bool(lib.hs_end_has_eof(self._end))

    @property
    def readable(self) -> int:
        return _count(lib.hs_end_readable(self._end))

    @property
    def at_end(self) -> bool:
        return self.eof and not self.readable

    def read_into(self, buffer: bytearray | memoryview) -> int:
        target = ffi.from_buffer("uint8_t[]", buffer, require_writable=True)
        return _count(lib.hs_end_read(self._end, target, len(buffer), False))

    def arm_read(self) -> None:
        lib.hs_end_watch(self._end, True, False)


class Tx:
    """What is sent to the peer."""

    def __init__(self, end: Any) -> None:
        self._end = end

    @property
    def size(self) -> int:
        return _sizes(self._end)[1]

    @property
    def writable(self) -> int:
        return _count(lib.hs_end_writable(self._end))

    def write(self, data: bytes | bytearray | memoryview) -> int:
        return _count(lib.hs_end_write(self._end, ffi.from_buffer("uint8_t[]", data), len(data)))

    def arm_write(self) -> None:
        lib.hs_end_watch(self._end, False, True)


def _sizes(end: Any) -> tuple[int, int]:
    sizes = ffi.new("uint64_t[2]")
    lib.hs_end_sizes(end, sizes)
    return int(sizes[0]), int(sizes[1])
