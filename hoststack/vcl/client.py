"""Attaching to a daemon without trio.

api/attach.py does the same in tasks. Here it runs in the caller's thread, whenever a call blocks.
"""

from __future__ import annotations

import errno
import select
import time
from typing import Final

from hoststack.api.attach import (
    PATIENCE_S,
    admitted,
    application_name,
    connect_to,
    no_answer,
    offer_of,
    offered_worker,
)
from hoststack.boundary import attaching
from hoststack.boundary.attached_worker import AttachedWorker
from hoststack.boundary.attached_workers import AttachedWorkers
from hoststack.boundary.channel import Channel, ChannelClosedError
from hoststack.vcl.config import VclConfig
from hoststack.vcl.errors import error

#: How often a full socket is polled while a message waits for room in it.
_CROWDED_S: Final = 0.01


class AttachClient:
    """One thread's connections to a daemon's workers, which `workers` presents as one."""

    def __init__(self, config: VclConfig, name: str) -> None:
        """Attach; raises AttachError where there is no daemon, or it refuses."""
        path = config.api_socket_name
        self._daemon = Channel(connect_to(path), takes_fds=True)
        self._epoll = select.epoll()
        self._links: dict[int, AttachedWorker] = {}
        self._by_fd: dict[int, tuple[int, AttachedWorker]] = {}
        self._name = application_name(name)
        self.is_gone = False
        """Whether the daemon has ended."""
        try:
            hello = attaching.Attach(
                version=attaching.PROTOCOL_VERSION,
                name=self._name,
                namespace=config.namespace,
                secret=config.secret,
                scopes=config.scopes,
                shares_listeners=True,  # so that each thread may listen
            )
            self._greet(path, hello)
        except BaseException:
            self.close()
            raise

    def _greet(self, path: str, hello: attaching.Attach) -> None:
        end = time.monotonic() + PATIENCE_S
        try:
            self._daemon.send(attaching.encode(hello))
            about = admitted(path, self._first(end)[0])
            self.workers = AttachedWorkers(about.engine_name)
            self._epoll.register(self._daemon, select.EPOLLIN)
            while len(self._links) < about.workers:
                if time.monotonic() >= end or self.is_gone:
                    raise TimeoutError("its workers do not appear")
                self.wait(end - time.monotonic())
        except (ChannelClosedError, TimeoutError) as caught:
            raise no_answer(path, caught) from None

    def _first(self, end: float) -> tuple[bytes, list[int]]:
        poll = select.poll()
        poll.register(self._daemon, select.POLLIN)
        while not (received := self._daemon.receive_now(1)):
            if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
                raise TimeoutError("no answer")
        return received[0]

    def wait(self, timeout_s: float | None) -> None:
        """Read what has arrived; if there is nothing, wait for it, at most that long.

        None waits forever. Signal handlers run meanwhile, and their exceptions propagate. Raises
        ECONNRESET instead of waiting forever for a daemon that has ended.
        """
        timeout_s = self._prepared(timeout_s)
        if self.is_gone and timeout_s is None:
            raise error(errno.ECONNRESET, "the daemon has ended")
        for fd, _ in self._epoll.poll(-1 if timeout_s is None else timeout_s):
            if fd == self._daemon.fileno():
                self._read_daemon()
            elif fd in self._by_fd:  # or its worker was lost just now
                self._read_worker(fd, *self._by_fd[fd])
        for link in self._links.values():
            link.settle()

    def _prepared(self, timeout_s: float | None) -> float | None:
        """Arm the wake-ups; return how long the caller may sleep."""
        for link in self._links.values():
            link.settle()
            try:
                if not link.channel.flush():
                    timeout_s = _CROWDED_S if timeout_s is None else min(timeout_s, _CROWDED_S)
            except ChannelClosedError:
                link.channel.abandon()
            else:
                if link.arm_events():
                    timeout_s = 0
        # A notice may have been queued by a call, without any descriptor becoming readable.
        return 0 if self.workers.has_notices else timeout_s

    def _read_daemon(self) -> None:
        try:
            for data, fds in self._daemon.receive_now():
                match offer_of(data, fds):
                    case attaching.WorkerOffered(index):
                        self._add(index, fds)
                    case attaching.WorkerLost(index):
                        self._lose(index)
        except ChannelClosedError:
            self.is_gone = True
            self._epoll.unregister(self._daemon)
            for index in list(self._links):
                self._lose(index)

    def _read_worker(self, fd: int, index: int, link: AttachedWorker) -> None:
        try:
            if fd == link.wake_fd:
                link.clear_wake_up()
            else:
                link.take_messages(link.channel.receive_now())
        except ChannelClosedError:
            self._lose(index)

    def _add(self, index: int, fds: list[int]) -> None:
        link = offered_worker(self._name, fds)
        self._lose(index)
        self._links[index] = link
        for fd in (link.channel.fileno(), link.wake_fd):
            self._by_fd[fd] = index, link
            self._epoll.register(fd, select.EPOLLIN)
        self.workers.add(index, link)

    def _lose(self, index: int) -> None:
        link = self._links.pop(index, None)
        if link is None:
            return
        for fd in (link.channel.fileno(), link.wake_fd):
            del self._by_fd[fd]
            self._epoll.unregister(fd)
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
