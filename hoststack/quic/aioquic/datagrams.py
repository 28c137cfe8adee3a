"""DATAGRAM frames of an aioquic connection (RFC 9221), over message FIFOs.

aioquic sends queued datagrams before streams, and one that fits into no packet blocks its queue. So
they stay in our FIFO until the congestion window has room for them, beside streams in half of it;
what the path has become too small for is dropped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from aioquic.quic.connection import QuicConnection

from hoststack.native.memory.fifo import Fifo
from hoststack.quic.seam import QuicConfig

if TYPE_CHECKING:
    from hoststack.quic.aioquic.host_stream import HostStream

#: RFC 9221 section 3: "it is RECOMMENDED to send the special value 65535 [...] to indicate that
#: this endpoint accepts any DATAGRAM frame that fits inside a QUIC packet."
_ANY_FRAME_BYTES: Final = 65535
#: A short header with the longest packet number, without its connection ID, and the AEAD's tag
#: (RFC 9000 section 17.3, RFC 9001 section 5.3).
_PACKET_BYTES: Final = 1 + 4 + 16
#: Sizes of a variable-length integer, with the largest that it holds (RFC 9000 section 16).
_VARINTS: Final = ((1, 63), (2, 16383), (4, (1 << 30) - 1))


def datagram_offer(config: QuicConfig) -> int | None:
    """Return the largest frame that the peer may send; None: none at all."""
    if not config.datagram_fifo_bytes:
        return None
    return min(Fifo.rounded_up(config.datagram_fifo_bytes), _ANY_FRAME_BYTES)


def _largest_in(frame_bytes: int) -> int:
    """Return the largest message whose frame has so many bytes: a type, the length, and the message
    (RFC 9221 section 4)."""
    return max(0, *(min(frame_bytes - 1 - size, most) for size, most in _VARINTS))


class DatagramConnection(QuicConnection):
    """The part of HostConnection that sends and receives DATAGRAM frames."""

    #: None until the handshake is complete, and where there is no memory for them.
    rx: Fifo | None = None
    tx: Fifo | None = None
    sending: dict[HostStream, None]
    config: QuicConfig

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._known_largest = -1
        self.datagram_frames = {
            f"{direction}_datagram_frames{fate}": 0
            for direction in ("rx", "tx")
            for fate in ("", "_dropped")
        }
        self.has_new_datagrams = False
        """Since the engine last checked, as is the next."""
        self.has_datagram_room = False

    def open_datagrams(self, make_fifos: Callable[[Any], tuple[Fifo, Fifo]]) -> None:
        """Make the FIFOs, where they are configured: the handshake is complete. Without memory,
        received datagrams are dropped."""
        if self.config.datagram_fifo_bytes:
            with contextlib.suppress(OSError, MemoryError):
                self.rx, self.tx = make_fifos(self)

    def receive_datagram_frame(self, data: bytes) -> None:
        """Store a message, or drop it: before the handshake is complete it may be a replay, and has
        no place to say so. Raises FifoCorruptError."""
        # RFC 9221 section 5.3: "a receiver MAY drop the contents of DATAGRAM frames if it does not
        # have [...] available buffer space".
        is_taken = self.rx is not None and self.rx.write_message(data)
        self.datagram_frames[f"rx_datagram_frames{'' if is_taken else '_dropped'}"] += 1
        self.has_new_datagrams |= is_taken

    @property
    def largest_datagram(self) -> int:
        """The largest message that may be sent now, bytes."""
        if self.tx is None:
            return 0
        frame_bytes = min(
            self._max_datagram_size - _PACKET_BYTES - len(self._peer_cid.cid),
            self._remote_max_datagram_frame_size or 0,
        )
        return min(_largest_in(frame_bytes), self.tx.max_message_bytes)

    def has_new_largest(self) -> bool:
        """Return whether `largest_datagram` has changed since the last call."""
        if self.tx is None:
            return False
        before, self._known_largest = self._known_largest, self.largest_datagram
        return before != self._known_largest

    def feed_datagrams(self) -> None:
        """Give aioquic what the congestion window has room for. Raises FifoCorruptError."""
        if self.tx is None:
            return
        largest, given = self.largest_datagram, list(self._datagrams_pending)
        waiting = [data for data in given if len(data) <= largest]
        self.datagram_frames["tx_datagram_frames_dropped"] += len(given) - len(waiting)
        room_bytes = self._loss.congestion_window - self._loss.bytes_in_flight
        room_bytes //= 2 if self.sending else 1
        room_bytes -= sum(len(data) + _PACKET_BYTES for data in waiting)
        while room_bytes > 0 and (data := self.tx.read_message()) is not None:
            self.has_datagram_room = True
            if len(data) > largest:
                self.datagram_frames["tx_datagram_frames_dropped"] += 1
                continue
            self.datagram_frames["tx_datagram_frames"] += 1
            room_bytes -= len(data) + _PACKET_BYTES
            waiting.append(data)
        self._datagrams_pending.clear()
        for data in waiting:
            self.send_datagram_frame(data)
