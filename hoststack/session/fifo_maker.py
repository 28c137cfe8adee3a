"""Allocation of FIFOs for connections and streams: which application is charged, and how much."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

from hoststack.boundary.fifo_pool import FifoSize
from hoststack.boundary.shared_fifo import FifosBetween
from hoststack.native.memory.fifo import Fifo
from hoststack.quic.seam import ConnectionContext, Fifos, QuicConfig
from hoststack.session.session import ConnectionSession, ListenerSession, SessionTable
from hoststack.session.streams import Streams
from hoststack.transport.local.cut_through import CutConnection

#: Returns the session of a connection or, before it has one, the session of its listener.
PayerOf = Callable[[ConnectionContext], ConnectionSession | ListenerSession | None]


class FifoMaker:
    """Allocates FIFOs for the transports of one worker."""

    def __init__(self, sessions: SessionTable, streams: Streams, payer_of: PayerOf) -> None:
        self._sessions = sessions
        self._streams = streams
        self._payer_of = payer_of
        self.between = FifosBetween()

    def make_stream_fifos(
        self, connection: ConnectionContext, *, has_rx: bool, has_tx: bool, is_peers: bool
    ) -> Fifos:
        """Allocate the FIFOs of a stream; see EngineOwner."""
        payer = self._payer(connection)
        known = self._streams.begin(connection, payer.application)
        if is_peers:
            self._streams.check_room(known)
        try:
            return self._streams.make_fifos(known, has_rx=has_rx, has_tx=has_tx, is_peers=is_peers)
        except (OSError, MemoryError):
            self._sessions.refused["fifo_memory"] += is_peers
            raise

    def make_datagram_fifos(self, connection: ConnectionContext) -> tuple[Fifo, Fifo]:
        """Allocate both FIFOs for datagrams; see EngineOwner."""
        config = connection.config
        assert isinstance(config, QuicConfig)
        size_bytes = config.datagram_fifo_bytes
        is_peers = connection.listener is not None
        rx, tx = self._payer(connection).application.make_fifos(
            [FifoSize(size_bytes, size_bytes)] * 2, connection if is_peers else None
        )
        return rx, tx

    def make_fifos_between(
        self, asking: CutConnection, other: CutConnection, sizes: Sequence[FifoSize]
    ) -> list[Fifo]:
        """Allocate FIFOs shared by both sides of a cut-through connection, at the request of
        `asking`."""
        ours, theirs = self._payer(asking), self._payer(other)
        if isinstance(theirs, ConnectionSession):
            self._streams.check_room(self._streams.announce(theirs))
        return self.between.make({theirs.application: other, ours.application: None}, sizes)

    def _payer(self, connection: ConnectionContext) -> ConnectionSession | ListenerSession:
        session = self._payer_of(connection)
        if session is None:
            raise OSError(errno.ESHUTDOWN, "the listener is gone")
        return session
