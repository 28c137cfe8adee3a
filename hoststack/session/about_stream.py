"""The description of a stream for observers."""

from __future__ import annotations

from typing import Any, NamedTuple


class FifoState(NamedTuple):
    """Positions of a FIFO as its two sides wrote them, unchecked."""

    size_bytes: int
    head: int
    tail: int
    eof: bool


class AboutStream(NamedTuple):
    """A stream, for an observer."""

    handle: int
    connection: int
    """The handle of its connection."""
    stream_id: int
    rx: FifoState | None
    tx: FifoState | None


def about_stream(about: Any) -> AboutStream:
    """Return what a struct hs_session_about has."""
    return AboutStream(
        about.handle,
        about.connection,
        about.stream_id,
        _fifo_state(about.rx_bytes, about.rx_head, about.rx_tail, about.rx_eof),
        _fifo_state(about.tx_bytes, about.tx_head, about.tx_tail, about.tx_eof),
    )


def _fifo_state(size_bytes: int, head: int, tail: int, eof: int) -> FifoState | None:
    return FifoState(size_bytes, head, tail, bool(eof)) if size_bytes else None
