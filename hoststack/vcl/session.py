"""Sessions of VCL: their state, and which operations it allows."""

from __future__ import annotations

import enum
import errno
import select
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from hoststack.boundary.protocols import Protocol
from hoststack.native.memory.fifo import Fifo, FifoCorruptError
from hoststack.native.session._session import ffi, lib
from hoststack.vcl.errors import error
from hoststack.vcl.stream import ByteStream, Rx, Tx

if TYPE_CHECKING:
    from hoststack.vcl.epoll import EpollSet

Address = tuple[str, int]
NOWHERE: Final = ("", 0)


class State(enum.Enum):
    """A session's state. docs/vcl.md says what each call returns in each state."""

    CREATED = "created"
    CONNECTING = "connecting"
    LISTENING = "listening"
    READY = "ready"
    FAILED = "failed"
    """A connect failed: `error` says why, and the program may try again."""
    CLOSED = "closed"
    """The peer or the stack ended it; data that arrived before can still be read."""


class Kind(enum.Enum):
    """What kind of session it is, as far as that is known."""

    NEW = "new"
    LISTENER = "listener"
    CONNECTION = "connection"
    """A QUIC connection: it carries no bytes itself."""
    STREAM = "stream"
    """A byte stream: a QUIC stream, a TCP connection."""
    DATAGRAMS = "datagrams"
    EPOLL = "epoll"


