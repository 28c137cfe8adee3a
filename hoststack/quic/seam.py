"""The QUIC engine seam: what the session layer asks of an engine and what an engine reports.

An engine is driven by turns (docs/architecture.md). One turn takes all datagrams that the link
has, feeds them to their connections, then lets every connection with something to say fill the
way out, and reports events. Nothing is called per packet across this seam. Stream data does not
cross it either: it lies in FIFOs that engine and application share.

Contexts are the engine's own objects. The session layer keeps a reference, sets `session` to its
handle, and passes the context back; it reads no other field than the ones declared here.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final, Literal, NamedTuple, Protocol

from hoststack.link.base import Endpoint
from hoststack.native.memory.fifo import Fifo
from hoststack.quic.session_cache import ServerSessions
from hoststack.quic.tls import TlsConfig


class EventKind(enum.IntEnum):
    """What happened. The second column is the event's context, the third its `info`."""

    ACCEPTED = 1  #: connection: a peer's, for the application; info None
    CONNECTED = 2  #: connection: ours, for the application; info None
    CLOSED = 3  #: connection is over, however that came; info CloseInfo. The last event of it.
    STREAM_OPENED = 4  #: stream: the peer opened it; info None
    READABLE = 5  #: stream: its rx FIFO got bytes or its end; connection: got datagrams; info None
    WRITABLE = 6  #: stream or connection: its tx FIFO got room; info None
    RESET = 7  #: stream: the peer sent RESET_STREAM; info the application's code
    STOPPED = 8  #: stream: the peer sent STOP_SENDING; info the application's code
    STREAM_CLOSED = 9  #: stream: both directions are finished and acknowledged; its last event.
    #: `Transport.allow_stream` lets the peer open another in its place.
    STREAMS_AVAILABLE = 10  #: connection: the peer allows more streams; info None
    SEND_FINISHED = 11  #: stream: the peer acknowledged all that we sent and its end (FIN or reset)
    DATAGRAMS_READY = 12  #: connection: its FIFOs are there; info the largest datagram, as now.
    #: The first one comes before ACCEPTED or CONNECTED, or HANDSHAKE_DONE after early data.
    PATH_CHANGED = 13  #: connection: `local` and `remote` are others now; info None
    MIGRATION_FAILED = 14  #: connection: it stays where it is, though `migrate` was asked for; None
    HANDSHAKE_DONE = 15  #: connection: its handshake, which was under way until now; info None


#: FIFOs of a stream where memory is scarce. The first is what a peer may send on a new stream
#: before it hears from us: more than clients send in a first flight (RFC 9002 section 7.2).
LEAST_RX_FIFO_BYTES: Final = 32 << 10
LEAST_TX_FIFO_BYTES: Final = 16 << 10

#: QUIC's versions by their names, as they are on the wire (RFC 9000, RFC 9369).
QUIC_VERSIONS = {1: 0x00000001, 2: 0x6B3343CF}

#: The reason of a CloseInfo whose handshake was not answered in time.
NO_ANSWER = "No answer"


#: Whether data were sent before the handshake was complete (0-RTT, RFC 9001 section 4.6), as one
#: side sees it: not at all; the handshake is still under way; it is complete; the server did not
#: want them, and they were sent again.
EarlyData = Literal["none", "pending", "accepted", "rejected"]


class Handshake(NamedTuple):
    """How a connection's handshake went, as far as it is."""

    early_data: EarlyData = "none"
    """ "pending" from ACCEPTED or CONNECTED on, if these came before the handshake was complete,
    until HANDSHAKE_DONE."""
    is_resumed: bool = False
    """Whether it resumed a session of before."""
    certificate: bytes | None = None
    """The peer's, DER; None if it showed none, or none again in a resumed session."""
    cipher: str | None = None
    """What packets are encrypted with, by TlsConfig's names; None until it is agreed on."""


#: The application code that streams are reset with, and connections closed with, when what was
#: sent is not all: 0 would make cut-off data look complete.
ABORTED_CODE: Final = 0x01


#: Of what a peer gives as its reason; the rest is cut off.
MAX_REASON_CHARACTERS = 1024


