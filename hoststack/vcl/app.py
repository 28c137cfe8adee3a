"""The application: what a process has of VCL, a worker for each of its threads."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import sys
import threading
from dataclasses import dataclass, field

from hoststack.vcl.config import VclConfig
from hoststack.vcl.errors import error
from hoststack.vcl.worker import VclWorker


@dataclass(frozen=True, slots=True)
class CertKeyPair:
    """A certificate chain and its key, PEM, as `vppcom_add_cert_key_pair` takes them."""

    cert: bytes
    key: bytes


class _Tenure:
    """Goes with its thread: a worker whose thread ended without a word leaves the daemon then."""

    def __init__(self, app: App, worker: VclWorker) -> None:
        self._app = app
        self._worker = worker
        self._process = os.getpid()

    def __del__(self) -> None:
        if self._process != os.getpid():
            # After a fork, in the child: other threads are gone here before any hook is called.
            self._worker.client.abandon()
        elif not sys.is_finalizing():
            self._app.thread_ended(self._worker)


@dataclass
class App:
    """Made by `create`; a process has one at most."""

    name: str
    config: VclConfig
    pairs: dict[int, CertKeyPair] = field(default_factory=dict)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _pair_numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _workers: list[VclWorker] = field(default_factory=list)
    _local: threading.local = field(default_factory=threading.local)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def register(self) -> VclWorker:
        """Make the calling thread a worker; it has sessions of its own. Raises AttachError, and
        EEXIST where it is one."""
        if self.current() is not None:
            raise error(errno.EEXIST, "this thread is a worker already")
        with self._lock:
            number = next(self._numbers)
        worker = VclWorker(number, self.config, self.name)
        with self._lock:
            self._workers.append(worker)
        self._local.worker = worker
        self._local.tenure = _Tenure(self, worker)
        return worker

    def current(self) -> VclWorker | None:
        """The calling thread's worker."""
        return getattr(self._local, "worker", None)

    def unregister(self, *, aborts: bool = False) -> None:
        """Close the calling thread's sessions, or abort them. Raises EBADFD where it is no
        worker."""
        worker = self.current()
        if worker is None:
            raise error(errno.EBADFD)
        del self._local.worker
        try:
            worker.close(aborts=aborts)
        finally:
            del self._local.tenure

    def thread_ended(self, worker: VclWorker) -> None:
        """It can make no call any more."""
        with self._lock:
            if worker in self._workers:
                self._workers.remove(worker)
        worker.client.close()

    def destroy(self, *, aborts: bool = False) -> None:
        """Close all sessions: the calling thread's with what they still have to send, unless it
        aborts them, others' as they are. A thread that waits in a call has ECONNRESET from it."""
        if self.current() is not None:
            self.unregister(aborts=aborts)
        with self._lock:
            workers = list(self._workers)
        for worker in workers:
            worker.client.hang_up()

    def forget_parent(self) -> None:
        """After a fork, in the child: the parent's sessions are the parent's. A thread here has to
        register anew."""
        self._lock = threading.Lock()
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.client.abandon()
        self._local = threading.local()

    def add_pair(self, pair: CertKeyPair) -> int:
        with self._lock:
            number = next(self._pair_numbers)
            self.pairs[number] = pair
        return number


_app: App | None = None
_app_lock = threading.Lock()


def create(name: str, config: VclConfig) -> App:
    """The process's application, the calling thread its first worker. Raises EEXIST where there is
    one, EINVAL for a name that is none, AttachError."""
    global _app
    with _app_lock:
        if _app is not None:
            raise error(errno.EEXIST, f"the application {_app.name!r} was created already")
        if not isinstance(name, str) or not name:
            raise error(errno.EINVAL, "an application has a name")
        app = App(name, config)
        app.register()
        _app = app
        return app


def destroy(*, aborts: bool = False) -> None:
    """Nothing happens where there is none."""
    global _app
    with _app_lock:
        app, _app = _app, None
    if app is not None:
        app.destroy(aborts=aborts)


def the_app() -> App:
    """Raises EBADFD where none was created."""
    if _app is None:
        raise error(errno.EBADFD, "call vppcom_app_create first")
    return _app


def current_worker() -> VclWorker:
    """The calling thread's; raises EBADFD for one that is not registered."""
    worker = the_app().current()
    if worker is None:
        raise error(errno.EBADFD, "this thread is no worker: call vppcom_worker_register in it")
    return worker


def _after_fork() -> None:
    global _app_lock
    _app_lock = threading.Lock()
    if _app is not None:
        with contextlib.suppress(OSError):
            _app.forget_parent()


os.register_at_fork(after_in_child=_after_fork)
