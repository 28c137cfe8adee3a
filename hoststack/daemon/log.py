"""The log of a daemon's processes: lines on stderr, written by a thread.

No process blocks on the reader of stderr, be it a pipe, a terminal or journald. Lines wait in a
queue of bounded size; lines that do not fit are dropped, and a later line reports how many.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import select
import sys
import threading
import traceback
from collections import deque
from collections.abc import Iterator
from typing import Final

from hoststack.text import printable

#: Most lines in the queue: a few seconds of a busy daemon.
MOST_LINES: Final = 4096
#: Most characters of a line, so that processes that share a pipe don't mix lines (PIPE_BUF,
#: pipe(7)).
_MOST_CHARACTERS: Final = 3000
#: The environment variable with the least level of a line; workers inherit it.
LEVEL_VARIABLE: Final = "HOSTSTACK_LOG_LEVEL"
_LEVELS: Final = {
    name: getattr(logging, name.upper()) for name in ("debug", "info", "warning", "error")
}
_WHY: Final = "stderr was not read"
#: How long a process that ends waits for its last lines to be read.
_LAST_WORDS_S: Final = 1.0


class LineWriter:
    """Writes lines to a descriptor in a thread of its own; `put` never blocks."""

    def __init__(self, fd: int) -> None:
        """Lines wait in the queue until `start`."""
        self._fd = fd
        self._lines: deque[str] = deque()
        self._changed = threading.Condition()
        self._is_closing = False
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)

    def start(self) -> None:
        """Start to write. Idempotent."""
        if not self._thread.is_alive():
            self._thread.start()

    def put(self, line: str) -> None:
        """Queue a line, without its newline; drop it if the queue is full."""
        with self._changed:
            if len(self._lines) >= MOST_LINES:
                self._dropped += 1
                return
            self._tell_dropped()
            self._lines.append(line)
            self._changed.notify()

    def close(self) -> None:
        """Write the queued lines, for at most a second."""
        with self._changed:
            self._tell_dropped()
            self._is_closing = True
            self._changed.notify()
        self.start()
        self._thread.join(_LAST_WORDS_S)

    def _tell_dropped(self) -> None:
        if self._dropped:
            self._lines.append(f"hoststack: {self._dropped} lines were dropped here: {_WHY}")
            self._dropped = 0

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines or self._is_closing)
                if not self._lines:
                    return
                line = self._lines.popleft()
            if not self._write(f"{line}\n".encode(errors="backslashreplace")):
                with self._changed:
                    self._dropped += 1

    def _write(self, data: bytes) -> bool:
        """Write everything; return False if the descriptor failed."""
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:
                # Another user of the open file description has set O_NONBLOCK.
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll()
            except OSError:
                return False
        return True


class _Formatter(logging.Formatter):
    """Formats a record as one line, followed by indented lines for its traceback. So nothing in a
    record can look like a line of another one."""

    def format(self, record: logging.LogRecord) -> str:
        lines = [f"{record.name}: {_shown(record.getMessage())}"]
        if record.exc_info:
            lines += map(_indented, self.formatException(record.exc_info).splitlines())
        return "\n".join(lines)


def _shown(text: str) -> str:
    return printable(text, _MOST_CHARACTERS)


def _indented(line: str) -> str:
    return f"    {_shown(line)}"


class _Handler(logging.Handler):
    def __init__(self, writer: LineWriter) -> None:
        super().__init__()
        self._writer = writer
        self.setFormatter(_Formatter())

    def emit(self, record: logging.LogRecord) -> None:
        try:
            for line in self.format(record).splitlines():
                self._writer.put(line)
        except Exception as error:
            self._writer.put(f"{record.name}: {record.msg!r} ({type(error).__name__})")


class _Stderr(io.TextIOBase):
    """Sends what is printed to sys.stderr, by Python itself for example, through the writer."""

    def __init__(self, writer: LineWriter) -> None:
        self._writer = writer
        self._rest = ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._writer.put(_indented(line))
        return len(text)

    def writable(self) -> bool:
        return True


@contextlib.contextmanager
def log_to_stderr() -> Iterator[LineWriter]:
    """Have a process, within the block, log to stderr without ever blocking on it.

    HOSTSTACK_LOG_LEVEL names the least level of a line.

    Nothing is written before the writer's `start`: a thread keeps the privileges that it started
    with.
    An exception that leaves the block is logged, and raised as SystemExit: Python would print it.
    """
    _open_standard_files()
    writer, was = LineWriter(2), sys.stderr
    handler, root = _Handler(writer), logging.getLogger()
    root.addHandler(handler)
    root.setLevel(_LEVELS.get(os.environ.get(LEVEL_VARIABLE, ""), logging.INFO))
    sys.stderr = _Stderr(writer)
    try:
        yield writer
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException:
        traceback.print_exc()
        raise SystemExit(1) from None
    finally:
        writer.close()
        root.removeHandler(handler)
        sys.stderr = was


def _open_standard_files() -> None:
    """Open missing standard files, so that no socket gets the descriptor of stderr."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number
