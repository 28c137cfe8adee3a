"""The slow lane: requests of applications, in shares of a worker's time.

Applications in other processes share a third of the time that everything else has. One whose
requests cost more than its share pays with its shares of later turns, so it delays its own requests
and nothing else. What is left over stays in the applications' channels; turns follow each other
while there is any.
"""

from __future__ import annotations

import math
import time
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable
from typing import Any, Final, cast

from hoststack.boundary.application import Application
from hoststack.boundary.loading import Loaded
from hoststack.boundary.messages import Request

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
        clock: Callable[[], float] = time.thread_time,
    ) -> None:
        """Pass each request to `handle`, which raises nothing that an application causes. The clock
        counts what this thread uses: neither its sleep, nor what other processes take from it."""
        self._handle = handle
        self._clock = clock
        self._ended = clock()

    def run(self, applications: Iterable[Application]) -> None:
        """Take requests for one turn."""
        waiting = [each for each in applications if each.has_requests]
        if not waiting:
            return
        sharing = sum(each.is_remote for each in waiting)
        others_s = self._clock() - self._ended
        total_s = min(max(LEAST_S, others_s * PART), MOST_S)
        for application in waiting:
            if application.is_remote:
                share_s = total_s / sharing
                application.slow_lane_s = min(0.0, application.slow_lane_s) + share_s
            else:
                application.slow_lane_s = math.inf
            self._serve(application)
        self._ended = self._clock()

    def _serve(self, application: Application) -> None:
        clock = self._clock
        now = clock()
        while application.slow_lane_s > 0 and application.has_requests:
            request = application.take_request()
            if request is not None:
                self._handle(application, request)
            began, now = now, clock()
            application.slow_lane_s -= now - began


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
        began = time.thread_time()
        try:
            waits_for = step(argument)
        except StopIteration:
            return
        finally:
            application.slow_lane_s -= time.thread_time() - began
        try:
            step, argument = task.send, (yield waits_for)
        except BaseException as error:
            step, argument = task.throw, error
