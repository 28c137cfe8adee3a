"""The boundary between one application and one worker.

The application sends requests and commands down; the worker sends notices and events up. In one
process all of them are in plain memory, and a wake-up is a call. An application in another process
uses a socket for requests and notices, and rings in shared memory for commands and events.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from hoststack.boundary.containment import contained
from hoststack.boundary.fifo_pool import BlockName, FifoSize, SharedBlock
from hoststack.boundary.loading import Loaded
from hoststack.boundary.messages import Command, Connect, EventCode, Notice, Request
from hoststack.boundary.rings import Rings
from hoststack.boundary.scope import DEFAULT_NAMESPACE, Scope
from hoststack.boundary.user_shares import Process
from hoststack.native.memory.fifo import Fifo
from hoststack.native.session._session import ffi, lib
from hoststack.quic.seam import Engine, QuicConfig
from hoststack.quic.session_cache import ServerSessions

_SEND: Final = int(lib.HS_END_SEND)
_CREDIT: Final = int(lib.HS_END_CREDIT)
_CREDIT_NOW: Final = int(lib.HS_END_CREDIT_NOW)
_WAKES: Final = int(lib.HS_END_WAKES)

#: Longest delay of a signal that is not urgent: the peer still has most of its window.
LAZY_S = 0.001


def known_sessions(request: Connect, engine: str) -> ServerSessions | None:
    """Return the part of `TlsConfig.sessions` for a connect's server; None without a cache."""
    cache = request.tls.sessions
    if cache is None:
        return None
    config = request.config if isinstance(request.config, QuicConfig) else QuicConfig()
    return cache.of(
        engine, request.server_name, request.remote, request.tls, request.alpn, config.version
    )


class Plane(Protocol):
    """Streams of a worker in this process, for its applications."""

    def hold(self, handle: int) -> Any:
        """Return the struct hs_end_connection of a connection."""

    def open_here(
        self, application: object, handle: int, *, unidirectional: bool
    ) -> tuple[Any, int, int] | None:
        """Open a stream: its struct hs_end, handle and ID. Returns None while the peer's limit
        forbids it: StreamsAvailable follows. Raises OSError."""

    def openings(self, handle: int, unidirectional: bool) -> int:
        """Return how many more streams a connection's peer allows now; StreamsAvailable reports
        when there are more."""


class Wakeable(Protocol):
    """How an application schedules its worker."""

    def wake(self) -> None:
        """Run the worker soon."""

    def wake_within(self, seconds: float) -> None:
        """Run the worker within this time, or earlier if it runs for another reason."""

    def turn_over(self) -> None:
        """Run the worker inline where that is possible, else soon: there is data to send."""


class _NoWorker:
    """Placeholder before the application is attached to a worker."""

    def wake(self) -> None: ...
    def wake_within(self, seconds: float) -> None: ...
    def turn_over(self) -> None: ...


def _no_wake_up() -> None:
    """Placeholder before the application sets `wake_application`."""


class EventQueue:
    """One direction of events within a process."""

    def __init__(self) -> None:
        self.waiting: list[tuple[int, int, int, int]] = []

    def push(self, handle: int, code: Command | EventCode) -> None:
        self.waiting.append((handle, int(code), 0, 0))

    def pop_all(self) -> list[tuple[int, int, int, int]]:
        popped, self.waiting = self.waiting, []
        return popped


class ImpossibleRequestError(Exception):
    """A request that this project's client code never sends; the application is broken or
    malicious."""


class ApplicationSide(Protocol):
    """What the application's objects use: one worker, or several presented as one."""

    wake_application: Callable[[], None]
    side: Any
    """Its struct hs_side (native/session/end.h): what it waits for."""
    plane: Plane | None
    """The worker's streams, if the worker is in this process."""
    runnable: int
    """Tasks that the last turn has woken, and that have not slept again."""

    def act(self, hints: int) -> None: ...
    def before_sleep(self) -> bool: ...
    def hold(self, handle: int) -> Any: ...
    def hold_end(self, handle: int, end: Any) -> Any: ...
    def open_stream(self, connection: int, unidirectional: bool, token: int) -> None: ...
    def take_opened(self) -> Sequence[tuple[int, int, int, Any]]: ...
    def request(self, request: Request) -> None: ...
    def signal_sent(self, handle: int) -> None: ...
    def signal_consumed(self, handle: int, is_urgent: bool = True) -> None: ...
    def signal_taken(self, handle: int) -> None: ...
    def signal_noted(self, handle: int) -> None: ...
    def take_notices(self) -> list[Notice]: ...
    def take_events(self) -> list[tuple[int, int]]: ...
    def on_bad_notice(self, notice: Notice, error: Exception) -> None: ...


@dataclass(slots=True, eq=False, weakref_slot=True)
class TimeAccount:
    """A worker's time for the requests of one process. All its attachments share it: by many of
    them a process gets no more."""

    uid: int = -1
    """The user of the process."""
    pid: int = -1
    left_s: float = 0.0
    """How long requests may take in this turn. Below 0 it has used time of later turns."""
    served: int = 0
    """How often one of its attachments was served: the next one is due."""


