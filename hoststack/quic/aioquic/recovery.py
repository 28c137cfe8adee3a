"""aioquic's loss recovery, with costs that depend on acknowledged packets, not on the window.

For every ACK aioquic lists and searches all packets in flight, so the cost of an ACK grows with the
window. Here it depends on the newly acknowledged packets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aioquic.quic.congestion.base import K_MINIMUM_WINDOW
from aioquic.quic.congestion.cubic import CubicCongestionControl
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicDeliveryState
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.recovery import QuicPacketRecovery, QuicPacketSpace
from aioquic.tls import Epoch

from hoststack.quic.aioquic.datagram_size import BASE_BYTES, DatagramSize

if TYPE_CHECKING:
    from hoststack.quic.aioquic.stream import FifoSender

#: Far below the timer granularity of RFC 9002 section 6.1.2, far above a double's error.
_TIMER_ROUNDING_S = 1e-6


class SentPacket:
    """What aioquic's recovery needs of a packet, at a fifth of the cost."""

    __slots__ = (
        "delivery_handlers",
        "is_ack_eliciting",
        "packet_number",
        "sent_bytes",
        "sent_time",
    )

    epoch = Epoch.ONE_RTT
    packet_type = QuicPacketType.ONE_RTT
    is_crypto_packet = False

    def __init__(
        self,
        packet_number: int,
        sent_bytes: int,
        sent_time: float,
        delivery_handlers: list[tuple[Any, tuple[Any, ...]]],
        is_ack_eliciting: bool,
    ) -> None:
        self.packet_number = packet_number
        self.sent_bytes = sent_bytes
        self.sent_time = sent_time
        self.delivery_handlers = delivery_handlers
        self.is_ack_eliciting = is_ack_eliciting

    @property
    def in_flight(self) -> bool:
        # The fast path writes no PADDING: a packet that is not ack-eliciting is a pure ACK.
        return self.is_ack_eliciting


class ProbePacket(SentPacket):
    """A packet that probes whether the path carries its size."""

    __slots__ = ()


class StreamPacket:
    """A packet with bytes of one stream and nothing else: nearly all of a bulk transfer."""

    __slots__ = ("packet_number", "sender", "sent_bytes", "sent_time", "start", "stop")

    epoch = Epoch.ONE_RTT
    packet_type = QuicPacketType.ONE_RTT
    is_crypto_packet = False
    is_ack_eliciting = True
    in_flight = True

    def __init__(
        self,
        packet_number: int,
        sent_bytes: int,
        sent_time: float,
        sender: FifoSender,
        start: int,
        stop: int,
    ) -> None:
        self.packet_number = packet_number
        self.sent_bytes = sent_bytes
        self.sent_time = sent_time
        self.sender = sender
        self.start = start
        self.stop = stop

    @property
    def delivery_handlers(self) -> list[tuple[Any, tuple[Any, ...]]]:
        """Return aioquic's form of the handlers: it detects losses before we do."""
        return [(self.sender.on_data_delivery, (self.start, self.stop, False))]


class _NoPacer:
    """Disables pacing: bursts are bounded by the congestion window and the turn."""

    def next_send_time(self, now: float) -> None:
        return None

    def update_after_send(self, now: float) -> None:
        pass

    def update_rate(self, congestion_window: int, smoothed_rtt: float) -> None:
        pass


