"""One end of a SOCK_SEQPACKET socket: whole messages, and descriptors beside them.

Nothing here blocks: what the socket does not take waits here, up to a limit.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import socket
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

import trio

from hoststack.boundary.codec import MAX_MESSAGE_BYTES

_FD_BYTES: Final = array.array("i").itemsize
#: SCM_MAX_FD of the kernel.
_MOST_FDS: Final = 253
#: Descriptors that wait for an end that does not read.
_MOST_WAITING_FDS: Final = 256
#: Of sendmsg(2) and unix(7): the kernel has no memory now, or too many descriptors are under way.
_PASSING: Final = (errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS)
_PAUSE_S: Final = 0.01
#: Messages that one call takes, so that no sender keeps a receiver busy for itself.
_MOST_AT_ONCE: Final = 64


class ChannelClosedError(Exception):
    """The other end is gone, or does not read what it is sent."""


class Channel:
    """Takes the socket over. `takes_fds` says whether descriptors are wanted: those that come to a
    channel without never enter this process."""

    def __init__(
        self,
        end: socket.socket,
        *,
        takes_fds: bool = False,
        max_waiting: int | None = 4096,
    ) -> None:
        """With None for `max_waiting` any number of messages waits: what they are about is bounded
        elsewhere."""
        end.setblocking(False)
        self._socket = end
        self._control_bytes = socket.CMSG_SPACE(_MOST_FDS * _FD_BYTES) if takes_fds else 0
        self._max_waiting = max_waiting
        self._waiting: deque[tuple[bytes, list[int]]] = deque()
        self._has_waiting = trio.Event()
        self._fault: str | None = None
        """What ended the receiving."""
        self._has_sent = trio.lowlevel.ParkingLot()

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send a message, now or when there is room; the descriptors stay the caller's.

        Raises ChannelClosedError if the other end is gone, if too much waits for it, or if there
        are no descriptors left to wait with.
        """
        if not self._waiting and self._send_now(data, fds):
            return
        if fds and not self.has_room_for_fds(len(fds)):
            raise ChannelClosedError(f"{_MOST_WAITING_FDS} descriptors wait, and it reads none")
        duplicates = _duplicated(fds)
        try:
            self._wait_with(data, duplicates)
        except ChannelClosedError:
            close_all(duplicates)
            raise

    def hand_over(self, data: bytes, fd: int) -> None:
        """As `send`, with a descriptor that is taken over: without one left to duplicate, too."""
        try:
            if self._waiting or not self._send_now(data, [fd]):
                self._wait_with(data, [fd])
                return
        except ChannelClosedError:
            os.close(fd)
            raise
        os.close(fd)

    def _wait_with(self, data: bytes, fds: list[int]) -> None:
        if self._max_waiting is not None and len(self._waiting) >= self._max_waiting:
            raise ChannelClosedError(f"{self._max_waiting} messages wait, and it reads none")
        self._waiting.append((data, fds))
        self._has_waiting.set()

    def has_room_for_fds(self, count: int) -> bool:
        """Whether so many descriptors may wait here, beside those that do."""
        return sum(len(held) for _, held in self._waiting) + count <= _MOST_WAITING_FDS

    @property
    def waiting(self) -> int:
        """Messages that the socket has not taken yet."""
        return len(self._waiting)

    @property
    def has_waiting(self) -> bool:
        """Whether messages wait for the other end to read."""
        return bool(self._waiting)

    async def wait_sent(self, most: int) -> None:
        """Until no more than so many messages wait; `run` has to run."""
        while len(self._waiting) > most:
            await self._has_sent.park()

    def _send_now(self, data: bytes, fds: Sequence[int]) -> bool:
        try:
            if fds:
                socket.send_fds(self._socket, [data], fds)
            else:
                self._socket.send(data)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in _PASSING:
                return False
            raise ChannelClosedError(error.strerror or str(error)) from None
        return True

    def receive_now(self, most: int = _MOST_AT_ONCE) -> list[tuple[bytes, list[int]]]:
        """The messages that are here, some at least if there are any, with their descriptors.

        Raises ChannelClosedError when the other end is gone and nothing is left.
        """
        if self._fault is not None:
            raise ChannelClosedError(self._fault)
        received: list[tuple[bytes, list[int]]] = []
        try:
            while len(received) < most:
                received.append(self._receive_one())
        except BlockingIOError:
            pass
        except ChannelClosedError as error:
            # What came before counts; what comes behind does not.
            self._fault = str(error)
            if not received:
                raise
        return received

    def _receive_one(self) -> tuple[bytes, list[int]]:
        try:
            data, control, flags, _ = self._socket.recvmsg(
                MAX_MESSAGE_BYTES, self._control_bytes, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            raise
        except OSError as error:
            raise ChannelClosedError(error.strerror or str(error)) from None
        fds = array.array("i")
        for level, kind, payload in control:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(payload[: len(payload) - len(payload) % _FD_BYTES])
        if not data or flags & socket.MSG_TRUNC:
            close_all(fds)
            # Our side sends no empty messages: to the kernel they look like the end.
            raise ChannelClosedError("a message is too long" if data else "it is gone")
        if flags & socket.MSG_CTRUNC:
            # No room for some, or no open files left (unix(7)): some are as good as none.
            close_all(fds)
            return data, []
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
            waiting = len(self._waiting)
            if self.flush():
                self._has_waiting = trio.Event()
            self._has_sent.unpark_all()
            if len(self._waiting) == waiting:
                # There is room in the socket, and none in the kernel.
                await trio.sleep(_PAUSE_S)

    def flush(self) -> bool:
        """Send what waits, as far as the socket takes it; whether all is sent. Raises
        ChannelClosedError."""
        while self._waiting:
            data, fds = self._waiting[0]
            if not self._send_now(data, fds):
                return False
            self._waiting.popleft()
            close_all(fds)
        return True

    def fileno(self) -> int:
        return self._socket.fileno()

    def shut(self) -> None:
        """Have both ends see the channel closed, whoever waits for it."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def abandon(self) -> None:
        """Send no more, and receive what has come already; ChannelClosedError follows that."""
        self.shut()
        self._drop_waiting()

    def close(self) -> None:
        """Idempotent."""
        self._drop_waiting()
        self._socket.close()

    def _drop_waiting(self) -> None:
        while self._waiting:
            close_all(self._waiting.popleft()[1])
        self._has_sent.unpark_all()


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors that came with a message and are not wanted."""
    for fd in fds:
        os.close(fd)


def _duplicated(fds: Sequence[int]) -> list[int]:
    copies: list[int] = []
    try:
        for fd in fds:
            copies.append(os.dup(fd))
    except OSError as error:
        close_all(copies)
        raise ChannelClosedError(f"can't keep a descriptor: {error.strerror}") from None
    return copies
