"""The manager: starts engines and applications, replaces those that die, and ends all of them."""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import Final

from hoststack.boundary.uri import Uri
from hoststack.daemon.sd_notify import sd_notify
from hoststack.serve import orders
from hoststack.serve.certificates import Pair, read_pairs
from hoststack.serve.children import Child, Here, Process
from hoststack.serve.progress import Progress
from hoststack.serve.settings import EXIT_FAILED_AT_START, ServeError, ServeSettings
from hoststack.serve.watching import Watched, sources

logger = logging.getLogger("hoststack.serve")

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: How often files are looked at, and deadlines.
_TICK_S: Final = 0.25
#: The pause before a replacement grows for an application that dies repeatedly.
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 5.0
#: An application that lived this long has not failed at its start.
_LONG_LIFE_S: Final = 10.0
#: Failed starts in a row, while no application serves, after which the server ends.
_MOST_FAILURES: Final = 5
#: Beyond --graceful-timeout, until a process is killed.
_GRACE_S: Final = 2.0
#: How long connections of a watched application may take to end before it is started again.
_RELOAD_S: Final = 1.0


@dataclass(eq=False, slots=True)
class _Slot:
    """A place for an application process, and the one that is there now."""

    child: Child | None = None
    is_ready: bool = False
    has_served: bool = False
    failure: orders.Failed | None = None
    pause_s: float = _FIRST_PAUSE_S
    start_at_s: float | None = 0.0
    """When to start one; None while there is one, or none is wanted."""
    kill_at_s: float = float("inf")
    counts: orders.Counts = field(default_factory=lambda: orders.Counts(0, 0, 0))


