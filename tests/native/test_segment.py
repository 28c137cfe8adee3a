"""Segments that two processes share: neither can take the memory from under the other."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator

import pytest

from hoststack.native.memory.segment import make_segment, map_segment

SIZE_BYTES = 1 << 16


@pytest.fixture
def segment() -> Iterator[int]:
    fd = make_segment("test", SIZE_BYTES)
    yield fd
    os.close(fd)


def test_both_see_what_one_writes(segment: int) -> None:
    one, other = map_segment(segment), map_segment(os.dup(segment))
    assert len(one) == SIZE_BYTES
    assert other[:] == bytes(SIZE_BYTES)
    one[100:105] = b"hello"
    assert other[99:106] == b"\0hello\0"


@pytest.mark.parametrize("size_bytes", [0, SIZE_BYTES - 1, SIZE_BYTES + 1])
def test_its_size_stays(segment: int, size_bytes: int) -> None:
    with open(f"/proc/self/fd/{segment}", "r+b") as again:
        for fd in (segment, again.fileno()):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, size_bytes)
    assert os.fstat(segment).st_size == SIZE_BYTES


def test_its_seals_stay(segment: int) -> None:
    """Nobody can forbid the other to write, say."""
    with pytest.raises(PermissionError):
        fcntl.fcntl(segment, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def _unsealed() -> int:
    fd = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, SIZE_BYTES)
    return fd


def _sealed_for_growth_alone() -> int:
    fd = _unsealed()
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    return fd


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (_unsealed, "could be shrunk"),
        (_sealed_for_growth_alone, "could be shrunk"),
        (lambda: make_segment("empty", 0), "could be shrunk"),
        (lambda: os.open("/dev/zero", os.O_RDWR), "not a memfd"),
    ],
)
def test_what_is_none_is_not_mapped(make: Callable[[], int], why: str) -> None:
    fd = make()
    with pytest.raises(ValueError, match=why):
        map_segment(fd)
    os.close(fd)
