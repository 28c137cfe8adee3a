"""The results of a run: bytes, sessions, events, and failures."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import trio

from apps.quic_echo.options import Options
from apps.quic_echo.timing import Timing

#: How many failures are reported one by one, and how many wrong bytes.
_TOLD: Final = 10


@dataclass
class Count:
    """A count of QUIC connections and one of streams."""

    q: int = 0
    s: int = 0


@dataclass
class Counts:
    """VPP's counts of sessions."""

    connected: Count = field(default_factory=Count)
    accepted: Count = field(default_factory=Count)
    closed: Count = field(default_factory=Count)
    """Sessions that the peer closed in order."""
    reset: Count = field(default_factory=Count)
    """Sessions that ended in another way."""
    active: Count = field(default_factory=Count)
    """Sessions that this side closed."""
    clean: Count = field(default_factory=Count)
    """Sessions left open until the program ends."""


def _tell(text: str) -> None:
    """Print a line on stderr, in one piece: other threads print theirs, too."""
    sys.stderr.write(f"quic_echo: {text}\n")
    sys.stderr.flush()


class ConnectionGoal(Protocol):
    """How many connections all threads are to have together (crew.py)."""

    def join(self) -> trio.Event: ...
    def count(self) -> bool: ...


class Record:
    """The state that all tasks of a thread share."""

    def __init__(
        self, options: Options, timing: Timing, stop: Callable[[], None], goal: ConnectionGoal
    ) -> None:
        self.options = options
        self.timing = timing
        self.stop = stop
        """Cancelling it ends the run."""
        self.goal = goal
        self.counts = Counts()
        self.tx_bytes = 0
        self.rx_bytes = 0
        self.wrong_bytes = 0
        self.failures: list[str] = []
        self.failure_count = 0
        self.exit_status = 0
        self.link_name = ""
        self.engine_name = ""
        self.engine_counters: dict[str, Any] = {}
        self.link_statistics: dict[str, int] = {}
        self.scope = trio.CancelScope()
        # Byte i of a stream is i & 0xff, as in VPP: any slice of it starts within 256 bytes.
        size = max(options.tx_buf_bytes, options.rx_buf_bytes) + 256
        self.pattern = (bytes(range(256)) * (size // 256 + 1))[:size]

    def log(self, level: int, text: str) -> None:
        """Print a line on stderr, if the log level includes it."""
        if level <= self.options.log_level:
            _tell(text)

    def fail(self, text: str, status: int = 1) -> None:
        """Record a failure, and report it once."""
        self.exit_status = self.exit_status or status
        if text not in self.failures:
            self.failure_count += 1
            if len(self.failures) < _TOLD:
                self.failures.append(text)
                _tell(text)

    def interrupt(self, signal_number: int) -> None:
        """End the run because of a signal; the exit status is the one that shells use."""
        self.exit_status = 128 + signal_number
        self.failures.append(f"ended by {signal.Signals(signal_number).name}")
        self.failure_count += 1
        self.stop()

    @property
    def has_begun(self) -> bool:
        """Whether there has been a connection, so that there is something to report."""
        return bool(self.counts.connected.q or self.counts.accepted.q)

    def check_bytes(self, name: str, offset: int, data: memoryview) -> None:
        """Compare bytes received at an offset of a stream with the pattern."""
        # Comparing memoryviews goes byte by byte; this is a memcmp.
        if self.pattern.startswith(data, offset & 0xFF):
            return
        for index, byte in enumerate(data):
            expected = (offset + index) & 0xFF
            if byte == expected:
                continue
            self.wrong_bytes += 1
            if self.wrong_bytes <= _TOLD:
                self.log(
                    1,
                    f"{name} byte {offset + index} was {byte:#04x}, expected {expected:#04x}"
                    + ("; further ones are not reported" if self.wrong_bytes == _TOLD else ""),
                )
        self.fail("test-bytes: wrong bytes came")
        if self.options.check == "assert":
            self.stop()
