"""Waiting for several sessions: epoll, and poll and select on top of it."""

from __future__ import annotations

import errno
import select
import time
from collections.abc import MutableSet, Sequence
from dataclasses import dataclass
from typing import Final

from hoststack.vcl.epoll import EpollEvent, EpollSet
from hoststack.vcl.errors import error
from hoststack.vcl.session import Kind, VclSession
from hoststack.vcl.worker import VclWorker

#: epoll_ctl(2); the module `select` has no names for them.
EPOLL_CTL_ADD: Final = 1
EPOLL_CTL_DEL: Final = 2
EPOLL_CTL_MOD: Final = 3
_ALL: Final = (
    select.EPOLLIN
    | select.EPOLLOUT
    | select.EPOLLPRI
    | select.EPOLLERR
    | select.EPOLLHUP
    | select.EPOLLRDHUP
    | select.EPOLLET
    | select.EPOLLONESHOT
)
#: poll(2).
_POLLED: Final = 0x7FFF
_ALWAYS_POLLED: Final = select.POLLERR | select.POLLHUP


@dataclass(slots=True)
class VclPoll:
    """struct pollfd: an entry with `sh` below 0 is ignored."""

    sh: int
    events: int
    revents: int = 0


def epoll_create(worker: VclWorker) -> VclSession:
    """Create an epoll session."""
    session = worker.add("quic", kind=Kind.EPOLL)
    worker.epolls[session.sh] = EpollSet()
    return session


def epoll_ctl(
    worker: VclWorker, vep: int, operation: int, sh: int, event: EpollEvent | None
) -> None:
    """Change an epoll set as epoll_ctl(2). Raises EBADFD, EINVAL, EEXIST, ENOENT."""
    members = worker.get_epoll(vep)
    session = worker.get(sh)
    if session.kind is Kind.EPOLL:
        raise error(errno.EINVAL, "an epoll session can't be in an epoll set")
    if operation == EPOLL_CTL_DEL:
        if session not in members:
            raise error(errno.ENOENT)
        members.remove(session)
        return
    if operation not in (EPOLL_CTL_ADD, EPOLL_CTL_MOD):
        raise error(errno.EINVAL)
    if not isinstance(event, EpollEvent) or event.events & ~_ALL:
        raise error(errno.EINVAL, "an EpollEvent with EPOLL flags is expected")
    if operation == EPOLL_CTL_ADD and session in members:
        raise error(errno.EEXIST)
    if operation == EPOLL_CTL_MOD and session not in members:
        raise error(errno.ENOENT)
    members.put(session, event)


def epoll_wait(
    worker: VclWorker, members: EpollSet, most: int, timeout_s: float | None
) -> list[EpollEvent]:
    """Return ready events, or none after the timeout. Raises ECONNRESET if the daemon has ended and
    the wait would be endless."""
    if not isinstance(most, int) or most < 1:
        raise error(errno.EINVAL, "room for at least one event is expected")
    worker.pump()
    end = None if timeout_s is None else time.monotonic() + timeout_s
    while not (found := members.collect(most)):
        remaining = None if end is None else end - time.monotonic()
        if worker.client.is_gone:
            raise error(errno.ECONNRESET, "the daemon has ended")
        if remaining is not None and remaining <= 0:
            break
        worker.pump(remaining)
    return found


def poll(worker: VclWorker, entries: Sequence[VclPoll], timeout_s: float | None) -> int:
    """Wait as poll(2) does; return how many of the entries have `revents`."""
    wanted: dict[VclSession, int] = {}
    is_any_wrong = False
    for entry in entries:
        entry.revents = 0
        if entry.sh < 0:
            continue
        try:
            session = worker.get_open(entry.sh)
        except OSError:
            entry.revents = select.POLLNVAL
            is_any_wrong = True
        else:
            wanted[session] = wanted.get(session, 0) | entry.events & _POLLED
    members = EpollSet()
    try:
        for session, events in wanted.items():
            members.put(session, EpollEvent(events, session.sh))
        found = epoll_wait(worker, members, max(1, len(wanted)), 0 if is_any_wrong else timeout_s)
    finally:
        members.clear()
    ready = {event.data: event.events for event in found}
    for entry in entries:
        entry.revents |= ready.get(entry.sh, 0) & (entry.events | _ALWAYS_POLLED)
    return sum(entry.revents != 0 for entry in entries)


def select_sessions(
    worker: VclWorker,
    read_map: MutableSet[int] | None,
    write_map: MutableSet[int] | None,
    except_map: MutableSet[int] | None,
    timeout_s: float | None,
) -> int:
    """Wait as select(2) does; removes sessions that are not ready from the sets."""
    maps = [
        (read_map, select.POLLIN),
        (write_map, select.POLLOUT),
        (except_map, select.POLLPRI),
    ]
    given = [(each, flag) for each, flag in maps if each is not None]
    masks: dict[int, int] = {}
    for each, flag in given:
        for sh in each:
            worker.get_open(sh)
            masks[sh] = masks.get(sh, 0) | flag
    entries = [VclPoll(sh, mask) for sh, mask in masks.items()]
    poll(worker, entries, timeout_s)
    ready = {entry.sh: entry.revents for entry in entries}
    for each, flag in given:
        # A broken session is ready for everything, so that calls return its error.
        each &= {sh for sh in each if ready[sh] & (flag | _ALWAYS_POLLED)}
    return sum(len(each) for each, _ in given)