class CloseInfo(NamedTuple):
    """Why a connection ended (RFC 9000 section 10)."""

    code: int
    """The error code, the application's or the transport's; 0 is a clean end."""
    is_application: bool
    """Whether `code` is the application's (CONNECTION_CLOSE of type 0x1d)."""
    reason: str
    """What the closing side said, or what happened ("Idle timeout", "No answer", ...). It may hold
    anything: hoststack.printable is for showing it."""
    by_peer: bool

    def within_bounds(self) -> CloseInfo:
        """With a reason that fits into a message: a packet has room for more where its MTU has."""
        return self._replace(reason=self.reason[:MAX_REASON_CHARACTERS])


class ConnectionIds(NamedTuple):
    """What the packets of a connection are known by (RFC 9000 section 5.1)."""

    local: tuple[bytes, ...] = ()
    """Those that lead here; a peer may use any."""
    remote: bytes = b""
    """The peer's that packets carry now."""


class StreamContext(Protocol):
    """A stream, as the engine knows it."""

    session: int
    """The session layer's handle, -1 until it sets one."""

    @property
    def stream_id(self) -> int: ...
    @property
    def connection(self) -> ConnectionContext: ...
    @property
    def rx(self) -> Fifo | None:
        """The FIFO that the engine fills; None for a stream that only sends."""

    @property
    def tx(self) -> Fifo | None:
        """The FIFO that the engine sends from; None for a stream that only receives."""


class ConnectionContext(Protocol):
    """A connection, as the engine knows it."""

    session: int

    @property
    def listener(self) -> ListenerContext | None: ...
    @property
    def config(self) -> QuicConfig:
        """The one given to `connect`, or to the `listen` that it came in on."""

    @property
    def alpn(self) -> str | None:
        """The negotiated protocol."""

    @property
    def handshake(self) -> Handshake: ...
    @property
    def rx(self) -> Fifo | None:
        """The FIFO of messages that the engine fills with datagrams (RFC 9221); None if
        `QuicConfig.datagram_fifo_bytes` is 0, and before the handshake is complete."""

    @property
    def tx(self) -> Fifo | None:
        """The FIFO of messages that the engine sends datagrams from; None as `rx`."""

    @property
    def local(self) -> tuple[str, int]: ...
    @property
    def remote(self) -> tuple[str, int]: ...
    def connection_ids(self) -> ConnectionIds:
        """As they are now; none once the connection is over, or where it has no packets."""

    def statistics(self) -> dict[str, int | float]:
        """RTT (seconds), cwnd and in flight (bytes), packets and bytes by direction, lost."""


class ListenerContext(Protocol):
    """A listening endpoint."""

    session: int

    @property
    def local(self) -> tuple[str, int]: ...


class Event(NamedTuple):
    """One thing that happened in a turn."""

    kind: EventKind
    context: StreamContext | ConnectionContext
    info: int | CloseInfo | None = None


class Turn(NamedTuple):
    """What one turn did."""

    events: Sequence[Event]
    more: bool
    """There is work left that waits for nothing: call `turn` again after a checkpoint."""
    blocked: bool
    """Datagrams wait for the link: call `turn` again when the link is writable."""
    received: int
    sent: int


