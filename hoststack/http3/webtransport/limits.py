"""What a peer allows this side to open and to send in a session (draft-15 section 5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from hoststack.api.about_stream import AboutSending
from hoststack.http3.errors import ErrorCode
from hoststack.http3.webtransport import wire
from hoststack.http3.webtransport.wire import CapsuleError, WebTransportCode
from hoststack.native.session._session import ffi, lib

_NOT_RAISED: Final = "a limit of a session was sent again, and not raised"


class SessionLimits:
    """Counts the streams of a session that this side opens; what these send is counted in C
    (native/session/allowance.c). None of the peer's limits is ever lowered."""

    def __init__(self, connection: Any, settings: Mapping[int, int]) -> None:
        """`connection` is a struct hs_end_connection, `settings` are the peer's. Raises
        MemoryError."""
        self._connection = connection
        self._most_streams = [
            settings.get(key, 0)
            for key in (wire.INITIAL_MAX_STREAMS_BIDI, wire.INITIAL_MAX_STREAMS_UNI)
        ]
        self._opened = [0, 0]
        self._most_bytes = settings.get(wire.INITIAL_MAX_DATA, 0)
        allowance = lib.hs_allowance_new(self._most_bytes)
        if not allowance:
            raise MemoryError("no memory for another WebTransport session")
        self._allowance = ffi.gc(allowance, lib.hs_allowance_release)

    def take_stream(self, *, is_unidirectional: bool) -> bool:
        """Count a stream that is about to be opened; returns False if the limit forbids it."""
        if self._opened[is_unidirectional] >= self._most_streams[is_unidirectional]:
            return False
        self._opened[is_unidirectional] += 1
        return True

    def return_stream(self, *, is_unidirectional: bool) -> None:
        """Count a stream no more, as it was not opened."""
        self._opened[is_unidirectional] -= 1

    def limit(self, stream: Any) -> None:
        """Count what a stream sends from now on."""
        if isinstance(stream, AboutSending):
            lib.hs_end_set_allowance(stream._end, self._allowance)

    def on_capsule(self, kind: int, value: int) -> None:
        """Follow a capsule of flow control. Raises CapsuleError."""
        if kind in wire.COUNTS_OF_STREAMS and value > wire.MOST_STREAMS:
            raise CapsuleError("a limit of streams is too large", ErrorCode.DATAGRAM_ERROR)
        if kind == wire.MAX_DATA:
            self._check_raised(self._most_bytes, value)
            self._most_bytes = value
            lib.hs_end_extend_allowance(self._connection, self._allowance, value)
        elif kind in wire.MAX_STREAMS:
            index = wire.MAX_STREAMS.index(kind)
            self._check_raised(self._most_streams[index], value)
            self._most_streams[index] = value

    @staticmethod
    def _check_raised(old: int, new: int) -> None:
        if new <= old:
            raise CapsuleError(_NOT_RAISED, WebTransportCode.FLOW_CONTROL_ERROR)