@dataclass(eq=False)
class VclSession:
    """A session of one VCL worker."""

    sh: int
    protocol: Protocol
    is_nonblocking: bool = False
    kind: Kind = Kind.NEW
    state: State = State.CREATED
    handle: int = -1
    """The stack's handle; a TCP session's is its connection's."""
    stream_handle: int = -1
    """The handle of the byte stream."""
    token: int = 0
    """The token of the request in progress."""
    local: Address = NOWHERE
    remote: Address = NOWHERE
    bound: Address | None = None
    side: Any = None
    """The struct hs_end_connection of a connection."""
    stream: ByteStream | None = None
    rx: Fifo | Rx | None = None
    tx: Fifo | Tx | None = None
    max_datagram_bytes: int = 0
    has_addresses: bool = False
    """Whether each message begins with its peer's address (transport/kernel/udp.py)."""
    parent: VclSession | None = None
    """A stream's connection, or a connection's listener."""
    children: dict[VclSession, None] = field(default_factory=dict)
    """The sessions whose parent it is."""
    accepted: deque[VclSession] = field(default_factory=deque)
    n_accepted: int = 0
    """How many children the program has accepted."""
    is_offered: bool = False
    """Whether it waits to be accepted."""
    is_counted: bool = False
    """Whether it is one of its parent's `n_accepted`."""
    certificate: bytes | None = None
    key: bytes | None = None
    alpn: tuple[str, ...] = ()
    """Application protocols; empty for the configuration's."""
    rx_fifo_bytes: int | None = None
    tx_fifo_bytes: int | None = None
    error: int = 0
    end_errno: int = 0
    """The error of reads and writes after the session is closed."""
    is_write_shut: bool = False
    is_read_shut: bool = False
    is_cut: bool = False
    """A write was interrupted: how much of it the peer gets is unknown, so no FIN may follow."""
    ends_clean: bool = False
    """Closed by the peer with code 0."""
    message: bytes | None = None
    """A datagram that MSG_PEEK has read."""
    sets: dict[EpollSet, None] = field(default_factory=dict)
    """The epoll sets that it is in."""

    @property
    def is_listener(self) -> bool:
        return self.kind is Kind.LISTENER

    @property
    def is_connectable_listener(self) -> bool:
        """Whether streams can be opened in it, and accepted from it."""
        return self.kind is Kind.CONNECTION and self.state is State.READY

    @property
    def has_offers(self) -> bool:
        """Whether there is a connection or stream to be accepted."""
        return bool(self.accepted) or self.offered_streams > 0

    @property
    def offered_streams(self) -> int:
        """How many streams of a QUIC connection can be accepted."""
        if self.side is None or self.kind is not Kind.CONNECTION:
            return 0
        return int(lib.hs_end_untaken(self.side))

    @property
    def has_unfinished(self) -> bool:
        """Whether streams of this connection have ended with data that is not acknowledged yet."""
        return self.side is not None and bool(lib.hs_end_unacknowledged(self.side, True))

    @property
    def is_reset(self) -> bool:
        """Whether the peer reset its sending direction."""
        return self.stream is not None and self.stream.is_reset

    @property
    def is_stopped(self) -> bool:
        """Whether the peer asked to stop sending."""
        return self.stream is not None and self.stream.is_stopped

    def set_stream(self, stream: ByteStream | None) -> None:
        """Carry a stream's bytes from now on, or none."""
        self.stream = stream
        self.rx, self.tx = (None, None) if stream is None else (stream.rx, stream.tx)

    def touch(self) -> None:
        """Make it a candidate in its epoll sets, after an event."""
        for each in self.sets:
            each.candidates[self] = None

    # --- readiness ---------------------------------------------------------------------------

    def readiness(self) -> int:
        """Return EPOLL flags, including those that were not requested."""
        if self.state is State.FAILED:
            return select.EPOLLIN | select.EPOLLOUT | select.EPOLLERR | select.EPOLLHUP
        if self.state in (State.CREATED, State.CONNECTING):
            return 0
        flags = select.EPOLLIN if self.has_offers else 0
        if self.state is State.CLOSED:
            flags |= select.EPOLLIN | select.EPOLLOUT | select.EPOLLHUP | select.EPOLLRDHUP
            return flags | (0 if self.ends_clean else select.EPOLLERR)
        if self.kind is Kind.CONNECTION:
            return flags | select.EPOLLOUT
        try:
            return flags | self._fifo_readiness()
        except FifoCorruptError:
            return flags | select.EPOLLIN | select.EPOLLOUT | select.EPOLLERR

    def _fifo_readiness(self) -> int:
        flags = select.EPOLLERR if self.is_reset else 0
        if self.can_read:
            flags |= select.EPOLLIN
        if self.rx is not None and self.rx.at_end and self.kind is Kind.STREAM:
            flags |= select.EPOLLRDHUP
            if self.is_write_shut:
                flags |= select.EPOLLHUP
        if self.can_write:
            flags |= select.EPOLLOUT
        return flags

    @property
    def can_read(self) -> bool:
        """Whether a read would not block."""
        if self.message is not None or self.is_reset or self.state is State.CLOSED:
            return True
        if self.is_read_shut:
            return True
        return self.rx is not None and bool(self.rx.readable or self.rx.eof)

    @property
    def can_write(self) -> bool:
        """Whether a write would not block, even if it would fail."""
        if self.is_stopped or self.is_write_shut or self.state is State.CLOSED:
            return True
        if self.tx is None:
            return False
        if isinstance(self.tx, Fifo):
            return self.tx.has_room_for(self.max_datagram_bytes)
        return self.tx.writable > 0

    @property
    def has_all(self) -> bool:
        """Whether the peer will send nothing more."""
        try:
            return self.is_reset or (self.rx is not None and self.rx.at_end)
        except FifoCorruptError:
            return True

    def arm(self, events: int) -> None:
        """Have the stack report when it can be read or written; check again after this."""
        # A FIN wakes a reader as bytes do. Where this side has ended as well, EPOLLHUP is due
        # even if no flag was requested.
        reads = bool(events & (select.EPOLLIN | select.EPOLLRDHUP) or self.is_write_shut)
        writes = bool(events & select.EPOLLOUT)
        if self.kind is Kind.CONNECTION and self.side is not None and not self.offered_streams:
            lib.hs_end_accept(self.side, ffi.new("struct hs_accepted *"))  # which waits for one
        elif self.stream is not None:
            self.stream.watch(reads=reads, writes=writes)
        else:
            if reads and self.rx is not None:
                self.rx.arm_read()
            if writes and self.tx is not None:
                self.tx.arm_write()

    # --- checks of operations: these raise OSError -------------------------------------------

    def check_readable(self) -> None:
        """Raise ENOTCONN, or ENOTSUP for a session that carries no bytes, if it can't be read."""
        if self.kind is Kind.EPOLL:
            raise error(errno.EBADFD)
        if self.kind is Kind.CONNECTION and self.state is State.READY:
            raise error(errno.ENOTSUP, "a QUIC connection carries streams: read from one")
        if self.state not in (State.READY, State.CLOSED):
            raise error(errno.ENOTCONN)

    def check_writable(self) -> None:
        """Raise ENOTCONN, ENOTSUP, EPIPE, or the error of its end, if it can't be written."""
        self.check_readable()
        if self.is_write_shut or self.is_stopped:
            raise error(errno.EPIPE)
        if self.state is State.CLOSED:
            raise error(errno.EPIPE if self.ends_clean else self.end_errno)
        if self.tx is None:
            raise error(errno.EPIPE, "the peer opened this stream as unidirectional")

    def raise_end_of_reading(self) -> None:
        """Raise if nothing more will arrive. A stream has an end of its own: without its FIN it was
        cut off, however its connection was closed."""
        if self.is_reset:
            raise error(errno.ECONNRESET)
        if self.state is State.CLOSED and (self.kind is Kind.STREAM or not self.ends_clean):
            raise error(self.end_errno or errno.ECONNRESET)
