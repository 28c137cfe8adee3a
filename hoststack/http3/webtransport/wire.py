"""Numbers of WebTransport, and what goes over the wire beside streams and datagrams: settings,
capsules, header fields, codes. See docs/decisions/webtransport-drafts.md for the drafts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from enum import IntEnum
from typing import Final

from hoststack.http3.config import Http3Config
from hoststack.http3.errors import ErrorCode


class WebTransportCode(IntEnum):
    """Codes of HTTP/3 for WebTransport (draft-15 section 9.5)."""

    BUFFERED_STREAM_REJECTED = 0x3994BD84
    SESSION_GONE = 0x170D7B68
    FLOW_CONTROL_ERROR = 0x045D4487


# Settings: draft-02, draft-07, draft-13, draft-15.
_ENABLE_WEBTRANSPORT: Final = 0x2B603742
_MAX_SESSIONS_07: Final = 0xC671706A
_MAX_SESSIONS: Final = 0x14E9CD29
_ENABLED: Final = 0x2C7CF000
_SETTING_DATAGRAM: Final = 0x33
# Limits of each session (draft-15 section 5.5).
INITIAL_MAX_DATA: Final = 0x2B61
INITIAL_MAX_STREAMS_UNI: Final = 0x2B64
INITIAL_MAX_STREAMS_BIDI: Final = 0x2B65
_INITIAL_LIMITS: Final = (INITIAL_MAX_DATA, INITIAL_MAX_STREAMS_UNI, INITIAL_MAX_STREAMS_BIDI)
MOST_STREAMS: Final = 1 << 60
_MOST_BYTES: Final = (1 << 62) - 1
_UNLIMITED: Final = 1 << 62

#: The value of `:protocol`, until draft-14 and since.
PROTOCOL: Final = b"webtransport"
PROTOCOL_15: Final = b"webtransport-h3"
PROTOCOLS: Final = frozenset((PROTOCOL, PROTOCOL_15))

_DRAFT_02_OFFER: Final = b"sec-webtransport-http3-draft02"
_DRAFT_02_CHOICE: Final = (b"sec-webtransport-http3-draft", b"draft02")
_AVAILABLE_PROTOCOLS: Final = b"wt-available-protocols"
_CHOSEN_PROTOCOL: Final = b"wt-protocol"
#: A string of a structured field, with its parameters (RFC 8941 section 3.3.3).
_STRING: Final = re.compile(r'\s*"((?:[^"\\]|\\["\\])*)"\s*(?:;[^,"]*)?\s*(?:,|$)')

_BIDIRECTIONAL: Final = 0x41
_UNIDIRECTIONAL: Final = 0x54

CLOSE_SESSION: Final = 0x2843
DRAIN_SESSION: Final = 0x78AE
# Of flow control; those of two kinds are for bidirectional and unidirectional streams.
MAX_DATA: Final = 0x190B4D3D
MAX_STREAMS: Final = (0x190B4D3F, 0x190B4D40)
_DATA_BLOCKED: Final = 0x190B4D41
_STREAMS_BLOCKED: Final = (0x190B4D43, 0x190B4D44)
COUNTS_OF_STREAMS: Final = (*MAX_STREAMS, *_STREAMS_BLOCKED)
_FLOW_CONTROL: Final = (MAX_DATA, _DATA_BLOCKED, *COUNTS_OF_STREAMS)
#: Of single streams, which QUIC limits (draft-15 section 5.4).
_PROHIBITED: Final = (0x190B4D3E, 0x190B4D42)
_MAX_NUMBER_BYTES: Final = 8
MAX_REASON_BYTES: Final = 1024
_CODE_BYTES: Final = 4

_FIRST_CODE: Final = 0x52E4A40FA8DB
_LAST_CODE: Final = 0x52E5AC983162


def number(value: int) -> bytes:
    """Return a variable-length integer (RFC 9000 section 16)."""
    for shift, size in enumerate((1, 2, 4, 8)):
        if value < 1 << (8 * size - 2):
            return (value | shift << (8 * size - 2)).to_bytes(size)
    raise ValueError(f"{value} is too large")


def read_number(data: bytes | bytearray, at: int = 0) -> tuple[int, int] | None:
    """Return a variable-length integer and where it ends, or None if it is not complete."""
    if at >= len(data):
        return None
    end = at + (1 << (data[at] >> 6))
    if end > len(data):
        return None
    return int.from_bytes(data[at:end]) & ((1 << (8 * (end - at) - 2)) - 1), end


# --- settings -------------------------------------------------------------------------------------


def settings_of(config: Http3Config) -> dict[int, int]:
    """Return the settings that offer WebTransport, of all drafts side by side."""
    sessions = config.webtransport_sessions
    if not sessions:
        return {}
    return {
        _ENABLE_WEBTRANSPORT: 1,
        _MAX_SESSIONS_07: sessions,
        _MAX_SESSIONS: sessions,
        _ENABLED: 1,
        # QUIC's limits, which grow as the program reads, are enough for this side.
        INITIAL_MAX_DATA: _MOST_BYTES,
        INITIAL_MAX_STREAMS_UNI: MOST_STREAMS,
        INITIAL_MAX_STREAMS_BIDI: MOST_STREAMS,
    }


def is_offered(settings: Mapping[int, int]) -> bool:
    """Return whether a peer's settings offer WebTransport."""
    knows = settings.get(_ENABLED) == 1 or most_sessions(settings) > 0
    return knows and settings.get(_SETTING_DATAGRAM) == 1


