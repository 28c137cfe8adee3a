"""Reporting the daemon's state to systemd (sd_notify(3)); no effect without systemd."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Final

#: For a service manager that does not read.
_PATIENCE_S: Final = 1.0


def sd_notify(state: str) -> None:
    """Send "READY=1", "STOPPING=1", "STATUS=..." to the socket that NOTIFY_SOCKET names."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # in the abstract namespace (unix(7))
        address = "\0" + address[1:]
    # A missing service manager is no reason for a daemon to end.
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as end,
    ):
        end.settimeout(_PATIENCE_S)
        end.connect(address)
        end.send(state.encode())
