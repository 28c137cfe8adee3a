"""Whether a process hangs, or merely has no processor; and where it is when it hangs.

A worker answers a ping with its next turn. Time on the wall says nothing about one that does not:
the machine may be busy. What counts is the processor time that it has used since then (a loop
without end), and the time that it slept in the kernel (something blocks it). While it waits for a
processor nothing counts, nor while a debugger holds it.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final, NamedTuple

import trio

_NS_PER_S: Final = 1e9
#: A field of /proc/PID/stat (proc(5)) behind the name, which is in parentheses.
_STATE: Final = 0
_UTIME, _STIME = 11, 12
#: More than one tick's time is the watching process's own absence.
_LATE: Final = 2.0


class Sample(NamedTuple):
    """A process's main thread at a moment."""

    state: str
    """As ps shows it: R, S, D, T, t, Z."""
    ran_s: float
    """On a processor."""
    waited_s: float
    """For a processor; 0 where the kernel does not say."""


def sample(pid: int) -> Sample | None:
    """None for a process that is no more."""
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
    """What of the time between two samples a process could have answered in, and did not."""
    match now.state:
        case "t":
            return 0.0
        case "R":
            return min(now.ran_s - before.ran_s, elapsed_s)
        case _:
            return max(0.0, elapsed_s - (now.waited_s - before.waited_s))


class Watchdog:
    """One process, since it was pinged last."""

    def __init__(self, pid: int, tick_s: float) -> None:
        self._pid = pid
        self._most_s = _LATE * tick_s
        self.pinged()

    def pinged(self) -> None:
        """From now on it is to answer."""
        self.silent_s = 0.0
        """How long it has not answered, as far as that counts."""
        self._at = trio.current_time()
        self._last = sample(self._pid)

    def tick(self) -> None:
        """It has not answered yet."""
        at, now = trio.current_time(), sample(self._pid)
        if self._last is not None and now is not None:
            self.silent_s += counted_s(self._last, now, min(at - self._at, self._most_s))
        self._at, self._last = at, now


def whereabouts(pid: int) -> str:
    """What the kernel says of a process: its state, and what it waits for there."""
    found = []
    now = sample(pid)
    if now is not None:
        found.append(f"state {now.state}")
    for name in ("wchan", "syscall"):
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{pid}/{name}").read_text().strip("\0\n ")
            if text not in ("", "0", "running"):
                found.append(f"{name} {text}")
    return ", ".join(found) or "nothing is known of it"
