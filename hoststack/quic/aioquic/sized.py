"""An aioquic connection whose datagram size follows what its path carries."""

from __future__ import annotations

from aioquic._buffer import Buffer
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import pull_quic_transport_parameters
from aioquic.quic.packet_builder import QuicDeliveryState

from hoststack.link.base import Path
from hoststack.quic.aioquic.datagram_size import DatagramSize
from hoststack.quic.aioquic.recovery import Recovery
from hoststack.quic.seam import QuicConfig


class SizedConnection(QuicConnection):
    """The part of HostConnection that decides the size of datagrams."""

    _loss: Recovery

    def _begin_size(self, config: QuicConfig, path: Path) -> DatagramSize:
        self._most_bytes = self._max_datagram_size
        """The largest datagram that both ends' interfaces accept."""
        self._probes_mtu = config.probe_mtu
        self._sized_path = path
        size = self._new_size()
        self._max_datagram_size = size.current
        return size

    def _new_size(self) -> DatagramSize:
        """Return the initial size for an unknown path."""
        ip_version = 6 if ":" in self._sized_path.remote.host else 4
        return DatagramSize(self._most_bytes, ip_version, probes=self._probes_mtu)

    def _use_size(self) -> None:
        self._max_datagram_size = self._loss.size.current
        self._loss.take_size()

    def _parse_transport_parameters(self, data: bytes, from_session_ticket: bool = False) -> None:
        super()._parse_transport_parameters(data, from_session_ticket=from_session_ticket)
        parameters = pull_quic_transport_parameters(Buffer(data=data))
        if parameters.max_udp_payload_size is not None:
            self._most_bytes = min(self._most_bytes, parameters.max_udp_payload_size)
            self._loss.size = self._new_size()
            self._use_size()

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
        if loss.size.current != self._max_datagram_size:
            self._use_size()
        return has_shrunk

    def on_probe_delivery(self, delivery: QuicDeliveryState, size: int) -> None:
        """Handle the acknowledgement or loss of a probe of that size."""
        if delivery is QuicDeliveryState.ACKED:
            self._loss.size.on_probe_acked(size)
        else:
            self._loss.size.on_probe_lost()
