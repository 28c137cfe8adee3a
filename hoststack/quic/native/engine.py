"""The native engine: ngtcp2 and GnuTLS in C, a whole burst in one call (native/quic/quic.h).

Python makes the decisions, and touches no packet: it resolves paths, creates the FIFOs of new
streams, and turns the events of a call into the seam's events.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any, Final, cast

from hoststack.link.base import BURST, Link, LinkError, Path, Wire
from hoststack.native.memory.fifo import Fifo
from hoststack.native.quic._quic import ffi, lib
from hoststack.quic.certificate import TlsConfigError
from hoststack.quic.cid import CidGenerator
from hoststack.quic.native.contexts import (
    NativeConnection,
    NativeListener,
    consumer_of,
    packets_by_kind,
    producer_of,
)
from hoststack.quic.native.paths import HandedWire
from hoststack.quic.native.tls import ClientContexts, make_context
from hoststack.quic.seam import (
    QUIC_VERSIONS,
    CidConfig,
    CloseInfo,
    ConnectionContext,
    Credentials,
    EngineCounters,
    EngineOwner,
    Event,
    EventKind,
    ListenerContext,
    QuicConfig,
    Turn,
    check_protocols,
    preferred_endpoints,
)
from hoststack.quic.session_cache import ServerSessions
from hoststack.quic.tls import TlsConfig, checked_server_name

_CONGESTION_CONTROLS: Final = ("reno", "cubic", "bbr")
_SECOND_NS: Final = 1_000_000_000
#: A deadline in seconds is rounded. It must not be earlier than the one in nanoseconds.
_ROUNDING_NS: Final = 1000
_NEVER: Final = (1 << 64) - 1

_DROP_NAMES: Final = tuple(
    (value, name.removeprefix("HS_QUIC_DROP_").lower())
    for value, name in ffi.typeof("enum hs_quic_drop").elements.items()
    if name != "HS_QUIC_DROPS"
)
_REFUSALS: Final = {
    lib.HS_MIGRATION_OF_SERVER: "only the client of a connection can move it (RFC 9000 section 9)",
    lib.HS_MIGRATION_TOO_LATE: "the connection is closed",
    lib.HS_MIGRATION_FORBIDDEN: (
        "the peer forbids migration (disable_active_migration, RFC 9000 section 18.2)"
    ),
}
_KINDS: Final = {int(kind): kind for kind in EventKind}
_HANDSHAKE_KINDS: Final = (EventKind.ACCEPTED, EventKind.CONNECTED, EventKind.HANDSHAKE_DONE)


@ffi.def_extern(error=-1)  # type: ignore[untyped-decorator]
def hs_python_make_datagram_fifos(owner: Any, number: int, rx: Any, tx: Any) -> int:
    """Create the FIFOs of a connection's datagrams. Called during a turn."""
    engine: NativeEngine = ffi.from_handle(owner)
    return engine._make_datagram_fifos(number, rx, tx)


@ffi.def_extern(error=ffi.NULL)  # type: ignore[untyped-decorator]
def hs_python_find_session(owner: Any, number: int) -> Any:
    """Find the session of a connection whose peer opens its first stream. Called during a turn."""
    engine: NativeEngine = ffi.from_handle(owner)
    return ffi.cast("void *", engine._find_session(number))


@ffi.def_extern(error=-1)  # type: ignore[untyped-decorator]
def hs_python_find_path(
    owner: Any, number: int, ip_version: int, remote_ip: Any, remote_port: int
) -> int:
    """Find the path to a server's preferred address. Called during a turn."""
    engine: NativeEngine = ffi.from_handle(owner)
    host = ip_address(bytes(ffi.buffer(remote_ip, 4 if ip_version == 4 else 16)))
    return engine._find_path(number, (str(host), remote_port))


