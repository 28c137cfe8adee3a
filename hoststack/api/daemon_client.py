"""Attaching to a daemon without a loop of its own.

The caller waits until `fileno` is readable, and calls `pump`: VCL whenever a call blocks, trio in a
task (attach.py), asyncio in its loop.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import sys
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Final

from hoststack.api.errors import AttachError
from hoststack.boundary import attaching
from hoststack.boundary.attached_worker import AttachedWorker
from hoststack.boundary.attached_workers import AttachedWorkers
from hoststack.boundary.channel import Channel, ChannelClosedError, close_all
from hoststack.boundary.scope import Scope, check_scopes
from hoststack.boundary.silence import TICK_S, Silence, peer_pid
from hoststack.text import printable

logger = logging.getLogger(__name__)

#: How long the daemon may be silent while this program waits to be admitted, in seconds in which it
#: could have answered.
PATIENCE_S = 10.0
#: The error of calls and listeners when it has ended.
ENDED: Final = "the daemon has ended"
#: The error of calls and listeners when a worker has detached this application.
THROWN_OUT = "the daemon no longer serves this application: its log says why"
#: How often sending is tried again while the kernel is short of memory.
_SHORT_S: Final = 0.01
_WAITING: Final = attaching.encode(attaching.Waiting())


class DaemonClient:
    """A program's connections to a daemon's workers, which `workers` presents as one.

    One thread at a time, but for `hang_up`.
    """

    def __init__(
        self,
        path: str,
        hello: attaching.Attach,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Ask to be attached. `pump` until `has_started`; raises AttachError if there is no
        daemon. `clock` returns seconds."""
        self._path = path
        self._name = hello.name
        end = connect_to(path)
        self._silence = Silence(peer_pid(end), clock)
        self._daemon = Channel(end, takes_fds=True)
        self._epoll = select.epoll()
        self._links: dict[int, AttachedWorker] = {}
        self._by_fd: dict[int, tuple[int, AttachedWorker]] = {}
        self._crowded: set[int] = set()
        """Channels with messages that their sockets had no room for."""
        self._is_short = False
        self._expected = 0
        self._about: attaching.Attached | None = None
        self.workers = AttachedWorkers("")
        self.call_soon: Callable[[Callable[[], None]], object] | None = None
        """Calls a function soon, from any thread, in the thread that pumps."""
        self._why_gone = ""
        self.has_started = False
        try:
            self._epoll.register(self._daemon, select.EPOLLIN)
            self._daemon.send(attaching.encode(hello))
        except ChannelClosedError:
            self.close()
            raise not_admitted(path, ENDED) from None
        except BaseException:
            self.close()
            raise

    @property
    def is_gone(self) -> bool:
        """Whether the daemon has ended, or no longer serves this program."""
        return bool(self._why_gone)

    @property
    def about(self) -> attaching.Attached:
        """What the daemon told of itself."""
        assert self._about is not None
        return self._about

    def start(self) -> None:
        """Wait until the daemon has admitted this program and offered all workers. Raises
        AttachError, and closes this."""
        try:
            while not self.has_started:
                self.wait(self.check_start())
        except BaseException:
            self.close()
            raise

    def check_start(self) -> float:
        """Return after how many seconds to call this again, until the start. Raises AttachError if
        the daemon has ended, or was silent for PATIENCE_S in which it could have answered."""
        if self._why_gone:
            raise not_admitted(self._path, self._why_gone)
        self._silence.tick()
        if self._silence.silent_s >= PATIENCE_S:
            raise AttachError(
                errno.ETIMEDOUT,
                f"{self._path}: the daemon did not answer in {PATIENCE_S:.0f} s in which it could "
                "have: it is stopped or hangs. Restart it, or try again",
            )
        return TICK_S

    def fileno(self) -> int:
        """A descriptor that is readable when there is something to `pump`."""
        return self._epoll.fileno()

    def wait(self, timeout_s: float | None) -> None:
        """Read what has arrived; if there is nothing, wait for it, at most that long.

        None waits for ever. Signal handlers run meanwhile, and their exceptions propagate.
        """
        limit_s = self.prepare()
        if timeout_s is None or (limit_s is not None and limit_s < timeout_s):
            timeout_s = limit_s
        self.pump(timeout_s)

    def prepare(self) -> float | None:
        """Arm the wake-ups before the caller sleeps; return for how many seconds it may, None: for
        any time."""
        limit_s: float | None = None
        for index, link in self._links.items():
            link.settle()
            if link.arm_events():
                limit_s = 0
            if link.channel.has_waiting:
                self._flush(index, link)
        if self._is_short:
            limit_s = _SHORT_S if limit_s is None else limit_s
        # A notice may have been queued by a call, without any descriptor becoming readable.
        return 0 if self.workers.has_notices else limit_s

    def pump(self, timeout_s: float | None = 0) -> None:
        """Read what has arrived, and wait that long for it. Raises AttachError before the
        start."""
        for fd, events in self._epoll.poll(-1 if timeout_s is None else timeout_s):
            if fd == self._daemon.fileno():
                self._read_daemon()
            elif fd in self._by_fd:  # or its worker was lost just now
                index, link = self._by_fd[fd]
                if events & select.EPOLLOUT:
                    self._flush(index, link)
                if events & ~select.EPOLLOUT and index in self._links:
                    self._read_worker(fd, index, link)
        for link in self._links.values():
            link.take_news()
            link.settle()

    def _flush(self, index: int, link: AttachedWorker) -> None:
        """Send what waits for room in the socket, and have `pump` do so when there is more."""
        waiting = link.channel.waiting
        try:
            is_done = link.channel.flush()
        except ChannelClosedError:
            link.channel.abandon()
            return
        # A socket that is writable without taking anything: the kernel is short of memory.
        self._is_short = not is_done and index in self._crowded and link.channel.waiting == waiting
        is_crowded = not is_done and not self._is_short
        if is_crowded != (index in self._crowded):
            events = select.EPOLLIN | (select.EPOLLOUT if is_crowded else 0)
            self._epoll.modify(link.channel, events)
            self._crowded ^= {index}

    def _read_daemon(self) -> None:
        try:
            for data, fds in self._daemon.receive_now():
                self._silence.begin()
                if self._about is None:
                    if data == _WAITING:
                        continue
                    self._about = admitted(self._path, data)
                    self._expected = self._about.workers
                    self.workers.engine = self._about.engine_name
                    continue
                match offer_of(data, fds):
                    case attaching.WorkerOffered(index):
                        self._add(index, fds)
                    case attaching.WorkerLost(index):
                        self._expected -= index not in self._links
                        if index in self._links:
                            self._links[index].hear_out()
                        self._lose(index)
                    case attaching.WorkerLeft(index):
                        if index in self._links:
                            self._links[index].hear_out()
                        self._end(THROWN_OUT)
            self.has_started |= self._about is not None and len(self._links) >= self._expected
        except ChannelClosedError:
            self._end(ENDED)

    def _end(self, why: str) -> None:
        if not self.is_gone:
            self._why_gone = why
            self._epoll.unregister(self._daemon)
            for index in list(self._links):
                self._lose(index)
            self.workers.end(why)

    def _read_worker(self, fd: int, index: int, link: AttachedWorker) -> None:
        try:
            if fd == link.wake_fd:
                link.clear_wake_up()
            else:
                link.take_messages(link.channel.receive_now())
        except ChannelClosedError:
            link.hear_out()
            self._lose(index)  # the daemon says whether it died

    def _add(self, index: int, fds: list[int]) -> None:
        link = offered_worker(self._name, fds)
        self._lose(index)
        self._links[index] = link
        for fd in (link.channel.fileno(), link.wake_fd):
            self._by_fd[fd] = index, link
            self._epoll.register(fd, select.EPOLLIN)
        link.call_soon = self.call_soon
        link.on_crowded = partial(self._flush, index, link)
        self.workers.add(index, link)

    def _lose(self, index: int) -> None:
        link = self._links.pop(index, None)
        if link is None:
            return
        self._crowded.discard(index)
        for fd in (link.channel.fileno(), link.wake_fd):
            del self._by_fd[fd]
            self._epoll.unregister(fd)
        link.on_crowded = _ignore  # a reference cycle would hold its memory
        link.close()
        self.workers.remove(index)

    def hang_up(self) -> None:
        """Detach from another thread than the owner's: the owner's wait then ends, and the owner
        still closes the descriptors."""
        self._daemon.shut()

    def close(self) -> None:
        """Detach: the daemon closes all open sessions. Idempotent."""
        for index in list(self._links):
            self._lose(index)
        self._daemon.close()
        self._epoll.close()

    def has_said_all(self) -> bool:
        """Return whether all messages were written to the sockets."""
        try:
            return all(link.channel.flush() for link in self._links.values())
        except ChannelClosedError:
            return False  # `wait` finds out as well

    def abandon(self) -> None:
        """Close the parent's descriptors in the child of a fork, without sending anything on
        them."""
        for link in self._links.values():
            link.close()
        self._links.clear()
        self._daemon.close()
        self._epoll.close()