class Application:
    """An application attached to one worker: both sides of the boundary."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.namespace = DEFAULT_NAMESPACE
        self.scopes: frozenset[Scope] = frozenset({"global"})
        self.group: tuple[str, str, int] | None = None
        """Name, namespace and uid of the applications that may share listening endpoints; None:
        it shares none."""
        self.worker: Wakeable = _NoWorker()
        self.wake_application: Callable[[], None] = _no_wake_up
        self.engine: Engine
        """Its worker's, from when it is attached."""
        self.account = TimeAccount()
        self.max_sessions: int | None = None
        """Most listeners, connections and streams together; None: any number."""
        self.side = ffi.gc(lib.hs_side_new(), lib.hs_side_free)
        self.plane: Plane | None = None
        self._has_sent = False
        """Whether streams have sent since the last turn of `before_sleep`."""
        self.runnable = 0
        self.rings: Rings | None = None
        """What an application in another process shares with its worker."""
        self.key = 0
        """What the session plane calls it."""
        self.streams: Any = None
        """The struct hs_application (native/session/session.h) of an attached one."""
        self.max_fifo_bytes: int | None = None
        """Most memory for its FIFOs; None: any."""
        self.is_remote = False
        """Whether it is in another process, and can only access shared segments."""
        self._down = EventQueue()
        self._up = EventQueue()
        self._requests: deque[Request] = deque()
        self._notices: deque[Notice] = deque()

    @property
    def process(self) -> Process | None:
        """The process that is charged for what it uses; None for this one."""
        return (self.account.uid, self.account.pid) if self.is_remote else None

    # --- the application's side ---

    def act(self, hints: int) -> None:
        """Do what an operation on a stream asks for (enum hs_end_hint)."""
        if hints & _SEND:
            self._has_sent = True
            self.worker.wake()
        elif hints & _CREDIT_NOW:
            self.worker.wake()
        elif hints & _CREDIT:
            self.worker.wake_within(LAZY_S)
        if hints & _WAKES:
            self.wake_application()

    def before_sleep(self) -> bool:
        """Send what a task has to send before it waits for the answer. Return whether the worker
        had a turn, which may have brought what the task wants to wait for."""
        self.runnable -= 1
        if not self._has_sent or self.runnable > 0:
            return False
        self._has_sent = False
        self.worker.turn_over()
        return True

    def hold(self, handle: int) -> Any:
        """Return the struct hs_end_connection of a new connection."""
        assert self.plane is not None
        return self.plane.hold(handle)

    def hold_end(self, handle: int, end: Any) -> Any:
        """Own the struct hs_end of an accepted stream."""
        return ffi.gc(end, lib.hs_end_drop)

    def open_stream(self, connection: int, unidirectional: bool, token: int) -> None:
        """Ask a worker in another process for a stream; `take_opened` or a Failed follows."""
        raise NotImplementedError

    def take_opened(self) -> Sequence[tuple[int, int, int, Any]]:
        """Return the streams that a worker in another process has opened since the last call:
        token, handle, stream ID and struct hs_end."""
        return ()

    def request(self, request: Request) -> None:
        """Send a request to the worker; replies are notices."""
        self._requests.append(request)
        self.worker.wake()

    def signal_sent(self, handle: int) -> None:
        """Signal the worker that the tx FIFO of a session has new bytes, or its end."""
        self._down.push(handle, Command.SENT)
        self.worker.turn_over()

    def signal_consumed(self, handle: int, is_urgent: bool = True) -> None:
        """Signal the worker that the rx FIFO of a session has more room.

        If the peer has most of its window left, this is not urgent, and the signal waits up to
        LAZY_S: a wake-up costs more than it gains. It cannot wait longer, since all streams of a
        connection share its window.
        """
        self._down.push(handle, Command.CONSUMED)
        if is_urgent:
            self.worker.wake()
        else:
            self.worker.wake_within(LAZY_S)

    def signal_taken(self, handle: int) -> None:
        """Signal the worker that the program accepted a connection or stream that a peer opened.

        The peer may open another one when that is closed.
        """
        self._down.push(handle, Command.TAKEN)
        self.worker.wake_within(LAZY_S)

    def signal_noted(self, handle: int) -> None:
        """Signal the worker that the program read the last PathChanged and DatagramsReady of a
        connection. The worker sends the next ones only after that."""
        self._down.push(handle, Command.NOTED)
        self.worker.wake_within(LAZY_S)

    def take_notices(self) -> list[Notice]:
        """Return all notices since the last call, oldest first."""
        notices = list(self._notices)
        self._notices.clear()
        return notices

    def take_events(self) -> list[tuple[int, int]]:
        """Return all events since the last call as (handle, EventCode), oldest first."""
        return [(handle, code) for handle, code, *_ in self._up.pop_all()]

    def on_bad_notice(self, notice: Notice, error: Exception) -> None:
        """Handle an exception in the receiver of a notice; in one process that is a bug."""
        raise error

    # --- the worker's side ---

    @property
    def sessions_in_use(self) -> int:
        """Its listeners, connections and streams."""
        return int(lib.hs_application_sessions(self.streams)) if self.streams is not None else 0

    def count_sessions(self, more: int) -> None:
        """Count sessions that it has now, or no longer has."""
        lib.hs_application_count(self.streams, more)

    def arm(self) -> bool:
        """Ask for a wake-up before the worker sleeps; return whether it has work already."""
        return self.has_requests

    def make_fifo(self, size_bytes: int) -> Fifo:
        """Allocate one FIFO for this application. Raises as `make_fifos`."""
        (fifo,) = self.make_fifos([FifoSize(size_bytes, size_bytes)])
        return fifo

    def make_fifos(self, sizes: Sequence[FifoSize], owner: object | None = None) -> list[Fifo]:
        """Allocate FIFOs for a stream or for datagrams of this application, all or none.

        `owner` is the connection that is charged when a peer causes the allocation; None when the
        application asks for it. Raises OSError and MemoryError.
        """
        return [Fifo(size.wanted_bytes) for size in sizes]

    def make_blocks(self, sizes: Sequence[FifoSize], owner: object | None) -> list[SharedBlock]:
        """Allocate blocks for FIFOs of an application in another process, as `make_fifos`."""
        raise NotImplementedError

    def free_block(self, name: BlockName) -> None:
        """Free a block from `make_blocks`."""
        raise NotImplementedError

    def hand_out(self, fifo: Fifo) -> int:
        """Return the place of a stream's FIFO (native/session/records.h) for an application in
        another process, which uses it until `take_back`."""
        return 0

    def take_back(self, fifo: Fifo) -> None:
        """Note that an application in another process uses a FIFO no more."""

    def on_fault(self, error: Exception) -> None:
        """Handle an exception from serving this application: an invalid request, corrupt FIFOs or
        a bug. In one process it propagates and ends the worker."""
        raise error

    def sessions_for(self, request: Connect, engine: str) -> ServerSessions | None:
        """Return the cache of its tickets and tokens for a server; None if it has none."""
        return known_sessions(request, engine)

    def choose_sizes(self, sizes: Sequence[FifoSize], owner: object | None) -> list[int]:
        """Return the sizes allowed for FIFOs that it shares with another application. Raises
        OSError."""
        return [size.wanted_bytes for size in sizes]

    def has_room_for(self, *sizes_bytes: int) -> bool:
        """Return whether FIFOs of these sizes are within the limits of an application in another
        process."""
        return True

    def make_peer_fifo(self, size_bytes: int) -> Fifo:
        """Allocate a FIFO as `make_fifo` does, for a peer of a UDP listener."""
        return self.make_fifo(size_bytes)

    @property
    def fifo_bytes(self) -> int:
        """Memory of its FIFOs in shared segments."""
        return 0

    @property
    def peer_fifo_bytes(self) -> int:
        """Memory from `make_peer_fifo` that another process has not released yet."""
        return 0

    @property
    def is_behind(self) -> bool:
        """Whether many notices are queued because another process reads them too slowly."""
        return False

    def add_segment(self, fd: int) -> int:
        """Send a segment that it shares with another application (cut-through) to its process, and
        take ownership of the descriptor; return the segment's number there."""
        raise NotImplementedError

    def remove_segment(self, number: int) -> None:
        """Tell its process that a segment has no FIFOs left."""
        raise NotImplementedError

    def adopt_fifo(
        self,
        fifo: Fifo,
        name: BlockName,
        free: Callable[[], None],
        least_bytes: int,
        owner: object | None,
    ) -> None:
        """Charge it for a FIFO in a segment that it shares. `free` is called when both the worker
        and its process have released the FIFO."""
        raise NotImplementedError

    @property
    def is_quiet(self) -> bool:
        """Whether it has no signals."""
        return not self._down.waiting

    @property
    def has_requests(self) -> bool:
        """Whether `take_request` may return one."""
        return bool(self._requests)

    def take_request(self) -> Request | Loaded | None:
        """Return the oldest request; None where a message was not one."""
        return self._requests.popleft()

    def take_commands(self) -> tuple[list[tuple[int, int, int, int]], bool]:
        """Return commands that are left to the session layer as (handle, Command, argument, token),
        and whether a transport may have something to send now."""
        return self._down.pop_all(), False

    def refuse_stream(self, token: int, refusal: int) -> None:
        """Answer a Command.OPEN with an enum hs_session_refusal."""
        raise NotImplementedError

    def notify(self, notice: Notice) -> None:
        self._notices.append(notice)

    def raise_event(self, handle: int, code: EventCode) -> None:
        self._up.push(handle, code)

    def flush(self) -> bool:
        """Wake the application if it has notices or events; return whether it had."""
        if not self._notices and not self._up.waiting and not lib.hs_side_has(self.side):
            return False
        self.wake_application()
        return True


async def run_alone(
    application: Application, task: Callable[..., Awaitable[None]], *arguments: object
) -> None:
    """Run a task for an application, and pass what it raises to `on_fault` of that application."""
    with contained(application.on_fault):
        await task(*arguments)
