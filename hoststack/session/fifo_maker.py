"""Allocation of FIFOs for connections and streams: which application is charged, and how much."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

from hoststack.boundary.fifo_pool import FifoSize
from hoststack.boundary.shared_fifo import make_fifos_between
from hoststack.native.memory.fifo import Fifo
from hoststack.quic.seam import ConnectionContext, Fifos
from hoststack.session.session import ConnectionSession, ListenerSession, SessionTable
from hoststack.session.stream_opener import NO_ROOM
from hoststack.transport.local.cut_through import CutConnection

#: Returns the session of a connection or, before it has one, the session of its listener.
PayerOf = Callable[[ConnectionContext], ConnectionSession | ListenerSession | None]


class FifoMaker:
    """Allocates FIFOs for the transports of one worker."""

    def __init__(self, sessions: SessionTable, payer_of: PayerOf) -> None:
        self._sessions = sessions
        self._payer_of = payer_of

    def make_stream_fifos(
        self, connection: ConnectionContext, *, has_rx: bool, has_tx: bool, is_peers: bool
    ) -> Fifos:
        """Allocate the FIFOs of a stream; see EngineOwner."""
        session = self._payer(connection)
        if is_peers:
            self._check_sessions(session)
        config = connection.config
        sizes = []
        if has_rx:
            sizes.append(FifoSize(config.rx_fifo_bytes, config.least_rx_bytes))
        if has_tx:
            sizes.append(FifoSize(config.tx_fifo_bytes, config.least_tx_bytes))
        try:
            made = session.application.make_fifos(sizes, connection if is_peers else None)
        except (OSError, MemoryError):
            self._sessions.refused["fifo_memory"] += is_peers
            raise
        return Fifos(made[0] if has_rx else None, made[-1] if has_tx else None)

    def make_datagram_fifos(self, connection: ConnectionContext) -> tuple[Fifo, Fifo]:
        """Allocate both FIFOs for datagrams; see EngineOwner."""
        size_bytes = connection.config.datagram_fifo_bytes
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
        if isinstance(theirs, ConnectionSession) and not self._sessions.may_open(theirs):
            raise OSError(errno.ENOMEM, NO_ROOM)
        return make_fifos_between({theirs.application: other, ours.application: None}, sizes)

    def _payer(self, connection: ConnectionContext) -> ConnectionSession | ListenerSession:
        session = self._payer_of(connection)
        if session is None:
            raise OSError(errno.ESHUTDOWN, "the listener is gone")
        return session

    def _check_sessions(self, session: ConnectionSession | ListenerSession) -> None:
        refusal = self._sessions.refusal(session.application)
        if refusal is not None:
            raise OSError(errno.EMFILE, refusal)
        if isinstance(session, ConnectionSession) and not self._sessions.may_open(session):
            self._sessions.refused["session_share"] += 1
            raise OSError(errno.EMFILE, "the connection has as many streams as it may have now")