def _ignore() -> None:
    """The worker is gone."""


def hello_of(
    name: str | None,
    namespace: str,
    secret: str,
    scopes: Collection[Scope],
    shares_listeners: bool,
) -> attaching.Attach:
    """Return what a program says first; its name is the program's if it has none."""
    return attaching.Attach(
        version=attaching.PROTOCOL_VERSION,
        name=application_name(name or os.path.basename(sys.argv[0]) or "python"),
        namespace=namespace,
        secret=secret,
        scopes=check_scopes(scopes),
        shares_listeners=shares_listeners,
    )


def application_name(name: str) -> str:
    """Return an application's name in the form that the daemon accepts."""
    return "".join(c if "!" <= c <= "~" else "_" for c in name)[:64]


def connect_to(path: str) -> socket.socket:
    """Connect to a daemon's socket; raises AttachError."""
    end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        end.connect(path)
    except OSError as error:
        end.close()
        reason = {
            errno.ENOENT: "there is no such socket: is the daemon running (`hoststack run`)?",
            errno.ECONNREFUSED: "no process listens: is the daemon running (`hoststack run`)?",
            errno.EACCES: "permission denied: join the group that the socket belongs to",
            errno.EPROTOTYPE: "that is not a SOCK_SEQPACKET socket",
        }.get(error.errno or 0, error.strerror)
        raise AttachError(error.errno or errno.EIO, f"{path}: {reason}") from None
    return end