class Manager:
    """Runs until it was told to end, or cannot go on: `run` returns the exit status.

    It blocks in a selector, so it works in a process of its own, and in a thread beside an
    application.
    """

    def __init__(
        self,
        settings: ServeSettings,
        uris: Sequence[Uri],
        pairs: list[Pair],
        tcp: Sequence[int],
        here: Here | None = None,
    ) -> None:
        self._settings = settings
        self._uris = uris
        self._pairs = pairs
        self._tcp = tcp
        self._here = here
        self._slots = [_Slot() for _ in range(settings.applications)]
        self._engines: Process | None = None
        self._socket = ""
        self._status = 0
        self._is_stopping = False
        self._is_announced = False
        self._is_attachable = False
        self._wants_certificates = False
        self._failures = 0
        self._told = ""
        self._engines_kill_at_s = float("inf")
        self._progress = Progress(sys.stderr)
        self._selector = selectors.DefaultSelector()
        self._signals, self._signal_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._certificates = Watched(lambda: (*settings.certfile, *settings.keyfile))
        folders = settings.reload_dir or (settings.app_dir,)
        self._sources = Watched(lambda: sources(folders)) if settings.reload else None

    def take_signals(self) -> None:
        """Have signals handled by `run`. Call it in the main thread."""
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)

    def ignore_signals(self) -> None:
        """Ignore signals from now on: the process is about to exit with its status."""
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        os.write(self._signal_writer, bytes([number]))

    def run(self) -> int:
        """Serve; return the exit status."""
        with ExitStack() as undo:
            undo.callback(self._close)
            self._listen(self._signals, self._on_signals)
            if self._settings.workers:
                folder = undo.enter_context(tempfile.TemporaryDirectory(prefix="hoststack-serve-"))
                self._socket = os.path.join(folder, "attach.sock")
                self._start_engines()
            while not self._is_over():
                self._tick()
                for key, _ in self._selector.select(_TICK_S):
                    key.data()
            self._progress.clear()
        return self._status

    def _is_over(self) -> bool:
        return self._is_stopping and not self._engines and not any(s.child for s in self._slots)

    def _close(self) -> None:
        for child in (self._engines, *(slot.child for slot in self._slots)):
            if child is not None:
                child.close()
        self._selector.close()

    def _listen(self, fd: int, call: Callable[[], object]) -> None:
        self._selector.register(fd, selectors.EVENT_READ, call)

    def _reports_of(self, child: Child) -> list[orders.Report]:
        reports = child.end.reports()
        if reports is None:  # it ends
            self._ignore(child.end.fileno())
        return reports or []

    def _ignore(self, fd: int) -> None:
        if fd in self._selector.get_map():
            self._selector.unregister(fd)

    def _forget(self, child: Child) -> None:
        self._ignore(child.end.fileno())
        self._ignore(child.fileno())
        child.close()

    # --- the clock --------------------------------------------------------------------------

    def _tick(self) -> None:
        now = time.monotonic()
        for slot in self._slots:
            if slot.child is not None and now >= slot.kill_at_s:
                if self._is_stopping:
                    logger.error("the application does not end, and is killed")
                slot.kill_at_s = now + _GRACE_S
                slot.child.kill()
            elif slot.start_at_s is not None and now >= slot.start_at_s and self._may_start():
                self._start(slot)
        if self._engines is not None and now >= self._engines_kill_at_s:
            self._engines.kill()
        if self._is_stopping:
            return
        if self._wants_certificates or self._certificates.changed():
            self._wants_certificates = False
            self._read_certificates()
        if self._sources is not None and (changed := self._sources.changed()):
            self._restart(changed)
        if self._is_announced:
            self._progress.show(now, [slot.counts for slot in self._slots])

    def _may_start(self) -> bool:
        return bool(self._socket and self._is_attachable) or not self._settings.workers

    # --- engines ----------------------------------------------------------------------------

    def _start_engines(self) -> None:
        engines = self._engines = Process("hoststack.serve.engines")
        engines.end.send(self._start_order())
        self._listen(engines.end.fileno(), lambda: self._on_reports_of_engines(engines))
        self._listen(engines.fileno(), lambda: self._on_engines_ended(engines))

    def _start_order(self) -> orders.Start:
        uris = [str(uri) for uri in self._uris]
        settings = json.dumps(asdict(self._settings))
        return orders.Start(settings, uris, self._socket, list(self._tcp))

    def _on_reports_of_engines(self, engines: Process) -> None:
        for report in self._reports_of(engines):
            match report:
                case orders.Ready():
                    self._is_attachable = True
                case orders.Failed(text, status):
                    self._fail(text, status)

    def _on_engines_ended(self, engines: Process) -> None:
        self._on_reports_of_engines(engines)
        status = engines.status()
        self._forget(engines)
        self._engines = None
        if not self._is_stopping:
            self._fail(f"the engines' supervisor has ended ({ending(status)})", 1)

    # --- applications -----------------------------------------------------------------------

    def _start(self, slot: _Slot) -> None:
        child: Child = self._here or Process("hoststack.serve.application", self._tcp)
        slot.child, slot.start_at_s, slot.kill_at_s = child, None, float("inf")
        slot.is_ready, slot.failure = False, None
        child.end.send(self._start_order(), self._pairs)
        self._listen(child.end.fileno(), lambda: self._on_reports(slot))
        self._listen(child.fileno(), lambda: self._on_ended(slot))

    def _on_reports(self, slot: _Slot) -> None:
        assert slot.child is not None
        for report in self._reports_of(slot.child):
            match report:
                case orders.Ready():
                    slot.is_ready = slot.has_served = True
                    self._failures = 0
                    self._told = ""
                    self._announce(report)
                case orders.Failed():
                    slot.failure = report
                case orders.Counts():
                    slot.counts = report
                case orders.WantCertificates():
                    self._wants_certificates = True  # as others will say at the same time

    def _announce(self, ready: orders.Ready) -> None:
        if self._is_announced or not all(slot.is_ready for slot in self._slots):
            return
        self._is_announced = True
        versions = "HTTP/3, HTTP/2, HTTP/1.1" if self._settings.tcp else "HTTP/3"
        where = ", ".join(str(uri).replace("quic", "https", 1) for uri in self._uris)
        count = len(self._slots)
        shared = f", {self._settings.workers} engines, {count} applications" if self._socket else ""
        logger.info(
            "listening on %s (%s; link %s, engine %s%s)",
            where,
            versions,
            ready.link,
            ready.engine,
            shared,
        )
        sd_notify("READY=1")

    def _on_ended(self, slot: _Slot) -> None:
        child = slot.child
        assert child is not None
        self._on_reports(slot)
        status, lived_s = child.status(), time.monotonic() - child.started_s
        self._forget(child)
        slot.child = None
        if self._is_stopping:
            if self._status == 0 and slot.failure is not None:
                self._fail(slot.failure.text, slot.failure.status)
            self._stop_engines()
        elif slot.kill_at_s != float("inf"):  # it was told to end, to be started again
            slot.start_at_s = time.monotonic()
        else:
            self._replace(slot, child.pid, status, lived_s)

    def _replace(self, slot: _Slot, pid: int, status: int, lived_s: float) -> None:
        """Start another one after a pause, unless that is of no use."""
        failure = slot.failure
        how = failure.text if failure else f"application process {pid} died ({ending(status)})"
        if self._sources is not None and not slot.is_ready:
            logger.error("%s; waiting for a change", how)
            return
        if not slot.is_ready:
            self._failures += 1
        is_first = not any(each.has_served for each in self._slots)
        is_serving = any(each.is_ready and each.child for each in self._slots)
        if (
            self._here
            or (failure and is_first)
            or (self._failures >= _MOST_FAILURES and not is_serving)
        ):
            self._fail(how, failure.status if failure else EXIT_FAILED_AT_START)
            return
        if how != self._told:
            logger.error("%s: starting another", how)
        self._told = how if failure else ""
        slot.pause_s = (
            _FIRST_PAUSE_S if lived_s > _LONG_LIFE_S else min(2 * slot.pause_s, _LONGEST_PAUSE_S)
        )
        slot.start_at_s = time.monotonic() + slot.pause_s
        slot.is_ready = False

    def _restart(self, changed: Sequence[str]) -> None:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        logger.info("%s%s changed: restarting", os.path.relpath(changed[0]), more)
        self._is_announced = False
        for slot in self._slots:
            if slot.child is None:
                slot.start_at_s = 0.0
            else:
                slot.child.end.send(orders.Stop(at_once=True))
                slot.kill_at_s = time.monotonic() + _RELOAD_S

    # --- certificates -----------------------------------------------------------------------

    def _read_certificates(self) -> None:
        if not self._settings.certfile:
            logger.info("there is no --certfile to read again")
            return
        try:
            pairs = read_pairs(self._settings)
        except ServeError as error:
            logger.error("%s; the certificates in use stay", error)
            return
        self._pairs = pairs
        for slot in self._slots:
            if slot.child is not None:
                slot.child.end.send(orders.NewCertificates(), pairs)
        logger.info("new handshakes use the certificates of %s", ", ".join(self._settings.certfile))

    # --- the end ----------------------------------------------------------------------------

    def _on_signals(self) -> None:
        for number in os.read(self._signals, 64):
            if number == signal.SIGHUP:
                self._read_certificates()
            elif self._is_stopping:
                logger.info("%s again: ending at once", signal.Signals(number).name)
                self._stop_at_once()
            else:
                logger.info(
                    "%s: requests in progress may take %g s to end; again: at once",
                    signal.Signals(number).name,
                    self._settings.graceful_timeout,
                )
                self._stop()

    def _fail(self, text: str, status: int) -> None:
        self._progress.clear()
        logger.error("%s", text)
        self._status = status
        if not self._is_stopping:
            self._stop()

    def _stop(self) -> None:
        sd_notify("STOPPING=1")
        self._is_stopping = True
        self._progress.clear()
        for slot in self._slots:
            slot.start_at_s = None
            if slot.child is not None:
                slot.child.end.send(orders.Stop())
                # One that is not ready has no requests, and is not listening to orders.
                graceful_s = self._settings.graceful_timeout if slot.is_ready else 0.0
                slot.kill_at_s = time.monotonic() + graceful_s + _GRACE_S
        self._stop_engines()

    def _stop_at_once(self) -> None:
        for slot in self._slots:
            if slot.child is not None:
                slot.child.end.send(orders.Stop(at_once=True))
                slot.kill_at_s = min(slot.kill_at_s, time.monotonic() + _RELOAD_S)
        if self._engines is not None:
            self._engines.terminate()

    def _stop_engines(self) -> None:
        """End the engines when no application is left."""
        if self._engines is not None and not any(slot.child for slot in self._slots):
            self._engines.terminate()
            self._engines_kill_at_s = time.monotonic() + 2 * _GRACE_S


def ending(status: int) -> str:
    """Return how a process ended."""
    return f"signal {-status}" if status < 0 else f"exit status {status}"
