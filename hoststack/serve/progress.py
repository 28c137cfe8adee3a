"""A line a second on a terminal: requests, errors and Gbit/s."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TextIO

from hoststack.serve.log import ERASE
from hoststack.serve.orders import Counts

_EVERY_S: Final = 1.0


class Progress:
    """Shows rates in place of the last line; nothing unless the stream is a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_terminal = stream.isatty()
        self._before = (0.0, Counts(0, 0, 0))
        self._is_shown = False

    def show(self, now: float, counts: Iterable[Counts]) -> None:
        """Show the rates since the last line, if a second has passed."""
        since, before = self._before
        if not self._is_terminal or now - since < _EVERY_S:
            return
        total = total_of(counts)
        self._before = (now, total)
        # A replaced application counts from 0 again.
        if since and total.requests >= before.requests:
            self._is_shown = True
            line = progress_line(now - since, before, total)
            print(ERASE + line, end="", file=self._stream, flush=True)

    def clear(self) -> None:
        """Remove the line, before others are written."""
        if self._is_shown:
            self._is_shown = False
            print(ERASE, end="", file=self._stream, flush=True)


def total_of(counts: Iterable[Counts]) -> Counts:
    """Add up the counts of several applications."""
    found = list(counts)
    return Counts(
        sum(each.requests for each in found),
        sum(each.errors for each in found),
        sum(each.sent_bytes for each in found),
    )


def progress_line(seconds: float, before: Counts, now: Counts) -> str:
    """Return the rates between two counts."""
    requests = (now.requests - before.requests) / seconds
    gigabits = (now.sent_bytes - before.sent_bytes) * 8 / seconds / 1e9
    errors = now.errors - before.errors
    return f"{requests:,.0f} requests/s, {errors} errors, {gigabits:.3f} Gbit/s"
