"""A call of the application that lasts, with messages both ways until one side closes: what
WebSockets and WebTransport sessions have in common."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Final

from hoststack.asgi.exchange import GONE, DisconnectedError, Exchange, logger

# States, of the application's side.
CONNECTING: Final = 0
DENYING: Final = 1  #: of a WebSocket: websocket.http.response.start was sent
OPEN: Final = 2
CLOSED: Final = 3

OK: Final = 200
FORBIDDEN: Final = 403
#: Codes of RFC 6455 section 7.4.1; WebTransport defines none.
FAILED: Final = 1011
RESTART: Final = 1012

Verbs = Mapping[str, Callable[[Any], Awaitable[object]]]


class Conversation(Exchange):
    """One call of the application."""

    _kind: ClassVar[str]
    """The scope's type, with which the types of messages begin."""
    _next: ClassVar[Mapping[int, str]]
    """What the application may send, by state."""
    _normal: ClassVar[int]
    """Code of an end without a reason."""
    _abnormal: ClassVar[int]
    """Code for a client that is gone."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._state = CONNECTING
        self._is_announced = False
        """The application has received the message that the client connects."""
        self._queue: deque[Any] = deque()
        """Messages for the application."""
        self._changed = self.request.connection._router.new_lot()
        """Tasks that wait for a message, for room in the queue, or for the end."""
        self._ending: tuple[int, str] | None = None
        """Code and reason, once nothing more can be received."""

    # --- receiving ---

    async def receive(self) -> dict[str, Any]:
        if not self._is_announced:
            self._is_announced = True
            return {"type": f"{self._kind}.connect"}
        if self._state == CONNECTING:
            await self.request.wait_gone()
            if self._state == CONNECTING:
                self.is_gone = True
                self._end(self._abnormal)
        while not self._queue:
            if self._ending is not None:
                code, reason = self._ending
                return {"type": f"{self._kind}.disconnect", "code": code, "reason": reason}
            await self._changed.park()
        message = self._take()
        self._changed.unpark_all()
        return message

    def _take(self) -> dict[str, Any]:
        """Return the first message of the queue."""
        message: dict[str, Any] = self._queue.popleft()
        return message

    def _end(self, code: int, reason: str = "") -> None:
        if self._ending is None:
            self._ending = int(code), reason
            self._changed.unpark_all()

    # --- sending ---

    async def send(self, message: Any) -> None:
        try:
            kind = message["type"]
        except (TypeError, KeyError):
            raise self._no_kind(message) from None
        state = self._state
        if self.is_gone or (state == OPEN and self._ending is not None):
            raise DisconnectedError
        verb = self._verbs(state).get(kind)
        if verb is None:
            raise self._out_of_order(kind, self._next[state])
        try:
            await verb(message)
        except GONE as error:
            self._on_gone(error)
            self._end(self._abnormal)
            raise DisconnectedError from error

    def _verbs(self, state: int) -> Verbs:
        """Return what carries out the application's messages in a state, by their types."""
        raise NotImplementedError

    async def _close(self, code: int, reason: str) -> None:
        """Tell the client that this side ends the conversation. Raises ValueError."""
        raise NotImplementedError

    async def _on_close(self, message: Any) -> None:
        """Carry out the application's close; an invalid one changes nothing. Raises TypeError and
        ValueError."""
        code, reason = message.get("code"), message.get("reason")
        code = self._normal if code is None else code
        reason = "" if reason is None else reason
        if not isinstance(code, int) or not isinstance(reason, str):
            raise TypeError(f"`code` is an int, and `reason` a str: not {code!r} and {reason!r}")
        self._check_close(code, reason)
        self._state = CLOSED
        await self._close(code, reason)

    def _check_close(self, code: int, reason: str) -> None:
        """Raise ValueError for a code or a reason that can't be sent."""
        raise NotImplementedError

    # --- the end ---

    async def on_returned(self) -> None:
        if self._state >= OPEN:
            await self._leave(self._normal)
        elif not self.is_gone:
            logger.error(
                "%s: the application returned without an answer, and 500 is sent: have it send "
                "%s.accept or %s.close",
                *(self, self._kind, self._kind),
            )
            await self.answer(500, "Internal Server Error")

    async def on_failed(self, error: BaseException) -> None:
        if self._state < OPEN or self.is_complete:
            await super().on_failed(error)
            return
        if self._ending is not None:
            logger.debug("%s: the application ended with its client: %r", self, error)
        else:
            logger.error("%s: the application failed, %d is sent", self, FAILED, exc_info=error)
        await self._leave(FAILED)

    def on_server_leaving(self) -> None:
        if self._state == OPEN:
            self.core.spawn(partial(self._leave, RESTART))

    async def _leave(self, code: int) -> None:
        """Close the conversation, unless that was done."""
        try:
            if self._ending is None:
                await self._close(code, "")
        except GONE as error:
            self._on_gone(error)
