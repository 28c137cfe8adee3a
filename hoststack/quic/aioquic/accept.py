"""Accepting connections for the aioquic engine: listeners, and checks of first packets.

No state is stored for a datagram that does not start a connection, and no answer to one is larger
than the datagram itself.
"""

from __future__ import annotations

import math
import ssl
from collections.abc import Sequence
from typing import Final, NamedTuple

from aioquic._buffer import Buffer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.packet import (
    QuicHeader,
    QuicPacketType,
    QuicProtocolVersion,
    encode_quic_retry,
    encode_quic_version_negotiation,
    pull_quic_header,
)
from aioquic.tls import CipherSuite
from cryptography.hazmat.primitives.asymmetric import ec

from hoststack.link.base import Link, Path
from hoststack.native.memory.fifo import Fifo
from hoststack.quic.aioquic.datagrams import datagram_offer
from hoststack.quic.aioquic.half_open import HalfOpen
from hoststack.quic.aioquic.resume import GivenTickets
from hoststack.quic.aioquic.tokens import RetryTokens, invalid_token
from hoststack.quic.certificate import TlsConfigError, presented
from hoststack.quic.cid import CID_BYTES, CidGenerator
from hoststack.quic.seam import (
    QUIC_VERSIONS,
    Credentials,
    EngineCounters,
    QuicConfig,
    check_protocols,
)
from hoststack.quic.tls import Cipher, TlsConfig, checked_server_name

#: RFC 9000 section 14.1.
_LEAST_INITIAL_BYTES = 1200
#: RFC 9000 section 7.2: a client's first Destination Connection ID has 8 bytes or more.
_LEAST_DCID_BYTES = 8
#: Version Negotiations in a second: anyone can ask for them.
_NEGOTIATIONS_PER_SECOND: Final = 1000
_VERSIONS = [int(QuicProtocolVersion.VERSION_1), int(QuicProtocolVersion.VERSION_2)]
_CIPHER_SUITES: Final[dict[Cipher, CipherSuite]] = {
    "aes-128-gcm": CipherSuite.AES_128_GCM_SHA256,
    "aes-256-gcm": CipherSuite.AES_256_GCM_SHA384,
    "chacha20-poly1305": CipherSuite.CHACHA20_POLY1305_SHA256,
}
#: TlsConfig's names by aioquic's.
CIPHERS: Final = {suite: cipher for cipher, suite in _CIPHER_SUITES.items()}
CONGESTION_CONTROLS = ("cubic", "reno")


class Listener:
    """A listening endpoint; implements the seam's ListenerContext."""

    def __init__(
        self, local: tuple[str, int], credentials: Credentials, config: QuicConfig
    ) -> None:
        self.session = -1
        self.local = local
        self.config = config
        self.tickets = GivenTickets() if config.early_data else None
        self.replace_tls(credentials)

    def replace_tls(self, credentials: Credentials) -> None:
        """Use other credentials in handshakes that begin from now on. Raises ValueError."""
        tls, alpn, _ = credentials
        if not tls.own:
            raise TlsConfigError("a server needs a certificate and a key: give both")
        if tls.client_certificates != "none":
            raise TlsConfigError(
                "the aioquic engine requests no client certificates: use the native one, or leave "
                "out client_certificates"
            )
        _check_keys(tls)
        check_protocols(alpn, self.config, "aioquic")
        # Report an invalid configuration now, not when the first client connects.
        _configuration(tls, self.config, list(alpn), _LEAST_INITIAL_BYTES)
        self._tls = tls
        self._alpn = list(alpn)
        self.presented = presented(tls.own)
        self._configurations: dict[int, QuicConfiguration] = {}

    def configuration(self, max_datagram_bytes: int) -> QuicConfiguration:
        """Return aioquic's configuration for connections over a path of that datagram size."""
        configuration = self._configurations.get(max_datagram_bytes)
        if configuration is None:
            configuration = _configuration(self._tls, self.config, self._alpn, max_datagram_bytes)
            configuration.is_client = False
            configuration.certificate = self._tls.chain[0]
            configuration.certificate_chain = list(self._tls.chain[1:])
            configuration.private_key = self._tls.private_key
            self._configurations[max_datagram_bytes] = configuration
        return configuration


