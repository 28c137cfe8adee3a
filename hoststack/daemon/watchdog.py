"""Detect whether a process hangs or merely gets no processor, and where it hangs.

A worker answers a ping after its next engine run. Wall-clock time says nothing about one that does
not answer: the machine may be busy. What counts is the processor time that it has used since then
(an endless loop), and the time that it slept in the kernel (something blocks it). Waiting for a
processor does not count, nor does time stopped by a debugger.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final, NamedTuple

import trio

_NS_PER_S: Final = 1e9
#: Fields of /proc/PID/stat (proc(5)) after the name, which is in parentheses.
_STATE: Final = 0
_UTIME, _STIME = 11, 12
#: A longer gap than this many ticks means that the watching process itself did not run.
_LATE: Final = 2.0


class Sample(NamedTuple):
    """The state of a process's main thread at one moment."""

    state: str
    """As ps shows it: R, S, D, T, t, Z."""
    ran_s: float
    """Time on a processor."""
    waited_s: float
    """Time spent waiting for a processor; 0 where the kernel does not report it."""


def sample(pid: int) -> Sample | None:
    """Return a sample of a process; None if it no longer exists."""
    task = Path(f"/proc/{pid}/task/{pid}")
    try:
        fields = (task / "stat").read_text().rpartition(") ")[2].split()
        ran_s = (int(fields[_UTIME]) + int(fields[_STIME])) / os.sysconf("SC_CLK_TCK")
        waited_s = 0.0
        with contextlib.suppress(FileNotFoundError):  # a kernel without CONFIG_SCHED_INFO
            ran, waited, _ = (task / "schedstat").read_text().split()
            ran_s, waited_s = int(ran) / _NS_PER_S, int(waited) / _NS_PER_S
    except (OSError, ValueError, IndexError):
        return None
    return Sample(fields[_STATE], ran_s, waited_s)


def counted_s(before: Sample, now: Sample, elapsed_s: float) -> float:
    """Return the part of the time between two samples in which a process could have answered."""
    match now.state:
        case "t":
            return 0.0
        case "R":
            return min(now.ran_s - before.ran_s, elapsed_s)
        case _:
            return max(0.0, elapsed_s - (now.waited_s - before.waited_s))


class Watchdog:
    """The silence of one process since the last ping."""

    def __init__(self, pid: int, tick_s: float) -> None:
        self._pid = pid
        self._most_s = _LATE * tick_s
        self.pinged()

    def pinged(self) -> None:
        """Start to measure: the process was pinged, or has answered."""
        self.silent_s = 0.0
        """How long it has not answered, counting only time in which it could have."""
        self._at = trio.current_time()
        self._last = sample(self._pid)

    def tick(self) -> None:
        """Add the time since the last tick, in which it did not answer."""
        at, now = trio.current_time(), sample(self._pid)
        if self._last is not None and now is not None:
            self.silent_s += counted_s(self._last, now, min(at - self._at, self._most_s))
        self._at, self._last = at, now


def whereabouts(pid: int) -> str:
    """Return what the kernel knows of a process: its state, and what it waits for."""
    found = []
    now = sample(pid)
    if now is not None:
        found.append(f"state {now.state}")
    for name in ("wchan", "syscall"):
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{pid}/{name}").read_text().strip("\0\n ")
            if text not in ("", "0", "running"):
                found.append(f"{name} {text}")
    return ", ".join(found) or "state unknown"
