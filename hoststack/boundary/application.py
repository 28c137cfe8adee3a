"""The boundary between one application and one worker, as both sides see it.

Requests and signals go down, notices and events come up. Signals and events are 16-byte entries in
event rings; requests and notices are messages. In process both lie in plain memory and a wake-up
is a call; an application in another process has the same with shared memory and a socket.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from hoststack.boundary.containment import contained
from hoststack.boundary.fifo_pool import FifoSize
from hoststack.boundary.messages import Connect, EventCode, Notice, Request
from hoststack.boundary.scope import DEFAULT_NAMESPACE, Scope
from hoststack.native.memory.event_ring import EventRing
from hoststack.native.memory.fifo import Fifo
from hoststack.quic.seam import QuicConfig
from hoststack.quic.session_cache import ServerSessions

#: Entries of an event ring. What does not fit waits on its producer's side.
RING_ENTRIES = 4096


#: How long a window may stay where it is though the application has read; nobody waits for it then.
LAZY_S = 0.001


def known_sessions(request: Connect, engine: str) -> ServerSessions | None:
    """The part of `TlsConfig.sessions` that is about a connect's server."""
    cache = request.tls.sessions
    if cache is None:
        return None
    version = (request.config or QuicConfig()).version
    return cache.of(engine, request.server_name, request.remote, request.tls, request.alpn, version)


class Wakeable(Protocol):
    """How an application has its worker have a turn."""

    def wake(self) -> None:
        """Soon."""

    def wake_within(self, seconds: float) -> None:
        """In so many seconds, or sooner if there is a turn for another reason."""

    def turn_over(self) -> None:
        """At once where that is possible, else soon: there is something to send."""


class _NoWorker:
    """The worker before there is one."""

    def wake(self) -> None: ...
    def wake_within(self, seconds: float) -> None: ...
    def turn_over(self) -> None: ...


def _nobody() -> None:
    """The application's wake-up before it has said how to wake it."""


class EventChannel:
    """One direction of events: a ring, and what did not fit into it yet.

    An event is a reason to look, so one of each kind is enough for a session: what waits is bounded
    by the sessions that there are, whatever a peer does.
    """

    def __init__(self, ring: EventRing) -> None:
        self.ring = ring
        self._waiting: dict[tuple[int, int], None] = {}

    def push(self, handle: int, code: EventCode) -> None:
        if self._waiting or not self.ring.push(handle, int(code)):
            self._waiting[handle, int(code)] = None

    def settle(self) -> int:
        """Move what waits into the ring, as far as there is room; returns how much still waits."""
        while self._waiting and self.ring.push(*(first := next(iter(self._waiting)))):
            del self._waiting[first]
        return len(self._waiting)

    @property
    def is_held_up(self) -> bool:
        """Whether something did not fit into the ring yet."""
        return bool(self._waiting)

    def pop_all(self) -> list[tuple[int, int, int]]:
        popped = self.ring.pop_many(RING_ENTRIES)
        while self._waiting:
            self.settle()
            popped += self.ring.pop_many(RING_ENTRIES)
        return popped

    @property
    def is_idle(self) -> bool:
        return not self._waiting and not len(self.ring)


class ImpossibleRequestError(Exception):
    """No application of ours asks for this: one that does has gone mad, or is evil."""


class ApplicationSide(Protocol):
    """What the application's objects need: one worker, or several as one."""

    wake_application: Callable[[], None]

    def request(self, request: Request) -> None: ...
    def signal_sent(self, handle: int) -> None: ...
    def signal_consumed(self, handle: int, is_urgent: bool = True) -> None: ...
    def signal_taken(self, handle: int) -> None: ...
    def signal_noted(self, handle: int) -> None: ...
    def take_notices(self) -> list[Notice]: ...
    def take_events(self) -> list[tuple[int, int, int]]: ...
    def on_bad_notice(self, notice: Notice, error: Exception) -> None: ...


