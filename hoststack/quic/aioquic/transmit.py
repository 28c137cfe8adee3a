"""The fast transmit path: stream data and ACKs of an established connection, a burst at a time.

aioquic's own writer makes everything that is not stream data (handshake, limits, connection IDs,
path validation, probes, resets, closing). Packets of stream data are made here: header, an ACK in
the first one if one is due, STREAM frames read from the tx FIFOs; the header protection of the
whole burst is one AES call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aioquic import tls
from aioquic._buffer import Buffer
from aioquic.quic.packet import QuicFrameType, push_ack_frame

from hoststack.quic.aioquic.recovery import ProbePacket, SentPacket, StreamPacket
from hoststack.quic.aioquic.stream import FifoSender

if TYPE_CHECKING:
    from hoststack.quic.aioquic.connection import HostConnection
    from hoststack.quic.aioquic.host_stream import HostStream

_TAG_BYTES = 16
_PN_BYTES = 2
_LENGTH_BYTES = 2
#: The minimum data of a STREAM frame; smaller room stays unused, unless the data ends the stream.
_LEAST_DATA_BYTES = 64
_ACK_ROOM_BYTES = 256
_MAX_UNACKED_PACKETS = 1 << (8 * _PN_BYTES - 2)


def push_varint(value: int) -> bytes:
    """Encode a variable-length integer (RFC 9000 section 16)."""
    if value < 0x40:
        return value.to_bytes(1, "big")
    if value < 0x4000:
        return (value | 0x4000).to_bytes(2, "big")
    if value < 0x40000000:
        return (value | 0x80000000).to_bytes(4, "big")
    return (value | 0xC000000000000000).to_bytes(8, "big")


def is_ordinary(connection: HostConnection) -> bool:
    """Return whether the fast path may write this connection's 1-RTT packets."""
    if (
        not connection._handshake_confirmed
        or connection._close_event is not None
        or not connection._network_paths[0].is_validated
    ):
        return False
    if connection._packet_number >= connection.key_update_at:
        connection.begin_key_update()
    crypto = connection._cryptos[tls.Epoch.ONE_RTT]
    hp = crypto.send.hp
    return not (hp is None or hp._is_chacha20 or crypto._update_key_requested)


def write_burst(connection: HostConnection, now: float, budget: int) -> list[bytes]:
    """Return up to `budget` datagrams of stream data and a due ACK; loss recovery and flow control
    count them as sent."""
    return _Writer(connection, now).write(budget)


