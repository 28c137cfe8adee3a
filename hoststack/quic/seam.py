"""The interface between the session layer and a QUIC engine: calls, and the events it reports.

An engine works in turns (docs/architecture.md). One turn receives all datagrams that the link has,
passes them to their connections, lets every connection with something to send fill the transmit
queue, and reports events. Nothing is called per packet across this interface. Stream data does not
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
    CLOSED = 3  #: connection has ended, for any reason; info CloseInfo. Its last event.
    STREAM_OPENED = 4  #: stream: the peer opened it; info None. Events of streams are reported by
    #: a transport in Python alone.
    READABLE = 5  #: stream: its rx FIFO got bytes or its end; connection: got datagrams; info None
    WRITABLE = 6  #: stream or connection: its tx FIFO got room; info None
    RESET = 7  #: stream: the peer sent RESET_STREAM; info the application's code
    STOPPED = 8  #: stream: the peer sent STOP_SENDING; info the application's code
    STREAM_CLOSED = 9  #: stream: both directions are finished and acknowledged; its last event.
    #: `StreamsInPython.allow_stream` lets the peer open another in its place.
    STREAMS_AVAILABLE = 10  #: connection: the peer allows more streams; info None
    SEND_FINISHED = 11  #: stream: the peer acknowledged all data and the end (FIN or reset)
    DATAGRAMS_READY = 12  #: connection: its FIFOs exist; info the largest datagram, for now.
    #: The first one comes before ACCEPTED or CONNECTED, or HANDSHAKE_DONE after early data.
    PATH_CHANGED = 13  #: connection: `local` and `remote` have changed; info None
    MIGRATION_FAILED = 14  #: connection: it keeps its path, though `migrate` was called; info None
    HANDSHAKE_DONE = 15  #: connection: its handshake, which continued after early data; info None


#: FIFOs of a stream where memory is scarce. The first is what a peer may send on a new stream
#: before our first packet: more than clients send in a first flight (RFC 9002 section 7.2).
LEAST_RX_FIFO_BYTES: Final = 32 << 10
LEAST_TX_FIFO_BYTES: Final = 16 << 10

#: QUIC's versions by number, and their wire values (RFC 9000, RFC 9369).
QUIC_VERSIONS = {1: 0x00000001, 2: 0x6B3343CF}

#: The reason in CloseInfo if the peer did not answer the handshake in time.
NO_ANSWER = "No answer"


#: Whether data were sent before the handshake was complete (0-RTT, RFC 9001 section 4.6), as one
#: side sees it: not at all; the handshake is still in progress; the server accepted them; the
#: server rejected them, and they were sent again.
EarlyData = Literal["none", "pending", "accepted", "rejected"]


class Handshake(NamedTuple):
    """How a connection's handshake went, so far."""

    early_data: EarlyData = "none"
    """ "pending" from ACCEPTED or CONNECTED on, if these came before the handshake was complete,
    until HANDSHAKE_DONE."""
    is_resumed: bool = False
    """Whether it resumed an earlier session."""
    certificates: tuple[bytes, ...] = ()
    """The peer's chain, DER, the leaf first; none if it sent none, or none again in a resumed
    session. Those beyond certificate.MAX_CHAIN_BYTES are left out."""
    cipher: str | None = None
    """The packets' cipher, by TlsConfig's names; None until it is negotiated."""
    server_name: str | None = None
    """What the client asked for (SNI), in lower case."""
    own_certificate: bytes | None = None
    """The leaf that this side presented, DER; None if it presented none."""


#: The application code for resetting streams, and closing connections, whose data is incomplete: 0
#: would make truncated data look complete.
ABORTED_CODE: Final = 0x01


#: Limit of a peer's reason; the rest is cut off.
MAX_REASON_CHARACTERS = 1024


class CloseInfo(NamedTuple):
    """Why a connection ended (RFC 9000 section 10)."""

    code: int
    """The error code, the application's or the transport's; 0 means a clean end."""
    is_application: bool
    """Whether `code` is the application's (CONNECTION_CLOSE of type 0x1d)."""
    reason: str
    """What the closing side gave as its reason, or what happened ("Idle timeout", "No answer",
    ...). A peer may put any text here: show it with hoststack.printable."""
    by_peer: bool

    def within_bounds(self) -> CloseInfo:
        """Return it with a reason that fits into a message: packets with a large MTU have more."""
        return self._replace(reason=self.reason[:MAX_REASON_CHARACTERS])


