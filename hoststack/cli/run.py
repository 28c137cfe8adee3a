"""`hoststack run`: the daemon."""

from __future__ import annotations

import argparse
import logging
from typing import Any, get_args

import trio

from hoststack.daemon.config import (
    ConfigError,
    DaemonConfig,
    LinkName,
    XdpMode,
    read_config,
)
from hoststack.daemon.log import log_to_stderr
from hoststack.daemon.supervisor import DaemonError, run_daemon
from hoststack.worker.engines import EngineName

logger = logging.getLogger("hoststack")

_EXIT_USAGE = 2


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `run` to the command line."""
    parser = commands.add_parser(
        "run",
        help="serve applications in other processes",
        description="Owns the interface, runs a worker process for each receive queue, and serves"
        " applications that attach. Options override the file. Ends with SIGTERM or Ctrl-C.",
    )
    parser.add_argument("-i", "--interface", metavar="IFACE")
    parser.add_argument("--config", metavar="FILE", help="a TOML file with any of the settings")
    parser.add_argument("--workers", type=int, metavar="N")
    parser.add_argument("--socket", metavar="PATH", help="where applications attach")
    parser.add_argument("--cli-socket", metavar="PATH", help="where `hoststack ctl` attaches")
    parser.add_argument("--link", choices=get_args(LinkName))
    parser.add_argument("--mode", choices=get_args(XdpMode), help="XDP's")
    parser.add_argument("--engine", choices=get_args(EngineName))
    parser.add_argument("--group", help="the group whose members may attach")
    parser.add_argument("--user", help="the user that workers become, if this is root")
    parser.add_argument("--max-applications", type=int, metavar="N")
    parser.add_argument("--max-sessions", type=int, metavar="N")
    parser.add_argument("--fifo-memory-bytes", type=int, metavar="N")
    parser.add_argument("--drain-seconds", type=float, metavar="S")
    parser.add_argument("--watchdog-seconds", type=float, metavar="S", help="0: none")
    parser.add_argument("--host", type=int, metavar="N", help="in connection IDs")
    parser.add_argument("--busy-poll-us", type=int, metavar="N")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    status = 0
    with log_to_stderr() as log:
        log.start()
        try:
            trio.run(run_daemon, _config(options))
        except* ConfigError as group:
            status = _complain(group, _EXIT_USAGE)
        except* (DaemonError, OSError) as group:
            status = _complain(group, 1)
    return status


def _config(options: argparse.Namespace) -> DaemonConfig:
    settings: dict[str, Any] = {} if options.config is None else read_config(options.config)
    for name in DaemonConfig.__dataclass_fields__:
        value = getattr(options, name, None)
        if value is not None:
            settings[name] = value
    return DaemonConfig(**settings)


def _complain(group: BaseExceptionGroup[Any], status: int) -> int:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            _complain(error, status)
        else:
            text = getattr(error, "strerror", None) or error
            logger.error("%s", text)
    return status
