"""The seam between connections of HTTP/3 and what knows the protocol: nghttp3, or aioquic.

A layer reads streams and writes to them, and reports what it found as events, in batches. It
neither waits nor calls back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Any, Final, NamedTuple, Protocol

from hoststack.http3.errors import ProtocolError
from hoststack.http3.fields import Fields

#: What `Layer.read` returns, beside bytes with hints, 0 at the end of a stream, and the results of
#: hs_end_read (native/session/end.h). As in native/http3/http3.h.
BLOCKED: Final = -40  #: the section waits for QPACK's encoder stream
FAILED: Final = -41  #: the connection has to be closed: `Layer.error`

#: States of `Written`, beside errors of an end.
SENT: Final = 0
FULL: Final = 1  #: the stream waits for room; `Layer.unblock` follows


class Kind(IntEnum):
    """Kinds of events, by the numbers of native/http3/http3.h."""

    SECTION = 1  #: a header section; text has the fields
    TRAILERS = 2
    DATA = 3  #: content; text
    END = 4  #: of the message, if no event before said so
    TOO_LARGE = 5  #: a section is above the limits
    STOP = 6  #: ask the peer to stop sending, with `code`
    RESET = 7  #: reset the stream with `code`
    GOAWAY = 8  #: `code` is its identifier
    SETTINGS = 9  #: settings
    WEBTRANSPORT = 10  #: the stream belongs to the session `code`; `Layer.close` is next


class Event(NamedTuple):
    """Something that a layer found."""

    kind: int
    stream_id: int
    code: int = 0
    data: bytes = b""
    fields: Fields | None = None
    settings: dict[int, int] | None = None
    is_last: bool = False


class Written(NamedTuple):
    """What a layer wrote to a stream."""

    stream_id: int
    state: int
    hints: int


class Section(IntEnum):
    """Sections that are sent, by the numbers of native/http3/http3.h."""

    REQUEST = 1
    INFORMATIONAL = 2
    RESPONSE = 3
    TRAILER = 4


class Layer(Protocol):
    """HTTP/3 on one connection. Streams are those of hoststack's API."""

    @property
    def error(self) -> ProtocolError | None:
        """Why the connection has to be closed."""

    def bind(self, critical: Sequence[Any]) -> None:
        """Take the three unidirectional streams of this side."""

    def add(self, stream: Any) -> None:
        """Take a stream of the peer, or one for a request."""

    def close(self, stream_id: int, code: int) -> None:
        """Forget a stream."""

    def read(self, stream_id: int, max_bytes: int) -> int:
        """Read what a stream has; see `BLOCKED` for results."""

    def stop(self, stream_id: int) -> None:
        """Read no more of a request's stream."""

    def events(self) -> Iterable[Event]:
        """Return what was found since the last call."""

    def send_section(
        self, stream_id: int, kind: Section, fields: Fields, *, is_last: bool = False
    ) -> None:
        """Send a section; raises ValueError for invalid fields, RuntimeError in a wrong state, and
        GoingAwayError."""

    def send_data(self, stream_id: int, data: bytes | memoryview, *, is_last: bool) -> None:
        """Send content. It must not change until all of it is written. Raises RuntimeError."""

    def respond(self, stream_id: int, fields: Fields, data: bytes | memoryview) -> list[Written]:
        """Send a complete response, as `send_section`, `send_data` and `write` would."""

    def abandon(self, stream_id: int) -> None:
        """Send nothing more on a stream."""

    def unblock(self, stream_id: int) -> None:
        """Go on with a stream that was FULL."""

    def write(self) -> list[Written]:
        """Write what can be written."""

    def shutdown(self, *, is_notice: bool) -> None:
        """Send a GOAWAY."""

    def priority(self, stream_id: int) -> tuple[int, bool]:
        """Return a request's urgency, and whether it is incremental (RFC 9218)."""

    def set_priority(self, stream_id: int, urgency: int, *, is_incremental: bool) -> None:
        """Overrule a request's priority."""

    def update_priority(self, stream_id: int, value: bytes) -> None:
        """Send a PRIORITY_UPDATE."""