class _Writer:
    """One burst of one connection."""

    def __init__(self, connection: HostConnection, now: float) -> None:
        self._connection = connection
        self._now = now
        crypto = connection._cryptos[tls.Epoch.ONE_RTT]
        self._aead: Any = crypto.send.aead
        self._encryptor: Any = crypto.send.hp._encryptor  # type: ignore[union-attr]
        self._space = connection._spaces[tls.Epoch.ONE_RTT]
        self._first = 0x40 | connection._spin_bit << 5 | crypto.key_phase << 2 | (_PN_BYTES - 1)
        self._dcid = connection._peer_cid.cid
        self._room = connection._max_datagram_size - 1 - len(self._dcid) - _PN_BYTES - _TAG_BYTES
        self._protected: list[bytes] = []
        self._numbers: list[int] = []

    def write(self, budget: int) -> list[bytes]:
        connection, loss = self._connection, self._connection._loss
        # RFC 9000 section 17.1: the packet number is "more than twice as large as the difference
        # between the largest acknowledged packet number and the packet number being sent".
        unacked = connection._packet_number - self._space.largest_acked_packet
        budget = min(budget, _MAX_UNACKED_PACKETS - unacked)
        if budget > 0:
            self._write_probe()
        queue = connection.send_queue
        while len(self._protected) < budget:
            if self._space.ack_at is None and len(queue) == 1:
                stream = next(iter(queue))
                if self._write_run(stream, budget - len(self._protected)):
                    continue
            frames: list[bytes] = []
            handlers: list[tuple[Any, tuple[Any, ...]]] = []
            used = self._add_ack(frames, handlers)
            is_ack_eliciting = False
            window = loss.congestion_window - loss.bytes_in_flight
            if window >= connection._max_datagram_size:
                is_ack_eliciting = self._add_streams(frames, handlers, self._room - used)
            if not frames:
                break
            self._seal(frames, handlers, is_ack_eliciting)
            if not is_ack_eliciting:
                break
        return self._protect()

    def _write_probe(self) -> None:
        """Write a packet of only PING and PADDING that probes the path's MTU. It ignores the
        congestion window, as only one is in flight at a time (RFC 8899 section 3)."""
        connection = self._connection
        size = connection._loss.size.take_probe(self._now)
        if size is None:
            return
        header_bytes = 1 + len(self._dcid) + _PN_BYTES
        frames = bytes((QuicFrameType.PING,)).ljust(size - header_bytes - _TAG_BYTES, b"\x00")
        self._seal([frames], [(connection.on_probe_delivery, (size,))], True, ProbePacket)

    def _write_run(self, stream: HostStream, budget: int) -> bool:
        """Write full packets of new data of one stream, as many as may be sent.

        Bulk transfers consist of these. Returns whether there were any.
        """
        connection, loss, sender = self._connection, self._connection._loss, stream.sender
        assert isinstance(sender, FifoSender)
        first = sender.highest_offset
        credit = connection._remote_max_data - connection._remote_max_data_used
        available = sender.new_bytes(min(first + credit, stream.max_stream_data_remote))
        if first + available < 1 << 30:
            offset_bytes, offset_mark = 4, 2 << 30
        else:
            offset_bytes, offset_mark = 8, 3 << 62
        room = self._room - len(stream.frame_type_and_id) - offset_bytes - _LENGTH_BYTES
        window = loss.congestion_window - loss.bytes_in_flight
        count = min(budget, available // room, window // connection._max_datagram_size)
        if count < 1:
            return False
        number = connection._packet_number
        prefix = bytes((self._first,)) + self._dcid
        type_and_id = stream.frame_type_and_id
        length = (room | 0x4000).to_bytes(_LENGTH_BYTES, "big")
        sent_bytes = connection._max_datagram_size
        encrypt, iv, now = self._aead._aead.encrypt, self._aead._iv, self._now
        data = memoryview(sender.tx.peek(first, count * room))
        packets: list[StreamPacket] = []
        for at in range(0, count * room, room):
            offset = first + at
            header = prefix + (number & 0xFFFF).to_bytes(2, "big")
            mark = (offset | offset_mark).to_bytes(offset_bytes, "big")
            payload = b"".join((type_and_id, mark, length, data[at : at + room]))
            self._protected.append(encrypt((iv ^ number).to_bytes(12, "big"), payload, header))
            self._numbers.append(number)
            packets.append(StreamPacket(number, sent_bytes, now, sender, offset, offset + room))
            number += 1
        connection._packet_number = number
        connection._remote_max_data_used += count * room
        sender.sent_to(first + count * room)
        if sender.buffer_is_empty:
            del connection.send_queue[stream]
        loss.on_packets_sent(packets, self._space)
        self._restart_idle_timer()
        return True

    def _add_ack(self, frames: list[bytes], handlers: list[tuple[Any, tuple[Any, ...]]]) -> int:
        connection, space = self._connection, self._space
        if space.ack_at is None or (space.ack_at > self._now and not connection.send_queue):
            return 0
        delay = int((self._now - (space.largest_received_time or 0.0)) * 1_000_000)
        buf = Buffer(capacity=_ACK_ROOM_BYTES)
        buf.push_uint_var(QuicFrameType.ACK)
        push_ack_frame(
            buf,
            space.ack_queue,
            delay >> connection._local_ack_delay_exponent,
            _ACK_ROOM_BYTES - 1,
        )
        space.ack_at = None
        connection.unacked_packets = 0
        frames.append(buf.data)
        handlers.append((connection._on_ack_delivery, (space, space.largest_received_packet)))
        return buf.tell()

    def _add_streams(
        self, frames: list[bytes], handlers: list[tuple[Any, tuple[Any, ...]]], room: int
    ) -> bool:
        """Fill a packet from the streams, round robin; return whether any had data."""
        connection = self._connection
        queue = connection.send_queue
        found = False
        # A blocked stream goes to the end, so each is asked once for a packet.
        for _ in range(len(queue)):
            stream = next(iter(queue))
            sender = stream.sender
            assert isinstance(sender, FifoSender)
            header = stream.frame_type_and_id
            offset_bytes = 4 if sender.next_offset < 1 << 30 else 8
            space_left = room - len(header) - offset_bytes - _LENGTH_BYTES
            if space_left < _LEAST_DATA_BYTES:
                break
            credit = connection._remote_max_data - connection._remote_max_data_used
            highest = sender.highest_offset
            chunk = sender.next_chunk(
                space_left, min(highest + credit, stream.max_stream_data_remote)
            )
            if chunk is None:
                # Nothing to send, or blocked: `send_ready`, new limits or a loss add it again.
                del queue[stream]
                continue
            connection._remote_max_data_used += sender.highest_offset - highest
            offset, data, fin = chunk
            frames.append(
                b"%b%b%b%b"
                % (
                    header if not fin else bytes((header[0] | 1,)) + header[1:],
                    push_varint(offset),
                    (len(data) | 0x4000).to_bytes(2, "big"),
                    data,
                )
            )
            handlers.append((sender.on_data_delivery, (offset, offset + len(data), fin)))
            found = True
            room -= len(frames[-1])
            # The next packet begins with the next stream.
            del queue[stream]
            if not sender.buffer_is_empty:
                queue[stream] = None
        return found

    def _seal(
        self,
        frames: list[bytes],
        handlers: list[tuple[Any, tuple[Any, ...]]],
        is_ack_eliciting: bool,
        kind: type[SentPacket] = SentPacket,
    ) -> None:
        connection = self._connection
        number = connection._packet_number
        connection._packet_number = number + 1
        payload = b"".join(frames) if len(frames) > 1 else frames[0]
        header = b"%c%b%b" % (self._first, self._dcid, (number & 0xFFFF).to_bytes(2, "big"))
        sealed = self._aead._aead.encrypt(
            (self._aead._iv ^ number).to_bytes(12, "big"), payload, header
        )
        self._protected.append(sealed)
        self._numbers.append(number)
        packet: Any = kind(number, len(header) + len(sealed), self._now, handlers, is_ack_eliciting)
        connection._loss.on_packet_sent(packet=packet, space=self._space)
        if is_ack_eliciting:
            self._restart_idle_timer()

    def _restart_idle_timer(self) -> None:
        """Restart it for the first ack-eliciting packet since the last receipt (RFC 9000 section
        10.1)."""
        connection = self._connection
        if not connection._ack_eliciting_sent_since_receipt:
            connection._close_at = self._now + connection._idle_timeout()
            connection._ack_eliciting_sent_since_receipt = True

    def _protect(self) -> list[bytes]:
        """Apply header protection to all packets (RFC 9001 section 5.4): the sample starts 4 bytes
        after the first byte of the packet number."""
        if not self._protected:
            return []
        start = 4 - _PN_BYTES
        masks = self._encryptor.update(b"".join([p[start : start + 16] for p in self._protected]))
        datagrams = []
        for index, sealed in enumerate(self._protected):
            mask = masks[index * 16 : index * 16 + 3]
            number = (self._numbers[index] & 0xFFFF) ^ (mask[1] << 8 | mask[2])
            datagrams.append(
                b"%c%b%b%b"
                % (
                    self._first ^ (mask[0] & 0x1F),
                    self._dcid,
                    number.to_bytes(2, "big"),
                    sealed,
                )
            )
        self._connection._network_paths[0].bytes_sent += sum(map(len, datagrams))
        return datagrams
