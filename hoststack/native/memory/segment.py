"""Segments of memory that two processes share: sealed memfds.

The process that made a segment hands its descriptor to the other one. Neither can change its size
(F_SEAL_SHRINK, F_SEAL_GROW; memfd_create(2)): memory that is mapped stays.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import Final

_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def make_segment(name: str, size_bytes: int) -> int:
    """A new segment of zeros; returns its descriptor. Pages that are never touched cost nothing.

    Raises OSError.
    """
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size_bytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def map_segment(fd: int) -> mmap.mmap:
    """The memory of a segment, ours or one that came from another process.

    Raises ValueError for a descriptor that is no sealed segment: whoever could shrink it could end
    this process (SIGBUS).
    """
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        size_bytes = os.fstat(fd).st_size
    except OSError:
        raise ValueError("a descriptor that was sent is no memfd") from None
    if not seals & fcntl.F_SEAL_SHRINK or not size_bytes:
        raise ValueError("a memfd that was sent could be shrunk")
    return mmap.mmap(fd, size_bytes)
