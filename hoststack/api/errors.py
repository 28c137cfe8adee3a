"""What the public API raises, beside trio's own ClosedResourceError and BusyResourceError."""

from __future__ import annotations

from typing import TypeVar

import trio

from hoststack.boundary.uri import UriError
from hoststack.link.base import LinkError
from hoststack.quic.seam import CloseInfo
from hoststack.quic.tls import TlsConfigError
from hoststack.session.namespaces import NamespaceError
from hoststack.session.rules import RuleError
from hoststack.text import printable

__all__ = [
    "AttachError",
    "ConnectError",
    "ConnectionClosedError",
    "LinkError",
    "MigrationError",
    "NamespaceError",
    "RuleError",
    "StreamResetError",
    "StreamStoppedError",
    "TlsConfigError",
    "UriError",
]

E = TypeVar("E", bound=Exception)


class AttachError(OSError):
    """There is no daemon to attach to, or it refuses; the message says what to do."""


class ConnectError(OSError):
    """A connection did not come about; the message says why and what to do."""


class MigrationError(OSError):
    """A connection did not move. It lives on where it was; the message says why it did."""


class ConnectionClosedError(trio.BrokenResourceError):
    """The connection is over (RFC 9000 section 10).

    `code` is the QUIC error code: the application's if `is_application`, else the transport's.
    `reason` is what the peer said, as it said it: the exception's own text has it escaped.
    """

    def __init__(self, info: CloseInfo) -> None:
        who = "the peer" if info.by_peer else "this side"
        kind = "application" if info.is_application else "transport"
        reason = f": {printable(info.reason)}" if info.reason else ""
        super().__init__(f"{who} closed the connection ({kind} code {info.code:#x}){reason}")
        self.code = info.code
        self.is_application = info.is_application
        self.reason = info.reason
        self.by_peer = info.by_peer


class StreamResetError(trio.BrokenResourceError):
    """The peer reset its sending side with an application code (RFC 9000 section 19.4)."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the peer reset the stream (code {code:#x})")
        self.code = code


class StreamStoppedError(trio.BrokenResourceError):
    """The peer reads no more, with an application code (STOP_SENDING, RFC 9000 section 19.5)."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the peer stopped reading the stream (code {code:#x})")
        self.code = code


def renewed(error: E) -> E:
    """Return the same exception without a traceback, to raise one that is kept more than once.

    The traceback of a kept exception leads to the frames that keep it, and so to what they use: a
    cycle, which holds a stream's memory until some garbage collection.
    """
    again = type(error).__new__(type(error), *error.args)
    again.__dict__.update(error.__dict__)
    again.__cause__ = error.__cause__
    return again
