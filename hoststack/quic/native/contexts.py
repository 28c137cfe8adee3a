"""Listeners, connections and streams of the native engine, as the session layer uses them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Final

from hoststack.link.base import Endpoint, Wire
from hoststack.native.memory.fifo import Fifo
from hoststack.native.quic._quic import ffi, lib
from hoststack.quic.certificate import within_chain
from hoststack.quic.seam import (
    CloseInfo,
    ConnectionIds,
    EarlyData,
    Handshake,
    QuicConfig,
)
from hoststack.quic.session_cache import ServerSessions

_MAX_ALPN_BYTES: Final = 255


_PACKET_KINDS: Final = ("initial", "0rtt", "handshake", "1rtt")
#: The value of ssthresh before the first loss.
_NONE: Final = (1 << 64) - 1


def packets_by_kind(counts: Any) -> dict[str, int]:
    """Return the counts by packet name; `counts` has one for each value of enum hs_quic_packet."""
    return {kind: count for kind, count in zip(_PACKET_KINDS, counts, strict=True) if count}


def _behind_lengths(data: bytes) -> Iterator[bytes]:
    while data:
        end = 1 + data[0]
        yield data[1:end]
        data = data[end:]


class NativeListener:
    """A listening endpoint."""

    def __init__(self, local: tuple[str, int], config: QuicConfig, pointer: Any) -> None:
        self.session = -1
        self.local = local
        self.config = config
        self.pointer = pointer


class NativeConnection:
    """A connection. `pointer` is None once the C side has freed it."""

    def __init__(
        self,
        wire: Wire,
        pointer: Any,
        config: QuicConfig,
        listener: NativeListener | None,
        sessions: ServerSessions | None = None,
    ) -> None:
        self.session = -1
        self.pointer = pointer
        self.config = config
        self.listener = listener
        self.alpn: str | None = None
        self.handshake = Handshake()
        self._sessions = sessions
        self.rx: Fifo | None = None
        self.tx: Fifo | None = None
        self._wire = wire
        ends = wire.endpoints(lib.hs_connection_path(pointer))
        assert ends is not None
        self._ends = ends
        self._statistics: dict[str, int | float] = {}

    def _endpoints(self) -> tuple[Endpoint, Endpoint]:
        if self.pointer is not None:
            self._ends = self._wire.endpoints(lib.hs_connection_path(self.pointer)) or self._ends
        return self._ends

    @property
    def local(self) -> tuple[str, int]:
        return self._endpoints()[0]

    @property
    def remote(self) -> tuple[str, int]:
        return self._endpoints()[1]

    def connection_ids(self) -> ConnectionIds:
        """See ConnectionContext."""
        if self.pointer is None:
            return ConnectionIds()
        room = ffi.new("uint8_t[]", lib.HS_QUIC_CIDS_BYTES)
        local = bytes(ffi.buffer(room, lib.hs_connection_local_cids(self.pointer, room)))
        remote = bytes(ffi.buffer(room, lib.hs_connection_remote_cid(self.pointer, room)))
        return ConnectionIds(tuple(_behind_lengths(local)), *_behind_lengths(remote))

    def statistics(self) -> dict[str, int | float]:
        """Return statistics: RTT in seconds, sizes in bytes. After the end, those at the end."""
        if self.pointer is not None:
            figures = ffi.new("struct hs_quic_statistics *")
            lib.hs_connection_statistics(self.pointer, figures)
            datagrams = ffi.new("struct hs_datagram_counters *")
            lib.hs_connection_datagram_counters(self.pointer, datagrams)
            self._statistics = {
                "rtt_s": figures.rtt_ns / 1e9,
                "rtt_min_s": figures.rtt_min_ns / 1e9,
                "rtt_latest_s": figures.rtt_latest_ns / 1e9,
                "cwnd_bytes": figures.cwnd_bytes,
                "in_flight_bytes": figures.in_flight_bytes,
                "acked_bytes": figures.acked_bytes,
                "rx_datagrams": figures.rx_datagrams,
                "rx_bytes": figures.rx_bytes,
                "rx_ecn_ce": figures.rx_ecn_ce,
                "tx_datagrams": figures.tx_datagrams,
                "tx_bytes": figures.tx_bytes,
                "datagram_bytes": figures.datagram_bytes,
                "streams": figures.streams,
                "path_changes": figures.path_changes,
                "rx_datagram_frames": datagrams.received,
                "rx_datagram_frames_dropped": datagrams.rx_dropped,
                "tx_datagram_frames": datagrams.sent,
                "tx_datagram_frames_dropped": datagrams.tx_dropped,
                "rtt_variance_s": figures.rtt_variance_ns / 1e9,
                "resent_bytes": figures.resent_bytes,
            }
            if figures.ssthresh_bytes != _NONE:
                self._statistics["ssthresh_bytes"] = figures.ssthresh_bytes
            for direction, counts in (("rx", figures.rx_packets), ("tx", figures.tx_packets)):
                for kind, count in packets_by_kind(counts).items():
                    self._statistics[f"{direction}_{kind}_packets"] = count
        return self._statistics

    def note_handshake(self, info: int) -> None:
        """Store the progress and outcome of the handshake, bits of enum hs_quic_handshake."""
        early_data: EarlyData = "none"
        if info & lib.HS_QUIC_IS_EARLY:
            self.handshake = Handshake("pending", server_name=self._server_name())
            # A client learns the protocol in the handshake; until then this is the one that it
            # requests.
            if self.listener is not None:
                self._read_alpn()
            return
        if self.handshake.early_data == "pending":
            early_data = "rejected" if info & lib.HS_QUIC_WAS_REJECTED else "accepted"
        size = ffi.new("size_t *")
        own = lib.hs_connection_own_certificate(self.pointer, size)
        self.handshake = Handshake(
            early_data,
            bool(info & lib.HS_QUIC_IS_RESUMED),
            cipher=ffi.string(lib.hs_connection_cipher(self.pointer)).decode().lower(),
            server_name=self._server_name(),
            own_certificate=bytes(ffi.buffer(own, size[0])) if own else None,
            certificates=within_chain(self._peers_chain()),
        )
        lib.hs_connection_release_tls(self.pointer)
        self._read_alpn()

    def _server_name(self) -> str | None:
        name = lib.hs_connection_server_name(self.pointer)
        return ffi.string(name).decode() if name else None

    def _peers_chain(self) -> Iterator[bytes]:
        size = ffi.new("size_t *")
        for index in itertools.count():
            certificate = lib.hs_connection_certificate(self.pointer, index, size)
            if not certificate:
                return
            yield bytes(ffi.buffer(certificate, size[0]))

    def _read_alpn(self) -> None:
        room = ffi.new("uint8_t[]", _MAX_ALPN_BYTES)
        size = lib.hs_connection_alpn(self.pointer, room, _MAX_ALPN_BYTES)
        self.alpn = bytes(ffi.buffer(room, size)).decode(errors="replace") if size else None

    def keep_ticket(self) -> None:
        """Store the ticket that was received."""
        ticket = ffi.new("struct hs_quic_ticket *")
        if self._sessions is None or lib.hs_connection_ticket(self.pointer, ticket):
            return
        self._sessions.keep(
            bytes(ffi.buffer(ticket.session, ticket.session_bytes)),
            bytes(ffi.buffer(ticket.parameters, ticket.parameters_bytes)),
            self.alpn,
            ticket.lifetime_s,
        )

    def keep_token(self) -> None:
        """Store the token that was received."""
        room = ffi.new("uint8_t[]", lib.HS_QUIC_TOKEN_BYTES)
        size = lib.hs_connection_token(self.pointer, room)
        if self._sessions is not None and size:
            self._sessions.keep_token(bytes(ffi.buffer(room, size)))

    def read_close_info(self) -> CloseInfo:
        """Read why the connection ended."""
        info = ffi.new("struct hs_quic_close_info *")
        lib.hs_connection_close_info(self.pointer, info)
        reason = bytes(ffi.buffer(info.reason, info.reason_bytes)).decode(errors="replace")
        return CloseInfo(info.code, bool(info.is_application), reason, bool(info.by_peer))

    def forget(self) -> None:
        """Drop the references to the C side's memory."""
        self.statistics()
        self._endpoints()
        self.pointer = None


def producer_of(fifo: Fifo | None) -> Any:
    """Return the `struct hs_fifo_producer *` of a FIFO."""
    return ffi.cast("struct hs_fifo_producer *", fifo.producer_address if fifo is not None else 0)


def consumer_of(fifo: Fifo | None) -> Any:
    """Return the `struct hs_fifo_consumer *` of a FIFO."""
    return ffi.cast("struct hs_fifo_consumer *", fifo.consumer_address if fifo is not None else 0)
