"""The fast receive path: all 1-RTT packets of one connection in a burst at once.

Header protection is removed from the whole burst with one AES call, the frames of bulk transfers
are parsed here, and acknowledgement state is updated once. Any other packet (another path or
connection ID, another key phase, another cipher, reserved bits) goes to aioquic's own
`receive_datagram`, one by one, with the same effect.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from aioquic import tls
from aioquic._buffer import Buffer, BufferReadError
from aioquic._crypto import AEAD
from aioquic.quic.connection import QuicConnectionError, QuicReceiveContext
from aioquic.quic.packet import NON_ACK_ELICITING_FRAME_TYPES, QuicErrorCode
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.recovery import MAX_ACK_RANGES
from aioquic.quic.stream import StreamFinishedError
from cryptography.exceptions import InvalidTag

from hoststack.link.base import Path
from hoststack.quic.aioquic.stream import UnstorableError
from hoststack.quic.cid import CID_BYTES

if TYPE_CHECKING:
    from hoststack.quic.aioquic.connection import HostConnection

_PN_OFFSET = 1 + CID_BYTES
_SAMPLE_OFFSET = _PN_OFFSET + 4
_SAMPLE_END = _SAMPLE_OFFSET + 16

#: Masks that remove a varint's length bits, by these bits (RFC 9000 section 16).
_VARINT_MASKS = (0x3F, 0x3FFF, 0x3FFFFFFF, (1 << 62) - 1)
#: The size of a type and three varints of 8 bytes each.
_LEAST_STREAM_PACKET = 1 + 3 * 8

#: A STREAM frame with offset and length, without FIN (RFC 9000 section 19.8).
_WHOLE_STREAM_FRAME = b"\x0e"


def pull_varint(data: bytes, position: int) -> tuple[int, int]:
    """Parse a variable-length integer (RFC 9000 section 16); return it and the next position.

    Raises IndexError where `data` ends before the integer does.
    """
    first = data[position]
    if first < 0x40:
        return first, position + 1
    length = 1 << (first >> 6)
    end = position + length
    if end > len(data):
        raise IndexError
    return int.from_bytes(data[position:end], "big") & ((1 << (8 * length - 2)) - 1), end


def receive_burst(
    connection: HostConnection, burst: Sequence[tuple[bytes, Path]], now: float
) -> int:
    """Pass datagrams to their connection; return how many could not be decrypted."""
    if not _is_ordinary(connection):
        for data, path in burst:
            connection.receive_datagram(data, path, now)
        return 0
    return _Burst(connection, now).receive(burst)


def _is_ordinary(connection: HostConnection) -> bool:
    """Return whether the connection is in the state that the fast path is made for."""
    if not connection._handshake_confirmed or connection._close_event is not None:
        return False
    crypto = connection._cryptos[tls.Epoch.ONE_RTT].recv
    return crypto.hp is not None and not crypto.hp._is_chacha20


class _StreamRun:
    """Pending packets, each with the next bytes of one stream and nothing else."""

    __slots__ = ("chunks", "first_number", "next_number", "offset", "stop", "stream_id")

    def __init__(
        self, number: int, stream_id: int, offset: int, stop: int, chunk: memoryview
    ) -> None:
        self.first_number = number
        self.next_number = number + 1
        self.stream_id = stream_id
        self.offset = offset
        self.stop = stop
        self.chunks = [chunk]


class _Burst:
    """One burst for one connection."""

    def __init__(self, connection: HostConnection, now: float) -> None:
        self._connection = connection
        self._now = now
        self._crypto = connection._cryptos[tls.Epoch.ONE_RTT].recv
        self._encryptor: Any = self._crypto.hp._encryptor  # type: ignore[union-attr]
        self._space = connection._spaces[tls.Epoch.ONE_RTT]
        self._undecryptable = 0
        self._in_hand: _StreamRun | None = None
        self._run: list[int] = [0, 0]
        self._ack_eliciting = 0
        self._has_received = False

    def receive(self, burst: Sequence[tuple[bytes, Path]]) -> int:
        connection = self._connection
        path = connection._network_paths[0].addr
        host_cid = connection.host_cid
        ordinary = [
            data
            for data, came_by in burst
            if (came_by is path or came_by == path)
            and data[0] & 0xC0 == 0x40
            and len(data) >= _SAMPLE_END
            and data[1:_PN_OFFSET] == host_cid
        ]
        if len(ordinary) != len(burst):
            # The order hardly matters: a burst with other packets is no bulk transfer.
            for data, came_by in burst:
                connection.receive_datagram(data, came_by, self._now)
            return 0
        samples = b"".join([data[_SAMPLE_OFFSET:_SAMPLE_END] for data in ordinary])
        masks = self._encryptor.update(samples)
        aead: Any = self._crypto.aead
        for index, data in enumerate(ordinary):
            if connection._close_event is not None:
                break
            self._receive_packet(data, masks[index * 16 : index * 16 + 5], aead)
        self._finish()
        return self._undecryptable

    def _receive_packet(self, data: bytes, mask: bytes, aead: AEAD) -> None:
        space = self._space
        first = data[0] ^ (mask[0] & 0x1F)
        if (first >> 2) & 1 != self._crypto.key_phase or first & 0x18:
            # A key update or a violation: aioquic decides, after the packets before it.
            self._finish()
            self._connection.receive_datagram(
                data, self._connection._network_paths[0].addr, self._now
            )
            return
        pn_bytes = (first & 3) + 1
        pn_end = _PN_OFFSET + pn_bytes
        truncated = int.from_bytes(data[_PN_OFFSET:pn_end], "big") ^ int.from_bytes(
            mask[1 : 1 + pn_bytes], "big"
        )
        number = _full_number(truncated, pn_bytes, space.expected_packet_number)
        header = b"%c%b%b" % (first, data[1:_PN_OFFSET], truncated.to_bytes(pn_bytes, "big"))
        try:
            payload = aead._aead.decrypt(
                (aead._iv ^ number).to_bytes(12, "big"), data[pn_end:], header
            )
        except InvalidTag:
            self._undecryptable += 1
            return
        # RFC 9000 section 12.3: "A receiver MUST discard a newly unprotected packet unless it is
        # certain that it has not processed another packet with the same packet number".
        if number in space.received_packets or self._is_in_hand(number):
            return
        if payload[:1] == _WHOLE_STREAM_FRAME and self._take_in_hand(number, payload):
            return
        self._put_in_hand()
        try:
            is_ack_eliciting = self._take_frames(payload)
        except UnstorableError:
            return
        except QuicConnectionError as error:
            self._connection.close(error.error_code, error.frame_type, error.reason_phrase)
            return
        self._record(number, is_ack_eliciting)

    def _is_in_hand(self, number: int) -> bool:
        run = self._in_hand
        return run is not None and run.first_number <= number < run.next_number

    def _take_in_hand(self, number: int, payload: bytes) -> bool:
        """Store a packet that contains only a STREAM frame; False if it contains anything else.

        `_put_in_hand` writes contiguous bytes into the FIFO together.
        """
        # pull_varint three times, without the calls: this runs for every packet. The size is
        # checked once, so that no slice ends early; aioquic handles shorter packets.
        size = len(payload)
        if size < _LEAST_STREAM_PACKET:
            return False
        end = 1 + (1 << (payload[1] >> 6))
        stream_id = int.from_bytes(payload[1:end], "big") & _VARINT_MASKS[payload[1] >> 6]
        start, end = end, end + (1 << (payload[end] >> 6))
        offset = int.from_bytes(payload[start:end], "big") & _VARINT_MASKS[payload[start] >> 6]
        start, position = end, end + (1 << (payload[end] >> 6))
        length = int.from_bytes(payload[start:position], "big") & _VARINT_MASKS[payload[start] >> 6]
        if not length or position + length != size:
            return False
        chunk = memoryview(payload)[position:]
        run = self._in_hand
        if (
            run is not None
            and offset == run.stop
            and number == run.next_number
            and stream_id == run.stream_id
        ):
            run.chunks.append(chunk)
            run.stop += length
            run.next_number += 1
        else:
            self._put_in_hand()
            self._in_hand = _StreamRun(number, stream_id, offset, offset + length, chunk)
        return True

    def _put_in_hand(self) -> None:
        """Write the pending packets to the stream, and count them as received."""
        run = self._in_hand
        if run is None:
            return
        self._in_hand = None
        connection = self._connection
        if connection._close_event is not None:
            return
        data = run.chunks[0] if len(run.chunks) == 1 else b"".join(run.chunks)
        try:
            with contextlib.suppress(StreamFinishedError):
                connection.take_stream_data(_WHOLE_STREAM_FRAME[0], run.stream_id, run.offset, data)
        except UnstorableError:
            return
        except QuicConnectionError as error:
            connection.close(error.error_code, error.frame_type, error.reason_phrase)
            return
        # All but the last are added to the set at once; adding the last one moves its window.
        self._space.received_packets._received.update(range(run.first_number, run.next_number))
        self._ack_eliciting += run.next_number - run.first_number - 1
        self._extend_run(run.first_number, run.next_number - 1)
        self._record(run.next_number - 1, True)

    def _record(self, number: int, is_ack_eliciting: bool) -> None:
        space = self._space
        self._has_received = True
        space.received_packets.add(number)
        if number >= space.expected_packet_number:
            space.expected_packet_number = number + 1
        if number > space.largest_received_packet:
            space.largest_received_packet = number
            space.largest_received_time = self._now
        if is_ack_eliciting:
            self._ack_eliciting += 1
        self._extend_run(number, number + 1)

    def _extend_run(self, start: int, stop: int) -> None:
        """Add packet numbers to acknowledge: aioquic's set gets whole runs of them."""
        run = self._run
        if start == run[1] and run[0] != run[1]:
            run[1] = stop
        else:
            self._flush_run()
            run[0], run[1] = start, stop

    def _flush_run(self) -> None:
        start, stop = self._run
        if start != stop:
            self._space.ack_queue.add(start, stop)
            while len(self._space.ack_queue) > MAX_ACK_RANGES:
                self._space.ack_queue.shift()
            self._run[1] = start

    def _finish(self) -> None:
        """Update the connection's state with the received packets."""
        self._put_in_hand()
        self._flush_run()
        if not self._has_received:
            return
        self._has_received = False
        connection, space, now = self._connection, self._space, self._now
        connection._close_at = now + connection._idle_timeout()
        connection._ack_eliciting_sent_since_receipt = False
        if self._ack_eliciting:
            # RFC 9000 section 13.2.2: "A receiver SHOULD send an ACK frame after receiving at
            # least two ack-eliciting packets." The burst's one ACK counts them all.
            connection.unacked_packets += self._ack_eliciting
            self._ack_eliciting = 0
            if connection.unacked_packets >= 2:
                space.ack_at = now
            elif space.ack_at is None:
                space.ack_at = now + connection._ack_delay

    def _take_frames(self, payload: bytes) -> bool:
        """Handle a packet's frames; return whether it is ack-eliciting."""
        position, end = 0, len(payload)
        if not end:
            raise QuicConnectionError(
                QuicErrorCode.PROTOCOL_VIOLATION, 0, "Packet contains no frames"
            )
        is_ack_eliciting = False
        view = memoryview(payload)
        while position < end:
            kind = payload[position]
            try:
                if 0x08 <= kind <= 0x0F:
                    position = self._take_stream(payload, view, position)
                    is_ack_eliciting = True
                elif kind == 0x02:
                    position = self._take_ack(payload, position + 1)
                elif kind == 0x00:
                    position += 1
                else:
                    position = self._take_other(payload, position)
                    is_ack_eliciting = is_ack_eliciting or kind not in NON_ACK_ELICITING_FRAME_TYPES
            except (IndexError, BufferReadError):
                raise QuicConnectionError(
                    QuicErrorCode.FRAME_ENCODING_ERROR, kind, "Failed to parse frame"
                ) from None
        return is_ack_eliciting

    def _take_stream(self, payload: bytes, view: memoryview, position: int) -> int:
        kind = payload[position]
        stream_id, position = pull_varint(payload, position + 1)
        offset = 0
        if kind & 4:
            offset, position = pull_varint(payload, position)
        stop = len(payload)
        if kind & 2:
            length, position = pull_varint(payload, position)
            if length > stop - position:
                raise IndexError
            stop = position + length
        # Data for a stream that is over is a late duplicate.
        with contextlib.suppress(StreamFinishedError):
            self._connection.take_stream_data(kind, stream_id, offset, view[position:stop])
        return stop

    def _take_ack(self, payload: bytes, position: int) -> int:
        """Handle an ACK frame without ECN counts (RFC 9000 section 19.3)."""
        connection = self._connection
        largest, position = pull_varint(payload, position)
        delay, position = pull_varint(payload, position)
        count, position = pull_varint(payload, position)
        length, position = pull_varint(payload, position)
        ranges = RangeSet()
        smallest = largest - length
        while smallest >= 0:
            ranges.add(smallest, smallest + length + 1)
            if not count:
                break
            gap, position = pull_varint(payload, position)
            length, position = pull_varint(payload, position)
            smallest -= gap + length + 2
            count -= 1
        else:
            raise QuicConnectionError(
                QuicErrorCode.FRAME_ENCODING_ERROR, 0x02, "Negative packet number in ACK"
            )
        if largest >= connection._packet_number:
            # RFC 9000 section 13.1: "An endpoint SHOULD treat receipt of an acknowledgment for a
            # packet it did not send as a connection error of type PROTOCOL_VIOLATION".
            raise QuicConnectionError(
                QuicErrorCode.PROTOCOL_VIOLATION, 0x02, "Acknowledges what was not sent"
            )
        connection._loss.on_ack_received(
            ack_rangeset=ranges,
            ack_delay=(delay << connection._remote_ack_delay_exponent) / 1_000_000,
            now=self._now,
            space=self._space,
        )
        return position

    def _take_other(self, payload: bytes, position: int) -> int:
        """Handle any other frame with aioquic's handler."""
        connection = self._connection
        buf = Buffer(data=payload)
        buf.seek(position)
        kind = buf.pull_uint_var()
        handler = connection.frame_handler(kind)
        if handler is None:
            raise QuicConnectionError(
                QuicErrorCode.FRAME_ENCODING_ERROR, kind, "Unknown frame type"
            )
        context = QuicReceiveContext(
            epoch=tls.Epoch.ONE_RTT,
            host_cid=connection.host_cid,
            network_path=connection._network_paths[0],
            quic_logger_frames=None,
            time=self._now,
            version=None,
        )
        with contextlib.suppress(StreamFinishedError):
            handler(context, kind, buf)
        return buf.tell()


def _full_number(truncated: int, pn_bytes: int, expected: int) -> int:
    """Decode a packet number (RFC 9000 appendix A.3)."""
    window = 1 << (8 * pn_bytes)
    candidate = (expected & ~(window - 1)) | truncated
    if candidate <= expected - window // 2 and candidate < (1 << 62) - window:
        return candidate + window
    if candidate > expected + window // 2 and candidate >= window:
        return candidate - window
    return candidate
