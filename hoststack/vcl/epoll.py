"""Epoll sets: which of many sessions can be read or written, without polling all of them.

A set only looks at its candidates: sessions with a new event, and those that it has just reported
and that may still be ready. A candidate that is not ready is armed, checked once more, and dropped
until the stack reports an event for it.
"""

from __future__ import annotations

import select
from dataclasses import dataclass
from typing import Any, Final

from hoststack.vcl.session import VclSession

#: Reported without being requested (epoll_ctl(2)).
_ALWAYS: Final = select.EPOLLERR | select.EPOLLHUP
_MODES: Final = select.EPOLLET | select.EPOLLONESHOT


@dataclass(slots=True)
class EpollEvent:
    """struct epoll_event: the flags, and the caller's data."""

    events: int = 0
    data: Any = None


class EpollSet:
    """The sessions of one epoll session."""

    def __init__(self) -> None:
        self._members: dict[VclSession, EpollEvent] = {}
        self.candidates: dict[VclSession, None] = {}

    def __contains__(self, session: VclSession) -> bool:
        return session in self._members

    def put(self, session: VclSession, event: EpollEvent) -> None:
        """Add a session, or change its requested flags."""
        self._members[session] = EpollEvent(event.events | _ALWAYS, event.data)
        session.sets[self] = None
        self.candidates[session] = None

    def remove(self, session: VclSession) -> None:
        """Idempotent."""
        self._members.pop(session, None)
        self.candidates.pop(session, None)
        session.sets.pop(self, None)

    def clear(self) -> None:
        """Remove all sessions: the set is closed."""
        for session in list(self._members):
            self.remove(session)

    def collect(self, most: int) -> list[EpollEvent]:
        """Return ready events, `most` at most; those left out come first the next time."""
        found: list[EpollEvent] = []
        for session in list(self.candidates):
            if len(found) == most:
                break
            wanted = self._members[session]
            flags = self._ready(session, wanted.events)
            del self.candidates[session]
            if not flags:
                continue
            found.append(EpollEvent(flags, wanted.data))
            if wanted.events & select.EPOLLONESHOT:
                wanted.events &= _MODES
            elif wanted.events & select.EPOLLET:
                session.arm(wanted.events)
            else:
                self.candidates[session] = None  # at the end
        return found

    @staticmethod
    def _ready(session: VclSession, wanted: int) -> int:
        if not wanted & ~_MODES:
            return 0  # a one-shot entry that was reported
        mask = wanted & ~_MODES
        flags = session.readiness() & mask
        if not flags:
            session.arm(wanted)
            flags = session.readiness() & mask
        return flags