class NativeEngine:
    """A worker's engine over one link (hoststack/quic/seam.py has the contract)."""

    name = "native"
    congestion_controls: tuple[str, ...] = _CONGESTION_CONTROLS

    def __init__(self, link: Link, owner: EngineOwner, cid: CidConfig, secret: bytes) -> None:
        self._owner = owner
        self._handle = ffi.new_handle(self)
        wire = link.wire()
        self._wire: Wire = HandedWire(link) if wire is None else wire
        self.can_spin = wire is not None
        self._quic: Any = ffi.gc(
            lib.hs_quic_new(
                ffi.cast("struct hs_wire *", self._wire.address),
                CidGenerator(cid).prefix,
                secret,
                ffi.cast("struct hs_session_verbs *", owner.stream_verbs),
                lib.hs_python_find_session,
                lib.hs_python_make_datagram_fifos,
                lib.hs_python_find_path,
                self._handle,
            ),
            lib.hs_quic_free,
        )
        if not self._quic:
            raise MemoryError("no memory for the native engine")
        self._clients = ClientContexts()
        self._listeners: dict[int, NativeListener] = {}
        self._closed_listeners: list[int] = []
        """Numbers of those that connections may still use."""
        self._connections: dict[int, NativeConnection] = {}
        self._forgotten: list[NativeConnection] = []
        """The C side frees them when the next turn begins."""
        self._turn = ffi.new("struct hs_quic_turn *")
        self._now_ns = 0

    @property
    def counters(self) -> EngineCounters:
        """See Engine."""
        figures = ffi.new("struct hs_quic_counters *")
        lib.hs_quic_counters(self._quic, figures)
        return EngineCounters(
            turns=figures.turns,
            empty_turns=figures.empty_turns,
            rx_datagrams=figures.rx_datagrams,
            tx_datagrams=figures.tx_datagrams,
            dropped={name: figures.drops[i] for i, name in _DROP_NAMES if figures.drops[i]},
            accepted=figures.accepted,
            connected=figures.connected,
            closed=figures.closed,
            connections=figures.connections,
            half_open=figures.half_open,
            key_updates=figures.key_updates,
            black_holes=figures.black_holes,
            retries=figures.retries,
            stateless_resets=figures.stateless_resets,
            version_negotiations=figures.version_negotiations,
            tx_full=figures.tx_full,
            rx_packets=packets_by_kind(figures.rx_packets),
            tx_packets=packets_by_kind(figures.tx_packets),
            rx_in_turns=tuple(figures.rx_in_turns),
            tx_in_turns=tuple(figures.tx_in_turns),
        )

    # --- verbs -------------------------------------------------------------------------------

    def find_credentials(
        self, tls: TlsConfig, alpn: Sequence[str], *, is_server: bool
    ) -> Credentials | None:
        if is_server:
            return None
        check_protocols(alpn, None, self.name)
        found = self._clients.find(tls, alpn)
        return Credentials(tls, alpn, found) if found is not None else None

    def load_credentials(
        self, tls: TlsConfig, alpn: Sequence[str], *, is_server: bool
    ) -> Credentials:
        check_protocols(alpn, None, self.name)
        if not is_server:
            return Credentials(tls, alpn, self._clients.load(tls, alpn))
        if not tls.own:
            raise TlsConfigError("a server needs a certificate and a key: give both")
        return Credentials(tls, alpn, make_context(tls, alpn, is_server=True))

    def listen(
        self, local: tuple[str, int], credentials: Credentials, config: QuicConfig
    ) -> ListenerContext:
        self._check_listener(credentials, config)
        host = ip_address(local[0])
        pointer = lib.hs_quic_listen(
            self._quic, host.version, host.packed, local[1], credentials.context, _c_config(config)
        )
        if not pointer:
            raise MemoryError("no memory for a listener")
        listener = NativeListener(local, config, pointer)
        self._listeners[lib.hs_listener_number(pointer)] = listener
        return listener

    def _check_listener(self, credentials: Credentials, config: QuicConfig) -> None:
        check_protocols(credentials.alpn, config, self.name)
        if config.early_data and credentials.tls.client_certificates != "none":
            raise TlsConfigError(
                "early data (0-RTT) come before a client has shown its certificate: leave out "
                "early_data, or client_certificates"
            )

    def replace_tls(self, listener: ListenerContext, credentials: Credentials) -> None:
        replacing = cast(NativeListener, listener)
        self._check_listener(credentials, replacing.config)
        if lib.hs_quic_replace_tls(self._quic, replacing.pointer, credentials.context):
            raise MemoryError("no memory for a listener's certificates")

    def unlisten(self, listener: ListenerContext) -> None:
        closing = cast(NativeListener, listener)
        if closing.pointer is not None:
            self._closed_listeners.append(lib.hs_listener_number(closing.pointer))
            lib.hs_quic_unlisten(self._quic, closing.pointer)
            closing.pointer = None
            self._forget_listeners()

    def _forget_listeners(self) -> None:
        """Forget closed listeners whose last connection is gone."""
        for number in list(self._closed_listeners):
            if not lib.hs_quic_has_listener(self._quic, number):
                self._closed_listeners.remove(number)
                del self._listeners[number]

    def connect(
        self,
        path: object,
        server_name: str,
        credentials: Credentials,
        config: QuicConfig,
        sessions: ServerSessions | None = None,
    ) -> ConnectionContext:
        _, alpn, context = credentials
        check_protocols(alpn, config, self.name)
        name = checked_server_name(server_name)
        resume, _pieces = _c_resume(sessions, config)
        pointer = lib.hs_quic_connect(
            self._quic,
            self._wire.number(cast(Path, path)),
            context,
            name.encode(),
            _c_config(config),
            resume,
            self._now_ns,
        )
        if not pointer:
            raise ValueError("there is no room for another connection: close some")
        connection = NativeConnection(self._wire, pointer, config, None, sessions)
        if config.early_data:
            connection.alpn = alpn[0]
        self._connections[lib.hs_connection_number(pointer)] = connection
        return connection

    def send_datagrams(self, connection: ConnectionContext) -> None:
        pointer = cast(NativeConnection, connection).pointer
        if pointer is not None:
            lib.hs_connection_send_datagrams(pointer)

    @property
    def stream_verbs(self) -> int:
        """The address of struct hs_transport_verbs."""
        return int(lib.hs_quic_transport_verbs())

    def stream_transport(self, connection: ConnectionContext) -> int:
        """Return the address by which the verbs know a connection."""
        return int(ffi.cast("uintptr_t", cast(NativeConnection, connection).pointer))

    def set_session(self, connection: ConnectionContext, address: int) -> None:
        """Tell the connection what the session plane calls it."""
        lib.hs_connection_set_session(
            cast(NativeConnection, connection).pointer, ffi.cast("void *", address)
        )

    def update_key(self, connection: ConnectionContext) -> None:
        pointer = cast(NativeConnection, connection).pointer
        if pointer is not None:
            lib.hs_connection_update_key(pointer)

    def migrate(self, connection: ConnectionContext, path: object) -> None:
        pointer = cast(NativeConnection, connection).pointer
        refusal = lib.HS_MIGRATION_TOO_LATE
        if pointer is not None:
            refusal = lib.hs_connection_migrate(pointer, self._wire.number(cast(Path, path)))
        if refusal:
            raise ValueError(_REFUSALS[refusal])

    def stay(self, connection: ConnectionContext) -> None:
        pointer = cast(NativeConnection, connection).pointer
        if pointer is not None:
            lib.hs_connection_stay(pointer)

    def close(self, connection: ConnectionContext, code: int, reason: str) -> None:
        pointer = cast(NativeConnection, connection).pointer
        if pointer is not None:
            text = reason.encode()
            lib.hs_connection_close(pointer, code, text, len(text))

    def connections(self) -> Sequence[ConnectionContext]:
        return list(self._connections.values())

    def shutdown(self, code: int, reason: str) -> None:
        for listener in list(self._listeners.values()):
            self.unlisten(listener)
        for connection in self._connections.values():
            self.close(connection, code, reason)

    # --- the turn ----------------------------------------------------------------------------

    @property
    def next_deadline(self) -> float | None:
        deadline_ns: int = lib.hs_quic_deadline(self._quic)
        if deadline_ns == _NEVER:
            return None
        return (deadline_ns + _ROUNDING_NS) / _SECOND_NS

    def turn(self, now: float, spin_s: float = 0.0) -> Turn:
        self._now_ns = math.floor(now * _SECOND_NS)
        wire, quic, turn = self._wire, self._quic, self._turn
        handed = wire.before_turn(self._now_ns)
        lib.hs_quic_turn(quic, self._now_ns, wire.bursts, round(spin_s * _SECOND_NS), turn)
        blocked = wire.after_turn() or bool(turn.blocked)
        events = self._events(turn.events, turn.event_count)
        if self._closed_listeners:
            self._forget_listeners()
        return Turn(
            events=events,
            more=(bool(turn.more) or handed == BURST) and not blocked,
            blocked=blocked,
            received=turn.received,
            sent=turn.sent,
            held=bool(turn.held),
        )

    def after_events(self) -> None:
        """Forget connections: this turn's events were the last about them."""
        while self._forgotten:
            forgotten = self._forgotten.pop()
            self._owner.end_streams(forgotten)
            forgotten.forget()

    def _connection(self, number: int) -> NativeConnection:
        """Return the connection with that number; create it if it is a peer's new one."""
        connection = self._connections.get(number)
        if connection is None:
            pointer = lib.hs_quic_connection(self._quic, number)
            listener = self._listeners[lib.hs_connection_listener(pointer)]
            connection = NativeConnection(self._wire, pointer, listener.config, listener)
            self._connections[number] = connection
        return connection

    def _make_datagram_fifos(self, number: int, rx: Any, tx: Any) -> int:
        connection = self._connection(number)
        try:
            connection.rx, connection.tx = self._owner.make_datagram_fifos(connection)
        except (OSError, MemoryError):
            return -1
        rx[0], tx[0] = producer_of(connection.rx), consumer_of(connection.tx)
        return 0

    def _find_session(self, number: int) -> int:
        try:
            return self._owner.stream_owner(self._connection(number))
        except (OSError, MemoryError):
            return 0

    def _find_path(self, number: int, remote: tuple[str, int]) -> int:
        path = self._owner.find_path(self._connection(number), remote)
        try:
            return -1 if path is None else self._wire.number(cast(Path, path))
        except LinkError:
            return -1

    def _events(self, raw: Any, count: int) -> list[Event]:
        events: list[Event] = []
        for i in range(count):
            entry = raw[i]
            if entry.kind == lib.HS_QUIC_FORGOTTEN:
                forgotten = self._connections.pop(entry.connection, None)
                if forgotten is not None:
                    self._forgotten.append(forgotten)
                continue
            connection = self._connection(entry.connection)
            if entry.kind == lib.HS_QUIC_TICKET:
                connection.keep_ticket()
                continue
            if entry.kind == lib.HS_QUIC_TOKEN:
                connection.keep_token()
                continue
            kind = _KINDS[entry.kind]
            info = self._connection_event(connection, kind, entry)
            events.append(Event(kind, connection, info))
        return events

    def _connection_event(
        self, connection: NativeConnection, kind: EventKind, entry: Any
    ) -> CloseInfo | int | None:
        if kind in _HANDSHAKE_KINDS:
            connection.note_handshake(entry.info)
        elif kind is EventKind.CLOSED:
            return connection.read_close_info()
        elif kind is EventKind.DATAGRAMS_READY:
            return int(entry.info)
        return None


