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
#: Time in a turn in which nothing else is done. What else is done takes twice its time from that,
#: until the part above is more: a floor that stays would be most of the time beside short turns.
ALONE_S: Final = 250e-6
#: The most time in a turn: it delays everything else.
MOST_S: Final = 20e-3

_charged_s = 0.0
"""What `charging` has charged, to all accounts: nothing else had this time."""


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
        self._ended, self._charged_s = clock(), _charged_s

    def run(self, applications: Iterable[Application]) -> None:
        """Take requests for one turn."""
        waiting = [each for each in applications if each.has_requests]
        if not waiting:
            return
        others_s = max(0.0, self._clock() - self._ended - (_charged_s - self._charged_s))
        total_s = min(max(others_s * PART, ALONE_S - 2 * others_s), MOST_S)
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
        self._ended, self._charged_s = self._clock(), _charged_s

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
    global _charged_s
    began = spent_s()
    try:
        yield
    finally:
        took_s = spent_s() - began
        account.left_s -= took_s
        _charged_s += took_s


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
