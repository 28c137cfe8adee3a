"""One worker process, as the supervisor sees it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

import msgspec
import trio

from hoststack.daemon import orders
from hoststack.debug.grammar import CommandError
from hoststack.debug.run import read_answer
from hoststack.debug.worker_side import Data
from hoststack.session.channel import Channel, ChannelClosedError

#: What a worker gets of the supervisor's environment: what its programs and libraries read. Not
#: what speaks for the supervisor (NOTIFY_SOCKET), nor a user's secrets.
_PASSED_ON: Final = frozenset({"LANG", "LANGUAGE", "PATH", "TMPDIR", "TZ", "VIRTUAL_ENV"})
_PASSED_ON_PREFIXES: Final = (
    *("ASAN_", "COVERAGE_", "GLIBC_", "GNUTLS_", "HOSTSTACK_", "LC_", "LD_", "LSAN_", "MALLOC_"),
    *("OPENSSL_", "PYTHON", "SSL_", "UBSAN_"),
)


def worker_environment() -> dict[str, str]:
    """The environment of a worker process."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in _PASSED_ON or name.startswith(_PASSED_ON_PREFIXES)
    }


class _Command:
    """A command that waits for its answer."""

    def __init__(self) -> None:
        self.answer = bytearray()
        self.done = trio.Event()


class WorkerProcess:
    """A process that has been started, and waits to be told which worker it is.

    Starting Python takes a good part of a second: the supervisor keeps one in reserve.
    """

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel = Channel(ours)
        with theirs:
            fd = theirs.fileno()
            # Not by trio, which does it in a thread: PR_SET_PDEATHSIG is about that thread's end.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "hoststack.daemon.worker_main", str(fd)],
                pass_fds=[fd],
                stdin=subprocess.DEVNULL,
                env=worker_environment(),
            )
        self._pid_fd = os.pidfd_open(self._process.pid)
        self._commands: dict[int, _Command] = {}
        self._numbers = 0
        self.ready = trio.Event()
        self.ended = trio.Event()
        self.about: orders.Ready | None = None

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self, order: orders.Start, fds: Sequence[int]) -> None:
        """Tell it which worker it is; the descriptors stay the caller's."""
        self._send(order, fds)

    def serve(self, order: orders.Serve, fds: Sequence[int]) -> None:
        """Have it serve an application; the descriptors stay the caller's."""
        self._send(order, fds)

    def drain(self, seconds: float) -> None:
        """Have it end when its connections have, or after so long."""
        self._send(orders.Drain(seconds), ())

    def close(self) -> None:
        """End it at once, if it has not ended. Idempotent."""
        if self._process.returncode is None:
            self._process.kill()
            self._process.wait()
            self._channel.close()
            os.close(self._pid_fd)

    def _send(self, order: orders.Order, fds: Sequence[int]) -> None:
        with contextlib.suppress(ChannelClosedError):  # it is dead, and `run` is about to tell
            self._channel.send(orders.encode(order), fds)

    async def run(self) -> int:
        """Listens to it until it ends; returns its exit status, negative for a signal."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._run_channel)
                nursery.start_soon(self._receive)
                await trio.lowlevel.wait_readable(self._pid_fd)
                nursery.cancel_scope.cancel()
        finally:
            self.close()
            self.ended.set()
            for command in self._commands.values():
                command.answer.clear()
                command.done.set()
        return self._process.returncode

    async def _run_channel(self) -> None:
        with contextlib.suppress(ChannelClosedError):  # its end is told by its process
            await self._channel.run()

    async def _receive(self) -> None:
        try:
            while True:
                data, _ = await self._channel.receive_one()
                self._on_report(orders.decode_report(data))
        except ChannelClosedError:
            pass
        except msgspec.MsgspecError:
            # It has gone mad, or somebody speaks for it.
            self._process.kill()

    def _on_report(self, report: orders.Report) -> None:
        match report:
            case orders.Ready():
                self.about = report
                self.ready.set()
            case orders.Answer():
                command = self._commands.get(report.number)
                if command is not None:
                    command.answer += report.piece
                    if report.is_last:
                        command.done.set()

    async def run_line(self, line: str) -> Data:
        """Have it run a line of the debug CLI; raises CommandError."""
        self._numbers += 1
        number, command = self._numbers, _Command()
        self._commands[number] = command
        self._send(orders.Command(number, line), ())
        try:
            await command.done.wait()
        except trio.Cancelled:
            self._send(orders.CancelCommand(number), ())
            raise
        finally:
            del self._commands[number]
        if not command.answer:
            raise CommandError("the worker died meanwhile")
        return read_answer(bytes(command.answer))
