"""Commands run in one worker."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from hoststack.debug import counters, echo_client, echo_server, sessions, settings
from hoststack.debug.grammar import Command, CommandError
from hoststack.debug.worker_side import Data, WorkerSide

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
    "quic set cc": settings.quic_set_cc,
    "quic set fifo-size": settings.quic_set_fifo_size,
}


def register(name: str, handler: Handler) -> None:
    """Have `handler` run the command of that name, which the grammar has and nobody runs yet.

    Its answer is JSON: names and values, or {"lines": [...]} that are shown as they are.
    """
    assert name not in _HANDLERS, name
    _HANDLERS[name] = handler


async def run(command: Command, side: WorkerSide) -> Data:
    """Run a command in one worker; raises CommandError. Cancelled, it is given up."""
    handler = _HANDLERS.get(command.name)
    if handler is None:
        raise CommandError(f"there is no command {command.name!r} yet in this version")
    await trio.lowlevel.checkpoint()
    return {"worker": side.index, **await handler(command, side)}
