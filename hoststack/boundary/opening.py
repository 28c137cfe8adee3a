"""Streams that an application asked a worker in another process for, until they are open.

The worker refuses what the peer's limit does not allow, and keeps nothing: the requests wait here.
It says when the peer allows more (StreamsAvailable).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

from hoststack.boundary.messages import Failed
from hoststack.native.session._session import lib

#: Most requests of a connection that are tried again at once: the peer may allow one stream more.
_AT_ONCE: Final = 64
_NO_CREDIT: Final = int(lib.HS_SESSION_NO_CREDIT)
CLOSED: Final = (errno.ENOTCONN, "the connection is closed")
_ERRORS: Final = {
    int(lib.HS_SESSION_NO_MEMORY): (
        errno.ENOMEM,
        "the application's FIFOs use all the memory that they may: close streams, or raise "
        "fifo-memory-bytes in the daemon's settings",
    ),
    int(lib.HS_SESSION_MAX_SESSIONS): (
        errno.EMFILE,
        "the application has as many sessions as it may have: close some, or raise max-sessions",
    ),
    int(lib.HS_ATTACHED_NO_ROOM): (
        errno.ENOMEM,
        "this process has no room for the FIFOs of a stream: too many open files, or no memory",
    ),
}


class _Queue:
    """Requests for streams of one connection in one direction, oldest first."""

    def __init__(self) -> None:
        self.tokens: dict[int, None] = {}
        self.asked: set[int] = set()
        """Those that the worker has not answered yet."""
        self.is_held_back = False
        """Whether the peer's limit forbids more."""


class Opening:
    """The requests to one worker."""

    def __init__(self, ask: Callable[[int, bool, int], None]) -> None:
        """`ask(connection, unidirectional, token)` sends a Command.OPEN."""
        self._ask = ask
        self._queues: dict[tuple[int, bool], _Queue] = {}
        self._of: dict[int, tuple[int, bool]] = {}
        """Connection and direction by token."""

    def start(self, connection: int, unidirectional: bool, token: int) -> None:
        """Ask for a stream, after those that wait already."""
        key = self._of[token] = connection, unidirectional
        queue = self._queues.setdefault(key, _Queue())
        queue.tokens[token] = None
        if not queue.is_held_back:
            self._ask_for(key, queue, token)

    def _ask_for(self, key: tuple[int, bool], queue: _Queue, token: int) -> None:
        queue.asked.add(token)
        self._ask(*key, token)

    def on_opened(self, token: int) -> bool:
        """Return whether the stream is still wanted."""
        return self._end(token)

    def on_refused(self, token: int, refusal: int) -> Failed | None:
        """Return the answer to a request; None if it waits, or nobody wants it any more."""
        key = self._of.get(token)
        if key is not None and refusal == _NO_CREDIT:
            queue = self._queues[key]
            queue.asked.discard(token)
            queue.is_held_back = True
            return None
        return Failed(token, *_ERRORS.get(refusal, CLOSED)) if self._end(token) else None

    def on_available(self, connection: int) -> None:
        """The peer allows more streams."""
        for unidirectional in (False, True):
            queue = self._queues.get((connection, unidirectional))
            if queue is not None:
                queue.is_held_back = False
                self._go_on((connection, unidirectional), queue)

    def _go_on(self, key: tuple[int, bool], queue: _Queue) -> None:
        for token in list(queue.tokens):
            if queue.is_held_back or len(queue.asked) >= _AT_ONCE:
                return
            if token not in queue.asked:
                self._ask_for(key, queue, token)

    def cancel(self, token: int) -> bool:
        """Forget a request; return whether it was one for a stream."""
        return self._end(token)

    def _end(self, token: int) -> bool:
        key = self._of.pop(token, None)
        if key is None:
            return False
        queue = self._queues[key]
        del queue.tokens[token]
        queue.asked.discard(token)
        if not queue.tokens:
            del self._queues[key]
        elif not queue.asked:
            self._go_on(key, queue)
        return True

    def fail(self, connection: int) -> list[Failed]:
        """Return the answers to all requests of a connection that is closed."""
        failed = []
        for unidirectional in (False, True):
            queue = self._queues.pop((connection, unidirectional), None)
            for token in queue.tokens if queue is not None else ():
                del self._of[token]
                failed.append(Failed(token, *CLOSED))
        return failed

    def end(self) -> None:
        """Forget everything: the worker is gone."""
        self._queues.clear()
        self._of.clear()
        self._ask = _nobody


def _nobody(connection: int, unidirectional: bool, token: int) -> None:
    """The worker is gone. A reference to it would be a cycle that holds its memory."""
