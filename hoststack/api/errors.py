"""Exceptions of the public API, beside trio's own ClosedResourceError and BusyResourceError."""

from __future__ import annotations

import errno
from typing import Final, Literal

import trio

from hoststack.boundary.uri import UriError
from hoststack.link.base import LinkError
from hoststack.quic.certificate import TlsConfigError
from hoststack.quic.seam import CloseInfo
from hoststack.session.namespaces import NamespaceError
from hoststack.session.rules import RuleError
from hoststack.text import printable

__all__ = [
    "AttachError",
    "ConnectError",
    "ConnectionClosedError",
    "EndpointError",
    "ErrorKind",
    "LinkError",
    "ListenError",
    "MigrationError",
    "NamespaceError",
    "RuleError",
    "StreamResetError",
    "StreamStoppedError",
    "TlsConfigError",
    "UriError",
]


class AttachError(OSError):
    """There is no daemon to attach to, or it refuses; the message says what to do."""


#: The values of EndpointError.kind.
ErrorKind = Literal[
    "address",
    "in use",
    "unreachable",
    "timeout",
    "refused",
    "tls",
    "alpn",
    "forbidden",
    "limit",
    "ended",
    "unsupported",
    "other",
]

_KINDS: Final[dict[int, ErrorKind]] = {
    errno.EADDRNOTAVAIL: "address",
    errno.EADDRINUSE: "in use",
    errno.ENETUNREACH: "unreachable",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETDOWN: "unreachable",
    errno.ENODEV: "unreachable",
    errno.ETIMEDOUT: "timeout",
    errno.ECONNREFUSED: "refused",
    errno.EPROTO: "tls",
    errno.EPROTONOSUPPORT: "alpn",
    errno.EACCES: "forbidden",
    errno.EPERM: "forbidden",
    errno.ENOMEM: "limit",
    errno.EMFILE: "limit",
    errno.ENFILE: "limit",
    errno.ENOBUFS: "limit",
    errno.EMSGSIZE: "limit",
    errno.ESHUTDOWN: "ended",
    errno.ECONNRESET: "ended",
    errno.EINVAL: "unsupported",
    errno.ENOTSUP: "unsupported",
}


class EndpointError(OSError):
    """A connection or a listener could not be opened. The message says why and what to do."""

    @property
    def kind(self) -> ErrorKind:
        """Why, for programs; `errno` has the details.

        - "address": the name or address is unknown, or not one of this machine.
        - "in use": another program or application listens there.
        - "unreachable": no route, no neighbour, no interface.
        - "timeout": no answer.
        - "refused": no program listens there, or the peer closed the connection.
        - "tls": the handshake failed: check certificate, name and trusted CAs.
        - "alpn": the sides have no application protocol in common.
        - "forbidden": by a session rule, or for want of privileges.
        - "limit": of memory, sessions, open files or sizes.
        - "ended": the stack, its worker or the daemon has ended.
        - "unsupported": by the engine, the link or the protocol.
        - "other": see `errno` and the message.
        """
        return _KINDS.get(self.errno or 0, "other")


class ConnectError(EndpointError):
    """A connection could not be established."""


class ListenError(EndpointError):
    """A listener could not be opened."""


class MigrationError(OSError):
    """A migration failed, and the connection stays on its old path; the message says why."""


class ConnectionClosedError(trio.BrokenResourceError, ConnectionError):
    """The connection is closed (RFC 9000 section 10).

    `code` is the QUIC error code: the application's if `is_application`, else the transport's.
    `reason` is the peer's text, unescaped; the exception's own message has it escaped.
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


class StreamResetError(trio.BrokenResourceError, ConnectionResetError):
    """The peer reset its sending side with an application code (RFC 9000 section 19.4)."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the peer reset the stream (code {code:#x})")
        self.code = code


class StreamStoppedError(trio.BrokenResourceError, BrokenPipeError):
    """The peer stopped reading, with an application code (STOP_SENDING, RFC 9000 section 19.5)."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the peer stopped reading the stream (code {code:#x})")
        self.code = code
