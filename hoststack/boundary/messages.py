"""Control messages between an application and a worker.

Requests go down; replies and notices come up. A reply carries the request's `token`, which the
application chose. Stream data is not among them: it lies in the FIFOs, and the events about it
(`EventCode`) go through the event rings.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

from hoststack.boundary.protocols import Protocol
from hoststack.native.memory.fifo import Fifo
from hoststack.quic.seam import CloseInfo, Handshake, QuicConfig
from hoststack.quic.session_cache import Ticket
from hoststack.quic.tls import TlsConfig


class EventCode(enum.IntEnum):
    """Kinds of the events in the rings; each is about the session whose handle it carries."""

    READABLE = 1  #: up: the rx FIFO has bytes, or its end
    WRITABLE = 2  #: up: the tx FIFO has room
    SENT = 3  #: down: the tx FIFO has bytes, or its end
    CONSUMED = 4  #: down: the rx FIFO was read from
    TAKEN = 5  #: down: the program has the connection or stream of an Accepted or StreamAccepted
    NOTED = 6  #: down: a connection's last PathChanged and DatagramsReady were taken


class Known(NamedTuple):
    """What a client in another process knows of a server, or a connection learned of it."""

    ticket: Ticket | None
    token: bytes
    """Of a NEW_TOKEN frame; empty for none."""


# --- requests -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Listen:
    token: int
    local: tuple[str, int]
    tls: TlsConfig
    alpn: tuple[str, ...]
    config: QuicConfig | None
    """None: the worker's default."""
    protocol: Protocol = "quic"


@dataclass(frozen=True, slots=True)
class Bind:
    """Open a UDP endpoint that talks to any peer (transport/kernel/udp.py); Connected and
    DatagramsReady are the answer."""

    token: int
    local: tuple[str, int]
    config: QuicConfig | None


@dataclass(frozen=True, slots=True)
class Connect:
    token: int
    remote: tuple[str, int]
    server_name: str
    tls: TlsConfig
    alpn: tuple[str, ...]
    config: QuicConfig | None
    """None: the worker's default."""
    known: Known | None = None
    """From another process: what its `TlsConfig.sessions` has; None if it keeps nothing."""
    protocol: Protocol = "quic"


@dataclass(frozen=True, slots=True)
class OpenStream:
    token: int
    connection: int
    unidirectional: bool


@dataclass(frozen=True, slots=True)
class Cancel:
    """Give up the request `token`, whether its reply is under way or not."""

    token: int


@dataclass(frozen=True, slots=True)
class Unlisten:
    handle: int


@dataclass(frozen=True, slots=True)
class CloseConnection:
    handle: int
    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class ResetStream:
    handle: int
    code: int


@dataclass(frozen=True, slots=True)
class StopSending:
    handle: int
    code: int


@dataclass(frozen=True, slots=True)
class UpdateKey:
    """Change a connection's keys (RFC 9001 section 6)."""

    handle: int


@dataclass(frozen=True, slots=True)
class Migrate:
    """Move a connection of ours to a new port (0: any) of a local address (None: the route's)."""

    token: int
    handle: int
    local: tuple[str, int] | None


@dataclass(frozen=True, slots=True)
class GetStatistics:
    token: int
    handle: int


Request = (
    Listen
    | Bind
    | Connect
    | OpenStream
    | Cancel
    | Unlisten
    | CloseConnection
    | ResetStream
    | StopSending
    | UpdateKey
    | Migrate
    | GetStatistics
)


# --- replies and notices --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Failed:
    """The request `token` could not be met; `text` is one line for the user."""

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
class StreamReady:
    """A stream of ours is open."""

    token: int
    connection: int
    handle: int
    stream_id: int
    rx: Fifo | None
    tx: Fifo | None


@dataclass(frozen=True, slots=True)
class Accepted:
    """A peer's connection came to a listener."""

    listener: int
    handle: int
    local: tuple[str, int]
    remote: tuple[str, int]
    alpn: str | None
    handshake: Handshake


@dataclass(frozen=True, slots=True)
class ListenerLost:
    """Nobody comes to a listener any more, and not by the application's doing; `text` says why."""

    handle: int
    text: str


@dataclass(frozen=True, slots=True)
class HandshakeDone:
    """The handshake of a connection that began with early data is complete."""

    handle: int
    handshake: Handshake


@dataclass(frozen=True, slots=True)
class StreamAccepted:
    """The peer opened a stream."""

    connection: int
    handle: int
    stream_id: int
    rx: Fifo | None
    tx: Fifo | None


@dataclass(frozen=True, slots=True)
class DatagramsReady:
    """A connection carries datagrams of up to `max_bytes` now, in these FIFOs of messages. The
    events about them carry the connection's handle. Comes again when the limit changes."""

    handle: int
    rx: Fifo
    tx: Fifo
    max_bytes: int


@dataclass(frozen=True, slots=True)
class Closed:
    """A connection is over, and its streams with it."""

    handle: int
    info: CloseInfo


@dataclass(frozen=True, slots=True)
class StreamReset:
    handle: int
    code: int


@dataclass(frozen=True, slots=True)
class StreamStopped:
    handle: int
    code: int


@dataclass(frozen=True, slots=True)
class SendFinished:
    """All that was sent on a stream, and its end, is acknowledged."""

    handle: int


@dataclass(frozen=True, slots=True)
class PathChanged:
    """A connection uses other addresses now, by either side's doing."""

    handle: int
    local: tuple[str, int]
    remote: tuple[str, int]


@dataclass(frozen=True, slots=True)
class Migrated:
    token: int


@dataclass(frozen=True, slots=True)
class Learned:
    """The connection of the Connect `token` learned something for `TlsConfig.sessions`, which is in
    another process."""

    token: int
    known: Known


@dataclass(frozen=True, slots=True)
class Statistics:
    """What is known of a connection; RTT in seconds, sizes in bytes."""

    token: int
    figures: dict[str, int | float]


Notice = (
    Failed
    | Statistics
    | Listening
    | Connected
    | StreamReady
    | Accepted
    | ListenerLost
    | HandshakeDone
    | StreamAccepted
    | DatagramsReady
    | PathChanged
    | Migrated
    | Learned
    | Closed
    | StreamReset
    | StreamStopped
    | SendFinished
)
