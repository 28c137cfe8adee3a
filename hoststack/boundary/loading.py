"""Requests whose certificates, keys or trusted CAs have to be loaded, off the worker's loop."""

from __future__ import annotations

import errno
import time
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

import trio

from hoststack.boundary.codec import Unparsed
from hoststack.boundary.messages import Failed, Listen, ReplaceTls, WithKeys
from hoststack.boundary.off_loop import OffLoop
from hoststack.quic.seam import Credentials, Engine

#: Most requests of an application that wait; the rest stays in its channel.
_MOST_WAITING: Final = 16


class Loaded(NamedTuple):
    """A request with its credentials."""

    request: WithKeys
    credentials: Credentials


class Loading:
    """Loads the credentials for one application's requests: one at a time, in their order.

    Other requests overtake them, a Cancel for instance.
    """

    def __init__(self, off_loop: OffLoop) -> None:
        self._off_loop = off_loop
        self._waiting: deque[tuple[Unparsed | WithKeys, Engine]] = deque()
        self._has_waiting = trio.Event()
        self._current: int | None = None
        """Token of the request that is being loaded."""
        self._scope = trio.CancelScope()
        self._is_closed = False
        self._costs: deque[float] = deque()

    @property
    def is_full(self) -> bool:
        """Whether no further request may be added now."""
        return len(self._waiting) >= _MOST_WAITING

    def add(self, request: Unparsed | WithKeys, engine: Engine) -> None:
        """Load the credentials of a request for an engine, unless it is closed."""
        if self._is_closed:
            return
        self._waiting.append((request, engine))
        self._has_waiting.set()

    def cancel(self, token: int) -> None:
        """Forget the requests with this token; nothing answers them."""
        self._waiting = deque(each for each in self._waiting if each[0].token != token)
        if token == self._current:
            self._scope.cancel()

    def take_cost(self) -> float:
        """Return the CPU time that loading used since the last call, in seconds."""
        cost_s = 0.0
        while self._costs:
            cost_s += self._costs.popleft()
        return cost_s

    def close(self) -> None:
        """Forget all requests, and those to come: the application has left."""
        self._is_closed = True
        self._waiting.clear()
        self._scope.cancel()

    async def run(self, on_done: Callable[[Loaded | Failed], None]) -> None:
        """Load until cancelled, and pass each result to `on_done`."""
        while True:
            await self._has_waiting.wait()
            if not self._waiting:
                self._has_waiting = trio.Event()
                continue
            request, engine = self._waiting.popleft()
            self._current = request.token
            with trio.CancelScope() as self._scope:
                on_done(await self._load(request, engine))
            self._current = None

    async def _load(self, request: Unparsed | WithKeys, engine: Engine) -> Loaded | Failed:
        try:
            return await self._off_loop(lambda: self._load_now(request, engine))
        except ValueError as error:  # TlsConfigError, for example
            return Failed(request.token, errno.EINVAL, str(error))

    def _load_now(self, request: Unparsed | WithKeys, engine: Engine) -> Loaded:
        """Load in any thread, and note what that cost."""
        began = time.thread_time()
        try:
            return _load(request, engine)
        finally:
            self._costs.append(time.thread_time() - began)


def _load(request: Unparsed | WithKeys, engine: Engine) -> Loaded:
    """Parse and load what a request has of certificates and keys; in any thread."""
    parsed = request.parse() if isinstance(request, Unparsed) else request
    is_server = isinstance(parsed, Listen | ReplaceTls)
    return Loaded(parsed, engine.load_credentials(parsed.tls, parsed.alpn, is_server=is_server))
