"""Limits on open files: sockets of sessions must leave some to the rest of the process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
from typing import Final

#: Open files reserved for the rest of the process: attaching an application needs some, and so do
#: the segments of its FIFOs.
_SPARED: Final = 256

#: Upper bound for the limit. It exceeds any use here; some kernels allow a thousand times as many.
_MOST: Final = 1 << 20
#: Descriptors that the kernel's table has room for from the start; they take 512 KiB.
_TABLE: Final = 1 << 16


def raise_open_files() -> None:
    """Raise this process's soft limit of open files to the hard limit, or to _MOST, and have the
    kernel allocate its table of descriptors. Call it before the process has threads.

    The kernel doubles a table that is full. In a process with threads the system call that needs
    the room, an accept(2) for example, then waits for all CPUs to leave their RCU read-side
    sections (expand_fdtable in fs/file.c): several seconds on a busy machine.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    room = _TABLE if soft == resource.RLIM_INFINITY else min(soft, _TABLE)
    # Without memory for the table, it grows later.
    with contextlib.suppress(OSError), open(os.devnull, "rb") as file:
        os.close(fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, room - 1))


def most_ports(sockets_of_port: int) -> int:
    """Return how many ports a daemon may have open: those whose sockets use half of this process's
    limit."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST if most == resource.RLIM_INFINITY else max(1, most // 2 // sockets_of_port)


def room_for(descriptor: int) -> int:
    """Return how many more open files there may be with a new descriptor, itself among them. Raises
    OSError if it is in the reserved range below the limit. The kernel allocates the lowest free
    number, so hardly any are left then."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        return _MOST
    left = most - min(_SPARED, most // 4) - descriptor
    if left <= 0:
        raise OSError(
            errno.EMFILE,
            f"too many sockets for the limit of {most} open files: close some, or "
            "raise the limit (`ulimit -n`, LimitNOFILE=)",
        )
    return left
