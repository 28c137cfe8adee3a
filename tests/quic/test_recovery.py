"""An ACK costs what it newly acknowledges, however much is in flight."""

from __future__ import annotations

import time
from typing import Any

from aioquic.quic.packet_builder import QuicDeliveryState
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.recovery import QuicPacketSpace

from hoststack.quic.aioquic.datagram_size import DatagramSize
from hoststack.quic.aioquic.recovery import Recovery, SentPacket


def recovery() -> Recovery:
    made = Recovery(
        congestion_control_algorithm="cubic",
        initial_rtt=0.1,
        size=DatagramSize(1200, 4, probes=True),
        peer_completed_address_validation=True,
        send_probe=lambda: None,
    )
    made.handshake_confirmed = True
    return made


def send(made: Recovery, space: QuicPacketSpace, count: int, log: list[Any]) -> None:
    for number in range(count):
        handlers = [(lambda state, pn: log.append((state, pn)), (number,))]
        packet: Any = SentPacket(number, 1200, 0.0, handlers, True)
        made.on_packet_sent(packet=packet, space=space)


def acknowledge(made: Recovery, space: QuicPacketSpace, *ranges: range) -> None:
    made.on_ack_received(ack_rangeset=RangeSet(list(ranges)), ack_delay=0.0, now=0.05, space=space)


def seconds_for_acks(in_flight: int) -> float:
    """500 ACKs of two packets each, each ACK repeating all that was acknowledged before it."""
    made, space = recovery(), QuicPacketSpace(is_application_data=True)
    send(made, space, in_flight, [])
    start = time.process_time()
    for newest in range(2, 1002, 2):
        acknowledge(made, space, range(0, newest))
    return time.process_time() - start


def test_an_ack_costs_no_more_with_a_larger_window() -> None:
    few = min(seconds_for_acks(1_100) for _ in range(3))
    many = min(seconds_for_acks(60_000) for _ in range(3))
    # Looking at all that is in flight would make it some fifty times as much.
    assert many < 5 * few


def test_each_packet_is_told_of_once() -> None:
    log: list[Any] = []
    made, space = recovery(), QuicPacketSpace(is_application_data=True)
    send(made, space, 10, log)
    acknowledge(made, space, range(0, 2), range(4, 6))
    acknowledge(made, space, range(0, 2), range(4, 6))
    # 0 to 2 behind the largest are lost by the packet threshold (RFC 9002 section 6.1.1).
    acked = [number for state, number in log if state is QuicDeliveryState.ACKED]
    lost = [number for state, number in log if state is QuicDeliveryState.LOST]
    assert acked == [0, 1, 4, 5]
    assert lost == [2]
    assert made.bytes_in_flight == 5 * 1200
    acknowledge(made, space, range(0, 10))
    assert made.bytes_in_flight == 0
    assert made.packets_lost == 1


def test_what_was_never_sent_is_not_acknowledged() -> None:
    made, space = recovery(), QuicPacketSpace(is_application_data=True)
    send(made, space, 3, [])
    # Ranges that a hostile peer may claim; the loop is over what is in flight.
    acknowledge(made, space, range(0, 3), range(1 << 40, 1 << 60))
    assert made.bytes_in_flight == 0
