"""An aioquic connection whose datagram size follows what its path carries."""

from __future__ import annotations

from typing import Any

from aioquic._buffer import Buffer
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicFrameType, QuicPacketType, pull_quic_transport_parameters
from aioquic.quic.packet_builder import QuicDeliveryState, QuicPacketBuilder, QuicSentPacket
from aioquic.quic.recovery import QuicPacketRecovery, QuicPacketSpace
from aioquic.tls import Epoch

from hoststack.link.base import Outgoing, Path
from hoststack.quic.aioquic.datagram_size import DatagramSize
from hoststack.quic.seam import QuicConfig


class Recovery(QuicPacketRecovery):
    """aioquic's loss recovery, with a look at what is acknowledged and lost."""

    def __init__(self, *, size: DatagramSize, **options: Any) -> None:
        super().__init__(max_datagram_size=size.current, **options)
        self.size = size
        self.packets_lost = 0
        self.bytes_acked = 0

    def on_packet_sent(self, *, packet: QuicSentPacket, space: QuicPacketSpace) -> None:
        super().on_packet_sent(packet=packet, space=space)
        if packet.is_ack_eliciting:
            assert packet.sent_time is not None, "the connection sets it"
            self.size.on_sent(packet.sent_bytes, packet.sent_time)
            packet.delivery_handlers.append((self._on_delivery, (packet.sent_bytes,)))

    def _on_delivery(self, delivery: QuicDeliveryState, sent_bytes: int) -> None:
        if delivery is not QuicDeliveryState.ACKED:
            self.packets_lost += 1
            return
        self.bytes_acked += sent_bytes
        self.size.on_acked(sent_bytes)

    def on_probe_sent(self, packet: QuicSentPacket, space: QuicPacketSpace) -> None:
        """Record a probe of the path's size, which congestion control does not count: its loss "is
        therefore not a reliable indication of congestion and SHOULD NOT trigger a congestion
        control reaction" (RFC 9000 section 14.4)."""
        super().on_packet_sent(packet=packet, space=space)
        packet.in_flight = False
        self._cc.bytes_in_flight -= packet.sent_bytes


class SizedConnection(QuicConnection):
    """The part of HostConnection that decides the size of datagrams."""

    _loss: Recovery

    def _begin_size(self, config: QuicConfig, path: Path) -> None:
        self._most_bytes = self._max_datagram_size
        """The largest datagram that both ends' interfaces accept."""
        self._probes_mtu = config.probe_mtu
        self._sized_path = path
        size = self._new_size()
        self._max_datagram_size = size.current
        self._loss = Recovery(
            congestion_control_algorithm=self._configuration.congestion_control_algorithm,
            initial_rtt=self._configuration.initial_rtt,
            size=size,
            peer_completed_address_validation=not self._is_client,
            send_probe=self._send_probe,
            logger=self._logger,
        )

    def _new_size(self) -> DatagramSize:
        """Return the initial size for an unknown path."""
        ip_version = 6 if ":" in self._sized_path.remote.host else 4
        return DatagramSize(self._most_bytes, ip_version, probes=self._probes_mtu)

    def _parse_transport_parameters(self, data: bytes, from_session_ticket: bool = False) -> None:
        super()._parse_transport_parameters(data, from_session_ticket=from_session_ticket)
        parameters = pull_quic_transport_parameters(Buffer(data=data))
        if parameters.max_udp_payload_size is not None:
            self._most_bytes = min(self._most_bytes, parameters.max_udp_payload_size)
            self._loss.size = self._new_size()
            self._max_datagram_size = self._loss.size.current

    def check_size(self, now: float) -> bool:
        """Use the size that was proven last; return whether it fell back because large datagrams
        are no longer acknowledged."""
        loss = self._loss
        path = self._network_paths[0].addr
        if path != self._sized_path:
            # The peer has moved, so the size has to be probed again.
            self._sized_path = path
            loss.size = self._new_size()
        has_shrunk = loss.size.has_shrunk(now, loss.get_probe_timeout())
        self._max_datagram_size = loss.size.current
        return has_shrunk

    def probe_size(self, now: float) -> list[Outgoing]:
        """Return the datagram that probes the path's MTU, if one is due. It ignores the congestion
        window, as only one is in flight at a time (RFC 8899 section 3)."""
        path = self._network_paths[0]
        if not self._handshake_confirmed or self._close_event or not path.is_validated:
            return []
        size = self._loss.size.take_probe(now)
        if size is None:
            return []
        builder = QuicPacketBuilder(
            host_cid=self.host_cid,
            is_client=self._is_client,
            max_datagram_size=size,
            packet_number=self._packet_number,
            peer_cid=self._peer_cid.cid,
            spin_bit=self._spin_bit,
            version=self._version or 0,
        )
        builder.start_packet(QuicPacketType.ONE_RTT, self._cryptos[Epoch.ONE_RTT])
        builder.start_frame(QuicFrameType.PING, handler=self._on_probe, handler_args=(size,))
        builder.start_frame(QuicFrameType.PADDING).push_bytes(bytes(builder.remaining_buffer_space))
        datagrams, packets = builder.flush()
        self._packet_number = builder.packet_number
        for packet in packets:
            packet.sent_time = now
            self._loss.on_probe_sent(packet, self._spaces[Epoch.ONE_RTT])
        return [(datagram, path.addr) for datagram in datagrams]

    def _on_probe(self, delivery: QuicDeliveryState, size: int) -> None:
        if delivery is QuicDeliveryState.ACKED:
            self._loss.size.on_probe_acked(size)
        else:
            self._loss.size.on_probe_lost()