@dataclass(frozen=True, slots=True)
class QuicConfig:
    """What both engines can be told about connections. Sizes in bytes, times in seconds."""

    rx_fifo_bytes: int = 1 << 20
    """A stream's receive FIFO, and so its flow-control window; rounded up to a power of two. An
    application in another process whose FIFOs take much of what it may have gets smaller ones."""
    tx_fifo_bytes: int = 1 << 20
    """A stream's send FIFO; as `rx_fifo_bytes`."""
    datagram_fifo_bytes: int = 0
    """What waits each way on a connection's DATAGRAM frames (RFC 9221), rounded up to a power of
    two; 0 does not offer them. The native engine's."""
    connection_window_bytes: int = 4 << 20
    """Receive window of a connection over all its streams (RFC 9000 section 4.1)."""
    max_streams_bidi: int = 128
    max_streams_uni: int = 128
    idle_timeout_s: float = 30.0
    """Sent as max_idle_timeout; 0 means none (RFC 9000 section 10.1). For peers of a listener over
    UDP at least a second, and up to twice this."""
    handshake_timeout_s: float = 10.0
    """A connection whose handshake takes longer is closed with the reason NO_ANSWER."""
    congestion_control: str = "cubic"
    """cubic or reno; bbr with the native engine."""
    keep_alive_s: float = 0.0
    """Silence after which a PING keeps the connection alive; 0 never. It also shows the peer where
    a client behind a NAT is now that only receives. The native engine's."""
    probe_mtu: bool = True
    """Whether to find out by probes what the path carries (RFC 9000 section 14.3): until one is
    acknowledged, datagrams have 1,200 bytes. False takes the interface's MTU for granted; with the
    native engine after the handshake. In both cases a connection whose large datagrams are no
    longer acknowledged falls back to 1,200 bytes within some 7 PTOs, and tries larger ones again
    after 10 s, then less and less often."""
    retry_above_half_open: int | None = 128
    """Handshakes of peers under way in a worker from which on new ones must show that their
    address is theirs (Retry, RFC 9000 section 8.1.2), at the cost of a round trip: 0 always, None
    never."""
    half_open_per_source: int = 512
    """Handshakes under way that one proven address (of IPv6: one /64) may have in a worker, which
    has room for 1,024 in all. An address that wants more gives up its own oldest, or is refused;
    clients behind one NAT share this, and an honest handshake is under way for a round trip. The
    aioquic engine allows 64 at most."""
    early_data: bool = False
    """0-RTT (RFC 9001 section 4.6): a server offers it, a client uses it where a ticket of
    `TlsConfig.sessions` allows it. Needs exactly one application protocol."""
    version: int = 1
    """The QUIC version that a client begins with and prefers: 1 (RFC 9000) or 2 (RFC 9369). With a
    server that speaks only the other one it begins again (RFC 9368)."""
    preferred_addresses: tuple[str, ...] = ()
    """Where a server wants its clients after the handshake (RFC 9000 section 9.6): "10.0.0.3:1234"
    or "[fd00::3]:1234", one of each kind at most. It listens there too. The native engine's."""
    follow_preferred_address: bool = True
    """Whether a client goes there. The native engine does; aioquic never."""
    max_datagram_bytes: int | None = None
    """Upper bound on a UDP payload; None takes what the path's MTU carries."""
    packets_per_key: int = 1 << 22
    """Packets sent before keys are updated; RFC 9001 section 6.6 sets AES-GCM's limit at 2^23."""
    max_connections: int = 65536
    """Connections of one worker; further Initials are refused (RFC 9000 section 5.2.2)."""

    @property
    def least_rx_bytes(self) -> int:
        """A stream's receive FIFO where memory is scarce, and what a peer may send at once: the
        window takes in the rest of the FIFO as soon as the peer makes use of it."""
        return min(self.rx_fifo_bytes, LEAST_RX_FIFO_BYTES)

    @property
    def least_tx_bytes(self) -> int:
        """A stream's send FIFO where memory is scarce."""
        return min(self.tx_fifo_bytes, LEAST_TX_FIFO_BYTES)

    def __post_init__(self) -> None:
        """Raises ValueError for what no connection can be like."""
        for name, (least, most) in _CONFIG_LIMITS.items():
            value = getattr(self, name)
            # NaN is less than nothing and more than nothing.
            if value is not None and not least <= value <= most:
                raise ValueError(f"{name} is {least} to {most}, not {value}")


_CONFIG_LIMITS: dict[str, tuple[float, float]] = {
    "rx_fifo_bytes": (1, 1 << 32),
    "tx_fifo_bytes": (1, 1 << 32),
    "datagram_fifo_bytes": (0, 1 << 32),
    # RFC 9000 section 16: a variable-length integer; and 4.6 for streams.
    "connection_window_bytes": (0, (1 << 62) - 1),
    "max_streams_bidi": (0, 1 << 60),
    "max_streams_uni": (0, 1 << 60),
    "idle_timeout_s": (0, 1e9),
    "handshake_timeout_s": (0, 1e9),
    "keep_alive_s": (0, 1e9),
    "retry_above_half_open": (0, (1 << 30) - 1),
    "half_open_per_source": (1, (1 << 31) - 1),
    # RFC 9000 section 14: less is no QUIC; RFC 768 for more.
    "max_datagram_bytes": (1200, 65527),
    "packets_per_key": (1, 1 << 23),
    "max_connections": (0, (1 << 31) - 1),
}


def preferred_endpoints(config: QuicConfig) -> list[Endpoint]:
    """`QuicConfig.preferred_addresses`, parsed; raises ValueError with a line for the user."""
    endpoints = [Endpoint.parse(text) for text in config.preferred_addresses]
    for endpoint in endpoints:
        if not endpoint.port or ip_address(endpoint.host).is_unspecified:
            raise ValueError(
                f"{endpoint.host} port {endpoint.port} is nowhere that a client can go"
            )
    if len({ip_address(endpoint.host).version for endpoint in endpoints}) < len(endpoints):
        raise ValueError("there is one preferred address for IPv4, and one for IPv6")
    return endpoints