class Recovery(QuicPacketRecovery):
    """Loss detection and congestion control of one connection."""

    def __init__(self, *, size: DatagramSize, **options: Any) -> None:
        super().__init__(max_datagram_size=size.current, **options)
        self.size = size
        self._pacer = _NoPacer()  # type: ignore[assignment]  # only these three methods are used
        self.packets_lost = 0
        self.bytes_acked = 0

    def on_ack_received(
        self, *, ack_rangeset: RangeSet, ack_delay: float, now: float, space: QuicPacketSpace
    ) -> None:
        largest_acked = ack_rangeset.bounds().stop - 1
        space.largest_acked_packet = max(space.largest_acked_packet, largest_acked)
        acked = self._take_acked(ack_rangeset, space)
        if not acked:
            return
        in_flight_bytes = 0
        is_ack_eliciting = False
        # Contiguous bytes are acknowledged together.
        sender: FifoSender | None = None
        start = stop = 0
        for packet in acked:
            if packet.is_ack_eliciting:
                is_ack_eliciting = True
                space.ack_eliciting_in_flight -= 1
            if packet.in_flight:
                in_flight_bytes += packet.sent_bytes
            if type(packet) is not StreamPacket:
                for handler, args in packet.delivery_handlers:
                    handler(QuicDeliveryState.ACKED, *args)
            elif packet.sender is sender and packet.start == stop:
                stop = packet.stop
            else:
                if sender is not None:
                    sender.on_data_delivery(QuicDeliveryState.ACKED, start, stop, False)
                sender, start, stop = packet.sender, packet.start, packet.stop
        if sender is not None:
            sender.on_data_delivery(QuicDeliveryState.ACKED, start, stop, False)
        largest = acked[-1]
        if largest.sent_bytes > BASE_BYTES or any(each.sent_bytes > BASE_BYTES for each in acked):
            self.size.on_large_acked()
        self._tell_congestion_control(acked, in_flight_bytes, now)
        if largest.packet_number == largest_acked and is_ack_eliciting:
            self._sample_rtt(now - largest.sent_time, ack_delay, now)
        self._detect_loss(now=now, space=space)
        # RFC 9002 section 6.2.1: the client must know that its address was validated.
        if self.peer_completed_address_validation:
            self._pto_count = 0

    def on_packets_sent(self, packets: list[StreamPacket], space: QuicPacketSpace) -> None:
        """Record a run of packets that were sent; all of them are ack-eliciting."""
        for packet in packets:
            space.sent_packets[packet.packet_number] = packet  # type: ignore[assignment]
        space.ack_eliciting_in_flight += len(packets)
        self._time_of_last_sent_ack_eliciting_packet = packets[-1].sent_time
        first: Any = packets[0]
        self._cc.on_packet_sent(packet=first)
        self._cc.bytes_in_flight += sum([packet.sent_bytes for packet in packets[1:]])
        self.size.on_sent(first.sent_bytes, first.sent_time)

    def on_packet_sent(self, *, packet: Any, space: QuicPacketSpace) -> None:
        """Record a packet as aioquic does; probes of the path's size are exempt from losses."""
        super().on_packet_sent(packet=packet, space=space)
        if type(packet) is not ProbePacket:
            self.size.on_sent(packet.sent_bytes, packet.sent_time)

    def take_size(self) -> None:
        """Count the window in datagrams of the current size (RFC 9002 section 7.2)."""
        size = self.size.current
        cc: Any = self._cc
        cc._max_datagram_size = size
        if isinstance(cc, CubicCongestionControl):
            cc.additive_increase_factor = size
        cc.congestion_window = max(cc.congestion_window, K_MINIMUM_WINDOW * size)

    def _take_acked(self, ranges: RangeSet, space: QuicPacketSpace) -> list[Any]:
        """Remove and return newly acknowledged packets in flight, oldest first."""
        sent = space.sent_packets
        acked: list[Any] = []
        if not sent:
            return acked
        first, last = next(iter(sent)), next(reversed(sent))
        for r in ranges:
            # A peer may acknowledge packets that never existed, or were acknowledged long ago.
            for packet_number in range(max(r.start, first), min(r.stop, last + 1)):
                packet = sent.pop(packet_number, None)
                if packet is not None:
                    acked.append(packet)
        return acked

    def _tell_congestion_control(self, acked: list[Any], in_flight_bytes: int, now: float) -> None:
        cc = self._cc
        self.bytes_acked += in_flight_bytes
        if 2 * cc.bytes_in_flight < cc.congestion_window:
            # RFC 9002 section 7.8: "When bytes in flight is smaller than the congestion window
            # and sending is not pacing limited, the congestion window is underutilized", and is
            # not to grow.
            cc.bytes_in_flight -= in_flight_bytes
            if isinstance(cc, CubicCongestionControl):
                cc.last_ack = acked[-1].sent_time
        elif cc.ssthresh is None or cc.congestion_window + in_flight_bytes < cc.ssthresh:
            # Slow start adds up bytes, so one call is enough for all packets.
            largest = acked[-1]
            together: Any = SentPacket(
                largest.packet_number, in_flight_bytes, largest.sent_time, [], True
            )
            cc.on_packet_acked(now=now, packet=together)
        else:
            for packet in acked:
                if packet.in_flight:
                    cc.on_packet_acked(now=now, packet=packet)

    def _sample_rtt(self, latest: float, ack_delay: float, now: float) -> None:
        """Update the RTT (RFC 9002 section 5.3), with aioquic's floor of a millisecond."""
        ack_delay = min(ack_delay, self.max_ack_delay)
        self._rtt_latest = max(latest, 0.001)
        self._rtt_min = min(self._rtt_min, self._rtt_latest)
        if self._rtt_latest > self._rtt_min + ack_delay:
            self._rtt_latest -= ack_delay
        if not self._rtt_initialized:
            self._rtt_first_sample_time = now
            self._rtt_initialized = True
            self._rtt_variance = latest / 2
            self._rtt_smoothed = latest
        else:
            deviation = abs(self._rtt_smoothed - self._rtt_latest)
            self._rtt_variance = 3 / 4 * self._rtt_variance + 1 / 4 * deviation
            self._rtt_smoothed = 7 / 8 * self._rtt_smoothed + 1 / 8 * self._rtt_latest
        self._cc.on_rtt_measurement(now=now, rtt=latest)

    def on_loss_detection_timeout(self, *, now: float) -> None:
        """Handle the loss timer with a rounding margin: sent time plus delay minus delay need not
        be the sent time again, and a timer that is an error too early would fire for ever."""
        super().on_loss_detection_timeout(now=now + _TIMER_ROUNDING_S)

    def _on_packets_lost(self, **options: Any) -> None:
        packets = list(options.pop("packets"))
        self.packets_lost += len(packets)
        probes: list[Any] = [packet for packet in packets if type(packet) is ProbePacket]
        if probes:
            # RFC 9000 section 14.4: their loss "is therefore not a reliable indication of
            # congestion and SHOULD NOT trigger a congestion control reaction".
            super()._on_packets_lost(packets=probes, **options | {"congestion_event": False})
            packets = [packet for packet in packets if type(packet) is not ProbePacket]
        super()._on_packets_lost(packets=packets, **options)
