"""Waking the other process: one end of a socket pair on each side.

With an eventfd, both sides would share one open file description: one side could clear O_NONBLOCK,
and the other would block in its next write (fcntl(2)). With a socket pair each side has its own
description, and MSG_DONTWAIT prevents blocking whatever its flags are. With a pipe, a sender would
wait for a lock that the reader holds while it copies.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Final

from hoststack.boundary.channel import ChannelClosedError

_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class WakeUp:
    """One end, used either to wake the other side or to be woken. Owns the descriptor."""

    def __init__(self, fd: int) -> None:
        """Wrap a descriptor; raises OSError if it is not a socket."""
        self._socket = socket.socket(fileno=fd)

    def ring(self) -> None:
        """Wake the other side. Raises ChannelClosedError if it is gone."""
        try:
            # A full socket means that the other side has not cleared earlier wake-ups yet.
            with contextlib.suppress(BlockingIOError):
                self._socket.send(b"\1", _FLAGS)
        except OSError as error:
            raise ChannelClosedError(f"it can't be woken: {error.strerror}") from None

    def clear(self) -> None:
        """Clear received wake-ups. Raises ChannelClosedError if the other side is gone."""
        try:
            if not self._socket.recv(64, _FLAGS):
                raise ChannelClosedError("it closed its wake-up socket")
        except BlockingIOError:
            pass
        except OSError as error:
            raise ChannelClosedError(f"can't receive wake-ups: {error.strerror}") from None

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self._socket.close()