class ConnectionIds(NamedTuple):
    """The connection IDs of a connection's packets (RFC 9000 section 5.1)."""

    local: tuple[bytes, ...] = ()
    """Those that we issued; the peer may use any."""
    remote: bytes = b""
    """The peer's, which our packets carry now."""


class Credentials(NamedTuple):
    """A TLS configuration that an engine has loaded, and the application protocols for it."""

    tls: TlsConfig
    alpn: Sequence[str]
    context: object
    """The engine's own."""


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
    def config(self) -> FifoConfig:
        """The configuration of `connect`, or of the `listen` that accepted it."""

    @property
    def alpn(self) -> str | None:
        """The negotiated protocol."""

    @property
    def handshake(self) -> Handshake: ...
    @property
    def rx(self) -> Fifo | None:
        """The message FIFO into which the engine puts datagrams (RFC 9221); None if
        `QuicConfig.datagram_fifo_bytes` is 0, and before the handshake is complete."""

    @property
    def tx(self) -> Fifo | None:
        """The message FIFO from which the engine sends datagrams; None as `rx`."""

    @property
    def local(self) -> tuple[str, int]: ...
    @property
    def remote(self) -> tuple[str, int]: ...
    def connection_ids(self) -> ConnectionIds:
        """Return the current ones; none once the connection has ended, or if it has no packets."""

    def statistics(self) -> dict[str, int | float]:
        """Return RTT (s), cwnd and in flight (bytes), packets and bytes by direction, lost."""


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
    """The result of one turn."""

    events: Sequence[Event]
    more: bool
    """There is work left that can continue at once: call `turn` again after a checkpoint."""
    blocked: bool
    """Datagrams wait for the link: call `turn` again when the link is writable."""
    received: int
    sent: int
    held: bool = False
    """Acknowledgements wait for programs' answers: call `turn` again after those, or soon."""


@dataclass(frozen=True, slots=True)
class FifoConfig:
    """Sizes of FIFOs, as all protocols have them: bytes, rounded up to a power of two."""

    rx_fifo_bytes: int = 1 << 20
    """The receive FIFO, of QUIC each stream's, whose flow-control window it is. An application in
    another process gets smaller ones when its FIFOs use much of its limit."""
    tx_fifo_bytes: int = 1 << 20
    """The send FIFO; as `rx_fifo_bytes`."""

    @property
    def least_rx_bytes(self) -> int:
        """A stream's receive FIFO where memory is scarce, and the first window of every stream: the
        window grows to the whole FIFO when the application reads what comes."""
        return min(self.rx_fifo_bytes, LEAST_RX_FIFO_BYTES)

    @property
    def least_tx_bytes(self) -> int:
        """A stream's send FIFO where memory is scarce."""
        return min(self.tx_fifo_bytes, LEAST_TX_FIFO_BYTES)

    def __post_init__(self) -> None:
        """Check the settings; raises ValueError."""
        for name, (least, most) in _CONFIG_LIMITS.items():
            value = getattr(self, name, None)
            # Not `value < least`, which is false for NaN.
            if value is not None and not least <= value <= most:
                raise ValueError(f"{name} is {least} to {most}, not {value}")


