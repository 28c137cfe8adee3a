"""The application: a process's use of VCL, with a worker for each of its threads."""

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
    """A certificate chain and its key, PEM, for `vppcom_add_cert_key_pair`."""

    cert: bytes
    key: bytes


class _Tenure:
    """Detaches a worker whose thread ended without `unregister`: it is deleted with the thread."""

    def __init__(self, app: App, worker: VclWorker) -> None:
        self._app = app
        self._worker = worker
        self._process = os.getpid()

    def __del__(self) -> None:
        if self._process != os.getpid():
            # In the child of a fork, other threads' objects are deleted before any hook runs.
            self._worker.client.abandon()
        elif not sys.is_finalizing():
            self._app.thread_ended(self._worker)


@dataclass
class App:
    """The process's only application; use `create`."""

    name: str
    config: VclConfig
    pairs: dict[int, CertKeyPair] = field(default_factory=dict)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _pair_numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _workers: list[VclWorker] = field(default_factory=list)
    _local: threading.local = field(default_factory=threading.local)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def register(self) -> VclWorker:
        """Make the calling thread a worker with its own sessions. Raises AttachError, and EEXIST
        if it is one already."""
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
        """Return the calling thread's worker, or None."""
        return getattr(self._local, "worker", None)

    def unregister(self, *, aborts: bool = False) -> None:
        """Close the calling thread's sessions, or abort them. Raises EBADFD if it is no worker."""
        worker = self.current()
        if worker is None:
            raise error(errno.EBADFD)
        del self._local.worker
        try:
            worker.close(aborts=aborts)
        finally:
            del self._local.tenure

    def thread_ended(self, worker: VclWorker) -> None:
        """Detach the worker of a thread that has ended."""
        with self._lock:
            if worker in self._workers:
                self._workers.remove(worker)
        worker.client.close()

    def destroy(self, *, aborts: bool = False) -> None:
        """Close all sessions: the calling thread's after sending their data, unless it aborts them,
        those of other threads at once. Calls that other threads wait in raise ECONNRESET."""
        if self.current() is not None:
            self.unregister(aborts=aborts)
        with self._lock:
            workers = list(self._workers)
        for worker in workers:
            worker.client.hang_up()

    def forget_parent(self) -> None:
        """Drop the parent's sessions in the child of a fork. Its threads have to register again."""
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
    """Create the process's application, with the calling thread as its first worker.

    Raises EEXIST if there is one, EINVAL for an invalid name, AttachError.
    """
    global _app
    with _app_lock:
        if _app is not None:
            raise error(errno.EEXIST, f"the application {_app.name!r} was created already")
        if not isinstance(name, str) or not name:
            raise error(errno.EINVAL, "an application needs a name")
        app = App(name, config)
        app.register()
        _app = app
        return app


def destroy(*, aborts: bool = False) -> None:
    """Destroy the process's application; no effect if there is none."""
    global _app
    with _app_lock:
        app, _app = _app, None
    if app is not None:
        app.destroy(aborts=aborts)


def the_app() -> App:
    """Return the process's application; raises EBADFD if none was created."""
    if _app is None:
        raise error(errno.EBADFD, "call vppcom_app_create first")
    return _app


def current_worker() -> VclWorker:
    """Return the calling thread's worker; raises EBADFD if it is not registered."""
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
