"""Connection attempts that race each other, for a name with several addresses (RFC 8305)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from hoststack.api.connection import Connection
from hoststack.api.errors import ConnectError
from hoststack.api.resolving import Address

#: The Connection Attempt Delay of RFC 8305 section 5, in seconds.
ATTEMPT_DELAY_S: Final = 0.25

Attempt = Callable[[Address], Awaitable[Connection]]


async def first_connection(
    addresses: Sequence[Address], attempt: Attempt, describe: str
) -> Connection:
    """Return the connection of the first attempt that succeeds, and cancel the others.

    An attempt begins when the one before it has failed, or has not succeeded within
    ATTEMPT_DELAY_S. If every attempt fails, raises ConnectError with `describe` and all reasons.
    """
    race = _Race(attempt)
    try:
        if len(addresses) == 1:
            await race.enter(addresses[0])
        else:
            async with trio.open_nursery() as nursery:
                race.is_over = nursery.cancel_scope.cancel
                nursery.start_soon(race.run, nursery, addresses)
    except BaseException:
        if race.winner is not None:
            race.winner.close_now()
        raise
    if race.winner is None:
        raise race.error(describe)
    return race.winner


class _Race:
    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._failures: list[ConnectError] = []
        self._fault: Exception | None = None
        self.winner: Connection | None = None
        self.is_over: Callable[[], None] = lambda: None
        """Called when the race is decided; cancels the other attempts."""

    async def run(self, nursery: trio.Nursery, addresses: Sequence[Address]) -> None:
        """Start the attempts one after another."""
        for address in addresses:
            failed = trio.Event()
            nursery.start_soon(self.enter, address, failed.set)
            with trio.move_on_after(ATTEMPT_DELAY_S):
                await failed.wait()

    async def enter(self, address: Address, on_failure: Callable[[], None] = lambda: None) -> None:
        """Try one address."""
        try:
            connection = await self._attempt(address)
        except ConnectError as error:
            self._failures.append(error)
            on_failure()
        except Exception as error:
            self._fault = error
            self.is_over()
        else:
            if self.winner is None:
                self.winner = connection
                self.is_over()
            else:
                connection.close_now()

    def error(self, describe: str) -> Exception:
        """Return the error of a race without a winner."""
        return self._fault or all_failed(self._failures, describe)


def all_failed(failures: Sequence[ConnectError], describe: str) -> ConnectError:
    """Return the error of attempts that all failed, with each distinct reason once."""
    texts = dict.fromkeys(failure.strerror or str(failure) for failure in failures)
    return ConnectError(failures[0].errno, f"{describe}: {'; '.join(texts)}")