@dataclass(frozen=True, slots=True)
class QuicConfig(FifoConfig):
    """Settings of QUIC connections, for both engines. Sizes in bytes, times in seconds."""

    datagram_fifo_bytes: int = 0
    """FIFO of each direction for a connection's DATAGRAM frames (RFC 9221), rounded up to a power
    of two; 0 does not offer them."""
    connection_window_bytes: int = 4 << 20
    """Receive window of a connection over all its streams (RFC 9000 section 4.1)."""
    max_streams_bidi: int = 128
    max_streams_uni: int = 128
    idle_timeout_s: float = 30.0
    """Sent as max_idle_timeout; 0 means none (RFC 9000 section 10.1)."""
    handshake_timeout_s: float = 10.0
    """A connection whose handshake takes longer is closed with the reason NO_ANSWER."""
    congestion_control: str = "cubic"
    """cubic or reno; bbr with the native engine."""
    keep_alive_s: float = 0.0
    """Silence after which a PING keeps the connection alive; 0 never. It also shows the peer the
    current address of a client behind a NAT that only receives. Only the native engine does it."""
    probe_mtu: bool = True
    """Whether to probe the size of datagrams that the path carries (RFC 9000 section 14.3): until a
    probe is acknowledged, datagrams have 1,200 bytes. False trusts the interface's MTU; with the
    native engine after the handshake. In both cases a connection whose large datagrams are no
    longer acknowledged falls back to 1,200 bytes within some 7 PTOs, and tries larger ones again
    after 10 s, then less and less often."""
    retry_above_half_open: int | None = 128
    """The number of peers' handshakes in progress in a worker from which on new clients must
    validate their address (Retry, RFC 9000 section 8.1.2), at the cost of a round trip: 0 always,
    None never."""
    half_open_per_source: int = 512
    """Handshakes in progress that one validated address (of IPv6: one /64) may have in a worker,
    which has room for 1,024 in all. Another one replaces the oldest of that address, or is refused;
    clients behind one NAT share this limit, and an honest handshake is in progress for a round
    trip. The aioquic engine allows 64 at most."""
    early_data: bool = False
    """0-RTT (RFC 9001 section 4.6): a server offers it, a client uses it where a ticket of
    `TlsConfig.sessions` allows it. Needs exactly one application protocol."""
    version: int = 1
    """The QUIC version that a client starts with and prefers: 1 (RFC 9000) or 2 (RFC 9369). If the
    server speaks only the other one, the client starts again with that (RFC 9368)."""
    preferred_addresses: tuple[str, ...] = ()
    """The addresses to which a server moves its clients after the handshake (RFC 9000 section 9.6):
    "10.0.0.3:1234" or "[fd00::3]:1234", one of each family at most. It listens there too. Only the
    native engine does it."""
    follow_preferred_address: bool = True
    """Whether a client moves to the server's. The native engine does; aioquic never."""
    max_datagram_bytes: int | None = None
    """Upper bound on a UDP payload; None allows what the path's MTU carries."""
    packets_per_key: int = 1 << 22
    """Packets sent before keys are updated; RFC 9001 section 6.6 sets AES-GCM's limit at 2^23."""
    max_connections: int = 65536
    """Connections of one worker; further Initials are refused (RFC 9000 section 5.2.2)."""


#: Of the settings of all protocols.
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
    "connect_timeout_s": (0, 1e9),
    "keep_alive_s": (0, 1e9),
    "retry_above_half_open": (0, (1 << 30) - 1),
    "half_open_per_source": (1, (1 << 31) - 1),
    # RFC 9000 section 14: QUIC does not allow less; RFC 768 for more.
    "max_datagram_bytes": (1200, 65527),
    "packets_per_key": (1, 1 << 23),
    "max_connections": (0, (1 << 31) - 1),
}


def preferred_endpoints(config: QuicConfig) -> list[Endpoint]:
    """Parse `QuicConfig.preferred_addresses`; raises ValueError with a line for the user."""
    endpoints = [Endpoint.parse(text) for text in config.preferred_addresses]
    for endpoint in endpoints:
        if not endpoint.port or ip_address(endpoint.host).is_unspecified:
            raise ValueError(
                f"{endpoint.host} port {endpoint.port} is not an address that a client can use"
            )
    if len({ip_address(endpoint.host).version for endpoint in endpoints}) < len(endpoints):
        raise ValueError("give one preferred address for IPv4, and one for IPv6, at most")
    return endpoints


@dataclass(frozen=True, slots=True)
class CidConfig:
    """The contents of our connection IDs (hoststack/quic/cid.py, bpf/steer.h)."""

    host: int = 0
    worker: int = 0
    rotation: int = 0


