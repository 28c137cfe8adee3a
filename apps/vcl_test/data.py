"""Data sessions: many at once, served by one non-blocking epoll loop."""

from __future__ import annotations

import errno
import os
import select
import sys
import time
from typing import Final

from apps.vcl_test.stats import Stats, increment
from hoststack import vcl

#: Calls for one session before the others are served.
_AT_ONCE: Final = 32


class Mover:
    """A client's end of a session: writes so many bytes, and reads them back if echoed."""

    def __init__(self, sh: int, out: memoryview, rxbuf: memoryview, total: int, *, echoes: bool):
        self.sh = sh
        self.stats = Stats()
        self._out = out
        self._rxbuf = rxbuf
        self._total = total
        self._wanted = total if echoes else 0
        self._place = 0

    @property
    def has_written(self) -> bool:
        return self.stats.tx_bytes >= self._total

    @property
    def is_done(self) -> bool:
        return self.has_written and self.stats.rx_bytes >= self._wanted

    @property
    def wants(self) -> int:
        wanted = 0 if self.has_written else select.EPOLLOUT
        return wanted | (select.EPOLLIN if self.stats.rx_bytes < self._wanted else 0)

    def write(self) -> None:
        """Write as much as fits; raises OSError."""
        for _ in range(_AT_ONCE):
            if self.has_written:
                return
            left = self._total - self.stats.tx_bytes
            part = self._out[self._place : self._place + left]
            count = vcl.vppcom_session_write(self.sh, part)
            if count == -errno.EAGAIN:
                self.stats.tx_eagain += 1
                return
            _check(count, "vppcom_session_write")
            self.stats.gave(count, len(part))
            self._place = (self._place + count) % len(self._out)

    def read(self) -> None:
        """Read; raises OSError, also for an early end, and for wrong bytes."""
        for _ in range(_AT_ONCE):
            if self.stats.rx_bytes >= self._wanted:
                return
            count = vcl.vppcom_session_read(self.sh, self._rxbuf)
            if count == -errno.EAGAIN:
                self.stats.rx_eagain += 1
                return
            _check(count, "vppcom_session_read")
            if not count:
                raise OSError(errno.ECONNRESET, "the server ended the session too early")
            self.stats.took(count, len(self._rxbuf))


def _check(count: int, what: str) -> None:
    if count < 0:
        raise OSError(-count, f"{what}: {os.strerror(-count)}")


class _Increments:
    """Prints what was sent in each second, as VPP's -S does."""

    def __init__(self, movers: list[Mover]) -> None:
        self._movers = movers
        self._last = time.perf_counter()
        self._old = [0] * len(movers)

    def show(self, now: float) -> None:
        seconds = now - self._last
        if seconds < 1:
            return
        self._last = now
        total = shown = 0
        for place, mover in enumerate(self._movers):
            count = mover.stats.tx_bytes - self._old[place]
            self._old[place] += count
            if count:
                print(increment(f"{mover.sh}: Sent", count, seconds))
                total += count
                shown += 1
        if shown > 1:
            print(increment("Sum: Sent", total, seconds))
            print("-------------------------------------------------")
        sys.stdout.flush()


def move_all(movers: list[Mover], *, idle_s: float | None, shows_increments: bool = False) -> float:
    """Run until all are done, or nothing happens for `idle_s`; return the seconds. Raises
    OSError."""
    vep = vcl.vppcom_epoll_create()
    wanted = {}
    for mover in movers:
        wanted[mover.sh] = mover.wants
        event = vcl.EpollEvent(mover.wants, mover)
        _check(vcl.vppcom_epoll_ctl(vep, vcl.EPOLL_CTL_ADD, mover.sh, event), "vppcom_epoll_ctl")
    increments = _Increments(movers) if shows_increments else None
    start = time.perf_counter()
    last = start
    open_ = len(movers)
    events: list[vcl.EpollEvent] = []
    while open_:
        _check(
            vcl.vppcom_epoll_wait(vep, events, 64, -1 if idle_s is None else idle_s * 1000),
            "vppcom_epoll_wait",
        )
        if not events:
            break
        if increments is not None:
            increments.show(time.perf_counter())
        for event in events:
            mover = event.data
            if event.events & select.EPOLLOUT:
                mover.write()
            if event.events & (select.EPOLLIN | select.EPOLLERR | select.EPOLLHUP):
                mover.read()
            last = time.perf_counter()
            if mover.is_done:
                mover.stats.seconds = last - start
                vcl.vppcom_epoll_ctl(vep, vcl.EPOLL_CTL_DEL, mover.sh)
                open_ -= 1
            elif mover.wants != wanted[mover.sh]:
                wanted[mover.sh] = mover.wants
                changed = vcl.EpollEvent(mover.wants, mover)
                vcl.vppcom_epoll_ctl(vep, vcl.EPOLL_CTL_MOD, mover.sh, changed)
    vcl.vppcom_session_close(vep)
    for mover in movers:
        mover.stats.seconds = mover.stats.seconds or last - start
    return last - start
