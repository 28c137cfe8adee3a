"""The table of descriptors of a daemon's processes does not grow while they serve."""

from __future__ import annotations

import resource
import subprocess
import sys
from typing import Final

import pytest

#: Prints how many descriptors the kernel's table has room for (FDSize in proc(5)).
_PROGRAM: Final = """
import re, resource, sys
from hoststack.transport.kernel.open_files import raise_open_files
resource.setrlimit(resource.RLIMIT_NOFILE, (64, int(sys.argv[1])))
raise_open_files()
print(re.search(r"FDSize:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""


@pytest.mark.parametrize("limit", [100, 1024, 4096])
def test_the_table_has_room_for_all_from_the_start(limit: int) -> None:
    """A process with threads that has to make it larger waits for an RCU grace period, which takes
    seconds on a busy machine."""
    line = [sys.executable, "-c", _PROGRAM, str(limit)]
    out = subprocess.run(line, check=True, capture_output=True, text=True).stdout
    assert int(out) >= limit


def test_it_takes_little_memory_where_the_limit_is_high() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    line = [sys.executable, "-c", _PROGRAM, str(hard)]
    out = subprocess.run(line, check=True, capture_output=True, text=True).stdout
    assert min(hard, 1 << 16) <= int(out) <= max(hard, 1 << 16)
