"""Words of memory that another process reads meanwhile."""

from __future__ import annotations

import mmap


def store(memory: mmap.mmap, offset: int, value: int) -> None:
    """Write 64 bits in one store. struct.pack_into writes zeros first, and the reader may see
    them."""
    with memoryview(memory) as view, view.cast("Q") as words:
        words[offset // 8] = value
