"""One worker process, as the supervisor sees it; everything that it sends is validated."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Final, get_args

import trio

from hoststack.boundary.channel import Channel, ChannelClosedError
from hoststack.boundary.silence import TICK_S, Silence, whereabouts
from hoststack.control.grammar import CommandError, WorkerGoneError
from hoststack.control.run import read_answer
from hoststack.control.worker_side import Data
from hoststack.daemon import orders
from hoststack.daemon.leaving import OnLetGo
from hoststack.text import printable
from hoststack.worker.engines import EngineName

logger = logging.getLogger("hoststack.daemon")

#: The environment variables passed on to workers: those that its programs and libraries read. Not
#: those that identify the supervisor (NOTIFY_SOCKET), nor a user's secrets.
_PASSED_ON: Final = frozenset({"LANG", "LANGUAGE", "PATH", "TMPDIR", "TZ", "VIRTUAL_ENV"})
_PASSED_ON_PREFIXES: Final = (
    *("ASAN_", "COVERAGE_", "GLIBC_", "GNUTLS_", "HOSTSTACK_", "LC_", "LD_", "LSAN_", "MALLOC_"),
    *("OPENSSL_", "PYTHON", "SSL_", "UBSAN_"),
)
#: Limit of a command's answer; no valid one comes near.
_MOST_ANSWER_BYTES: Final = 16 << 20
#: How long starting may take on a slow machine, until a worker is ready.
_START_S: Final = 60.0
#: How long a worker that hangs may take to report where it was (SIGABRT).
_LAST_WORDS_S: Final = 1.0
_MOST_LAST_WORDS_BYTES: Final = 1 << 14
_MOST_LAST_WORDS_LINES: Final = 40
_GONE: Final = "the worker died meanwhile: another takes its place"


def worker_environment() -> dict[str, str]:
    """Return the environment of a worker process."""
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
    """A process that has been started, and waits for its Start order.

    Starting Python takes a good part of a second, so the supervisor keeps one process in reserve.
    """

    def __init__(self) -> None:
        """Start the process; raises OSError if descriptors, memory or processes are exhausted."""
        with contextlib.ExitStack() as undo:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(ours.close)
            with theirs:
                self._stacks = os.memfd_create("hoststack-stacks", os.MFD_CLOEXEC)
                undo.callback(os.close, self._stacks)
                self._process = self._spawn(theirs.fileno(), self._stacks)
            undo.callback(self._end_process)
            self._pid_fd = os.pidfd_open(self._process.pid)
            undo.pop_all()
        self._channel = Channel(ours)
        self._link_name = ""
        self._commands: dict[int, _Command] = {}
        self._numbers = 0
        self._ping = 0
        self._pong = trio.Event()
        self.ready = trio.Event()
        self.ended = trio.Event()
        self.about: orders.Ready | None = None
        self.on_let_go: OnLetGo = lambda number: None

    @staticmethod
    def _spawn(fd: int, stacks: int) -> subprocess.Popen[bytes]:
        # Not with trio, which forks in a thread: PR_SET_PDEATHSIG is tied to that thread's end.
        return subprocess.Popen(
            [sys.executable, "-m", "hoststack.daemon.worker_main", str(fd), str(stacks)],
            pass_fds=[fd, stacks],
            stdin=subprocess.DEVNULL,
            env=worker_environment(),
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self, order: orders.Start, fds: Sequence[int]) -> None:
        """Send its index and settings; the descriptors stay the caller's."""
        self._link_name = order.link
        self._send(order, fds)

    def relink(self, order: orders.Relink, fds: Sequence[int]) -> None:
        """Have its link continue with other descriptors; they stay the caller's."""
        if not self.ended.is_set():
            self._send(order, fds)

    def serve(self, order: orders.Serve, fds: Sequence[int]) -> None:
        """Have it serve an application; the descriptors stay the caller's.

        Raises OSError if it does not read, and its socket is full.
        """
        if not self._send(order, fds) and self._channel.has_waiting:
            raise OSError(errno.EAGAIN, f"worker process {self.pid} accepts no applications now")

    async def wait_for_room(self) -> None:
        """Wait until it reads its orders or its socket has room for more, or until it is gone."""
        await self._channel.wait_sent()

    def drain(self, seconds: float) -> None:
        """Have it end when its connections have ended, or after so long."""
        self._send(orders.Drain(seconds), ())

    def kill(self, why: str) -> None:
        """Kill it, and log why."""
        logger.error("worker process %d is killed: %s", self.pid, why)
        self._process.kill()

    def close(self) -> None:
        """End it at once, if it has not ended. Idempotent."""
        if self._pid_fd < 0:
            return
        self._end_process()
        self._channel.close()
        os.close(self._pid_fd)
        os.close(self._stacks)
        self._pid_fd = self._stacks = -1

    def _end_process(self) -> None:
        self._process.kill()
        self._process.wait()

    def _send(self, order: orders.Order, fds: Sequence[int]) -> bool:
        """Send an order; False if it does not read, or is dead, which `run` reports."""
        try:
            self._channel.send(orders.encode(order), fds)
        except ChannelClosedError:
            return False
        return True

    async def run(self, watchdog_s: float = 0.0) -> int:
        """Read its reports until it ends; return its exit status, negative for a signal.

        It is killed if it has not answered for `watchdog_s` seconds of the time in which it could
        have; 0 means never.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._run_channel)
                nursery.start_soon(self._receive)
                if watchdog_s:
                    nursery.start_soon(self._watch, watchdog_s)
                await trio.lowlevel.wait_readable(self._pid_fd)
                nursery.cancel_scope.cancel()
            self._process.wait()
            self._log_last_words()
        finally:
            self.close()
            self.ended.set()
            for command in self._commands.values():
                command.answer.clear()
                command.done.set()
        return self._process.returncode

    async def _run_channel(self) -> None:
        with contextlib.suppress(ChannelClosedError):  # the process's status reports its end
            await self._channel.run()

    async def _receive(self) -> None:
        try:
            while True:
                data, _ = await self._channel.receive_one()
                self._on_report(orders.decode_report(data))
        except ChannelClosedError:
            pass
        except orders.ReportError as error:
            self.kill(f"it sent an invalid report: {error}")

    def _on_report(self, report: orders.Report) -> None:
        """Handle a report; raises ReportError."""
        match report:
            case orders.Ready():
                self._on_ready(report)
            case orders.Answer():
                command = self._commands.get(report.number)
                if command is not None and not command.done.is_set():
                    command.answer += report.piece
                    if len(command.answer) > _MOST_ANSWER_BYTES:
                        raise orders.ReportError("an answer that is too long")
                    if report.is_last:
                        command.done.set()
            case orders.Pong():
                if report.number == self._ping:
                    self._pong.set()
            case orders.LetGo():
                self.on_let_go(report.number)

    def _on_ready(self, report: orders.Ready) -> None:
        if self.about is not None:
            raise orders.ReportError("it reported twice that it is ready")
        if report.link_name != self._link_name or report.engine_name not in get_args(EngineName):
            raise orders.ReportError("its link or engine is not the one in its order")
        self.about = report
        self.ready.set()

    # --- detecting a hang -------------------------------------------------------------------

    async def _watch(self, patience_s: float) -> None:
        """Ping it for as long as it answers; return when it hangs."""
        silence = Silence(self.pid, trio.current_time)
        while True:
            self._ping += 1
            self._pong = trio.Event()
            self._send(orders.Ping(self._ping), ())
            silence.begin()
            while not self._pong.is_set():
                with trio.move_on_after(TICK_S):
                    await self._pong.wait()
                silence.tick()
                least_s = patience_s if self.ready.is_set() else max(patience_s, _START_S)
                if not self._pong.is_set() and silence.silent_s >= least_s:
                    await self._end_hung(silence.silent_s)
                    return
            await trio.sleep(TICK_S)

    async def _end_hung(self, silent_s: float) -> None:
        """Have it report where it is, and kill it."""
        logger.error(
            "worker process %d has not answered for %.1f s and is replaced; it hung in: %s",
            self.pid,
            silent_s,
            whereabouts(self.pid),
        )
        self._process.send_signal(signal.SIGABRT)
        await trio.sleep(_LAST_WORDS_S)
        self._process.kill()

    def _log_last_words(self) -> None:
        """Log what faulthandler wrote when it crashed or was aborted."""
        text = os.pread(self._stacks, _MOST_LAST_WORDS_BYTES, 0).decode("ascii", "replace")
        for line in text.splitlines()[:_MOST_LAST_WORDS_LINES]:
            logger.error("worker process %d: %s", self.pid, printable(line, 200))

    async def run_line(self, line: str) -> Data:
        """Have it run a line of the debug CLI; raises CommandError, WorkerGoneError if it ends."""
        self._numbers += 1
        number, command = self._numbers, _Command()
        self._commands[number] = command
        try:
            if not self._send(orders.Command(number, line), ()):
                if self._channel.has_waiting:
                    raise CommandError("the worker does not answer")
                raise WorkerGoneError(_GONE)
            await command.done.wait()
        except trio.Cancelled:
            self._send(orders.CancelCommand(number), ())
            raise
        finally:
            del self._commands[number]
        if not command.answer:
            raise WorkerGoneError(_GONE)
        return read_answer(bytes(command.answer))
