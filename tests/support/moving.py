"""Clients over HTTP/3 that change their local port again and again while they ask."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import trio

import hoststack
from hoststack import MigrationError, TlsConfig, http3

_TRUSTING: Final = TlsConfig(verify=False)
#: Connections: a stack has 256 UDP ports, and those that connections have left stay open a while.
_OF_A_STACK: Final = 25


@dataclass
class Outcome:
    """What happened to all of them."""

    requests: int = 0
    """That were answered with 200, by the same content as the connection's first."""
    moves: int = 0
    failures: list[str] = field(default_factory=list)
    """Of requests."""
    stuck: list[str] = field(default_factory=list)
    """Moves that failed."""
    contents: set[bytes] = field(default_factory=set)


class _Client:
    def __init__(self, outcome: Outcome, http: http3.ClientConnection) -> None:
        self._outcome = outcome
        self._http = http
        self._first: bytes | None = None

    async def ask(self) -> None:
        outcome = self._outcome
        try:
            async with await self._http.request("GET", "/") as response:
                content = await response.read()
        except (OSError, trio.BrokenResourceError) as error:
            outcome.failures.append(repr(error))
            return
        self._first = self._first or content
        if response.status != 200 or content != self._first:
            outcome.failures.append(f"status {response.status}, content {content[:40]!r}")
        else:
            outcome.requests += 1
            outcome.contents.add(content)

    async def ask_until(self, over: trio.Event) -> None:
        while not over.is_set() and self._http.connection.close_info is None:
            await self.ask()

    async def move(self, moves: int, pause_s: float, over: trio.Event) -> None:
        for _ in range(moves):
            await trio.sleep(pause_s)
            try:
                await self._http.connection.migrate()
                self._outcome.moves += 1
            except (MigrationError, OSError) as error:
                self._outcome.stuck.append(repr(error))
            await self.ask()
        over.set()


async def ask_while_moving(authority: str, connections: int, moves: int, pause_s: float) -> Outcome:
    """Ask on each connection without a pause, while it moves so often, after a pause each time."""
    outcome = Outcome()

    async def some(count: int) -> None:
        async with hoststack.open_stack(link="udp") as stack, trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(one, stack)

    async def one(stack: hoststack.Stack) -> None:
        async with http3.open_client(stack, authority, tls=_TRUSTING) as http:
            client, over = _Client(outcome, http), trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.ask_until, over)
                nursery.start_soon(client.move, moves, pause_s, over)

    async with trio.open_nursery() as nursery:
        for begin in range(0, connections, _OF_A_STACK):
            nursery.start_soon(some, min(_OF_A_STACK, connections - begin))
    return outcome
