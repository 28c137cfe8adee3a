"""aioquic as it comes, at the other end of a memory network: what our engine has to get on with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import trio
from aioquic.buffer import Buffer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import HandshakeCompleted, QuicEvent, StreamDataReceived
from aioquic.quic.packet import pull_quic_header
from aioquic.tls import Epoch

from hoststack.link.base import Endpoint, Path
from hoststack.link.memory import MemoryLink

E = TypeVar("E", bound=QuicEvent)


class StockPeer:
    """A stock connection on a link; `run` it in a nursery."""

    def __init__(self, link: MemoryLink, port: int = 0) -> None:
        self.link = link
        self.local = link.open_port(Endpoint("0.0.0.0", port))
        self.port = self.local.port
        self.quic: QuicConnection | None = None
        self.events: list[QuicEvent] = []
        self.received: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.datagrams_received = 0
        self.prepare: Callable[[QuicConnection], None] = lambda quic: None
        """Called with `quic` when it is made, before it does anything."""
        self._configuration: QuicConfiguration | None = None
        self._remote: Path | None = None
        self._scope = trio.CancelScope()
        self._changed = trio.Event()

    async def connect(self, configuration: QuicConfiguration, host: str, port: int) -> None:
        """Begin a handshake as a client."""
        self._remote = await self.link.connect_path(self.port, Endpoint(host, port))
        self.quic = QuicConnection(configuration=configuration)
        self.prepare(self.quic)
        self.quic.connect((host, port), now=trio.current_time())

    async def meet(self, configuration: QuicConfiguration, host: str, port: int) -> None:
        """Be a client whose handshake is complete, and that is silent until it is `run` again."""
        await self.connect(configuration, host, port)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.run)
            await self.wait_for(HandshakeCompleted)
            await trio.sleep(1)
            nursery.cancel_scope.cancel()

    def seal(self, payload: bytes) -> bytes:
        """A 1-RTT packet with that payload, of which `quic` knows only the number."""
        assert self.quic is not None
        number = self.quic._packet_number
        self.quic._packet_number += 1
        crypto = self.quic._cryptos[Epoch.ONE_RTT]
        first = 0x41 | crypto.key_phase << 2
        header = bytes((first,)) + self.quic._peer_cid.cid + (number & 0xFFFF).to_bytes(2, "big")
        return crypto.encrypt_packet(header, payload.ljust(4, b"\0"), number)

    def send(self, datagram: bytes) -> None:
        """Send this past `quic`."""
        assert self._remote is not None
        self.link.send([(datagram, self._remote)])

    def accept(self, configuration: QuicConfiguration) -> None:
        """Be a server for the first client that comes."""
        self._configuration = configuration

    async def rebind(self) -> None:
        """Send from another port from now on, as after a NAT has forgotten us."""
        assert self._remote is not None
        self.port = self.link.open_port(Endpoint("0.0.0.0", 0)).port
        self._remote = await self.link.connect_path(self.port, self._remote.remote)
        self.poke()

    def poke(self) -> None:
        """Something was asked of `quic`: have it sent."""
        self._scope.cancel()

    async def wait_for(self, kind: type[E]) -> E:
        """The first event of a kind, also one that came before."""
        await self.until(lambda: any(isinstance(event, kind) for event in self.events))
        return next(event for event in self.events if isinstance(event, kind))

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Until something holds; looked at after each turn."""
        while not is_so():
            await self._changed.wait()

    async def stream_ends(self, stream_id: int) -> bytes:
        """All bytes of a stream, once its end is there."""
        await self.until(lambda: stream_id in self.ended)
        return self.received.get(stream_id, b"")

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._turn()
            timer = None if self.quic is None else self.quic.get_timer()
            with trio.CancelScope(deadline=math.inf if timer is None else timer) as self._scope:
                await self.link.wait_readable()
            await trio.lowlevel.checkpoint()

    def _turn(self) -> None:
        now = trio.current_time()
        for data, path, _ in self.link.receive():
            self.datagrams_received += 1
            if self.quic is None and self._configuration is not None:
                header = pull_quic_header(Buffer(data=data), host_cid_length=8)
                self._remote = path
                self.quic = QuicConnection(
                    configuration=self._configuration,
                    original_destination_connection_id=header.destination_cid,
                )
                self.prepare(self.quic)
            if self.quic is not None:
                self.quic.receive_datagram(data, path.remote, now)
        if self.quic is None:
            return
        timer = self.quic.get_timer()
        if timer is not None and timer <= now:
            self.quic.handle_timer(now + 1e-6)
        self._take_events(self.quic)
        assert self._remote is not None
        for data, (host, port) in self.quic.datagrams_to_send(now):
            self.link.send([(data, Path(self._remote.local, Endpoint(host, port)))])

    def _take_events(self, quic: QuicConnection) -> None:
        event: Any = quic.next_event()
        while event is not None:
            self.events.append(event)
            if isinstance(event, StreamDataReceived):
                so_far = self.received.get(event.stream_id, b"")
                self.received[event.stream_id] = so_far + event.data
                if event.end_stream:
                    self.ended.add(event.stream_id)
            event = quic.next_event()
        self._changed.set()
        self._changed = trio.Event()
