"""Sessions of VCL: what a caller's number stands for, and what can be done with it now."""

from __future__ import annotations

import enum
import errno
import select
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from hoststack.boundary.protocols import Protocol
from hoststack.native.memory.fifo import Fifo, FifoCorruptError
from hoststack.vcl.errors import error

if TYPE_CHECKING:
    from hoststack.vcl.epoll import EpollSet

Address = tuple[str, int]
NOWHERE: Final = ("", 0)


class State(enum.Enum):
    """A session's life. What each call says in each state is in docs/vcl.md."""

    CREATED = "created"
    CONNECTING = "connecting"
    LISTENING = "listening"
    READY = "ready"
    FAILED = "failed"
    """A connect came to nothing: `error` says why, and another may be tried."""
    CLOSED = "closed"
    """The peer, or the stack, ended it; what came before can still be read."""


class Kind(enum.Enum):
    """What a session is, as far as it is known."""

    NEW = "new"
    LISTENER = "listener"
    CONNECTION = "connection"
    """Of QUIC: it carries no bytes itself."""
    STREAM = "stream"
    """Bytes: a QUIC stream, a TCP connection."""
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
    """The worker's; a TCP session's is its connection's."""
    stream_handle: int = -1
    """Of what carries bytes."""
    token: int = 0
    """Of the request that is under way."""
    local: Address = NOWHERE
    remote: Address = NOWHERE
    bound: Address | None = None
    rx: Fifo | None = None
    tx: Fifo | None = None
    max_datagram_bytes: int = 0
    has_addresses: bool = False
    """Whether each message begins with its peer's address (transport/kernel/udp.py)."""
    parent: VclSession | None = None
    """A stream's connection, or a connection's listener."""
    children: dict[VclSession, None] = field(default_factory=dict)
    """Those whose parent it is."""
    accepted: deque[VclSession] = field(default_factory=deque)
    n_accepted: int = 0
    """Of the children, those that the program has."""
    is_offered: bool = False
    """Whether it waits to be accepted."""
    is_counted: bool = False
    """Whether it is one of its parent's `n_accepted`."""
    unfinished: set[int] = field(default_factory=set)
    """A connection's streams that were closed, and of which something is not acknowledged yet."""
    certificate: bytes | None = None
    key: bytes | None = None
    rx_fifo_bytes: int | None = None
    tx_fifo_bytes: int | None = None
    error: int = 0
    end_errno: int = 0
    """Of a session that is closed: what reading and writing say."""
    is_reset: bool = False
    """The peer gave up sending."""
    is_stopped: bool = False
    """The peer wants no more."""
    is_write_shut: bool = False
    is_read_shut: bool = False
    is_cut: bool = False
    """A write was interrupted: how much of it the peer gets is not known, so it must not get an
    end after that."""
    ends_clean: bool = False
    """Closed by the peer with code 0."""
    message: bytes | None = None
    """A datagram that was looked at."""
    sets: dict[EpollSet, None] = field(default_factory=dict)
    """The epoll sets that it is in."""

    @property
    def is_listener(self) -> bool:
        return self.kind is Kind.LISTENER

    @property
    def is_connectable_listener(self) -> bool:
        """Whether streams can be opened in it, and accepted from it."""
        return self.kind is Kind.CONNECTION and self.state is State.READY

    def touch(self) -> None:
        """Something happened: the epoll sets look at it again."""
        for each in self.sets:
            each.candidates[self] = None

    # --- what can be done now ----------------------------------------------------------------

    def readiness(self) -> int:
        """EPOLL flags, those that nobody asked for among them."""
        if self.state is State.FAILED:
            return select.EPOLLIN | select.EPOLLOUT | select.EPOLLERR | select.EPOLLHUP
        if self.state in (State.CREATED, State.CONNECTING):
            return 0
        flags = select.EPOLLIN if self.accepted else 0
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
        """Whether a write would not block, be it for an error."""
        if self.is_stopped or self.is_write_shut or self.state is State.CLOSED:
            return True
        if self.tx is None:
            return False
        if self.kind is Kind.DATAGRAMS:
            return self.tx.has_room_for(self.max_datagram_bytes)
        return self.tx.writable > 0

    @property
    def has_all(self) -> bool:
        """Whether nothing more will come from the peer."""
        try:
            return self.is_reset or (self.rx is not None and self.rx.at_end)
        except FifoCorruptError:
            return True

    def arm(self, events: int) -> None:
        """Have the stack tell when it can be read from, or written to; look again after that."""
        # An end is told of like bytes; where this side has ended, too, whoever asks for nothing
        # is told.
        reads = events & (select.EPOLLIN | select.EPOLLRDHUP) or self.is_write_shut
        if reads and self.rx is not None:
            self.rx.arm_read()
        if events & select.EPOLLOUT and self.tx is not None:
            self.tx.arm_write()

    # --- what may be done at all: these raise OSError ----------------------------------------

    def check_readable(self) -> None:
        """Raises ENOTCONN, or ENOTSUP for what carries no bytes."""
        if self.kind is Kind.EPOLL:
            raise error(errno.EBADFD)
        if self.kind is Kind.CONNECTION and self.state is State.READY:
            raise error(errno.ENOTSUP, "a QUIC connection carries streams: read from one")
        if self.state not in (State.READY, State.CLOSED):
            raise error(errno.ENOTCONN)

    def check_writable(self) -> None:
        """Raises ENOTCONN, ENOTSUP, EPIPE, or what ended the session."""
        self.check_readable()
        if self.is_write_shut or self.is_stopped:
            raise error(errno.EPIPE)
        if self.state is State.CLOSED:
            raise error(errno.EPIPE if self.ends_clean else self.end_errno)
        if self.tx is None:
            raise error(errno.EPIPE, "the peer opened the stream for its own bytes alone")

    def raise_end_of_reading(self) -> None:
        """There is nothing to read: raises if nothing will come. A stream has an end of its own:
        where that has not come it is cut off, however its connection was closed."""
        if self.is_reset:
            raise error(errno.ECONNRESET)
        if self.state is State.CLOSED and (self.kind is Kind.STREAM or not self.ends_clean):
            raise error(self.end_errno or errno.ECONNRESET)
