"""HTTP/3's error codes, and an exception for each breach of its rules."""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar

import trio

from hoststack.text import printable


class ErrorCode(IntEnum):
    """Codes of RFC 9114 section 8.1, RFC 9204 section 6 and RFC 9297 section 5.2."""

    DATAGRAM_ERROR = 0x33
    NO_ERROR = 0x100
    GENERAL_PROTOCOL_ERROR = 0x101
    INTERNAL_ERROR = 0x102
    STREAM_CREATION_ERROR = 0x103
    CLOSED_CRITICAL_STREAM = 0x104
    FRAME_UNEXPECTED = 0x105
    FRAME_ERROR = 0x106
    EXCESSIVE_LOAD = 0x107
    ID_ERROR = 0x108
    SETTINGS_ERROR = 0x109
    MISSING_SETTINGS = 0x10A
    REQUEST_REJECTED = 0x10B
    REQUEST_CANCELLED = 0x10C
    REQUEST_INCOMPLETE = 0x10D
    MESSAGE_ERROR = 0x10E
    CONNECT_ERROR = 0x10F
    VERSION_FALLBACK = 0x110
    QPACK_DECOMPRESSION_FAILED = 0x200
    QPACK_ENCODER_STREAM_ERROR = 0x201
    QPACK_DECODER_STREAM_ERROR = 0x202


def code_name(code: int) -> str:
    """Return the name of a code, or the number of one that has none."""
    try:
        return f"H3_{ErrorCode(code).name}" if code < 0x200 else ErrorCode(code).name
    except ValueError:
        return f"{code:#x}"


class Http3Error(trio.BrokenResourceError, ConnectionError):
    """Base of what ends a request or a connection of HTTP/3; `code` is the code for it."""

    code: int = ErrorCode.GENERAL_PROTOCOL_ERROR


class ProtocolError(Http3Error):
    """The peer violated HTTP/3, so this side closes the connection with `code`.

    Its subclasses are the breaches; a code that has none makes this one.
    """

    _kinds: ClassVar[dict[int, type[ProtocolError]]] = {}

    def __init_subclass__(cls) -> None:
        ProtocolError._kinds[cls.code] = cls

    @classmethod
    def of(cls, code: int, reason: str) -> ProtocolError:
        """Return the exception of the breach that a code stands for."""
        return cls._kinds.get(code, cls)(code, reason)

    def __init__(self, code: int, reason: str) -> None:
        detail = f": {printable(reason)}" if reason else ""
        super().__init__(f"the peer broke HTTP/3's rules ({code_name(code)}){detail}")
        self.code = code
        self.reason = reason


class StreamCreationError(ProtocolError):
    """It opened a stream that it must not open."""

    code = ErrorCode.STREAM_CREATION_ERROR


class ClosedCriticalStreamError(ProtocolError):
    """It closed a stream that the connection needs."""

    code = ErrorCode.CLOSED_CRITICAL_STREAM


class FrameUnexpectedError(ProtocolError):
    """It sent a frame in a place, or in a state, where it must not be."""

    code = ErrorCode.FRAME_UNEXPECTED


class FrameError(ProtocolError):
    """It sent a frame that is too long or too short."""

    code = ErrorCode.FRAME_ERROR


class ExcessiveLoadError(ProtocolError):
    """It makes this side work for nothing, or sends more than the limits allow."""

    code = ErrorCode.EXCESSIVE_LOAD


class IdError(ProtocolError):
    """It used an identifier that is reserved, or larger than an earlier one."""

    code = ErrorCode.ID_ERROR


class SettingsError(ProtocolError):
    """It sent a setting twice, one of HTTP/2, or one with an invalid value."""

    code = ErrorCode.SETTINGS_ERROR


class MissingSettingsError(ProtocolError):
    """Its control stream does not begin with SETTINGS."""

    code = ErrorCode.MISSING_SETTINGS


class DatagramError(ProtocolError):
    """It sent an HTTP datagram without a valid stream ID."""

    code = ErrorCode.DATAGRAM_ERROR


class QpackDecompressionError(ProtocolError):
    """A field section can't be decompressed."""

    code = ErrorCode.QPACK_DECOMPRESSION_FAILED


class QpackEncoderStreamError(ProtocolError):
    """Its QPACK encoder stream has an invalid instruction."""

    code = ErrorCode.QPACK_ENCODER_STREAM_ERROR


class QpackDecoderStreamError(ProtocolError):
    """Its QPACK decoder stream has an invalid instruction."""

    code = ErrorCode.QPACK_DECODER_STREAM_ERROR


class MessageError(Http3Error):
    """The peer's message is malformed (RFC 9114 section 4.1.2), or above the limits. Only its
    stream is reset, with `code`; or a server answers with `status`."""

    def __init__(self, code: int, what: str, status: int) -> None:
        super().__init__(f"the peer's message {what} ({code_name(code)})")
        self.code = code
        self.status = status


class GoingAwayError(Http3Error):
    """The peer sent GOAWAY: it has not processed the request, and accepts no more of them. It is
    safe to send the request again on another connection."""

    code = ErrorCode.REQUEST_REJECTED

    def __init__(self) -> None:
        super().__init__("the peer is going away, and has not processed the request")


class NotSupportedError(Http3Error):
    """The peer has not enabled what the request needs: extended CONNECT, or datagrams."""

    code = ErrorCode.SETTINGS_ERROR


class SessionRefusedError(Http3Error):
    """The server refused a WebTransport session, with `status`."""

    code = ErrorCode.REQUEST_REJECTED

    def __init__(self, status: int) -> None:
        super().__init__(f"the server refused the WebTransport session (status {status})")
        self.status = status
