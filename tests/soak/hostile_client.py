"""A QUIC client that does what no client should: aioquic, without its event loop."""

from __future__ import annotations

import select
import socket
import ssl
import time
from typing import Any

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import HandshakeCompleted, QuicEvent
from aioquic.quic.packet import QuicFrameType

#: Longest wait for one handshake, in seconds.
HANDSHAKE_S = 3.0


def configuration(alpn: list[str] | None, **options: Any) -> QuicConfiguration:
    """A client's configuration that takes any certificate."""
    return QuicConfiguration(
        is_client=True,
        alpn_protocols=alpn,
        server_name="localhost",
        verify_mode=ssl.CERT_NONE,
        **options,
    )


def first_flight(place: tuple[str, int], alpn: list[str]) -> list[bytes]:
    """The datagrams of a new client's first flight."""
    quic = QuicConnection(configuration=configuration(alpn))
    now = time.time()
    quic.connect(place, now=now)
    return [data for data, _ in quic.datagrams_to_send(now=now)]


class HostileClient:
    """One connection over a socket of its own; `frames` go out beside aioquic's own."""

    def __init__(self, place: tuple[str, int], alpn: list[str] | None, **options: Any) -> None:
        self._place = place
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self.quic = QuicConnection(configuration=configuration(alpn, **options))
        self.frames: list[tuple[int, bytes]] = []
        # aioquic asks for a PING frame whenever a ping is pending: the place to add others.
        self.quic._write_ping_frame = self._write_frames  # type: ignore[method-assign]
        self.quic.connect(place, now=time.time())

    def _write_frames(self, builder: Any, *_: object, **__: object) -> None:
        builder.start_frame(QuicFrameType.PING)
        while self.frames:
            kind, data = self.frames[0]
            try:
                buffer = builder.start_frame(kind, capacity=len(data) + 2)
            except Exception:  # no room in this packet
                return
            buffer.push_bytes(data)
            del self.frames[0]

    def __enter__(self) -> HostileClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    @property
    def is_closed(self) -> bool:
        """Whether the server has closed it."""
        return self.quic._close_event is not None

    def send(self) -> None:
        """Send what is due."""
        if self.frames:
            self.quic.send_ping(1)
        for data, _ in self.quic.datagrams_to_send(now=time.time()):
            self._send(data)

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendto(data, self._place)
        except (BlockingIOError, ConnectionRefusedError):
            return  # lost, as on any network

    def run(self, seconds: float, until: type[QuicEvent] | None = None) -> bool:
        """Run the connection for so long, or until an event; whether that came."""
        end = time.time() + seconds
        while not self.is_closed:
            self.send()
            timer = self.quic.get_timer()
            wait_s = min(end, timer or end) - time.time()
            if select.select([self._socket], [], [], max(0.0, min(wait_s, 0.05)))[0]:
                self._receive()
            now = time.time()
            if timer is not None and now >= timer:
                self.quic.handle_timer(now=now)
            while (event := self.quic.next_event()) is not None:
                if until is not None and isinstance(event, until):
                    self.send()
                    return True
            if now >= end:
                return False
        return False

    def _receive(self) -> None:
        while True:
            try:
                data, address = self._socket.recvfrom(65536)
            except (BlockingIOError, ConnectionRefusedError):
                return
            self.quic.receive_datagram(data, address, now=time.time())

    def handshake(self) -> bool:
        """Whether the handshake was completed."""
        return self.run(HANDSHAKE_S, HandshakeCompleted)

    def open_streams(self, count: int, data: bytes) -> list[int]:
        """Open up to `count` bidirectional streams as the server's limit allows; their IDs."""
        opened = []
        for _ in range(count):
            stream_id = self.quic.get_next_available_stream_id()
            if stream_id // 4 >= self.quic._remote_max_streams_bidi:
                break
            self.quic.send_stream_data(stream_id, data)
            opened.append(stream_id)
        return opened