@dataclass(slots=True)
class EngineCounters:
    """Counters of datagrams that no connection could use, and of turns. They are never reset; the
    last two are current values, not counts."""

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
    """How often a connection fell back to datagrams of 1,200 bytes, because the path no longer
    carried larger ones (RFC 8899 section 4.3)."""
    key_updates: int = 0
    """Key updates that this side initiated (RFC 9001 section 6)."""
    retries: int = 0
    """Retry packets sent."""
    stateless_resets: int = 0
    """Stateless resets sent, for packets of past connections (RFC 9000 section 10.3)."""
    version_negotiations: int = 0
    """Version Negotiation packets sent (RFC 9000 section 6)."""
    tx_full: int = 0
    """Bursts that ended because the transmit queue was full."""
    rx_packets: dict[str, int] = field(default_factory=dict)
    """Decrypted packets by kind, also those that share a datagram: initial, 0rtt, handshake, 1rtt.
    Only the native engine counts these and the next three."""
    tx_packets: dict[str, int] = field(default_factory=dict)
    rx_in_turns: tuple[int, ...] = ()
    """Turns by how many datagrams they received: 0, 1, 2 to 3, 4 to 7, ..., 64 or more."""
    tx_in_turns: tuple[int, ...] = ()
    """The same, by how many they sent."""
    connections: int = 0
    half_open: int = 0
    """Peers' handshakes in progress."""

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
    """What an engine calls in the middle of a turn: implemented by the session layer."""

    def make_stream_fifos(
        self, connection: ConnectionContext, *, has_rx: bool, has_tx: bool, is_peers: bool
    ) -> Fifos:
        """Make the FIFOs of a new stream in the memory of its application.

        They have the sizes of `connection.config`, or `least_rx_bytes` and `least_tx_bytes` where
        memory is scarce. Raises OSError and MemoryError where there is no room: a stream that the
        peer opens is then refused.
        """

    def make_datagram_fifos(self, connection: ConnectionContext) -> tuple[Fifo, Fifo]:
        """Make the FIFOs of a connection's datagrams: rx, tx. Raises as `make_stream_fifos`."""

    stream_verbs: int
    """The address of struct hs_session_verbs (native/session/transport.h), for an engine in C."""

    def stream_owner(self, connection: ConnectionContext) -> int:
        """Return the address of the session plane's connection, for an engine in C: its peer opens
        its first stream. Returns 0 if no application has it; raises OSError and MemoryError."""

    def end_streams(self, connection: ConnectionContext) -> None:
        """End the streams of a connection: the engine forgets it. Idempotent."""

    def find_path(self, connection: ConnectionContext, remote: tuple[str, int]) -> object | None:
        """Return a link's Path to another address of the peer's; None if there is no route."""


#: Limits of the engines, by name: how many application protocols, and bytes of a name. The native
#: engine's are those of GnuTLS. RFC 7301 section 3.1 limits names to 255 bytes, and aioquic's
#: hellos have 16 KiB for all of their contents.
_MOST_PROTOCOLS: Final = {"native": (8, 31), "aioquic": (32, 255)}


