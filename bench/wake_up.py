"""What it takes to wake a process that sleeps: the least that a hop between two processes costs.

Two processes that block in read(2) of an eventfd wake each other; nothing else happens in them.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

_ROUND_TRIPS: Final = 300
#: Between two of them, so that the other one is asleep, and its core with it.
_PAUSE_NS: Final = 200_000
_SLEEPER: Final = """
import os, sys
to_it, to_us = map(int, sys.argv[1:])
while True:
    os.eventfd_read(to_it)
    os.eventfd_write(to_us, 1)
"""


@contextmanager
def waking() -> Iterator[Callable[[], float]]:
    """A process that sleeps; each call is the median time of waking it some hundred times, one way,
    in us."""
    to_it, to_us = os.eventfd(0), os.eventfd(0)
    line = [sys.executable, "-c", _SLEEPER, str(to_it), str(to_us)]
    try:
        with subprocess.Popen(line, pass_fds=(to_it, to_us)) as process:

            def wake_it() -> float:
                return statistics.median(
                    _round_trip_us(to_it, to_us) / 2 for _ in range(_ROUND_TRIPS)
                )

            try:
                _round_trip_us(to_it, to_us)
                yield wake_it
            finally:
                process.kill()
    finally:
        os.close(to_it)
        os.close(to_us)


def _round_trip_us(to_it: int, to_us: int) -> float:
    end_ns = time.perf_counter_ns() + _PAUSE_NS
    while time.perf_counter_ns() < end_ns:
        pass
    start_ns = time.perf_counter_ns()
    os.eventfd_write(to_it, 1)
    os.eventfd_read(to_us)
    return (time.perf_counter_ns() - start_ns) / 1e3
