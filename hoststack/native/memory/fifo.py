"""A stream's byte FIFO, from Python; fifo.h has the rules.

Within one process this one object holds both sides. With the block in shared memory, the other side
may be an application in another process.
"""

from __future__ import annotations

import mmap
from typing import Final

from hoststack.native.memory._memory import ffi, lib

_HEADER_BYTES: Final = int(lib.HS_FIFO_HEADER_BYTES)
_PREFIX_BYTES: Final = int(lib.HS_FIFO_PREFIX_BYTES)
_MIN_BYTES: Final = 1024
_MAX_BYTES: Final = 1 << 32


class FifoCorruptError(Exception):
    """The other side wrote an impossible index into the shared block."""


class FifoOverflowError(ValueError):
    """An offset outside the range that the FIFO holds or has room for."""


def _raise(error: int) -> int:
    if error == lib.HS_FIFO_CORRUPT:
        raise FifoCorruptError("an index in the FIFO's shared block is invalid")
    raise FifoOverflowError("an offset is outside of the FIFO")


class Fifo:
    """A FIFO of `size` bytes: a power of two, at least the size asked for.

    Offsets count from the stream's first byte. Every method raises FifoCorruptError when an index
    in the shared block is invalid.
    """

    __slots__ = ("__weakref__", "_consumer", "_data", "_memory", "_producer", "size")

    def __init__(self, size_bytes: int, memory: mmap.mmap | None = None, offset: int = 0) -> None:
        """Use a block of `memory`, which must start as zeros, or allocate one.

        Raises ValueError for a size that is not positive or exceeds 4 GiB, or a block that lies
        outside the memory.
        """
        if not 0 < size_bytes <= _MAX_BYTES:
            raise ValueError(f"a FIFO of {size_bytes} bytes: ask for 1 to {_MAX_BYTES}")
        self.size = self.rounded_up(size_bytes)
        block_bytes = self.block_bytes(size_bytes)
        if memory is None:
            # Pages that are never touched cost nothing.
            memory = mmap.mmap(-1, block_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if offset < 0 or offset + block_bytes > len(memory):
            raise ValueError(f"a FIFO of {self.size} bytes at {offset} lies outside of its memory")
        # The pointer is not stored: it would export the memory's buffer for as long as it exists,
        # such memory can't be collected, and a FIFO in a cycle of garbage would end the process.
        block = ffi.from_buffer(memory) + offset
        self._memory = memory
        self._data = memoryview(memory)[offset + _HEADER_BYTES : offset + block_bytes]
        self._producer = ffi.gc(
            ffi.new("struct hs_fifo_producer *"), lib.hs_fifo_producer_close, self.size
        )
        self._consumer = ffi.new("struct hs_fifo_consumer *")
        lib.hs_fifo_producer_open(self._producer, block, block_bytes)
        lib.hs_fifo_consumer_open(self._consumer, block, block_bytes)

    @staticmethod
    def rounded_up(size_bytes: int) -> int:
        """Return the size of a FIFO for which `size_bytes` were asked."""
        return max(_MIN_BYTES, 1 << (size_bytes - 1).bit_length())

    @classmethod
    def block_bytes(cls, size_bytes: int) -> int:
        """Return the bytes of shared memory for a FIFO of `size_bytes`."""
        return _HEADER_BYTES + cls.rounded_up(size_bytes)

    @property
    def producer_address(self) -> int:
        """The address of struct hs_fifo_producer, for C code that writes."""
        return int(ffi.cast("uintptr_t", self._producer))

    @property
    def consumer_address(self) -> int:
        """The address of struct hs_fifo_consumer, for C code that reads."""
        return int(ffi.cast("uintptr_t", self._consumer))

    # --- the producer: an application that sends, or the engine that receives ---

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append as much of `data` as fits; returns how many bytes did."""
        count: int = lib.hs_fifo_write(self._producer, ffi.from_buffer(data), len(data))
        return count if count >= 0 else _raise(count)

    def write_message(self, data: bytes | bytearray | memoryview) -> bool:
        """Append a whole message; return whether it fitted.

        In a FIFO that carries messages, write nothing else.
        """
        done: int = lib.hs_fifo_write_message(self._producer, ffi.from_buffer(data), len(data))
        return bool(done if done >= 0 else _raise(done))

    @property
    def max_message_bytes(self) -> int:
        """The largest message that fits into the empty FIFO."""
        return min(int(lib.HS_FIFO_MAX_MESSAGE_BYTES), self.size - _PREFIX_BYTES)

    def has_room_for(self, message_bytes: int) -> bool:
        """Return whether `write_message` has room for a message of that size now."""
        return self.writable >= message_bytes + _PREFIX_BYTES

    def put(self, offset: int, data: bytes | memoryview) -> int:
        """Store bytes at an offset; they may overlap bytes that are already stored.

        Returns by how much the tail advanced, or -1 if there are too many gaps to record: then
        nothing was stored. Raises FifoOverflowError beyond the head plus the size.
        """
        count: int = lib.hs_fifo_put(self._producer, offset, ffi.from_buffer(data), len(data))
        return count if count >= -1 else _raise(count)

    def set_eof(self) -> None:
        """Mark the tail as the end: no byte follows."""
        lib.hs_fifo_set_eof(self._producer)

    @property
    def writable(self) -> int:
        """How many bytes `write` can append."""
        count: int = lib.hs_fifo_writable(self._producer)
        return count if count >= 0 else _raise(count)

    @property
    def head(self) -> int:
        """The offset below which the consumer has dropped all bytes, as the producer sees it."""
        head: int = lib.hs_fifo_head(self._producer)
        return head if head >= 0 else _raise(head)

    # --- the consumer: an application that receives, or the engine that sends ---

    def read(self, max_bytes: int) -> bytes:
        """Read and drop up to `max_bytes`; empty if no byte is available."""
        head = self._consumer.head
        data = self.peek(head, max_bytes)
        lib.hs_fifo_drop_to(self._consumer, head + len(data))
        return data

    def read_into(self, buffer: bytearray | memoryview) -> int:
        """Read and drop bytes into a writable buffer; return how many."""
        target = ffi.from_buffer(buffer, require_writable=True)
        count: int = lib.hs_fifo_read(self._consumer, target, len(buffer))
        return count if count >= 0 else _raise(count)

    def read_message(self) -> bytes | None:
        """Read and drop the oldest message; None if there is none."""
        spans, size = ffi.new("struct hs_fifo_span[2]"), ffi.new("size_t *")
        end: int = lib.hs_fifo_peek_message(self._consumer, spans, size)
        if end <= 0:
            if end:
                _raise(end)
            return None
        data = b"".join([ffi.buffer(span.base, span.bytes) for span in spans])
        lib.hs_fifo_drop_to(self._consumer, end)
        return data

    def peek(self, offset: int, max_bytes: int) -> bytes:
        """Copy up to `max_bytes` from an offset, without dropping them.

        Raises FifoOverflowError below the head and above the tail.
        """
        count: int = lib.hs_fifo_available(self._consumer, offset)
        if count < 0:
            _raise(count)
        if count > max_bytes:
            count = max_bytes
        ring_bytes = self._consumer.ring_bytes
        start = (offset - self._consumer.origin) & (ring_bytes - 1)
        end = start + count
        if end <= ring_bytes:
            return self._data[start:end].tobytes()
        return b"".join((self._data[start:ring_bytes], self._data[: end - ring_bytes]))

    def drop_to(self, offset: int) -> None:
        """Drop all bytes below an offset. Raises FifoOverflowError above the tail."""
        error: int = lib.hs_fifo_drop_to(self._consumer, offset)
        if error:
            _raise(error)

    @property
    def dropped_to(self) -> int:
        """The offset below which the consumer has dropped all bytes: its own head."""
        return int(self._consumer.head)

    @property
    def tail(self) -> int:
        """The offset up to which all bytes are available, as the consumer sees it."""
        tail: int = lib.hs_fifo_tail(self._consumer)
        return tail if tail >= 0 else _raise(tail)

    @property
    def readable(self) -> int:
        """How many bytes `read` can return."""
        count: int = lib.hs_fifo_available(self._consumer, self._consumer.head)
        return count if count >= 0 else _raise(count)

    @property
    def eof(self) -> bool:
        """Whether the tail is final. Check this before reading the tail."""
        return bool(lib.hs_fifo_eof(self._consumer))

    @property
    def at_end(self) -> bool:
        """Whether the FIFO is empty and the tail is final."""
        return self.eof and not self.readable

    # --- for observers ---

    @property
    def positions(self) -> tuple[int, int]:
        """Head and tail as the two sides wrote them, unchecked."""
        found = ffi.new("uint64_t[2]")
        lib.hs_fifo_look(self._consumer, found)
        return int(found[0]), int(found[1])

    # --- wake-ups: arm, check again, then sleep; the other side moves, then clears the flag ---

    def arm_read(self) -> None:
        """Consumer: request a wake-up for new bytes."""
        lib.hs_fifo_arm_read(self._consumer)

    def take_read_armed(self) -> bool:
        """Producer, after a write: clear the consumer's request; return whether there was one."""
        return bool(lib.hs_fifo_take_read_armed(self._producer))

    def arm_write(self) -> None:
        """Producer: request a wake-up for room."""
        lib.hs_fifo_arm_write(self._producer)

    def take_write_armed(self) -> bool:
        """Consumer, after a drop: clear the producer's request; return whether there was one."""
        return bool(lib.hs_fifo_take_write_armed(self._consumer))
