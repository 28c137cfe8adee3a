"""The boundary between one application and one worker, as both sides see it.

Requests and signals go down, notices and events come up. Signals and events are 16-byte entries in
event rings; requests and notices are messages. In process both lie in plain memory and a wake-up
is a call; an application in another process has the same with shared memory and a socket.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from hoststack.native.event_ring import EventRing
from hoststack.session.messages import EventCode, Notice, Request

#: Entries of an event ring. What does not fit waits on its producer's side.
RING_ENTRIES = 4096


def _nobody() -> None:
    """The wake-up before a side has said how to wake it."""


class _Channel:
    """One direction of events: a ring, and what did not fit into it yet."""

    def __init__(self) -> None:
        self._ring = EventRing(RING_ENTRIES)
        self._waiting: deque[tuple[int, int]] = deque()

    def push(self, handle: int, code: EventCode) -> None:
        if self._waiting or not self._ring.push(handle, int(code)):
            self._waiting.append((handle, int(code)))

    def pop_all(self) -> list[tuple[int, int, int]]:
        popped = self._ring.pop_many(RING_ENTRIES)
        while self._waiting:
            while self._waiting and self._ring.push(*self._waiting[0]):
                self._waiting.popleft()
            popped += self._ring.pop_many(RING_ENTRIES)
        return popped

    @property
    def is_idle(self) -> bool:
        return not self._waiting and not len(self._ring)


class Application:
    """An application, as one worker knows it and as it knows that worker."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.wake_worker: Callable[[], None] = _nobody
        self.wake_application: Callable[[], None] = _nobody
        self._down = _Channel()
        self._up = _Channel()
        self._requests: deque[Request] = deque()
        self._notices: deque[Notice] = deque()

    # --- the application's side ---

    def request(self, request: Request) -> None:
        """Ask the worker for something; replies come as notices."""
        self._requests.append(request)
        self.wake_worker()

    def signal(self, handle: int, code: EventCode) -> None:
        """Tell the worker that a FIFO of the session moved."""
        self._down.push(handle, code)
        self.wake_worker()

    def take_notices(self) -> list[Notice]:
        """All notices that have come since the last call, oldest first."""
        notices = list(self._notices)
        self._notices.clear()
        return notices

    def take_events(self) -> list[tuple[int, int, int]]:
        """All events that have come, as (handle, EventCode, 0), oldest first."""
        return self._up.pop_all()

    # --- the worker's side ---

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
