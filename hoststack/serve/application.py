"""An application, from its import to its end: `python -m hoststack.serve.application FD`, or in the
manager's own process."""

from __future__ import annotations

import importlib.util
import logging
import os
import select
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import trio

from hoststack import AttachError, EndpointError, LinkError, QuicConfig, TlsConfig
from hoststack.asgi import (
    AccessLog,
    Application,
    ApplicationError,
    StaticFiles,
    load_application,
)
from hoststack.daemon.privileges import OrphanedError, die_with_maker
from hoststack.serve import orders
from hoststack.serve.certificates import Pair, tls_of
from hoststack.serve.log import log_to_terminal
from hoststack.serve.settings import (
    EXIT_FAILED_AT_START,
    EXIT_USAGE,
    ServeError,
    ServeSettings,
)
from hoststack.text import printable

if TYPE_CHECKING:
    from hoststack.asgi.core import Core, Statistics
    from hoststack.serve.companion import Contexts

logger = logging.getLogger("hoststack.serve")

#: What the start of a server raises for reasons that the message explains.
_EXPLAINED = (ServeError, ApplicationError, EndpointError, LinkError, AttachError)


#: How often the manager gets the counts.
COUNT_EVERY_S: Final = 1.0


class Control(Protocol):
    """A server that can be stopped."""

    def replace_tls(self, tls: TlsConfig) -> None: ...
    def stop(self) -> None: ...
    def stop_at_once(self) -> None: ...


#: Of connections that may have WebTransport sessions.
_DATAGRAM_FIFO_BYTES: Final = 65536


@dataclass(slots=True)
class Job:
    """What an application has to do: the manager's orders."""

    settings: ServeSettings
    uris: Sequence[str]
    attach_at: str
    """The daemon's socket; empty to run an engine here."""
    tcp: Sequence[int]
    pairs: list[Pair]
    end: orders.End
    access_log: AccessLog | None = None
    _contexts: Contexts | None = None
    _counted: orders.Counts | None = None

    @property
    def tls(self) -> TlsConfig:
        return tls_of(self.pairs)

    @property
    def quic(self) -> QuicConfig:
        settings = self.settings
        datagrams = _DATAGRAM_FIFO_BYTES if settings.webtransport else 0
        return QuicConfig(
            max_streams_bidi=settings.limit_streams,
            early_data=True,
            datagram_fifo_bytes=datagrams,
        )

    def attach_options(self) -> dict[str, Any]:
        """Return the arguments of `attach`."""
        name = self.settings.app or self.settings.root
        return {"name": printable(name), "shares_listeners": True, "config": self.quic}

    def stack_options(self) -> dict[str, Any]:
        """Return the arguments of `open_stack`."""
        settings = self.settings
        return {
            "interface": settings.interface,
            "link": settings.link if settings.interface else "udp",
            "engine": settings.engine,
            "config": self.quic,
        }

    @contextmanager
    def open_access_log(self) -> Iterator[None]:
        """Have an access log within the block, if one is wanted. Raises ApplicationError."""
        settings = self.settings
        if settings.access_log is None:
            yield
            return
        with AccessLog(settings.access_log, settings.access_log_format) as self.access_log:
            yield

    def companions(
        self,
        serve: Callable[..., Coroutine[Any, Any, None]],
        server: Core,
        shutdown_trigger: Callable[[], Awaitable[object]],
    ) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        """Return what serves the TCP sockets."""
        from hoststack.serve import companion

        self._contexts = companion.Contexts(self.pairs)
        application = companion.for_tcp(server)
        return companion.companions(
            serve, application, self.settings, self.tcp, self._contexts, shutdown_trigger
        )

    def follow(self, control: Control) -> None:
        """Carry out the orders that have arrived."""
        received = self.end.orders()
        if received is None:  # the manager is gone
            control.stop_at_once()
        for order, pairs in received or ():
            match order:
                case orders.NewCertificates():
                    self.pairs = pairs
                    control.replace_tls(self.tls)
                    if self._contexts is not None:
                        self._contexts.replace(pairs)
                case orders.Stop(at_once):
                    control.stop_at_once() if at_once else control.stop()

    def count(self, statistics: Statistics) -> None:
        """Report what was served, if it is more than before."""
        counts = orders.Counts(statistics.requests, statistics.errors, statistics.body_bytes)
        if counts != self._counted:
            self._counted = counts
            self.end.send(counts)


def run_application(end: orders.End) -> int:
    """Serve until the manager says stop; return the exit status. What cannot be served is reported
    to the manager."""
    job = _wait_for_job(end)
    if job is None:
        return 0
    is_loaded = False
    try:
        application = _load(job.settings)
        with job.open_access_log():
            is_loaded = True
            if job.settings.runtime == "trio":
                from hoststack.serve.in_trio import run
            else:
                from hoststack.serve.in_asyncio import run
            run(application, job)
    except Exception as error:
        if not isinstance(reason := _only(error), _EXPLAINED):
            raise
        failure = _failure(reason, is_loaded)
        end.send(failure)
        return failure.status
    return 0


def _wait_for_job(end: orders.End) -> Job | None:
    while True:
        select.select([end], [], [])
        received = end.orders()
        if received is None:
            return None
        for order, pairs in received:
            if isinstance(order, orders.Start):
                return Job(order.read(), order.uris, order.socket, order.tcp, pairs, end)


def _load(settings: ServeSettings) -> Application:
    if settings.root is not None:
        return StaticFiles(settings.root)
    assert settings.app is not None
    return load_application(settings.app, folder=settings.app_dir, is_factory=settings.factory)


def _only(error: BaseException) -> BaseException:
    """Return the exception of a group that has only one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _failure(error: BaseException, is_loaded: bool) -> orders.Failed:
    """Return the report for an exception."""
    match error:
        case ServeError():
            status = error.status
        case ApplicationError():
            # Its name is wrong, unless its own code has failed: at its import, or in its lifespan.
            is_its_own = is_loaded or error.__cause__ is not None
            status = EXIT_FAILED_AT_START if is_its_own else EXIT_USAGE
        case _:
            status = 1
    return orders.Failed(str(getattr(error, "strerror", None) or error), status)


async def replace_tls(listener: Any, tls: TlsConfig) -> None:
    """Have a listener use other certificates, of hoststack or hoststack.aio."""
    try:
        await listener.replace_tls(tls)
    except (OSError, trio.ClosedResourceError, trio.BrokenResourceError) as error:
        logger.error("%s; the certificates in use stay", getattr(error, "strerror", None) or error)


def has_uvloop(settings: ServeSettings) -> bool:
    """Return whether to run asyncio on uvloop."""
    if settings.loop == "auto":
        return importlib.util.find_spec("uvloop") is not None
    return settings.loop == "uvloop"


def main() -> None:
    """Serve as a process of its own."""
    connected = socket.socket(fileno=int(sys.argv[1]))
    try:
        die_with_maker(connected)
    except OrphanedError:
        return
    with log_to_terminal():
        status = run_application(orders.End(connected))
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of the application, which may never end, would keep the process.
    os._exit(status)


if __name__ == "__main__":
    main()
