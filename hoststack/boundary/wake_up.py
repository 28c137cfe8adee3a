"""Waking the other process: one end of a socket pair on each side.

An eventfd would be one open file description on both sides, and whoever cleared its O_NONBLOCK
would have the other one sleep in its next write (fcntl(2)). Here each side has a description of its
own, and no call waits whatever its flags are: a sender takes no lock that the reader holds while it
copies, as it would with a pipe.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Final

from hoststack.boundary.channel import ChannelClosedError

_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class WakeUp:
    """One end, which is there to wake the other side or to be woken. Takes the descriptor over."""

    def __init__(self, fd: int) -> None:
        """Raises OSError for a descriptor that is no socket."""
        self._socket = socket.socket(fileno=fd)

    def ring(self) -> None:
        """Wake the other side. Raises ChannelClosedError if it is gone."""
        try:
            # Without room for one more, it has been woken and not looked yet.
            with contextlib.suppress(BlockingIOError):
                self._socket.send(b"\1", _FLAGS)
        except OSError as error:
            raise ChannelClosedError(f"nobody can be woken: {error.strerror}") from None

    def clear(self) -> None:
        """Take a wake-up that has come. Raises ChannelClosedError if the other side is gone."""
        try:
            if not self._socket.recv(64, _FLAGS):
                raise ChannelClosedError("it has closed its wake-ups")
        except BlockingIOError:
            pass
        except OSError as error:
            raise ChannelClosedError(f"no wake-ups come: {error.strerror}") from None

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        """Idempotent."""
        self._socket.close()
