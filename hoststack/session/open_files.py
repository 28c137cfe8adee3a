"""Open files of a process: sockets of sessions may not have all of them."""

from __future__ import annotations

import errno
import resource
from typing import Final

#: What is left to the rest of the process, which can't do without: applications attach with some,
#: and their FIFOs lie in segments.
_SPARED: Final = 256


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
