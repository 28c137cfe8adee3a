"""One end of a SOCK_SEQPACKET socket: whole messages, and descriptors beside them.

Nothing here blocks: what the socket does not take waits here, up to a limit.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
from collections import deque
from collections.abc import Sequence
from typing import Final

import trio

from hoststack.session.codec import MAX_MESSAGE_BYTES

_FD_BYTES: Final = array.array("i").itemsize
#: SCM_MAX_FD of the kernel.
_MOST_FDS: Final = 253
#: Messages that one call takes, so that no sender keeps a receiver busy for itself.
_MOST_AT_ONCE: Final = 64


class ChannelClosedError(Exception):
    """The other end is gone, or does not read what it is sent."""


class Channel:
    """Takes the socket over. `takes_fds` says whether descriptors are wanted: those that come to a
    channel without never enter this process."""

    def __init__(
        self, end: socket.socket, *, takes_fds: bool = False, max_waiting: int = 4096
    ) -> None:
        end.setblocking(False)
        self._socket = end
        self._control_bytes = socket.CMSG_SPACE(_MOST_FDS * _FD_BYTES) if takes_fds else 0
        self._max_waiting = max_waiting
        self._waiting: deque[tuple[bytes, list[int]]] = deque()
        self._has_waiting = trio.Event()

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send a message, now or when there is room; the descriptors stay the caller's.

        Raises ChannelClosedError if the other end is gone, or too much waits for it.
        """
        if not self._waiting and self._send_now(data, fds):
            return
        if len(self._waiting) >= self._max_waiting:
            raise ChannelClosedError(f"{self._max_waiting} messages wait, and it reads none")
        self._waiting.append((data, [os.dup(fd) for fd in fds]))
        self._has_waiting.set()

    def _send_now(self, data: bytes, fds: Sequence[int]) -> bool:
        try:
            if fds:
                socket.send_fds(self._socket, [data], fds)
            else:
                self._socket.send(data)
        except BlockingIOError:
            return False
        except OSError as error:
            raise ChannelClosedError(error.strerror or str(error)) from None
        return True

    def receive_now(self, most: int = _MOST_AT_ONCE) -> list[tuple[bytes, list[int]]]:
        """The messages that are here, some at least if there are any, with their descriptors.

        Raises ChannelClosedError when the other end is gone and nothing is left.
        """
        received: list[tuple[bytes, list[int]]] = []
        while len(received) < most:
            try:
                data, fds = self._receive_one()
            except BlockingIOError:
                break
            except OSError as error:
                if received:
                    break
                raise ChannelClosedError(error.strerror or str(error)) from None
            if not data:
                if received:
                    break
                raise ChannelClosedError("it is gone")
            received.append((data, fds))
        return received

    def _receive_one(self) -> tuple[bytes, list[int]]:
        data, control, flags, _ = self._socket.recvmsg(
            MAX_MESSAGE_BYTES, self._control_bytes, socket.MSG_CMSG_CLOEXEC
        )
        fds = array.array("i")
        for level, kind, payload in control:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(payload[: len(payload) - len(payload) % _FD_BYTES])
        if flags & socket.MSG_TRUNC:
            for fd in fds:
                os.close(fd)
            raise OSError(0, "a message is too long")
        return data, list(fds)

    async def receive(self) -> list[tuple[bytes, list[int]]]:
        """As `receive_now`, once there is something."""
        await trio.lowlevel.checkpoint()
        while not (received := self.receive_now()):
            await trio.lowlevel.wait_readable(self._socket)
        return received

    async def receive_one(self) -> tuple[bytes, list[int]]:
        """The next message alone, with its descriptors. Raises ChannelClosedError."""
        await trio.lowlevel.checkpoint()
        while not (received := self.receive_now(1)):
            await trio.lowlevel.wait_readable(self._socket)
        return received[0]

    async def run(self) -> None:
        """Sends what waits, for ever; raises ChannelClosedError."""
        while True:
            await self._has_waiting.wait()
            await trio.lowlevel.wait_writable(self._socket)
            if self.flush():
                self._has_waiting = trio.Event()

    def flush(self) -> bool:
        """Send what waits, as far as the socket takes it; whether all is sent. Raises
        ChannelClosedError."""
        while self._waiting:
            data, fds = self._waiting[0]
            if not self._send_now(data, fds):
                return False
            self._waiting.popleft()
            _close_all(fds)
        return True

    def fileno(self) -> int:
        return self._socket.fileno()

    def shut(self) -> None:
        """Have both ends see the channel closed, whoever waits for it."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Idempotent."""
        while self._waiting:
            _close_all(self._waiting.popleft()[1])
        self._socket.close()


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
