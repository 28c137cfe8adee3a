"""Messages between client and server on the control session: JSON, one per line."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Final

from hoststack import vcl

#: A longer line is not from our programs.
_MOST_BYTES: Final = 1 << 16
#: The application protocol of the sessions that carry the data.
ALPN: Final = ("vcl_test",)
TESTS: Final = ("uni", "bi", "echo")


class WireError(Exception):
    """The other side is not a vcl_test program, or is gone."""


@dataclass(frozen=True, slots=True)
class Test:
    """A test to run: the server counts `total_bytes`, and sends them back unless it is uni."""

    proto: str
    test: str
    sessions: int
    total_bytes: int
    rxbuf_bytes: int

    def __post_init__(self) -> None:
        numbers = (self.sessions, self.total_bytes, self.rxbuf_bytes)
        if self.test not in TESTS or not all(isinstance(n, int) and n >= 0 for n in numbers):
            raise WireError("the test is invalid")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Control:
    """One end of a control session."""

    def __init__(self, session: vcl.Session) -> None:
        self.session = session
        self._rest = b""

    def send(self, message: dict[str, Any]) -> None:
        self.session.write_all(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any] | None:
        """Wait for the next message; None at the end. Raises WireError, OSError."""
        while (found := self.next_line()) is None:
            if not self.feed(self.session.read()):
                return None
        return found

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send a message, and wait for the answer. Raises WireError, OSError."""
        self.send(message)
        answer = self.receive()
        if answer is None:
            raise WireError("the server ended the control session")
        return answer

    def feed(self, data: bytes) -> bool:
        """Add received bytes; False at the end."""
        self._rest += data
        if len(self._rest) > _MOST_BYTES:
            raise WireError("the other side is not a vcl_test program")
        return bool(data)

    def next_line(self) -> dict[str, Any] | None:
        """Return the next complete message; None if there is none."""
        line, newline, rest = self._rest.partition(b"\n")
        if not newline:
            return None
        self._rest = rest
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise WireError("the other side is not a vcl_test program")
        return found
