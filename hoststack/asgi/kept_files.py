"""Contents of small files, kept in memory as long as the files stay as they are."""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from typing import Final

from hoststack.asgi.file_parts import OpenFile

#: The largest file that is kept, and all of them together.
_FILE_BYTES: Final = 64 * 1024
_ALL_BYTES: Final = 16 * 1024 * 1024
_MOST_FILES: Final = 4096
#: A file that was changed so lately could be changed again within one tick of the file system's
#: clock, and look the same.
_SETTLED_S: Final = 2


class KeptFile:
    """What an OpenFile is, of a content in memory."""

    def __init__(self, status: os.stat_result, content: bytes) -> None:
        self.status = status
        self.size_bytes = len(content)
        self._content = content

    async def read(self, offset: int, count: int) -> bytes:
        """Return a part of it in one piece."""
        return self._content[offset : offset + count]

    def close(self) -> None:
        """Do nothing."""


class KeptFiles:
    """Files by path, those that were not asked for the longest make room."""

    def __init__(self) -> None:
        self._files: OrderedDict[bytes, KeptFile] = OrderedDict()
        self._size_bytes = 0

    def get(self, path: bytes) -> KeptFile | None:
        """Return a file that is what is at the path now. Raises OSError."""
        file = self._files.get(path)
        if file is None:
            return None
        if _identity(os.stat(path)) == _identity(file.status):
            self._files.move_to_end(path)
            return file
        self._forget(path)
        return None

    async def read(self, path: bytes, file: OpenFile) -> OpenFile | KeptFile:
        """Read a small file into memory, and return what to send in its place. Raises OSError."""
        status = file.status
        if not 0 < file.size_bytes <= _FILE_BYTES or not _is_settled(status):
            return file
        content = bytes(await file.read(0, file.size_bytes))
        if _identity(os.fstat(file.fileno())) != _identity(status):
            return file
        kept = KeptFile(status, content)
        file.close()
        self._forget(path)
        self._files[path] = kept
        self._size_bytes += kept.size_bytes
        while self._size_bytes > _ALL_BYTES or len(self._files) > _MOST_FILES:
            self._forget(next(iter(self._files)))
        return kept

    def _forget(self, path: bytes) -> None:
        file = self._files.pop(path, None)
        if file is not None:
            self._size_bytes -= file.size_bytes


def _identity(status: os.stat_result) -> tuple[int, ...]:
    """What differs after a change. The time of the inode's last change can't be set back, and a
    rename or new permissions change it too."""
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_mode,
    )


def _is_settled(status: os.stat_result) -> bool:
    return max(status.st_mtime, status.st_ctime) < time.time() - _SETTLED_S
