"""The slow lane: requests of applications, in shares of a worker's time.

Applications in other processes share a third of the time that everything else has: users equally,
and the processes of a user. A process whose requests cost more than its share pays with its shares
of later turns, so it delays its own requests and nothing else. What is left over stays in the
applications' channels; turns follow each other while there is any.
"""

from __future__ import annotations

import contextlib
import math
import types
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Iterator
from typing import Any, Final, cast

from hoststack.boundary.application import Application, TimeAccount
from hoststack.boundary.loading import Loaded
from hoststack.boundary.messages import Request
from hoststack.session.spent_time import spent_s

#: Time for requests, as a part of what everything else had since the last turn with requests.
PART: Final = 1 / 3
#: What a handshake costs the engine, in the turns after a connect.
HANDSHAKE_S: Final = 300e-6
#: The least time in a turn, where little else is done, and the most, which delays everything else.
LEAST_S: Final = 250e-6
MOST_S: Final = 20e-3


class SlowLane:
    """Takes the requests of one worker's applications."""

    def __init__(
        self,
        handle: Callable[[Application, Request | Loaded], None],
        clock: Callable[[], float] = spent_s,
    ) -> None:
        """Pass each request to `handle`, which raises nothing that an application causes. The clock
        counts what this thread spends."""
        self._handle = handle
        self._clock = clock
        self._ended = clock()

    def run(self, applications: Iterable[Application]) -> None:
        """Take requests for one turn."""
        waiting = [each for each in applications if each.has_requests]
        if not waiting:
            return
        others_s = self._clock() - self._ended
        total_s = min(max(LEAST_S, others_s * PART), MOST_S)
        sharing: dict[TimeAccount, list[Application]] = {}
        for application in waiting:
            if application.is_remote:
                sharing.setdefault(application.account, []).append(application)
            else:
                application.account.left_s = math.inf
                self._serve(application, 0.0)
        processes = Counter(account.uid for account in sharing)
        for account, attachments in sharing.items():
            share_s = total_s / len(processes) / processes[account.uid]
            account.left_s = min(0.0, account.left_s) + share_s
            self._serve_process(account, attachments)
        self._ended = self._clock()

    def _serve_process(self, account: TimeAccount, attachments: list[Application]) -> None:
        first = account.served % len(attachments)
        others = len(attachments)
        for application in attachments[first:] + attachments[:first]:
            if account.left_s <= 0:
                return  # the next turn begins with this one
            others -= 1
            account.served += 1
            self._serve(application, account.left_s * others / (others + 1))

    def _serve(self, application: Application, spared_s: float) -> None:
        """Take requests of one application until this time of its account is left."""
        clock, account = self._clock, application.account
        now = clock()
        while account.left_s > spared_s and application.has_requests:
            request = application.take_request()
            if request is not None:
                self._handle(application, request)
            began, now = now, clock()
            account.left_s -= now - began


@contextlib.contextmanager
def charging(account: TimeAccount) -> Iterator[None]:
    """Charge an account for the block."""
    began = spent_s()
    try:
        yield
    finally:
        account.left_s -= spent_s() - began


async def charged(
    application: Application, task: Callable[..., Awaitable[None]], *arguments: object
) -> None:
    """Run a task that a request started, and charge its application for what it takes."""
    await _charge_steps(application, cast(Coroutine[Any, Any, None], task(*arguments)))


@types.coroutine
def _charge_steps(
    application: Application, task: Coroutine[Any, Any, None]
) -> Generator[Any, Any, None]:
    step: Callable[[Any], Any] = task.send
    argument: Any = None
    while True:
        try:
            with charging(application.account):
                waits_for = step(argument)
        except StopIteration:
            return
        try:
            step, argument = task.send, (yield waits_for)
        except BaseException as error:
            step, argument = task.throw, error