def _c_resume(sessions: ServerSessions | None, config: QuicConfig) -> tuple[Any, list[Any]]:
    """Return struct hs_quic_resume for a known server, and the buffers that it points to."""
    if sessions is None:
        return ffi.new("struct hs_quic_resume *"), []
    ticket = sessions.take()
    session, parameters = (ticket.session, ticket.parameters) if ticket is not None else (b"", b"")
    token = sessions.take_token()
    pieces = [ffi.from_buffer("uint8_t[]", piece) for piece in (session, parameters, token)]
    fields = {
        "session": pieces[0],
        "session_bytes": len(session),
        "parameters": pieces[1],
        "parameters_bytes": len(parameters),
        "token": pieces[2],
        "token_bytes": len(token),
        "early_data": config.early_data and bool(parameters),
        "keeps": True,
    }
    return ffi.new("struct hs_quic_resume *", fields), pieces


def _c_config(config: QuicConfig) -> Any:
    if config.congestion_control not in _CONGESTION_CONTROLS:
        raise ValueError(
            f"the native engine has no congestion control {config.congestion_control!r}: "
            f"choose one of {', '.join(_CONGESTION_CONTROLS)}"
        )
    if config.version not in QUIC_VERSIONS:
        raise ValueError(f"there is no QUIC version {config.version}: choose 1 or 2")
    return ffi.new(
        "struct hs_quic_config *",
        {
            # A FIFO's size is a power of two, and the window is that size.
            "first_window_bytes": Fifo.rounded_up(config.least_rx_bytes),
            "connection_window_bytes": config.connection_window_bytes,
            "max_streams_bidi": config.max_streams_bidi,
            "max_streams_uni": config.max_streams_uni,
            "idle_timeout_ns": round(config.idle_timeout_s * _SECOND_NS),
            "handshake_timeout_ns": round(config.handshake_timeout_s * _SECOND_NS),
            "packets_per_key": config.packets_per_key,
            "datagram_fifo_bytes": (
                Fifo.rounded_up(config.datagram_fifo_bytes) if config.datagram_fifo_bytes else 0
            ),
            "max_datagram_bytes": config.max_datagram_bytes or 0,
            "max_connections": config.max_connections,
            "congestion_control": _CONGESTION_CONTROLS.index(config.congestion_control),
            "keep_alive_ns": round(config.keep_alive_s * _SECOND_NS),
            "probes_mtu": config.probe_mtu,
            "retry_above": (
                lib.HS_QUIC_NO_RETRY
                if config.retry_above_half_open is None
                else config.retry_above_half_open
            ),
            "half_open_per_source": config.half_open_per_source,
            "version": QUIC_VERSIONS[config.version],
            "follows_preferred": config.follow_preferred_address,
            **_preferred(config),
            "early_data": config.early_data,
        },
    )


def _preferred(config: QuicConfig) -> dict[str, Any]:
    """Return the server's preferred addresses, as fields of struct hs_quic_config."""
    fields: dict[str, Any] = {}
    for endpoint in preferred_endpoints(config):
        host = ip_address(endpoint.host)
        fields |= {
            f"preferred_v{host.version}": host.packed,
            f"preferred_v{host.version}_port": endpoint.port,
        }
    return fields