@dataclass(frozen=True, slots=True)
class CidConfig:
    """What our connection IDs carry (hoststack/quic/cid.py, bpf/steer.h)."""

    host: int = 0
    worker: int = 0
    rotation: int = 0


@dataclass(slots=True)
class EngineCounters:
    """What happened to datagrams that no connection could use, and to turns. Never reset; the last
    two are not counts, but what there is now."""

    turns: int = 0
    empty_turns: int = 0
    rx_datagrams: int = 0
    tx_datagrams: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    """Datagrams dropped, by reason: malformed, unknown_cid, unknown_version, refused, ..., and
    packets that a connection's keys do not open: undecryptable."""
    accepted: int = 0
    connected: int = 0
    closed: int = 0
    black_holes: int = 0
    """How often a connection fell back to datagrams of 1,200 bytes, because the path carried no
    larger ones any more (RFC 8899 section 4.3)."""
    key_updates: int = 0
    """Begun by this side (RFC 9001 section 6)."""
    retries: int = 0
    """Retry packets sent."""
    stateless_resets: int = 0
    """Sent, for packets of connections that are gone (RFC 9000 section 10.3)."""
    version_negotiations: int = 0
    """Sent (RFC 9000 section 6)."""
    tx_full: int = 0
    """Bursts that ended because the way out took no more."""
    rx_packets: dict[str, int] = field(default_factory=dict)
    """Packets by kind, each of those that share a datagram: initial, 0rtt, handshake, 1rtt; those
    that could be decrypted. The native engine's, as the next three."""
    tx_packets: dict[str, int] = field(default_factory=dict)
    rx_in_turns: tuple[int, ...] = ()
    """Turns by how many datagrams they received: 0, 1, 2 to 3, 4 to 7, ..., 64 or more."""
    tx_in_turns: tuple[int, ...] = ()
    """The same, by how many they sent."""
    connections: int = 0
    half_open: int = 0
    """Handshakes of peers that are under way."""

    def drop(self, reason: str, count: int = 1) -> None:
        """Count datagrams that were dropped."""
        self.dropped[reason] = self.dropped.get(reason, 0) + count


class Fifos(NamedTuple):
    """The FIFOs of a stream."""

    rx: Fifo | None
    """None for a stream that only sends."""
    tx: Fifo | None
    """None for a stream that only receives."""


class EngineOwner(Protocol):
    """What an engine asks in the middle of a turn: the session layer."""

    def make_stream_fifos(
        self, connection: ConnectionContext, *, has_rx: bool, has_tx: bool, is_peers: bool
    ) -> Fifos:
        """Make the FIFOs of a new stream, which belong to the application that will use it.

        They have the sizes of `connection.config`, or `least_rx_bytes` and `least_tx_bytes` where
        memory is scarce. Raises OSError and MemoryError where there is no room: a stream that the
        peer opens is refused then.
        """

    def make_datagram_fifos(self, connection: ConnectionContext) -> tuple[Fifo, Fifo]:
        """Make the FIFOs of a connection's datagrams: rx, tx. Raises as `make_stream_fifos`."""

    def find_path(self, connection: ConnectionContext, remote: tuple[str, int]) -> object | None:
        """A link's Path to another address of the peer's; None if there is no way."""


#: What engines offer at most, by their names: how many application protocols, and bytes of a name.
#: Of the native one it is what GnuTLS has room for. RFC 7301 section 3.1 ends names at 255 bytes,
#: and aioquic's hellos have 16 KiB for all that is in them.
_MOST_PROTOCOLS: Final = {"native": (8, 31), "aioquic": (32, 255)}


def check_protocols(alpn: Sequence[str], config: QuicConfig | None, engine: str) -> None:
    """Raises ValueError for application protocols that an engine can't offer, or not with
    `early_data`.

    `config` is None where it is a daemon's. RFC 9001 section 8.1: QUIC needs a protocol, by ALPN
    (RFC 7301). Names are ASCII here, as the registered ones. RFC 8446 section 4.2.10: early data
    are of the protocol that the ticket was made for.
    """
    if isinstance(alpn, str):
        raise ValueError(f"alpn is a list of application protocols: give [{alpn!r}]")
    most, most_bytes = _MOST_PROTOCOLS[engine]
    if not 0 < len(alpn) <= most:
        raise ValueError(
            f"the {engine} engine needs 1 to {most} application protocols (ALPN), not {len(alpn)}"
        )
    for name in alpn:
        if not 0 < len(name) <= most_bytes or not name.isascii():
            raise ValueError(
                f"an application protocol's name has 1 to {most_bytes} ASCII characters with the "
                f"{engine} engine, not {len(name)}: {name[:20]!r}"
            )
    if len(set(alpn)) < len(alpn):
        raise ValueError(f"an application protocol is named twice: {list(alpn)}")
    if config is not None and config.early_data and len(alpn) != 1:
        raise ValueError(
            "early data (0-RTT) is for one application protocol: give exactly one, or leave out "
            "early_data"
        )