def client_configuration(
    credentials: Credentials, server_name: str, config: QuicConfig, max_datagram_bytes: int
) -> QuicConfiguration:
    """Return aioquic's configuration for a connection of ours."""
    tls, alpn, _ = credentials
    if config.early_data:
        raise ValueError(
            "the aioquic engine sends no early data as a client: use the native one, or leave out "
            "QuicConfig.early_data"
        )
    check_protocols(alpn, config, "aioquic")
    _check_keys(tls)
    configuration = _configuration(tls, config, list(alpn), max_datagram_bytes)
    configuration.server_name = checked_server_name(server_name)
    configuration.verify_mode = ssl.CERT_REQUIRED if tls.verify else ssl.CERT_NONE
    configuration.cadata = tls.ca_pem
    if tls.ca_pem is None:
        # The system's authorities, as OpenSSL finds them. aioquic's default is certifi's file,
        # which a worker may lack the permission to read.
        system = ssl.get_default_verify_paths()
        configuration.cafile = system.cafile
        configuration.capath = system.capath or system.openssl_capath
    if tls.chain:
        configuration.certificate = tls.chain[0]
        configuration.certificate_chain = list(tls.chain[1:])
        configuration.private_key = tls.private_key
    return configuration


def plain_credentials(tls: TlsConfig, alpn: Sequence[str], *, is_server: bool) -> Credentials:
    """Return credentials; aioquic has nothing to load before a handshake."""
    return Credentials(tls, alpn, None)


def _check_keys(tls: TlsConfig) -> None:
    for key in (each.private_key for each in tls.own):
        if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP521R1):
            raise TlsConfigError(
                "the aioquic engine can't sign with a key on the curve P-521: use the native "
                "engine, or a key on P-256 or P-384"
            )


def _configuration(
    tls: TlsConfig, config: QuicConfig, alpn: list[str], max_datagram_bytes: int
) -> QuicConfiguration:
    if config.congestion_control not in CONGESTION_CONTROLS:
        raise ValueError(
            f"the aioquic engine has no congestion control {config.congestion_control!r}: "
            f"use one of {', '.join(CONGESTION_CONTROLS)}"
        )
    for name, is_asked in (
        ("keep_alive_s", config.keep_alive_s),
        ("preferred_addresses", config.preferred_addresses),
    ):
        if is_asked:
            raise ValueError(
                f"the aioquic engine does not support QuicConfig.{name}: use the native one"
            )
    if config.version not in QUIC_VERSIONS:
        raise ValueError(f"there is no QUIC version {config.version}: use 1 or 2")
    return QuicConfiguration(
        alpn_protocols=alpn,
        cipher_suites=[_CIPHER_SUITES[cipher] for cipher in tls.ciphers] or None,
        congestion_control_algorithm=config.congestion_control,
        connection_id_length=CID_BYTES,
        idle_timeout=config.idle_timeout_s,
        max_data=config.connection_window_bytes,
        max_datagram_frame_size=datagram_offer(config),
        max_stream_data=Fifo.rounded_up(config.least_rx_bytes),
        max_datagram_size=min(config.max_datagram_bytes or max_datagram_bytes, max_datagram_bytes),
        original_version=QUIC_VERSIONS[config.version],
        supported_versions=_preferring(QUIC_VERSIONS[config.version]),
    )


def _preferring(version: int) -> list[int]:
    """Return a client's versions, the preferred one first (RFC 9368 section 3)."""
    return [version, *(each for each in _VERSIONS if each != version)]


class Admitted(NamedTuple):
    """A client's first packet that starts a connection."""

    listener: Listener
    original_dcid: bytes
    retry_scid: bytes | None
    """From the Retry packet that it answers."""

    @property
    def is_proven(self) -> bool:
        """Whether the client's address is validated."""
        return self.retry_scid is not None


