"""What one side of HTTP/3 accepts, and for how long it waits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: Methods that do no harm when they are replayed (RFC 9110 section 9.2.1, RFC 8470 section 3).
SAFE_METHODS: Final = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE"))
#: See `Http3Config.slow_seconds`: 273 bytes a second by default.
SLOW_BYTES: Final = 16384


@dataclass(frozen=True, kw_only=True)
class Http3Config:
    """Limits, and what is offered to the peer. Sizes are in bytes, times in seconds."""

    max_section_bytes: int = 65536
    """Of a header or trailer section, as RFC 9114 section 4.2.2 counts it: names, values, and 32
    for each field. A longer one is answered with 431."""
    max_fields: int = 256
    """In a section; answered as `max_section_bytes`."""
    max_body_bytes: int | None = None
    """Of a request or response; a longer one is answered with 413, or reset."""
    table_bytes: int = 4096
    """QPACK's dynamic table, in each direction; 0 uses none."""
    blocked_streams: int = 100
    """Of the peer, that may wait for its QPACK encoder stream."""
    max_streams: int = 128
    """That a client may prioritize before it opens them: what `QuicConfig.max_streams_bidi` is."""
    max_resets: int = 200
    """Requests that a client may reset, or break, beyond those that were answered; after that the
    connection is closed (EXCESSIVE_LOAD)."""
    head_seconds: float = 30.0
    """From the beginning of a request's stream to the end of its header section."""
    idle_seconds: float = 180.0
    """Without a request: after that, a server closes the connection."""
    slow_seconds: float | None = 60.0
    """In which a client must take SLOW_BYTES of a response that waits for it, or send as much of
    the content that the program waits for; or all that there is. A server resets slower responses
    (EXCESSIVE_LOAD), and answers slower requests with 408, after up to twice that time. None: no
    limit."""
    drain_seconds: float = 1.0
    """After the announcement of a shutdown, in which requests on their way are still accepted: more
    than a round trip."""
    datagrams: bool = False
    """Offer HTTP datagrams (RFC 9297). Set `QuicConfig.datagram_fifo_bytes` too."""
    connect_protocol: bool = True
    """A server accepts extended CONNECT (RFC 9220)."""
    webtransport_sessions: int = 0
    """WebTransport sessions that the peer may have at once; 0 offers none. It needs
    `QuicConfig.datagram_fifo_bytes`, as `datagrams`, which it implies."""
    webtransport_origins: frozenset[bytes] | None = None
    """Origins whose sessions a server accepts; None accepts all, and clients that name none."""
    early_methods: frozenset[bytes] = SAFE_METHODS
    """Methods that are processed before the handshake is complete; others are answered with 425
    (RFC 8470), and by a client not sent that early."""

    @property
    def has_datagrams(self) -> bool:
        """Whether HTTP datagrams are offered."""
        return self.datagrams or self.webtransport_sessions > 0

    def __post_init__(self) -> None:
        for name in ("max_section_bytes", "max_fields", "table_bytes", "blocked_streams"):
            if not 0 <= getattr(self, name) < 1 << 30:
                raise ValueError(f"{name} must be between 0 and {(1 << 30) - 1}")
        if self.slow_seconds is not None and not self.slow_seconds > 0:
            raise ValueError("slow_seconds must be more than 0, or None")
        if not 0 <= self.max_streams < 1 << 31:
            raise ValueError(f"max_streams must be between 0 and {(1 << 31) - 1}")
        if not 0 <= self.webtransport_sessions < 1 << 31:
            raise ValueError(f"webtransport_sessions must be between 0 and {(1 << 31) - 1}")