def not_admitted(path: str, why: str) -> AttachError:
    """Return the error for a daemon that is gone before it has admitted this program."""
    text = f"{path}: this program was not admitted: {why} (see the daemon's log)"
    return AttachError(errno.ECONNRESET, text)


def invalid_answer(path: str, error: Exception) -> AttachError:
    """Return the error for a daemon that sends an invalid answer."""
    text = (
        f"{path}: the daemon's answer is invalid ({error}): use the same version of Hoststack for "
        "both"
    )
    return AttachError(errno.EPROTO, text)


def admitted(path: str, data: bytes) -> attaching.Attached:
    """Decode the daemon's answer; raises AttachError if it refuses this application."""
    try:
        answer = attaching.decode_answer(data)
    except attaching.GreetingError as error:
        raise invalid_answer(path, error) from None
    if isinstance(answer, attaching.Refused):
        raise AttachError(answer.errno, f"{path}: {printable(answer.text)}")
    if not isinstance(answer, attaching.Attached):
        raise invalid_answer(path, ValueError(type(answer).__name__))
    return answer


def offer_of(
    data: bytes, fds: list[int]
) -> attaching.WorkerOffered | attaching.WorkerLost | attaching.WorkerLeft:
    """Decode the daemon's message about a worker. For any other message it closes the descriptors
    and raises ChannelClosedError: such a daemon counts as gone."""
    try:
        answer = attaching.decode_answer(data)
        if isinstance(answer, attaching.WorkerLost | attaching.WorkerLeft) and not fds:
            return answer
        if isinstance(answer, attaching.WorkerOffered) and len(fds) == attaching.WORKER_FDS:
            return answer
        why = f"{type(answer).__name__} with {len(fds)} descriptors (too many open files?)"
    except attaching.GreetingError as error:
        why = str(error)
    close_all(fds)
    logger.error("dropping the daemon, which sent an invalid message: %s", why)
    raise ChannelClosedError(why)


def offered_worker(name: str, fds: list[int]) -> AttachedWorker:
    """Create the worker of a WorkerOffered; raises ChannelClosedError for wrong descriptors."""
    channel, *others = fds
    try:
        return AttachedWorker(name, socket.socket(fileno=channel), *others)
    except (OSError, ValueError) as error:
        logger.error("dropping the daemon, which sent wrong descriptors of a worker: %s", error)
        raise ChannelClosedError(str(error)) from None