class Acceptor:
    """Decides about datagrams without a connection."""

    def __init__(
        self, link: Link, counters: EngineCounters, secret: bytes, new_cid: CidGenerator
    ) -> None:
        self.half_open = HalfOpen()
        self._link = link
        self._counters = counters
        self._tokens = RetryTokens(secret)
        self._new_cid = new_cid
        self._unreadable = 0
        self._unreadable_since = 0.0
        self._negotiations = 0
        self._negotiations_since = -math.inf
        self._listeners: dict[tuple[str, int], Listener] = {}

    def listen(
        self, local: tuple[str, int], credentials: Credentials, config: QuicConfig
    ) -> Listener:
        listener = self._listeners[local] = Listener(local, credentials, config)
        return listener

    def unlisten(self, listener: Listener) -> None:
        self._listeners.pop(listener.local, None)

    def close(self) -> None:
        self._listeners.clear()

    @property
    def is_listening(self) -> bool:
        """Whether there is a listener."""
        return bool(self._listeners)

    def count_unreadable(self) -> None:
        """Count a connection whose first packet turned out to be invalid."""
        self._counters.drop("unreadable_initial")
        self._unreadable += 1

    def examine(
        self, data: bytes, path: Path, connections: int, now: float
    ) -> Admitted | bytes | None:
        """Return the connection that this datagram starts, or the answer to send, or None."""
        drop = self._counters.drop
        listener = self._listener(path)
        if listener is None:
            return drop("no_listener")
        if len(data) < _LEAST_INITIAL_BYTES:
            return drop("too_short")
        try:
            header = pull_quic_header(Buffer(data=data), host_cid_length=CID_BYTES)
        except ValueError:
            return drop("malformed")
        if header.packet_type is QuicPacketType.VERSION_NEGOTIATION:
            return drop("unexpected")
        if header.version not in _VERSIONS:
            if not self._may_negotiate(now):
                return drop("unanswered_version")
            # RFC 9000 section 6.1.
            drop("unknown_version")
            return encode_quic_version_negotiation(
                source_cid=header.destination_cid,
                destination_cid=header.source_cid,
                supported_versions=_VERSIONS,
            )
        if header.packet_type is not QuicPacketType.INITIAL:
            return drop("unknown_cid")
        if len(header.destination_cid) < _LEAST_DCID_BYTES:
            return drop("malformed")
        return self._examine_token(header, listener, path, connections, now)

    def _examine_token(
        self, header: QuicHeader, listener: Listener, path: Path, connections: int, now: float
    ) -> Admitted | bytes:
        version, dcid = header.version, header.destination_cid
        assert version is not None, "a long header has a version"
        if self._tokens.is_one(header.token):
            original = self._tokens.original_dcid(header.token, path.remote, version, dcid)
            if original is None:
                self._counters.drop("bad_token")
                return invalid_token(version, dcid, header.source_cid)
            return Admitted(listener, original, dcid)
        if not self._wants_proof(listener.config, connections, now):
            return Admitted(listener, dcid, None)
        cid = self._new_cid()
        self._counters.retries += 1
        return encode_quic_retry(
            version=version,
            source_cid=cid,
            destination_cid=header.source_cid,
            original_destination_cid=dcid,
            retry_token=self._tokens.make(path.remote, version, cid, dcid),
        )

    def _may_negotiate(self, now: float) -> bool:
        """Return whether a Version Negotiation may be sent now, and count it."""
        if now - self._negotiations_since >= 1:
            self._negotiations, self._negotiations_since = 0, now
        self._negotiations += 1
        return self._negotiations <= _NEGOTIATIONS_PER_SECOND

    def _wants_proof(self, config: QuicConfig, connections: int, now: float) -> bool:
        """Return whether a client must validate its address. Invalid first packets cost as much as
        those that start a handshake, but leave no connection to count."""
        if config.retry_above_half_open is None:
            return False
        if now - self._unreadable_since >= 1:
            self._unreadable, self._unreadable_since = 0, now
        return len(self.half_open) + self._unreadable >= config.retry_above_half_open or (
            len(self.half_open) > 0 and connections >= config.max_connections
        )

    def _listener(self, path: Path) -> Listener | None:
        host, port = path.local
        unspecified = "::" if ":" in host else "0.0.0.0"
        return self._listeners.get((host, port)) or self._listeners.get((unspecified, port))
