"""BPF maps: look up, update, delete, iterate, and per-CPU values."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from typing import Final

from pyxdp._extension import ffi, require
from pyxdp.errors import ClosedError, os_error

_BPF_NOEXIST: Final = 1

#: A key: its bytes, or an integer where the key is one (in native byte order).
Key = bytes | int

_PER_CPU_TYPES: Final = frozenset({5, 6, 10})  # per-CPU hash, per-CPU array, LRU per-CPU hash


class Map:
    """One BPF map; owns its file descriptor.

    Values are bytes of `value_bytes`, keys bytes of `key_bytes` or integers.
    """

    def __init__(self, fd: int, name: str = "") -> None:
        """Take over `fd`. The kernel stores 15 characters of a name: `name` is the full one."""
        info = ffi.new("struct pyxdp_map_info *")
        error = require().pyxdp_map_info(fd, info)
        if error < 0:
            os.close(fd)
            raise os_error("cannot describe a BPF map", -error)
        self._fd = fd
        self.name: Final[str] = name or ffi.string(info.name).decode()
        self.id: Final[int] = info.id
        self.type: Final[int] = info.type
        self.key_bytes: Final[int] = info.key_bytes
        self.value_bytes: Final[int] = info.value_bytes
        self.max_entries: Final[int] = info.max_entries
        self.is_per_cpu: Final[bool] = info.type in _PER_CPU_TYPES
        self._cpus = require().pyxdp_possible_cpus() if self.is_per_cpu else 1
        # The kernel rounds each CPU's value up to 8 bytes.
        self._stride = (info.value_bytes + 7) // 8 * 8 if self.is_per_cpu else info.value_bytes
        self._room = ffi.new("uint8_t[]", max(1, self._stride * self._cpus))

    @property
    def fd(self) -> int:
        """The file descriptor; raises ClosedError."""
        if self._fd < 0:
            raise ClosedError(errno.EBADF, f"BPF map {self.name} is closed")
        return self._fd

    def _key(self, key: Key) -> bytes:
        if isinstance(key, int):
            return key.to_bytes(self.key_bytes, sys.byteorder)
        if len(key) != self.key_bytes:
            raise ValueError(f"map {self.name}: a key has {self.key_bytes} bytes, not {len(key)}")
        return key

    def _lookup(self, key: Key) -> bytes | None:
        error = require().pyxdp_map_lookup(self.fd, self._key(key), self._room)
        if error == -errno.ENOENT:
            return None
        if error < 0:
            raise os_error(f"cannot read map {self.name}", -error)
        return bytes(ffi.buffer(self._room, self._stride * self._cpus))

    def lookup(self, key: Key) -> bytes | None:
        """Return the value, or None if there is none. Not for per-CPU maps."""
        if self.is_per_cpu:
            raise TypeError(f"map {self.name} has a value for each CPU: use lookup_per_cpu")
        return self._lookup(key)

    def lookup_per_cpu(self, key: Key) -> list[bytes] | None:
        """Return one value for each possible CPU, or None if there is none."""
        if not self.is_per_cpu:
            raise TypeError(f"map {self.name} has one value: use lookup")
        values = self._lookup(key)
        if values is None:
            return None
        starts = range(0, len(values), self._stride)
        return [values[start : start + self.value_bytes] for start in starts]

    def sum_per_cpu(self, key: Key) -> int:
        """Return the sum of all CPUs' values, as unsigned integers; 0 if there is none."""
        values = self.lookup_per_cpu(key) or []
        return sum(int.from_bytes(value, sys.byteorder) for value in values)

    def update(self, key: Key, value: bytes | int, *, create_only: bool = False) -> None:
        """Set a value; with `create_only`, raise an error with errno EEXIST if there is one.

        An integer stands for a value of `value_bytes` in native byte order: for an XSKMAP that is a
        socket's file descriptor.
        """
        if self.is_per_cpu:
            raise TypeError(f"map {self.name} has a value for each CPU: it is the program's")
        if isinstance(value, int):
            value = value.to_bytes(self.value_bytes, sys.byteorder)
        if len(value) != self.value_bytes:
            raise ValueError(
                f"map {self.name}: a value has {self.value_bytes} bytes, not {len(value)}"
            )
        flags = _BPF_NOEXIST if create_only else 0
        error = require().pyxdp_map_update(self.fd, self._key(key), value, flags)
        if error == -errno.E2BIG:
            raise os_error(f"map {self.name} with {self.max_entries} entries", errno.ENOSPC)
        if error < 0:
            raise os_error(f"cannot update map {self.name}", -error)

    def delete(self, key: Key) -> bool:
        """Remove an entry; return False if there was none."""
        error = require().pyxdp_map_delete(self.fd, self._key(key))
        if error == -errno.ENOENT:
            return False
        if error < 0:
            raise os_error(f"cannot delete from map {self.name}", -error)
        return True

    def keys(self) -> Iterator[bytes]:
        """Iterate over all keys, in the kernel's order. Deleting the current key is safe."""
        ahead = self._next_key(None)
        while ahead is not None:
            key, ahead = ahead, self._next_key(ahead)
            yield key

    def _next_key(self, key: bytes | None) -> bytes | None:
        after = ffi.new("uint8_t[]", self.key_bytes)
        error = require().pyxdp_map_next_key(self.fd, ffi.NULL if key is None else key, after)
        if error == -errno.ENOENT:
            return None
        if error < 0:
            raise os_error(f"cannot list map {self.name}", -error)
        return bytes(ffi.buffer(after))

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Iterate over all entries, except vanished ones. Not for per-CPU maps."""
        for key in self.keys():
            value = self.lookup(key)
            if value is not None:
                yield key, value

    def close(self) -> None:
        """Close the file descriptor; idempotent. The map exists while it has other users."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
