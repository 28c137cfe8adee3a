"""What a stream is, and can do at once, in trio and in asyncio.

Its state and its bytes are in C (native/session/end.h). Only a task that has to wait is known here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from hoststack.api.errors import (
    ConnectionClosedError,
    StreamResetError,
    StreamStoppedError,
)
from hoststack.api.router import FEW_BYTES
from hoststack.native.session._session import ffi, lib
from hoststack.quic.seam import ABORTED_CODE

if TYPE_CHECKING:
    from hoststack.api.about_connection import AboutConnection
    from hoststack.api.router import Router

#: Most bytes that a program receives at a time, unless it says how many.
RECEIVE_BYTES: Final = 256 * 1024
LEAST_URGENT: Final = 7  #: RFC 9218 section 4.1

HINTS: Final = int(lib.HS_END_BYTES_BITS)
BYTES: Final = (1 << HINTS) - 1
WAIT: Final = int(lib.HS_END_WAIT)
MUCH: Final = int(lib.HS_END_MUCH)
CLOSED: Final = int(lib.HS_END_CLOSED)
RESET: Final = int(lib.HS_END_RESET)
STOPPED: Final = int(lib.HS_END_STOPPED)
GONE: Final = int(lib.HS_END_GONE)
CUT: Final = int(lib.HS_END_CUT)
FOR_BYTES: Final = int(lib.HS_WAIT_READ)
FOR_ROOM: Final = int(lib.HS_WAIT_WRITE)
FOR_FINISHED: Final = int(lib.HS_WAIT_FINISHED)
CORRUPT: Final = "the other side broke this stream's FIFO"


class AboutStream:
    """Base of all streams: identity, state, and what they do without waiting."""

    __slots__ = (
        "_connection",
        "_end",
        "_handle",
        "_is_receiving",
        "_is_sending",
        "_router",
        "_stream_id",
    )

    def __init__(
        self,
        router: Router,
        connection: AboutConnection[Any, Any, Any],
        end: Any,
        handle: int,
        stream_id: int,
    ) -> None:
        """`end` is the struct hs_end."""
        self._router = router
        self._connection = connection
        self._end = end
        self._handle = handle
        self._stream_id = stream_id
        self._is_receiving = False
        self._is_sending = False

    @property
    def connection(self) -> Any:
        """The connection that this stream belongs to."""
        return self._connection

    @property
    def handle(self) -> int:
        """The session's 64-bit handle: worker << 32 | index."""
        return self._handle

    @property
    def stream_id(self) -> int:
        """The QUIC stream ID (RFC 9000 section 2.1)."""
        return self._stream_id

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._stream_id} of {self._connection!r}>"

    def _close(self, *, aborts: bool = False) -> None:
        result = lib.hs_end_close(self._end, aborts, ABORTED_CODE)
        if result:
            self._act(result)

    def _abandon(self) -> None:
        self._close(aborts=True)

    def _state(self) -> Any:
        state = ffi.new("struct hs_end_state *")
        lib.hs_end_state(self._end, state)
        return state

    def _act(self, hints: int) -> None:
        """Do what an operation's result asks for."""
        self._router.act(hints >> HINTS)

    def _error(self, result: int) -> Exception:
        """Return the exception for an operation that ended with an enum hs_end_result."""
        if result == GONE:
            info = self._connection.close_info
            assert info is not None
            return ConnectionClosedError(info)
        if result == CLOSED:
            return self._router.closed_error("this stream was closed")
        return self._router.broken_error(CORRUPT)


