"""Open files of a process: sockets of sessions may not have all of them."""

from __future__ import annotations

import errno
import os
import resource
from typing import Final

#: What is left to the rest of the process, which can't do without: applications attach with some,
#: and their FIFOs lie in segments.
_SPARED: Final = 256


#: More than a process here can use; some kernels allow a thousand times as many.
_MOST: Final = 1 << 20


def raise_open_files() -> None:
    """Let this process have as many as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def ports_of_one(sockets_of_port: int) -> int:
    """How many ports one of a daemon's applications may have: a quarter of what all may."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, most // 2 // sockets_of_port // 4)


def check_share(more: int) -> None:
    """Raises OSError where `more` would take this process beyond half of the files that it may
    have: for ports, of which there may be any number."""
    lowest = os.open("/", os.O_PATH | os.O_CLOEXEC)
    os.close(lowest)
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and lowest + more > most // 2:
        raise OSError(
            errno.EMFILE,
            f"too many ports for the {most} open files that the daemon may have: close some, or "
            "raise the limit (`ulimit -n`, LimitNOFILE=)",
        )


def check_room_for(descriptor: int) -> None:
    """Raises OSError for one that was opened when there were hardly any left: the kernel gives the
    lowest number that is free."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and descriptor >= most - min(_SPARED, most // 4):
        raise OSError(
            errno.EMFILE,
            f"too many sockets for the {most} open files that a process may have: close some, or "
            "raise the limit (`ulimit -n`, LimitNOFILE=)",
        )
