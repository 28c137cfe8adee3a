"""Detect whether a process hangs or merely gets no processor, and where it hangs.

The supervisor pings its workers, and applications and workers wait for answers of the supervisor.
Wall-clock time says nothing about a process that does not answer: the machine may be busy. What
counts is the processor time that it has used since then (an endless loop), and the time that it
slept in the kernel (something blocks it). Waiting for a processor does not count, nor does time
stopped by a debugger.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

#: How often silence is measured.
TICK_S: Final = 1.0
_UCRED: Final = struct.Struct("3i")  # unix(7): struct ucred
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


class Silence:
    """How long a process has not answered. Call `tick` every TICK_S."""

    def __init__(self, pid: int, clock: Callable[[], float]) -> None:
        """`clock` returns seconds."""
        self._pid = pid
        self._clock = clock
        self.begin()

    def begin(self) -> None:
        """Start to measure: the process was asked, or has answered."""
        self.silent_s = 0.0
        """How long it has not answered, counting only time in which it could have."""
        self._at = self._clock()
        self._last = sample(self._pid)

    def tick(self) -> None:
        """Add the time since the last tick, in which it did not answer. Of a process that this one
        can't see, in another PID namespace for example, all of it counts."""
        at, now = self._clock(), sample(self._pid)
        elapsed_s = min(at - self._at, _LATE * TICK_S)
        if self._last is not None and now is not None:
            elapsed_s = counted_s(self._last, now, elapsed_s)
        self.silent_s += elapsed_s
        self._at, self._last = at, now


def peer_pid(end: socket.socket) -> int:
    """Return the process at the other end of a unix socket, as the kernel knows it; 0 for one in a
    PID namespace that this process can't see."""
    pid, _, _ = _UCRED.unpack(end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return int(pid)


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
