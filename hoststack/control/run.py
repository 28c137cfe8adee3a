"""Running commands in one worker."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from hoststack.control import counters, echo_client, echo_server, namespaces, sessions, settings
from hoststack.control.commands import parse
from hoststack.control.grammar import FAULT, Command, CommandError
from hoststack.control.worker_side import Data, WorkerSide

logger = logging.getLogger(__name__)

Handler = Callable[[Command, WorkerSide], Awaitable[Data]]

_HANDLERS: Final[dict[str, Handler]] = {
    "session enable": settings.session_enable,
    "session disable": settings.session_disable,
    "test echo server": echo_server.test_echo_server,
    "test echo clients": echo_client.test_echo_clients,
    "show session": sessions.show_session,
    "show quic": counters.show_quic,
    "show xdp": counters.show_xdp,
    "show app": counters.show_app,
    "show errors": counters.show_errors,
    "show workers": counters.show_workers,
    "show udp": counters.show_udp,
    "clear errors": counters.clear_errors,
    "tls reload": settings.tls_reload,
    "quic set cc": settings.quic_set_cc,
    "quic set fifo-size": settings.quic_set_fifo_size,
    "session rule add": namespaces.session_rule_add,
    "session rule del": namespaces.session_rule_del,
    "session rule show": namespaces.session_rule_show,
    "app ns add": namespaces.app_ns_add,
}


async def run(command: Command, side: WorkerSide) -> Data:
    """Run a command in one worker; raises CommandError. Cancelling it stops the command."""
    handler = _HANDLERS.get(command.name)
    if handler is None:
        raise CommandError(f"{command.name!r} is no command for a worker")
    await trio.lowlevel.checkpoint()
    return {"worker": side.index, **await handler(command, side)}


async def run_line(line: str, side: WorkerSide) -> bytes:
    """Run a line in one worker for another process, which parses the result with `read_answer`.

    The result contains any error: a debug command must not end a worker.
    """
    try:
        answer: Data = {"data": await run(parse(line), side)}
    except CommandError as error:
        answer = {"error": str(error)}
    except Exception:
        logger.exception("a debug command failed")
        answer = {"error": FAULT}
    return json.dumps(answer).encode()


def read_answer(raw: bytes) -> Data:
    """Parse the result of `run_line`; raises CommandError if it is an error, or invalid."""
    try:
        answer = json.loads(raw)
    except (ValueError, RecursionError):
        answer = None
    match answer:
        case {"data": dict(data)}:
            return data
        case {"error": str(text)}:
            raise CommandError(text)
    raise CommandError("a worker returned an invalid answer")
