"""The daemon's log waits for nobody who reads it, and no line of it is forged."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from hoststack.control.control_client import ControlClient
from hoststack.daemon.log import MOST_LINES, LineWriter, log_to_stderr
from tests.daemon.conftest import PATIENCE_S


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    try:
        yield reading, writing
    finally:
        for fd in (reading, writing):
            with suppress(OSError):
                os.close(fd)


def fill(fd: int) -> int:
    """Write to a pipe until it is full; returns how much."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_NONBLOCK)
    written = 0
    with suppress(BlockingIOError):
        while True:
            written += os.write(fd, bytes(4096))
    fcntl.fcntl(fd, fcntl.F_SETFL, flags)
    return written


def read_exactly(fd: int, count: int) -> None:
    while count:
        count -= len(os.read(fd, count))


def read_lines(fd: int, last: str) -> list[str]:
    """Lines up to one that is `last`."""
    with os.fdopen(os.dup(fd), encoding="utf-8", newline="\n") as file:
        lines = []
        for line in file:
            lines.append(line.removesuffix("\n"))
            if lines[-1] == last:
                break
        return lines


@pytest.mark.parametrize("flags", [0, os.O_NONBLOCK], ids=["blocking", "not blocking"])
def test_lines_that_nobody_reads_are_dropped_and_counted(flags: int) -> None:
    with pipe() as (reading, writing):
        filled = fill(writing)
        fcntl.fcntl(writing, fcntl.F_SETFL, fcntl.fcntl(writing, fcntl.F_GETFL) | flags)
        writer = LineWriter(writing)
        writer.start()
        for number in range(MOST_LINES + 500):
            writer.put(f"line {number}")  # which would hang here
        read_exactly(reading, filled)
        lines = []

        def read() -> None:
            lines.extend(read_lines(reading, "last"))

        reader = threading.Thread(target=read)
        reader.start()
        while writer._lines:
            writer._changed.acquire()
            writer._changed.release()
        writer.put("last")
        reader.join(PATIENCE_S)
        writer.close()
        assert with_the_dropped(lines) == [*range(MOST_LINES + 500), "last"]
        told = MOST_LINES + 500 - sum(line.startswith("line ") for line in lines)
        assert told in (499, 500)  # the thread may have had one in hand


def with_the_dropped(lines: list[str]) -> list[int | str]:
    """Numbers of the lines; where a line reports some as dropped, theirs."""
    numbers: list[int | str] = []
    for line in lines:
        if number := re.fullmatch(r"line (\d+)", line):
            numbers.append(int(number[1]))
        elif told := re.fullmatch(
            r"hoststack: (\d+) lines were dropped here: stderr was not read", line
        ):
            after = len(numbers)
            numbers.extend(range(after, after + int(told[1])))
        else:
            numbers.append(line)
    return numbers


def test_a_reader_that_went_away_is_no_reason_to_end() -> None:
    with pipe() as (reading, writing):
        os.close(reading)
        writer = LineWriter(writing)
        writer.start()
        for _ in range(100):
            writer.put("x")
        writer.close()
        assert not writer._thread.is_alive()


def test_the_end_does_not_wait_for_a_reader() -> None:
    with pipe() as (reading, writing):
        filled = fill(writing)
        writer = LineWriter(writing)
        writer.put("x")
        writer.close()
        assert writer._thread.is_alive()
        read_exactly(reading, filled)
        writer._thread.join(PATIENCE_S)


FORGED = "\x1b[31mRED\r\nhoststack.daemon: worker 0 died\u2028\x9b31m\u202e"


def logged(capfd: pytest.CaptureFixture[str], *, do: str) -> list[str]:
    with suppress(SystemExit), log_to_stderr() as log:
        log.start()
        try:
            raise ValueError(FORGED)
        except ValueError as error:
            match do:
                case "message":
                    logging.getLogger("x").error("it said %s", error)
                case "traceback":
                    logging.getLogger("x").exception("it failed")
                case "print":
                    print(error, file=sys.stderr)
                case "raise":
                    raise
    return capfd.readouterr().err.splitlines()


@pytest.mark.parametrize("do", ["message", "traceback", "print", "raise"])
def test_no_line_is_forged(capfd: pytest.CaptureFixture[str], do: str) -> None:
    lines = logged(capfd, do=do)
    assert lines
    for line in lines:
        assert line.isprintable()
        assert line.startswith(("x: ", "    "))
    assert r"\x1b[31mRED" in "".join(lines)


def test_a_daemon_whose_log_nobody_reads_serves(tmp_path: Path) -> None:
    """Its supervisor and its workers had all written to the full pipe."""
    with pipe() as (reading, writing):
        filled = fill(writing)
        line = [sys.executable, "-m", "hoststack.cli.main"]
        sockets = ["--socket", f"{tmp_path}/api", "--cli-socket", f"{tmp_path}/cli"]
        with subprocess.Popen(
            [*line, "run", "--link", "udp", *sockets], stderr=writing, stdin=subprocess.DEVNULL
        ) as daemon:
            try:
                os.close(writing)
                answer = ""
                while not answer and daemon.poll() is None:
                    with suppress(subprocess.TimeoutExpired):
                        daemon.wait(0.05)  # it takes a moment to listen
                    with suppress(OSError):
                        answer = ControlClient(f"{tmp_path}/cli").run("show workers")
                assert "udp" in answer
                daemon.terminate()
                assert daemon.wait(PATIENCE_S) == 0
                read_exactly(reading, filled)
            finally:
                daemon.kill()
