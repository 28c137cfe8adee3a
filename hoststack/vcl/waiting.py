"""Waiting for several sessions: epoll, and poll and select, which are made of it."""

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
    """struct pollfd: `sh` below 0 is left out."""

    sh: int
    events: int
    revents: int = 0


def epoll_create(worker: VclWorker) -> VclSession:
    """An epoll session."""
    session = worker.add("quic", kind=Kind.EPOLL)
    worker.epolls[session.sh] = EpollSet()
    return session


def epoll_ctl(
    worker: VclWorker, vep: int, operation: int, sh: int, event: EpollEvent | None
) -> None:
    """As epoll_ctl(2). Raises EBADFD, EINVAL, EEXIST, ENOENT."""
    members = worker.get_epoll(vep)
    session = worker.get(sh)
    if session.kind is Kind.EPOLL:
        raise error(errno.EINVAL, "an epoll session in an epoll set")
    if operation == EPOLL_CTL_DEL:
        if session not in members:
            raise error(errno.ENOENT)
        members.remove(session)
        return
    if operation not in (EPOLL_CTL_ADD, EPOLL_CTL_MOD):
        raise error(errno.EINVAL)
    if not isinstance(event, EpollEvent) or event.events & ~_ALL:
        raise error(errno.EINVAL, "an EpollEvent with EPOLL flags is wanted")
    if operation == EPOLL_CTL_ADD and session in members:
        raise error(errno.EEXIST)
    if operation == EPOLL_CTL_MOD and session not in members:
        raise error(errno.ENOENT)
    members.put(session, event)


def epoll_wait(
    worker: VclWorker, members: EpollSet, most: int, timeout_s: float | None
) -> list[EpollEvent]:
    """What is ready; empty if nothing is in that time. Raises ECONNRESET where nothing will be,
    as the daemon has ended."""
    if not isinstance(most, int) or most < 1:
        raise error(errno.EINVAL, "room for one event or more is wanted")
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
    """As poll(2): how many of the entries have `revents`."""
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
    """As select(2), with sets of sessions, of which those that are not ready are taken out."""
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
        # What is broken is ready for anything, as its error is there to be had.
        each &= {sh for sh in each if ready[sh] & (flag | _ALWAYS_POLLED)}
    return sum(len(each) for each, _ in given)
