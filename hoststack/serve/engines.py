"""`python -m hoststack.serve.engines FD`: the daemon of a server, with a private socket."""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

import trio

from hoststack.daemon.config import ConfigError, DaemonConfig
from hoststack.daemon.log import LEVEL_VARIABLE, log_to_stderr
from hoststack.daemon.privileges import OrphanedError, die_with_maker
from hoststack.daemon.supervisor import DaemonError, run_daemon
from hoststack.serve import orders
from hoststack.serve.settings import ServeSettings

#: After the applications: for the last packets of their connections.
_DRAIN_S = 1.0


def daemon_config(settings: ServeSettings, path: str) -> DaemonConfig:
    """Return the daemon's settings. Raises ConfigError."""
    return DaemonConfig(
        interface=settings.interface,
        link=settings.link if settings.interface else "udp",
        engine=settings.engine,
        workers=settings.workers,
        socket=path,
        cli_socket=settings.cli_socket,
        max_applications=settings.applications + 1,
        drain_seconds=_DRAIN_S,
    )


async def _run(end: orders.End) -> None:
    await trio.lowlevel.wait_readable(end.fileno())
    received = end.orders()
    if not received or not isinstance(start := received[0][0], orders.Start):
        return
    config = daemon_config(start.read(), start.socket)
    async with trio.open_nursery() as nursery:
        await nursery.start(_run_daemon, config)
        end.send(orders.Ready())


async def _run_daemon(config: DaemonConfig, task_status: trio.TaskStatus[None]) -> None:
    await run_daemon(config, task_status=task_status)


def _fail(end: orders.End, group: BaseExceptionGroup[Any], status: int) -> None:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    end.send(orders.Failed(str(getattr(error, "strerror", None) or error), status))
    sys.exit(status)


def main() -> None:
    """Run the daemon until SIGTERM."""
    connected = socket.socket(fileno=int(sys.argv[1]))
    try:
        die_with_maker(connected)
    except OrphanedError:
        return
    os.environ.pop("NOTIFY_SOCKET", None)
    end = orders.End(connected)
    os.environ.setdefault(LEVEL_VARIABLE, "warning")
    with log_to_stderr() as log:
        log.start()
        try:
            trio.run(_run, end)
        except* ConfigError as group:
            _fail(end, group, 2)
        except* (DaemonError, OSError) as group:
            _fail(end, group, 1)


if __name__ == "__main__":
    main()