def has_flow_control(settings: Mapping[int, int]) -> bool:
    """Return whether sessions have limits of their own, with a peer's settings. Ours always ask for
    that (draft-15 section 5.1)."""
    return any(settings.get(key) for key in _INITIAL_LIMITS)


def most_sessions(settings: Mapping[int, int]) -> int:
    """Return how many sessions a peer accepts at once by the drafts before 15; 0 if it knows none
    of these."""
    most = settings.get(_MAX_SESSIONS, settings.get(_MAX_SESSIONS_07))
    if most is None:
        most = _UNLIMITED if settings.get(_ENABLE_WEBTRANSPORT) == 1 else 0
    return most


def most_sessions_now(settings: Mapping[int, int]) -> int:
    """Return how many sessions a connection may have, with a peer's settings. Draft-15 allows one
    where there is no flow control (section 5.1)."""
    return most_sessions(settings) or (_UNLIMITED if has_flow_control(settings) else 1)


# --- header fields --------------------------------------------------------------------------------


def offer(protocols: Iterable[str]) -> list[tuple[bytes, bytes]]:
    """Return the header fields of a client: the drafts, and application protocols. Raises
    ValueError for a protocol that is no printable ASCII."""
    fields = [(_DRAFT_02_OFFER, b"1")]
    quoted = [_quote(protocol) for protocol in protocols]
    if quoted:
        fields.append((_AVAILABLE_PROTOCOLS, ", ".join(quoted).encode()))
    return fields


def choice(
    fields: Iterable[tuple[bytes, bytes]], protocol: str | None
) -> list[tuple[bytes, bytes]]:
    """Return the header fields of a server that accepts a client's. Raises ValueError."""
    offered = dict(fields)
    answer = [_DRAFT_02_CHOICE] if _DRAFT_02_OFFER in offered else []
    if protocol is not None:
        if protocol not in available(fields):
            raise ValueError(f"the client does not offer the protocol {protocol!r}")
        answer.append((_CHOSEN_PROTOCOL, _quote(protocol).encode()))
    return answer


def available(fields: Iterable[tuple[bytes, bytes]]) -> list[str]:
    """Return the application protocols that a client offers; none if the field is malformed."""
    return _strings(b", ".join(value for name, value in fields if name == _AVAILABLE_PROTOCOLS))


