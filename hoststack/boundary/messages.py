"""Control messages between an application and a worker.

The application sends requests; the worker sends replies and notices. A reply carries the request's
`token`, which the application chose. Streams have no messages: their data is in FIFOs, and what
happens to them is in the event rings.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

from hoststack.boundary.protocols import Config, Protocol, UdpConfig
from hoststack.native.memory.fifo import Fifo
from hoststack.native.session._session import lib
from hoststack.quic.seam import CloseInfo, Handshake
from hoststack.quic.session_cache import Ticket
from hoststack.quic.tls import TlsConfig


class Command(enum.IntEnum):
    """What an application tells its worker about the session whose handle comes with it. Those of
    streams are in C (native/session/records.h)."""

    SENT = int(lib.HS_COMMAND_SENT)  #: the tx FIFO has bytes, or its end
    CONSUMED = int(lib.HS_COMMAND_CONSUMED)  #: bytes were read from the rx FIFO
    TAKEN = int(lib.HS_COMMAND_TAKEN)  #: the program accepted the connection of an Accepted
    NOTED = int(lib.HS_COMMAND_NOTED)  #: the program read the last PathChanged and DatagramsReady
    OPEN = int(lib.HS_COMMAND_OPEN)  #: open a stream in the connection


class EventCode(enum.IntEnum):
    """What a worker tells an application about the datagrams of a connection."""

    READABLE = int(lib.HS_NEWS_READABLE)  #: the rx FIFO has some
    WRITABLE = int(lib.HS_NEWS_WRITABLE)  #: the tx FIFO has room


class Known(NamedTuple):
    """Resumption state of a server: what a client in another process has stored, or what a
    connection has learned."""

    ticket: Ticket | None
    token: bytes
    """From a NEW_TOKEN frame; empty for none."""


# --- requests -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Listen:
    token: int
    local: tuple[str, int]
    tls: TlsConfig
    alpn: tuple[str, ...]
    config: Config | None
    """Settings of the protocol; None: the worker's default."""
    protocol: Protocol = "quic"


@dataclass(frozen=True, slots=True)
class Bind:
    """Open an unconnected UDP endpoint (transport/kernel/udp.py). The answer is Connected and
    DatagramsReady."""

    token: int
    local: tuple[str, int]
    config: UdpConfig | None


@dataclass(frozen=True, slots=True)
class Connect:
    token: int
    remote: tuple[str, int]
    server_name: str
    tls: TlsConfig
    alpn: tuple[str, ...]
    config: Config | None
    """Settings of the protocol; None: the worker's default."""
    known: Known | None = None
    """Contents of `TlsConfig.sessions` in another process; None if that has no cache."""
    protocol: Protocol = "quic"


@dataclass(frozen=True, slots=True)
class Cancel:
    """Cancel the request `token`, whether or not its reply is under way."""

    token: int


@dataclass(frozen=True, slots=True)
class Unlisten:
    handle: int


@dataclass(frozen=True, slots=True)
class ReplaceTls:
    """Use other certificates in a listener's handshakes from now on. The answer is Done."""

    token: int
    handle: int
    tls: TlsConfig
    alpn: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CloseConnection:
    handle: int
    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class UpdateKey:
    """Change a connection's keys (RFC 9001 section 6)."""

    handle: int


@dataclass(frozen=True, slots=True)
class Migrate:
    """Move a client connection to a new port (0: any) of a local address (None: the route's)."""

    token: int
    handle: int
    local: tuple[str, int] | None


@dataclass(frozen=True, slots=True)
class GetStatistics:
    token: int
    handle: int


#: Requests with certificates, keys or trusted CAs.
WithKeys = Listen | Connect | ReplaceTls

Request = (
    Listen
    | Bind
    | Connect
    | Cancel
    | Unlisten
    | ReplaceTls
    | CloseConnection
    | UpdateKey
    | Migrate
    | GetStatistics
)


# --- replies and notices --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Failed:
    """The request `token` failed; `text` is one line for the user."""

    token: int
    errno: int
    text: str


@dataclass(frozen=True, slots=True)
class Listening:
    token: int
    handle: int
    local: tuple[str, int]


@dataclass(frozen=True, slots=True)
class Connected:
    token: int
    handle: int
    local: tuple[str, int]
    remote: tuple[str, int]
    alpn: str | None
    handshake: Handshake


@dataclass(frozen=True, slots=True)
class Accepted:
    """A listener accepted a peer's connection."""

    listener: int
    handle: int
    local: tuple[str, int]
    remote: tuple[str, int]
    alpn: str | None
    handshake: Handshake


@dataclass(frozen=True, slots=True)
class ListenerLost:
    """A listener ended without the application's request; `text` says why."""

    handle: int
    text: str


@dataclass(frozen=True, slots=True)
class ReloadRequested:
    """Someone asks for certificates to be read again. Each worker sends it."""


@dataclass(frozen=True, slots=True)
class HandshakeDone:
    """The handshake of a connection that began with early data is complete."""

    handle: int
    handshake: Handshake


@dataclass(frozen=True, slots=True)
class StreamsAvailable:
    """The peer allows more streams on a connection whose application waited for that."""

    handle: int


@dataclass(frozen=True, slots=True)
class DatagramsReady:
    """A connection carries datagrams of up to `max_bytes` from now on, in these FIFOs of messages.
    Events about them carry the connection's handle. Sent again when the limit changes."""

    handle: int
    rx: Fifo
    tx: Fifo
    max_bytes: int


@dataclass(frozen=True, slots=True)
class Closed:
    """A connection and all its streams are closed."""

    handle: int
    info: CloseInfo


@dataclass(frozen=True, slots=True)
class PathChanged:
    """A connection uses new addresses; either side may have caused that."""

    handle: int
    local: tuple[str, int]
    remote: tuple[str, int]


@dataclass(frozen=True, slots=True)
class Done:
    """A Migrate or ReplaceTls is done."""

    token: int


@dataclass(frozen=True, slots=True)
class Learned:
    """The connection of the Connect `token` received a ticket or token for `TlsConfig.sessions` of
    the application's process."""

    token: int
    known: Known


@dataclass(frozen=True, slots=True)
class Statistics:
    """Statistics of a connection; RTT in seconds, sizes in bytes."""

    token: int
    figures: dict[str, int | float]


Answer = Failed | Statistics | Listening | Connected | Done

Notice = (
    Answer
    | Accepted
    | ListenerLost
    | ReloadRequested
    | HandshakeDone
    | StreamsAvailable
    | DatagramsReady
    | PathChanged
    | Learned
    | Closed
)
