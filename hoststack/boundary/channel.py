"""One end of a SOCK_SEQPACKET socket: whole messages, with file descriptors.

Sending does not block: messages that the socket has no room for are queued, up to a limit.
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
#: Most descriptors in the queue, in case the other end does not read.
_MOST_WAITING_FDS: Final = 256
#: Temporary errors of sendmsg(2) and unix(7): no kernel memory, or too many descriptors in flight.
_PASSING: Final = (errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS)
_PAUSE_S: Final = 0.01
#: Most messages that one call receives, so that one sender cannot starve the others.
_MOST_AT_ONCE: Final = 64


class ChannelClosedError(Exception):
    """The other end is gone, or does not read."""


class Channel:
    """One end of a channel; owns the socket. Without `takes_fds`, the kernel drops descriptors that
    the other end sends, and they never enter this process."""

    def __init__(
        self,
        end: socket.socket,
        *,
        takes_fds: bool = False,
        max_waiting: int | None = 4096,
    ) -> None:
        """Wrap a socket. `max_waiting` is the most messages in the queue; None for any number,
        where something else bounds it."""
        end.setblocking(False)
        self._socket = end
        self._control_bytes = socket.CMSG_SPACE(_MOST_FDS * _FD_BYTES) if takes_fds else 0
        self._max_waiting = max_waiting
        self._waiting: deque[tuple[bytes, list[int], bool]] = deque()
        self._answers = 0
        """How many of these are answers."""
        self._has_waiting = trio.Event()
        self._fault: str | None = None
        """Why nothing more can be received."""
        self._has_sent = trio.lowlevel.ParkingLot()

    def send(self, data: bytes, fds: Sequence[int] = (), *, is_answer: bool = False) -> None:
        """Send a message, now or when there is room; the caller keeps its descriptors. An answer is
        one that the other end has asked for: see `waiting_answers`.

        Raises ChannelClosedError if the other end is gone, if the queue is full, or if the
        descriptors cannot be duplicated for the queue.
        """
        if not self._waiting and self._send_now(data, fds):
            return
        if fds and not self.has_room_for_fds(len(fds)):
            raise ChannelClosedError(f"{_MOST_WAITING_FDS} descriptors are queued: it reads none")
        duplicates = _duplicated(fds)
        try:
            self._wait_with(data, duplicates, is_answer)
        except ChannelClosedError:
            close_all(duplicates)
            raise

    def hand_over(self, data: bytes, fd: int) -> None:
        """Send a message with a descriptor, and close it; works without a free descriptor number.
        Raises ChannelClosedError as `send`."""
        try:
            if self._waiting or not self._send_now(data, [fd]):
                self._wait_with(data, [fd], False)
                return
        except ChannelClosedError:
            os.close(fd)
            raise
        os.close(fd)

    def _wait_with(self, data: bytes, fds: list[int], is_answer: bool) -> None:
        if self._max_waiting is not None and len(self._waiting) >= self._max_waiting:
            raise ChannelClosedError(f"{self._max_waiting} messages are queued: it reads none")
        self._waiting.append((data, fds, is_answer))
        self._answers += is_answer
        self._has_waiting.set()

    def has_room_for_fds(self, count: int) -> bool:
        """Return whether the queue has room for this many more descriptors."""
        return sum(len(held) for _, held, _ in self._waiting) + count <= _MOST_WAITING_FDS

    @property
    def waiting(self) -> int:
        """Number of queued messages."""
        return len(self._waiting)

    @property
    def waiting_answers(self) -> int:
        """Number of queued answers."""
        return self._answers

    @property
    def has_waiting(self) -> bool:
        """Whether messages are queued."""
        return bool(self._waiting)

    async def wait_sent(self) -> None:
        """Wait until no message is queued; `run` must run."""
        while self._waiting:
            await self._has_sent.park()

    async def wait_answered(self, most: int) -> None:
        """Wait until at most `most` answers are queued; `run` must run."""
        while self._answers > most:
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
        """Return up to `most` messages that have arrived, with their descriptors; does not block.

        Raises ChannelClosedError when the other end is gone and all messages have been returned.
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
            # Return the messages before the fault; ignore those after it.
            self._fault = str(error)
            if not received:
                raise
        return received

    def _receive_one(self) -> tuple[bytes, list[int]]:
        try:
            data, control, flags, _ = self._read()
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
            # An empty message means end of file, so this protocol has none.
            raise ChannelClosedError("a message is too long" if data else "it is gone")
        if flags & socket.MSG_CTRUNC:
            # Some descriptors were dropped (unix(7)): too many, or no open files left. Without all
            # of them the message is of no use.
            close_all(fds)
            return data, []
        return data, list(fds)

    def _read(self) -> tuple[bytes, list[tuple[int, int, bytes]], int, object]:
        arguments = MAX_MESSAGE_BYTES, self._control_bytes, socket.MSG_CMSG_CLOEXEC
        try:
            return self._socket.recvmsg(*arguments)
        except ConnectionResetError:
            # The other end closed with unread messages. The kernel reports that once, ahead of
            # what is queued here (unix_release_sock).
            return self._socket.recvmsg(*arguments)

    async def receive(self) -> list[tuple[bytes, list[int]]]:
        """Wait for messages, and return as `receive_now`."""
        await trio.lowlevel.checkpoint()
        while not (received := self.receive_now()):
            await trio.lowlevel.wait_readable(self._socket)
        return received

    async def receive_one(self) -> tuple[bytes, list[int]]:
        """Wait for one message, and return it with its descriptors. Raises ChannelClosedError."""
        await trio.lowlevel.checkpoint()
        while not (received := self.receive_now(1)):
            await trio.lowlevel.wait_readable(self._socket)
        return received[0]

    async def run(self) -> None:
        """Send queued messages until cancelled; raises ChannelClosedError."""
        while True:
            await self._has_waiting.wait()
            await trio.lowlevel.wait_writable(self._socket)
            waiting = len(self._waiting)
            if self.flush():
                self._has_waiting = trio.Event()
            self._has_sent.unpark_all()
            if len(self._waiting) == waiting:
                # The socket is writable, but the kernel is short of memory or descriptors.
                await trio.sleep(_PAUSE_S)

    def flush(self) -> bool:
        """Send queued messages until the socket is full; return whether all were sent. Raises
        ChannelClosedError."""
        while self._waiting:
            data, fds, is_answer = self._waiting[0]
            if not self._send_now(data, fds):
                return False
            self._waiting.popleft()
            self._answers -= is_answer
            close_all(fds)
        return True

    def fileno(self) -> int:
        return self._socket.fileno()

    def shut(self) -> None:
        """Shut down the socket, so that both ends see the channel closed."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def abandon(self) -> None:
        """Stop sending. Messages that have arrived can still be received; ChannelClosedError
        follows them."""
        self.shut()
        self._drop_waiting()

    def close(self) -> None:
        """Close the socket and all queued descriptors. Idempotent."""
        self._drop_waiting()
        self._socket.close()

    def _drop_waiting(self) -> None:
        while self._waiting:
            close_all(self._waiting.popleft()[1])
        self._answers = 0
        self._has_sent.unpark_all()


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors that came with a message."""
    for fd in fds:
        os.close(fd)


def _duplicated(fds: Sequence[int]) -> list[int]:
    copies: list[int] = []
    try:
        for fd in fds:
            copies.append(os.dup(fd))
    except OSError as error:
        close_all(copies)
        raise ChannelClosedError(f"can't duplicate a descriptor: {error.strerror}") from None
    return copies