def check_protocols(alpn: Sequence[str], config: QuicConfig | None, engine: str) -> None:
    """Raise ValueError for application protocols that an engine can't offer, or not with
    `early_data`.

    `config` is None where a daemon has it. RFC 9001 section 8.1: QUIC needs a protocol, by ALPN
    (RFC 7301). Names are ASCII here, like the registered ones. RFC 8446 section 4.2.10: early data
    use the protocol that the ticket was made for.
    """
    if isinstance(alpn, str):
        raise ValueError(f"alpn is a list of application protocols: give [{alpn!r}]")
    most, most_bytes = _MOST_PROTOCOLS[engine]
    if not alpn:
        raise ValueError(
            "QUIC needs an application protocol (ALPN): name the one that both sides speak, as in "
            'alpn=["h3"]'
        )
    if len(alpn) > most:
        raise ValueError(
            f"the {engine} engine offers at most {most} application protocols (ALPN), not "
            f"{len(alpn)}"
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
    """Carries established connections: an engine over the network, or cut-through
    (hoststack/transport/local/cut_through.py) within one stack. Both report the same events."""

    name: str

    def send_datagrams(self, connection: ConnectionContext) -> None:
        """Send: the application wrote a message into the connection's tx FIFO."""

    def update_key(self, connection: ConnectionContext) -> None:
        """Change the keys (RFC 9001 section 6), unless the last change is not confirmed yet."""

    def close(self, connection: ConnectionContext, code: int, reason: str) -> None:
        """Close at once with the application's code; CLOSED follows."""

    def shutdown(self, code: int, reason: str) -> None:
        """Close every connection. An engine sends the CONNECTION_CLOSE packets in a last `turn`."""


class StreamsInC(Protocol):
    """A transport whose streams are in C: the session plane calls it there, and nothing of them is
    reported as events."""

    @property
    def stream_verbs(self) -> int:
        """The address of struct hs_transport_verbs (native/session/transport.h)."""

    def stream_transport(self, connection: ConnectionContext) -> int:
        """Return the address by which the verbs know a connection."""

    def set_session(self, connection: ConnectionContext, address: int) -> None:
        """Tell the connection what the session plane calls it."""


class StreamsInPython(Protocol):
    """A transport whose streams are in Python: it reports what happens to them as events."""

    def open_stream(
        self, connection: ConnectionContext, *, unidirectional: bool
    ) -> StreamContext | None:
        """Open a stream, its FIFOs made by the factory; None while the peer's limit forbids it."""

    def openings(self, connection: ConnectionContext, *, unidirectional: bool) -> int:
        """Return how many more the peer allows now; STREAMS_AVAILABLE reports when more."""

    def send_ready(self, stream: StreamContext) -> None:
        """Send: the application wrote into the tx FIFO, or set its end."""

    def consumed(self, stream: StreamContext) -> None:
        """Move the receive windows: the application read from the rx FIFO."""

    def allow_stream(self, connection: ConnectionContext, *, unidirectional: bool) -> None:
        """Let the peer open one more stream (MAX_STREAMS, RFC 9000 section 4.6): once for each of
        its streams that is closed and that the application has accepted. For a stream that it
        refused, a transport does it by itself."""

    def reset_stream(self, stream: StreamContext, code: int) -> None:
        """Send RESET_STREAM: the rest of the tx FIFO is discarded."""

    def stop_sending(self, stream: StreamContext, code: int) -> None:
        """Send STOP_SENDING: data that arrives on the stream from now on is discarded."""


class Engine(Transport, Protocol):
    """A QUIC engine. All calls come from the worker's own loop; none blocks."""

    can_spin: bool
    """Whether `turn` supports `spin_s`."""
    congestion_controls: tuple[str, ...]
    """The valid values of `QuicConfig.congestion_control`."""

    @property
    def counters(self) -> EngineCounters: ...

    def find_credentials(
        self, tls: TlsConfig, alpn: Sequence[str], *, is_server: bool
    ) -> Credentials | None:
        """Return the credentials for `listen` or `connect` if that costs little; None if
        `load_credentials` has to load them."""

    def load_credentials(
        self, tls: TlsConfig, alpn: Sequence[str], *, is_server: bool
    ) -> Credentials:
        """Load credentials, which may take long: call it in a thread. Raises ValueError for what
        cannot be used."""

    def listen(
        self, local: tuple[str, int], credentials: Credentials, config: QuicConfig
    ) -> ListenerContext:
        """Accept connections on a local endpoint that the link has opened. Raises ValueError."""

    def replace_tls(self, listener: ListenerContext, credentials: Credentials) -> None:
        """Use other credentials in handshakes that begin from now on. Raises ValueError for what
        `listen` would not accept: then the old ones stay."""

    def unlisten(self, listener: ListenerContext) -> None:
        """Accept no more connections; accepted ones continue."""

    def connect(
        self,
        path: object,
        server_name: str,
        credentials: Credentials,
        config: QuicConfig,
        sessions: ServerSessions | None = None,
    ) -> ConnectionContext:
        """Start a connection along a link's Path; CONNECTED or CLOSED follows. It uses a ticket and
        a token of `sessions`, and stores new ones there."""

    def migrate(self, connection: ConnectionContext, path: object) -> None:
        """Move a connection of ours to a link's Path from another local endpoint, as soon as the
        peer allows it; PATH_CHANGED or MIGRATION_FAILED follows. Raises ValueError if it never
        can."""

    def stay(self, connection: ConnectionContext) -> None:
        """Cancel a migration that has not started yet; MIGRATION_FAILED follows then."""

    def turn(self, now: float, spin_s: float = 0.0) -> Turn:
        """Receive a burst, send a burst; without events, look for datagrams for `spin_s`."""

    def after_events(self) -> None:
        """Called when all events of a turn were handled: what they were about may be freed."""

    @property
    def next_deadline(self) -> float | None:
        """When `turn` must be called even if nothing arrives, on the clock of `now`."""

    def connections(self) -> Sequence[ConnectionContext]:
        """Return all live connections, for listing."""
