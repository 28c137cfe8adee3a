"""Shared memory segments between two processes: sealed memfds.

The process that creates a segment passes its descriptor to the other one. Neither can change its
size (F_SEAL_SHRINK, F_SEAL_GROW; memfd_create(2)), so mapped memory stays valid.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import Final

_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def make_segment(name: str, size_bytes: int) -> int:
    """Create a segment of zeros; return its descriptor. Untouched pages cost no memory.

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
    """Map a segment, our own or one received from another process.

    Raises ValueError for a descriptor that is not a sealed segment: a peer that could shrink it
    could end this process (SIGBUS).
    """
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        size_bytes = os.fstat(fd).st_size
    except OSError:
        raise ValueError("a received descriptor is not a memfd") from None
    if not seals & fcntl.F_SEAL_SHRINK or not size_bytes:
        raise ValueError("a received memfd could be shrunk")
    return mmap.mmap(fd, size_bytes)
