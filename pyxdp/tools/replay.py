"""Replay: send packets at a rate, through an AF_XDP socket."""

from __future__ import annotations

import errno
import select
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from pyxdp.errors import PyxdpError
from pyxdp.interface import describe_interface
from pyxdp.tools.packets import Packet
from pyxdp.umem import Umem
from pyxdp.xsk import Socket

_FRAMES: Final = 4096
_FRAME_BYTES: Final = 4096
_ETHERNET_BYTES: Final = 14
_VLAN_BYTES: Final = 4
_PATIENCE_MS: Final = 1000
_SHORTEST_SLEEP_S: Final = 0.0005  # what sleeping overshoots, about; sooner packets go in a burst


@dataclass
class Replayed:
    """What was sent so far: packets, their bytes, and the seconds that it took."""

    packets: int = 0
    size_bytes: int = 0
    seconds: float = 0.0


#: When a packet is due, in seconds after the start, and after what was sent before it.
Pace = Callable[[Packet, Replayed], float]


def at_once() -> Pace:
    """As fast as possible."""
    return lambda _packet, _sent: 0.0


def at_packets(packets_per_s: float) -> Pace:
    """So many packets a second."""
    return lambda _packet, sent: sent.packets / packets_per_s


def at_bits(bits_per_s: float) -> Pace:
    """So many bits a second, of Ethernet frames without preamble, FCS and gap."""
    return lambda _packet, sent: sent.size_bytes * 8 / bits_per_s


def as_recorded() -> Pace:
    """As far apart as they were captured; at once where the time does not go on."""
    last_ns: int | None = None
    so_far_ns = 0

    def due_s(packet: Packet, _sent: Replayed) -> float:
        nonlocal last_ns, so_far_ns
        so_far_ns += max(0, packet.time_ns - last_ns) if last_ns is not None else 0
        last_ns = packet.time_ns
        return so_far_ns / 1e9

    return due_s


def replay(
    interface: str, packets: Iterable[Packet], pace: Pace | None = None, *, queue: int = 0
) -> Replayed:
    """Send packets on a queue of an interface, as they were recorded or at a pace.

    Returns when the kernel has sent them. Raises ValueError for a packet that the interface can't
    send, and what Umem and Socket raise: NoPrivilegeError, NoInterfaceError, QueueBusyError.
    """
    due_s = pace or as_recorded()
    largest = describe_interface(interface).mtu_bytes + _ETHERNET_BYTES + _VLAN_BYTES
    largest = min(largest, _FRAME_BYTES)
    sent = Replayed()
    with Umem(_FRAMES, _FRAME_BYTES) as umem, Socket(umem, interface, queue, fill_frames=0) as out:
        sender = _Sender(out)
        start_s = time.perf_counter()
        for number, packet in enumerate(packets, 1):
            if not _ETHERNET_BYTES <= len(packet.data) <= largest:
                sender.flush()
                raise ValueError(
                    f"packet {number} has {len(packet.data)} bytes; {interface} sends "
                    f"{_ETHERNET_BYTES} to {largest}"
                )
            ahead_s = due_s(packet, sent) - (time.perf_counter() - start_s)
            if ahead_s > _SHORTEST_SLEEP_S:
                sender.flush()
                time.sleep(ahead_s)
            sender.add(packet.data)
            sent.packets += 1
            sent.size_bytes += len(packet.data)
        sender.finish()
        sent.seconds = time.perf_counter() - start_s
    return sent


class _Sender:
    """Fills bursts of a socket, and sends them."""

    def __init__(self, socket: Socket) -> None:
        self._socket = socket
        self._writable = select.poll()
        self._writable.register(socket, select.POLLOUT)
        self._burst = socket.tx_alloc()
        self._written = 0

    def add(self, data: bytes) -> None:
        """Write a packet into the burst, and send the burst when it is full."""
        while self._written == len(self._burst):
            self.flush()
            self._burst = self._socket.tx_alloc()
            if not len(self._burst):
                self._wait()
        self._burst.write(self._written, data)
        self._written += 1

    def flush(self) -> None:
        """Send what was written; wait while the ring is full."""
        while self._written:
            taken = self._socket.tx_send(self._burst, self._written)
            self._written -= taken
            if not taken:
                self._wait()
        self._socket.tx_release(self._burst)

    def finish(self) -> None:
        """Send all, and wait until the kernel is done with the frames, a second at most."""
        self.flush()
        umem = self._socket.umem
        end_s = time.monotonic() + _PATIENCE_MS / 1000
        while umem.free_frames < _FRAMES and time.monotonic() < end_s:
            self._wait()
            self._socket.reap()

    def _wait(self) -> None:
        if not self._writable.poll(_PATIENCE_MS):
            raise PyxdpError(
                errno.ETIMEDOUT,
                f"{self._socket.interface} sends nothing: for a second its queue had no room",
            )
        self._socket.kick()
