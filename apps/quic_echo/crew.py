"""The threads of a run (`nthreads`): each has its own trio loop, stack and Record."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import replace

import trio

from apps.quic_echo.options import Options
from apps.quic_echo.record import Counts, Record
from apps.quic_echo.timing import Timing


class Goal:
    """A number of connections that all threads count together; each is notified at the goal."""

    def __init__(self, wanted: int | None) -> None:
        """None means that there is no goal."""
        self._wanted = wanted
        self._lock = threading.Lock()
        self._reached = 0
        self._waiting: list[tuple[trio.lowlevel.TrioToken, trio.Event]] = []

    def join(self) -> trio.Event:
        """Return an event of this thread's loop that is set at the goal."""
        event = trio.Event()
        with self._lock:
            self._waiting.append((trio.lowlevel.current_trio_token(), event))
            if self._reached == self._wanted:
                event.set()
        return event

    def count(self) -> bool:
        """Count one more; return whether the goal is reached."""
        with self._lock:
            self._reached += 1
            if self._reached != self._wanted:
                return False
            for token, event in self._waiting:
                _call_soon(token, event.set)
            return True


class Crew:
    """All threads of a run, and their results."""

    def __init__(self, options: Options, timing: Timing) -> None:
        self.options = options
        self.goal = Goal(options.connections)
        self.records = [Record(share, timing, self.stop, self.goal) for share in _shares(options)]
        self._lock = threading.Lock()
        self._loops: list[tuple[trio.lowlevel.TrioToken, trio.CancelScope]] = []
        self._is_stopped = False

    def join(self, record: Record) -> None:
        """Register the calling thread's record, so that `stop` ends its loop."""
        with self._lock:
            self._loops.append((trio.lowlevel.current_trio_token(), record.scope))
            if self._is_stopped:
                record.scope.cancel()

    def stop(self) -> None:
        """End the run in all threads."""
        with self._lock:
            self._is_stopped = True
            for token, scope in self._loops:
                _call_soon(token, scope.cancel)

    @property
    def tx_bytes(self) -> int:
        return sum(record.tx_bytes for record in self.records)

    @property
    def rx_bytes(self) -> int:
        return sum(record.rx_bytes for record in self.records)

    def total(self) -> Record:
        """Return the sum of their records, once they are done."""
        first, *others = self.records
        for record in others:
            first.tx_bytes += record.tx_bytes
            first.rx_bytes += record.rx_bytes
            first.wrong_bytes += record.wrong_bytes
            first.failures += [text for text in record.failures if text not in first.failures]
            first.failure_count = max(first.failure_count, len(first.failures))
            first.exit_status = first.exit_status or record.exit_status
            for name in vars(Counts()):
                ours, theirs = getattr(first.counts, name), getattr(record.counts, name)
                ours.q += theirs.q
                ours.s += theirs.s
        return first


def _shares(options: Options) -> list[Options]:
    """Return each thread's options. A server's threads count to one common goal."""
    if options.is_server or options.connections is None:
        return [options] * options.threads
    each, rest = divmod(options.connections, options.threads)
    return [replace(options, connections=each + (i < rest)) for i in range(options.threads)]


def _call_soon(token: trio.lowlevel.TrioToken, call: Callable[[], None]) -> None:
    with contextlib.suppress(trio.RunFinishedError):  # That thread has ended.
        token.run_sync_soon(call)
