"""Files that are sent: read without blocking where the kernel has them in memory, or else in a
thread."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import AsyncIterator
from typing import Any, Final

import trio

#: Read at a time.
CHUNK_BYTES: Final = 256 * 1024


class Part:
    """A part of a file: iterate over it once. What it yields is valid until the next step."""

    def __init__(self, fd: int, offset: int | None, count: int | None) -> None:
        """Without `offset` it begins at the file's position, and moves that; without `count` it
        ends with the file."""
        self._fd = fd
        self._moves = offset is None
        self._offset = os.lseek(fd, 0, os.SEEK_CUR) if offset is None else offset
        self._left = count

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        left = CHUNK_BYTES if self._left is None else self._left
        room = memoryview(bytearray(min(left, CHUNK_BYTES)))
        while self._left is None or self._left > 0:
            want = len(room) if self._left is None else min(self._left, len(room))
            count = await read_into(self._fd, room[:want], self._offset)
            if not count:
                return
            self._offset += count
            if self._moves:
                os.lseek(self._fd, self._offset, os.SEEK_SET)
            if self._left is not None:
                self._left -= count
            yield room[:count]


class OpenFile:
    """An open file; its size is read once."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.status = os.fstat(fd)
        self.size_bytes = self.status.st_size

    def fileno(self) -> int:
        """Return its descriptor."""
        return self._fd

    def part(self, offset: int, count: int) -> Part:
        """Return a part of it."""
        return Part(self._fd, offset, count)

    async def read(self, offset: int, count: int) -> bytes | memoryview:
        """Return a part of it in one piece; it is shorter where the file has become shorter."""
        room = memoryview(bytearray(count))
        filled = 0
        while filled < count:
            got = await read_into(self._fd, room[filled:], offset + filled)
            if not got:
                break
            filled += got
        return room[:filled]

    def close(self) -> None:
        os.close(self._fd)


async def read_into(fd: int, room: memoryview, offset: int) -> int:
    """Read from a file; 0 at its end. Raises OSError."""
    try:
        return os.preadv(fd, [room], offset, os.RWF_NOWAIT)
    except BlockingIOError:  # not in the page cache
        pass
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:  # by this file system
            raise
    if trio.lowlevel.in_trio_task():
        return await trio.to_thread.run_sync(os.preadv, fd, [room], offset)
    return await asyncio.to_thread(os.preadv, fd, [room], offset)


def open_path(path: Any) -> OpenFile:
    """Open a file for http.response.pathsend. Raises ValueError and OSError."""
    if not isinstance(path, str | os.PathLike) or not os.path.isabs(path):
        raise ValueError(f"http.response.pathsend needs an absolute path, not {path!r}")
    # Opening a FIFO without a writer must not block.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    file = OpenFile(fd)
    if not stat.S_ISREG(file.status.st_mode):
        file.close()
        raise FileNotFoundError(errno.ENOENT, "it is no regular file", path)
    return file


def parts_of(file: Any, offset: int | None, count: int | None) -> Part:
    """Return what http.response.zerocopysend names. Raises TypeError, ValueError and OSError."""
    try:
        fd = file if isinstance(file, int) else file.fileno()
    except AttributeError:
        raise TypeError(
            f"http.response.zerocopysend needs a file with a descriptor, not {file!r}"
        ) from None
    for name, value in (("offset", offset), ("count", count)):
        if value is not None and (not isinstance(value, int) or value < 0):
            raise ValueError(f"{name} is a number of bytes, not {value!r}")
    return Part(fd, offset, count)