class Application:
    """An application, as one worker knows it and as it knows that worker."""

    def __init__(
        self, name: str, down: EventRing | None = None, up: EventRing | None = None
    ) -> None:
        """With rings of its own, or those that it shares with another process."""
        self.name = name
        self.namespace = DEFAULT_NAMESPACE
        self.scopes: frozenset[Scope] = frozenset({"global"})
        self.group: tuple[str, str, int] | None = None
        """Name, namespace and uid of applications that may listen on one endpoint together; None:
        none may."""
        self.worker: Wakeable = _NoWorker()
        self.wake_application: Callable[[], None] = _nobody
        self.max_sessions: int | None = None
        """Listeners, connections and streams that it may have; None: any number."""
        self.sessions_in_use = 0
        self.max_ports: int | None = None
        """Ports of the network that it may listen on; None: any number."""
        self.max_fifo_bytes: int | None = None
        """Memory that its FIFOs may take; None: any."""
        self.is_remote = False
        """Whether it is in another process, and sees no memory but segments."""
        self._down = EventChannel(EventRing(RING_ENTRIES) if down is None else down)
        self._up = EventChannel(EventRing(RING_ENTRIES) if up is None else up)
        self._requests: deque[Request] = deque()
        self._notices: deque[Notice] = deque()

    # --- the application's side ---

    def request(self, request: Request) -> None:
        """Ask the worker for something; replies come as notices."""
        self._requests.append(request)
        self.worker.wake()

    def signal_sent(self, handle: int) -> None:
        """Tell the worker that the tx FIFO of a session got bytes or its end."""
        self._down.push(handle, EventCode.SENT)
        self.worker.turn_over()

    def signal_consumed(self, handle: int, is_urgent: bool = True) -> None:
        """Tell the worker that the rx FIFO of a session has more room.

        Where the peer has much of its window left, that may wait: a wake-up costs more than it
        brings. But not for long, for all streams of a connection share its window.
        """
        self._down.push(handle, EventCode.CONSUMED)
        if is_urgent:
            self.worker.wake()
        else:
            self.worker.wake_within(LAZY_S)

    def signal_taken(self, handle: int) -> None:
        """Tell the worker that the program has taken a connection or a stream that a peer began.

        The peer may begin another one when that is over.
        """
        self._down.push(handle, EventCode.TAKEN)
        self.worker.wake_within(LAZY_S)

    def signal_noted(self, handle: int) -> None:
        """Tell the worker that the last PathChanged and DatagramsReady of a connection were taken.

        Others may follow then.
        """
        self._down.push(handle, EventCode.NOTED)
        self.worker.wake_within(LAZY_S)

    def take_notices(self) -> list[Notice]:
        """All notices that have come since the last call, oldest first."""
        notices = list(self._notices)
        self._notices.clear()
        return notices

    def take_events(self) -> list[tuple[int, int, int]]:
        """All events that have come, as (handle, EventCode, 0), oldest first."""
        return self._up.pop_all()

    def on_bad_notice(self, notice: Notice, error: Exception) -> None:
        """A notice made its receiver stumble: in this process that is a mistake of ours."""
        raise error

    # --- the worker's side ---

    def arm(self) -> bool:
        """The worker is about to sleep; whether there is something for it to do after all."""
        return False

    def make_fifo(self, size_bytes: int) -> Fifo:
        """A FIFO for this application. Raises as `make_fifos`."""
        (fifo,) = self.make_fifos([FifoSize(size_bytes, size_bytes)])
        return fifo

    def make_fifos(self, sizes: Sequence[FifoSize], owner: object | None = None) -> list[Fifo]:
        """FIFOs for a stream or for datagrams of this application, all or none.

        `owner` is a connection on which a peer may ask for any number; None stands for what the
        application itself asks for. Raises OSError and MemoryError.
        """
        return [Fifo(size.wanted_bytes) for size in sizes]

    def on_fault(self, error: Exception) -> None:
        """What it asked for, or has in its FIFOs, can't be, or there is a mistake of ours: in this
        process that is everybody's end."""
        raise error

    def sessions_for(self, request: Connect, engine: str) -> ServerSessions | None:
        """Where its tickets and tokens of a server lie, as far as it keeps any."""
        return known_sessions(request, engine)

    def choose_sizes(self, sizes: Sequence[FifoSize], owner: object | None) -> list[int]:
        """As large as FIFOs may be that it shares with another application. Raises OSError."""
        return [size.wanted_bytes for size in sizes]

    def has_room_for(self, *sizes_bytes: int) -> bool:
        """Whether FIFOs of these sizes can be made: there are limits on other processes."""
        return True

    def make_peer_fifo(self, size_bytes: int) -> Fifo:
        """As `make_fifo`, for the endpoint of a UDP listener's peer."""
        return self.make_fifo(size_bytes)

    @property
    def peer_fifo_bytes(self) -> int:
        """Memory that `make_peer_fifo` took and that another process has not released yet."""
        return 0

    @property
    def is_behind(self) -> bool:
        """Whether many notices wait for it: another process may not take them as they come."""
        return False

    def adopt_fifo(
        self, fifo: Fifo, segment_fd: int, least_bytes: int, owner: object | None
    ) -> None:
        """Learn of a FIFO that it shares with another application (cut-through), which has a
        segment to itself; the descriptor is taken over. In this process there is nothing to
        learn."""
        os.close(segment_fd)

    def take_requests(self) -> list[Request]:
        requests = list(self._requests)
        self._requests.clear()
        return requests

    def take_signals(self) -> list[tuple[int, int, int]]:
        return self._down.pop_all()

    def notify(self, notice: Notice) -> None:
        self._notices.append(notice)

    def raise_event(self, handle: int, code: EventCode) -> None:
        self._up.push(handle, code)

    def flush(self) -> bool:
        """Wake the application if anything waits for it; whether something did."""
        if not self._notices and self._up.is_idle:
            return False
        self.wake_application()
        return True


async def run_alone(
    application: Application, task: Callable[..., Awaitable[None]], *arguments: object
) -> None:
    """Run a task on behalf of an application: what it raises is that application's fault."""
    with contained(application.on_fault):
        await task(*arguments)
