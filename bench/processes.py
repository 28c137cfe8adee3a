"""Processes that are measured: started, waited for, and what CPU time they took."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any, Final, NamedTuple

_POLL_S: Final = 0.005
_MOST_OUTPUT_BYTES: Final = 1 << 20


class BenchError(Exception):
    """A measured program failed; the message has what it said."""


class Used(NamedTuple):
    """CPU seconds of a process and of its children, by getrusage(2)."""

    user_s: float
    system_s: float


NOT_KNOWN: Final = Used(0, 0)


class Process:
    """A process, its output in a file so that it never waits for us."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        *,
        has_input: bool = False,
    ):
        """With input only for those to which `say` is to say something."""
        self._command = command
        self._output = tempfile.TemporaryFile()  # noqa: SIM115
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._popen = subprocess.Popen(
            command,
            stdout=self._output,
            stderr=self._errors,
            stdin=subprocess.PIPE if has_input else subprocess.DEVNULL,
            env={**os.environ, **(environment or {})},
        )
        self.pid = self._popen.pid
        self.used = NOT_KNOWN

    def wait_ready(
        self, is_ready: Callable[[Process], bool] | None = None, timeout_s: float = 20
    ) -> None:
        """Until it says something, or `is_ready`. Raises BenchError if it ends before."""
        end = time.monotonic() + timeout_s
        while not (is_ready(self) if is_ready else self.output() + self.errors()):
            if self._popen.poll() is not None or time.monotonic() > end:
                raise BenchError(f"{self._name()} did not start: {self.errors()}")
            time.sleep(_POLL_S)

    def say(self, line: str) -> None:
        """To its standard input, which ends with that."""
        assert self._popen.stdin is not None
        with self._popen.stdin as to:
            to.write(f"{line}\n".encode())

    def output(self) -> str:
        """What it wrote to standard output so far."""
        return _text_of(self._output)

    def errors(self) -> str:
        """What it wrote to standard error so far."""
        return _text_of(self._errors)

    def finish(self, timeout_s: float = 120) -> Used:
        """Wait for its end. Raises BenchError if it fails, or takes longer than that."""
        status = self._wait(timeout_s)
        if status:
            raise BenchError(f"{self._name()} failed ({status}): {self.output()}{self.errors()}")
        return self.used

    def found(self) -> dict[str, Any]:
        """The JSON object that it printed. Raises BenchError if it did not."""
        try:
            found: dict[str, Any] = json.loads(self.output())
        except ValueError:
            raise BenchError(
                f"{self._name()} printed no JSON: {self.output()}{self.errors()}"
            ) from None
        return found

    def finish_to_json(self, timeout_s: float = 120) -> dict[str, Any]:
        """Wait for its end: the JSON object that it printed. Raises BenchError as `finish`."""
        self.finish(timeout_s)
        return self.found()

    def stop(self) -> Used:
        """End it by SIGTERM, if it has not ended, whatever its exit status is."""
        if self._popen.returncode is None:
            # Not by terminate(), which would take the exit status, and with it the CPU time.
            os.kill(self.pid, signal.SIGTERM)
            self._wait(10)
        return self.used

    def close(self) -> None:
        """Kill it if it still runs."""
        self._popen.kill()
        self._popen.wait()

    def _wait(self, timeout_s: float) -> int:
        fd = os.pidfd_open(self.pid)
        try:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            if not poll.poll(timeout_s * 1000):
                raise BenchError(f"{self._name()} did not end in {timeout_s} s: {self.errors()}")
        finally:
            os.close(fd)
        _, status, usage = os.wait4(self.pid, 0)
        self._popen.returncode = os.waitstatus_to_exitcode(status)
        self.used = Used(usage.ru_utime, usage.ru_stime)
        return self._popen.returncode

    def _name(self) -> str:
        # The first words are those that enter the namespace (tests.support.netns.Side.command).
        return " ".join(self._command[4:])


def _text_of(file: IO[bytes]) -> str:
    # The process writes at an offset that it shares with us: reading must not move it.
    return os.pread(file.fileno(), _MOST_OUTPUT_BYTES, 0).decode(errors="replace")


@contextmanager
def running(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    is_ready: Callable[[Process], bool] | None = None,
    timeout_s: float = 20,
) -> Iterator[Process]:
    """A server, from its first words (or `is_ready`) on; stopped at the end of the block."""
    process = Process(command, environment)
    try:
        process.wait_ready(is_ready, timeout_s)
        yield process
        process.stop()
    finally:
        process.close()


@contextmanager
def asking(command: Sequence[str], *, timeout_s: float = 60) -> Iterator[Callable[[], float]]:
    """A client that says it is ready, and then answers each line with a number: each call asks for
    one. It ends with its input. Raises BenchError if it ends before."""
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        to, of = process.stdin, process.stdout
        assert to is not None
        assert of is not None

        def answer() -> str:
            if select.select([of], [], [], timeout_s)[0] and (line := of.readline()):
                return line
            raise BenchError(f"{' '.join(command[4:])} said nothing: {_text_of(errors)}")

        def ask() -> float:
            with contextlib.suppress(BrokenPipeError):  # `answer` has what it said
                os.write(to.fileno(), b"go\n")
            return float(answer())

        try:
            answer()
            yield ask
            to.close()
            if process.wait(timeout_s):
                raise BenchError(f"{' '.join(command[4:])} failed: {_text_of(errors)}")
        except subprocess.TimeoutExpired:
            raise BenchError(f"{' '.join(command[4:])} does not end") from None
        finally:
            process.kill()


def run_to_json(command: Sequence[str], *, timeout_s: float = 120) -> tuple[dict[str, Any], Used]:
    """Run a client to its end: the JSON object that it printed, and its CPU time."""
    process = Process(command)
    try:
        return process.finish_to_json(timeout_s), process.used
    finally:
        process.close()