def chosen(fields: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Return the application protocol that a server chose."""
    found = _strings(b", ".join(value for name, value in fields if name == _CHOSEN_PROTOCOL))
    return found[0] if len(found) == 1 else None


def _quote(protocol: str) -> str:
    if not protocol.isascii() or not protocol.isprintable():
        raise ValueError(f"the name of a protocol must be printable ASCII: {protocol!r}")
    escaped = protocol.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _strings(value: bytes) -> list[str]:
    text, at, found = value.decode("latin-1"), 0, []
    while at < len(text):
        match = _STRING.match(text, at)
        if match is None:
            return []
        found.append(re.sub(r"\\(.)", r"\1", match[1]))
        at = match.end()
    return found


# --- streams --------------------------------------------------------------------------------------


def head(session_id: int, *, is_unidirectional: bool) -> bytes:
    """Return what a stream of a session begins with (draft-15 sections 4.2, 4.3)."""
    kind = _UNIDIRECTIONAL if is_unidirectional else _BIDIRECTIONAL
    return number(kind) + number(session_id)


class StreamHead:
    """Finds out whether a stream of the peer belongs to a session, a byte at a time."""

    def __init__(self, stream_id: int) -> None:
        self._kind = _UNIDIRECTIONAL if stream_id & 2 else _BIDIRECTIONAL
        self.data = b""
        """What was read."""
        self.session_id: int | None = None

    def feed(self, byte: bytes) -> bool:
        """Take a byte, or none at the end; returns whether there is more to read."""
        self.data += byte
        kind = read_number(self.data)
        if kind is None:
            return bool(byte)
        if kind[0] != self._kind:
            return False
        found = read_number(self.data, kind[1])
        if found is not None:
            self.session_id = found[0]
        return bool(byte) and found is None


def to_http3(code: int) -> int:
    """Return HTTP/3's code for an application's (draft-15 section 4.4). Raises ValueError."""
    if not 0 <= code < 1 << 32:
        raise ValueError("a code of WebTransport must be between 0 and 2**32 - 1")
    return _FIRST_CODE + code + code // 0x1E


def from_http3(code: int) -> int:
    """Return the application's code for one of HTTP/3; 0 for those that are none."""
    if not _FIRST_CODE <= code <= _LAST_CODE or (code - 0x21) % 0x1F == 0:
        return 0
    shifted = code - _FIRST_CODE
    return shifted - shifted // 0x1F


# --- capsules (RFC 9297 section 3.2) --------------------------------------------------------------


class CapsuleError(Exception):
    """A capsule breaks a rule. `code` is the one to reset its stream with."""

    def __init__(self, message: str, code: int = ErrorCode.MESSAGE_ERROR) -> None:
        super().__init__(message)
        self.code = code


#: The least and the most bytes of those that are acted on.
_SIZES: Final = {
    CLOSE_SESSION: (_CODE_BYTES, _CODE_BYTES + MAX_REASON_BYTES),
    DRAIN_SESSION: (0, 0),
    **dict.fromkeys(_FLOW_CONTROL, (1, _MAX_NUMBER_BYTES)),
}


class Capsules:
    """Parses the capsules on the stream of a session. What it does not know is skipped, of any
    length, and not stored."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._skipped_bytes = 0

    @property
    def is_complete(self) -> bool:
        """Whether the stream may end here."""
        return not self._data and not self._skipped_bytes

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Parse what arrived; yields type and value of capsules to act on. Raises CapsuleError."""
        if self._skipped_bytes:
            skipped = min(self._skipped_bytes, len(data))
            self._skipped_bytes -= skipped
            data = data[skipped:]
        self._data += data
        while (found := self._read_head()) is not None:
            kind, size, start = found
            if kind in _PROHIBITED:
                raise CapsuleError("a capsule limits a single stream of a session")
            sizes = _SIZES.get(kind)
            if sizes is None:
                self._skip(start, size)
                continue
            if not sizes[0] <= size <= sizes[1]:
                raise CapsuleError("a capsule of a session has a wrong length")
            if len(self._data) < start + size:
                return
            value = bytes(self._data[start : start + size])
            del self._data[: start + size]
            yield kind, value
            if kind == CLOSE_SESSION and self._data:
                raise CapsuleError("data follows the end of a session")

    def _read_head(self) -> tuple[int, int, int] | None:
        kind = read_number(self._data)
        size = read_number(self._data, kind[1]) if kind else None
        return (kind[0], *size) if kind and size else None

    def _skip(self, start: int, size: int) -> None:
        here = min(size, len(self._data) - start)
        del self._data[: start + here]
        self._skipped_bytes = size - here


def close_session(code: int, reason: str) -> bytes:
    """Return the capsule that ends a session. Raises ValueError."""
    if not 0 <= code < 1 << 32:
        raise ValueError("a code of WebTransport must be between 0 and 2**32 - 1")
    text = reason.encode()
    if len(text) > MAX_REASON_BYTES:
        raise ValueError(f"a reason must not be longer than {MAX_REASON_BYTES} bytes in UTF-8")
    value = code.to_bytes(_CODE_BYTES) + text
    return number(CLOSE_SESSION) + number(len(value)) + value


def read_close(value: bytes) -> tuple[int, str]:
    """Return code and reason of a CLOSE_SESSION. Raises CapsuleError for one that is no UTF-8."""
    try:
        return int.from_bytes(value[:_CODE_BYTES]), value[_CODE_BYTES:].decode()
    except UnicodeDecodeError:
        raise CapsuleError("the reason of a session's end is no UTF-8") from None


def read_limit(kind: int, value: bytes) -> int | None:
    """Return the number in a capsule of flow control, None for one of another kind. Raises
    CapsuleError for a value that is not one number."""
    if kind not in _FLOW_CONTROL:
        return None
    found = read_number(value)
    if found is None or found[1] != len(value):
        raise CapsuleError("a capsule of flow control is not one number")
    return found[0]


def drain_session() -> bytes:
    """Return the capsule that asks to end a session soon."""
    return number(DRAIN_SESSION) + number(0)
