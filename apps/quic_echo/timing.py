"""The events of a run, and the time between two of them."""

from __future__ import annotations

import time
from typing import Final

#: In the order in which they happen.
EVENTS: Final = (
    "start",
    "qconnect",
    "qconnected",
    "sconnect",
    "sconnected",
    "lastbyte",
    "exit",
)


class Timing:
    """When each event happened, in seconds of time.monotonic()."""

    def __init__(self) -> None:
        self.at_s: dict[str, float] = {}
        self.first("start")

    def first(self, event: str) -> None:
        """Record an event whose first occurrence counts."""
        self.at_s.setdefault(event, time.monotonic())

    def last(self, event: str) -> None:
        """Record an event whose last occurrence counts."""
        self.at_s[event] = time.monotonic()

    def between_s(self, start: str, end: str) -> float:
        """Return the seconds from one event to another; 0 if one did not happen."""
        if start not in self.at_s or end not in self.at_s:
            return 0.0
        return self.at_s[end] - self.at_s[start]

    def since_start_s(self) -> dict[str, float]:
        """Return the times of all events since the start of the program."""
        start = self.at_s["start"]
        return {event: self.at_s[event] - start for event in EVENTS if event in self.at_s}