class AboutSending(AboutStream):
    """A stream that can send."""

    __slots__ = ()

    def reset(self, code: int = 0) -> None:
        """Stop sending at once with an application code (RESET_STREAM); never blocks."""
        self._act(lib.hs_end_reset(self._end, code))

    def set_priority(self, urgency: int, *, is_incremental: bool = True) -> None:
        """Set what this side sends first of its connection's streams (RFC 9218): those of the least
        urgency, 0 to 7. Of one urgency, those that are incremental take turns, and others come one
        by one in the order of their IDs. A stream begins with 3, incremental.

        The least urgent ones never stand still: they get one round of packets in sixteen. What is
        written already is sent by the new priority, also if the end is set; a closed stream keeps
        its own. Raises ValueError for another urgency.
        """
        if not 0 <= urgency <= LEAST_URGENT:
            raise ValueError(f"urgency is {urgency}, and must be between 0 and {LEAST_URGENT}")
        result = lib.hs_end_prioritize(self._end, urgency, is_incremental)
        if result > 0:
            self._act(result)

    async def _wait_for_room(self) -> None:
        """Wait until there may be room; call it when a write in C had none."""
        if not self._router.has_turned():
            await self._router.sleep(self._handle << 2 | FOR_ROOM)

    def _room(self) -> int:
        """Return how many bytes fit, or what ended sending (enum hs_end_result)."""
        return int(lib.hs_end_writable(self._end))

    async def wait_acknowledged(self) -> None:
        """Wait until the peer has acknowledged every byte and the FIN.

        Use it after the end was sent, or the stream closed. Raises what sending raises if that
        cannot happen.
        """
        await self._router.checkpoint_if_cancelled()
        while (result := lib.hs_end_wait_finished(self._end)) == 0:
            await self._router.park(self._handle << 2 | FOR_FINISHED)
        if result < 0:
            raise self._sending_error(result)
        await self._router.shielded_checkpoint()

    def _sending_error(self, result: int) -> Exception:
        if result == STOPPED:
            return StreamStoppedError(self._state().stop_code)
        if result == RESET:
            code = self._state().stop_code
            return self._router.broken_error(f"this side reset the stream (code {code:#x})")
        if result == CLOSED and self._state().tx != CLOSED:
            return self._router.closed_error("this stream's end was sent already")
        return self._error(result)


class AboutReceiving(AboutStream):
    """A stream that can receive."""

    __slots__ = ()

    @property
    def may_be_replayed(self) -> bool:
        """Whether the data received so far may be a replay: it was early data, and the handshake is
        not complete (see `Connection.early_data`)."""
        return bool(self.connection.early_data == "pending")

    def stop_sending(self, code: int = 0) -> None:
        """Ask the peer to stop sending, with an application code (STOP_SENDING); never blocks.

        What has arrived can still be received; after that, receiving raises BrokenResourceError.
        """
        self._act(lib.hs_end_stop(self._end, code))

    async def _wait_for_bytes(self) -> None:
        """Wait until there may be bytes; call it when a read in C had none (`WAIT`)."""
        if not self._router.has_turned():
            await self._router.sleep(self._handle << 2 | FOR_BYTES)

    def _read(self, max_bytes: int) -> bytes | None:
        """Return the next bytes; none at the end, None if there are none yet."""
        few = max_bytes if max_bytes < FEW_BYTES else FEW_BYTES
        router = self._router
        result = lib.hs_end_read(self._end, router.room, few, max_bytes > few)
        if result > 0:
            count = result & BYTES
            if result != count:
                self._act(result)
            return router.room_bytes[:count]  # type: ignore[no-any-return]
        if result == WAIT:
            return None
        if not result:
            return b""
        if result != MUCH:
            raise self._receiving_error(result)
        place = ffi.new("uint8_t **")
        count = lib.hs_end_look(self._end, max_bytes, place)
        if count < 0:
            raise self._receiving_error(count)
        data: bytes = ffi.buffer(place[0], count)[:]
        result = lib.hs_end_skip(self._end, count)
        if result < 0:
            raise self._receiving_error(result)
        if result >> HINTS:
            self._act(result)
        return data

    def _receiving_error(self, result: int) -> Exception:
        if result == RESET:
            return StreamResetError(self._state().reset_code)
        if result == STOPPED:
            code = self._state().reset_code
            return self._router.broken_error(f"this side stopped receiving (code {code:#x})")
        return self._error(result)