class Transport(Protocol):
    """What carries connections, once they are there: an engine over the network, or cut-through
    (hoststack/transport/local/cut_through.py) within one stack. Both report the same events."""

    name: str

    def open_stream(
        self, connection: ConnectionContext, *, unidirectional: bool
    ) -> StreamContext | None:
        """Open a stream, its FIFOs made by the factory; None while the peer's limit forbids it
        (STREAMS_AVAILABLE tells when to try again)."""

    def send_ready(self, stream: StreamContext) -> None:
        """The application wrote into the tx FIFO, or set its end."""

    def consumed(self, stream: StreamContext) -> None:
        """The application read from the rx FIFO: the receive windows may move."""

    def allow_stream(self, connection: ConnectionContext, *, unidirectional: bool) -> None:
        """Let the peer open one more stream (MAX_STREAMS, RFC 9000 section 4.6).

        For one of its streams that is closed and that the application has taken. A transport does
        it by itself for a stream that it refused.
        """

    def send_datagrams(self, connection: ConnectionContext) -> None:
        """The application wrote a message into the connection's tx FIFO."""

    def reset_stream(self, stream: StreamContext, code: int) -> None:
        """Send RESET_STREAM: what the tx FIFO still holds is given up."""

    def stop_sending(self, stream: StreamContext, code: int) -> None:
        """Send STOP_SENDING: what comes on the stream from now on is thrown away."""

    def update_key(self, connection: ConnectionContext) -> None:
        """Change the keys (RFC 9001 section 6), unless the last change is not confirmed yet."""

    def close(self, connection: ConnectionContext, code: int, reason: str) -> None:
        """Close at once with the application's code; CLOSED follows."""

    def shutdown(self, code: int, reason: str) -> None:
        """Close every connection. An engine sends the CONNECTION_CLOSE packets in a last `turn`."""


class Engine(Transport, Protocol):
    """A QUIC engine. All calls come from the worker's own loop; none blocks."""

    can_spin: bool
    """Whether `turn` heeds `spin_s`."""
    congestion_controls: tuple[str, ...]
    """What it takes as `QuicConfig.congestion_control`."""

    @property
    def counters(self) -> EngineCounters: ...

    def listen(
        self, local: tuple[str, int], tls: TlsConfig, alpn: Sequence[str], config: QuicConfig
    ) -> ListenerContext:
        """Accept connections on a local endpoint that the link has opened.

        Raises TlsConfigError for a certificate or key that cannot be used.
        """

    def unlisten(self, listener: ListenerContext) -> None:
        """Accept no more; accepted connections live on."""

    def connect(
        self,
        path: object,
        server_name: str,
        tls: TlsConfig,
        alpn: Sequence[str],
        config: QuicConfig,
        sessions: ServerSessions | None = None,
    ) -> ConnectionContext:
        """Start a connection along a link's Path; CONNECTED or CLOSED follows. From `sessions` it
        takes a ticket and a token, and there it keeps those that come."""

    def migrate(self, connection: ConnectionContext, path: object) -> None:
        """Move a connection of ours to a link's Path from another local endpoint, as soon as the
        peer allows it; PATH_CHANGED or MIGRATION_FAILED follows. Raises ValueError if it never
        can."""

    def stay(self, connection: ConnectionContext) -> None:
        """Do not migrate, if that has not begun yet; MIGRATION_FAILED follows then."""

    def turn(self, now: float, spin_s: float = 0.0) -> Turn:
        """One burst in, one burst out; with nothing to tell, look for more for `spin_s`."""

    @property
    def next_deadline(self) -> float | None:
        """When `turn` must be called though nothing came, on the clock of `now`."""

    def connections(self) -> Sequence[ConnectionContext]:
        """All live connections, for listing."""
