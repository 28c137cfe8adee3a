"""The engine worker: one task that turns the engine over, for as long as the stack lives.

A turn takes what applications asked for, then a burst from the link, then fills the way out, then
tells the applications. Between turns the worker lets other tasks run, or sleeps until the link,
an application or a deadline wakes it, unless it is to poll busily. There is no task, lock or timer
per packet or connection.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import trio

from hoststack.boundary.application import Application
from hoststack.link.base import Link
from hoststack.quic.seam import ABORTED_CODE, Engine, EngineOwner, Turn
from hoststack.session.layer import SessionLayer

#: Turns that a shutdown may take to get its CONNECTION_CLOSE packets out.
_LAST_TURNS = 64

#: Turns that applications which always want something have while other tasks wait.
_MOST_IN_A_ROW = 8

#: Other tasks wait as long.
MOST_SPIN_US = 1000


class Worker:
    """One link, one engine, one session layer, and the loop around them.

    `run` belongs into a nursery; applications attach through `layer` before or while it runs.
    """

    def __init__(
        self,
        link: Link,
        make_engine: Callable[[EngineOwner], Engine],
        index: int = 0,
        *,
        spin_us: int = 0,
        first_session: int = 0,
    ) -> None:
        """With `first_session` sessions are not mistaken for those of a worker before this one.

        With `spin_us` it never sleeps: a turn without events looks for datagrams that long.

        Raises ValueError where the engine can't do that, or it would hold up the loop for longer
        than MOST_SPIN_US.
        """
        self.link = link
        self.layer = SessionLayer(index, link, make_engine, self._spawn, first_session)
        if not 0 <= spin_us <= MOST_SPIN_US:
            raise ValueError(f"busy polling is for 0 to {MOST_SPIN_US} microseconds, not {spin_us}")
        if spin_us and not self.layer.engine.can_spin:
            raise ValueError(
                f"the {self.layer.engine.name} engine can't poll busily over link {link.name}: it "
                "takes the native engine, over af_xdp or udp"
            )
        self._spin_s = spin_us / 1e6
        self._nursery: trio.Nursery | None = None
        self._sleep_scope: trio.CancelScope | None = None
        self._is_woken = False
        self._may_turn_over = False
        self._lazy_deadline = math.inf
        self._error: BaseException | None = None
        self._idle: trio.Event | None = None
        self._turned: trio.Event | None = None
        link.on_trouble = self._on_trouble

    def _on_trouble(self, reason: str) -> None:
        """The link carries nothing any more: connections over it end, listeners wait."""
        for connection in self.layer.engine.connections():
            self.layer.engine.close(connection, ABORTED_CODE, reason)
        self.wake()

    def attach(self, application: Application) -> None:
        """Serve an application: from now on its requests wake this worker."""
        application.worker = self
        self.layer.attach(application)

    def detach(
        self, application: Application, *, is_gone: bool = True, code: int = ABORTED_CODE
    ) -> None:
        """Serve it no more; its peers are told, by a code, and itself if it is not gone."""
        self.layer.detach(application, is_gone=is_gone, code=code)
        self.wake()

    def wake(self) -> None:
        """Have a turn soon, for there is something to do."""
        self._is_woken = True
        if self._sleep_scope is not None:
            self._sleep_scope.cancel()

    def wake_within(self, seconds: float) -> None:
        """Have a turn in so many seconds, unless there is one sooner."""
        self._lazy_deadline = min(self._lazy_deadline, trio.current_time() + seconds)
        if self._sleep_scope is not None:
            self._sleep_scope.deadline = min(self._sleep_scope.deadline, self._lazy_deadline)

    def turn_over(self) -> None:
        """Have a turn at once: what is to be sent goes without waiting until the worker is
        scheduled, which takes longer than to send it.

        Only one such turn until the worker has run: when many tasks send at the same time, what
        the others send goes in one burst.
        """
        if not self._may_turn_over:
            self.wake()
            return
        self._may_turn_over = False
        try:
            turn, has_woken = self._turn()
        except BaseException as error:
            # This is a task of the application's; the worker's is the one to end with it.
            self._error = error
            self.wake()
            return
        # It may sleep on after this: who was heard just now has to wake it the next time.
        if (
            turn.more
            or turn.blocked
            or has_woken
            or self._is_woken
            or self.layer.arm_applications()
        ):
            self.wake()
        elif self._sleep_scope is not None:
            self._sleep_scope.deadline = min(self._sleep_scope.deadline, self._deadline())

    async def wait_turn(self) -> None:
        """Have a turn, and wait for it."""
        if self._turned is None:
            self._turned = trio.Event()
        self.wake()
        await self._turned.wait()

    async def wait_idle(self) -> None:
        """Until there is no connection left."""
        while self.layer.connections():
            self._idle = trio.Event()
            await self._idle.wait()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Turn the engine over until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self.link.run)
            task_status.started()
            try:
                await self._loop()
            finally:
                self._nursery = None
                self._may_turn_over = False

    def close(self, code: int, reason: str) -> None:
        """Close all connections, and say so to the peers; the link stays its owner's to close."""
        engine = self.layer.engine
        # What the application asked for just before, a close with another code perhaps, counts.
        if self._nursery is not None:
            self.layer.take_from_applications()
        self.layer.shutdown(code, reason)
        for _ in range(_LAST_TURNS):
            turn = engine.turn(trio.current_time())
            self.layer.give_to_applications(turn.events)
            if turn.blocked or not turn.more:
                break

    async def _loop(self) -> None:
        in_a_row = 0
        while True:
            if self._error is not None:
                raise self._error
            turn, has_woken = self._turn(self._spin_s)
            in_a_row += 1
            self._may_turn_over = not turn.blocked
            # Those whom this turn woke run beside this task, some before it and some after: what
            # they want is known when it has come round twice.
            if turn.more or has_woken:
                await trio.lowlevel.checkpoint()
            if has_woken and not (turn.more or self._is_woken):
                await trio.lowlevel.checkpoint()
            if not (turn.more or self._is_woken or self.layer.arm_applications()):
                in_a_row = 0
                if self._spin_s:
                    await trio.lowlevel.checkpoint()
                else:
                    await self._sleep(blocked=turn.blocked)
            elif in_a_row >= _MOST_IN_A_ROW:
                in_a_row = 0
                await trio.lowlevel.checkpoint()
            self._may_turn_over = False

    def _turn(self, spin_s: float = 0.0) -> tuple[Turn, bool]:
        """One turn, and whether it woke an application."""
        self._is_woken = False
        self._lazy_deadline = math.inf
        self.layer.take_from_applications()
        turn = self.layer.engine.turn(trio.current_time(), spin_s)
        if self.layer.kernel.move_datagrams():
            turn = turn._replace(blocked=True)
        has_woken = self.layer.give_to_applications(turn.events)
        if self._turned is not None:
            self._turned.set()
            self._turned = None
        if self.layer.wants_turn():
            self._is_woken = True
        if self._idle is not None and not self.layer.connections():
            self._idle.set()
            self._idle = None
        # While the worker sleeps it keeps nothing of what is over.
        return turn._replace(events=()), has_woken

    async def _sleep(self, *, blocked: bool) -> None:
        """Wait for the link, for a call of `wake`, or for the deadline."""
        with trio.CancelScope(deadline=self._deadline()) as scope:
            self._sleep_scope = scope
            try:
                if blocked:
                    await self.link.wait_writable()
                else:
                    await self.link.wait_readable()
            finally:
                self._sleep_scope = None

    def _deadline(self) -> float:
        deadline = self.layer.engine.next_deadline
        return self._lazy_deadline if deadline is None else min(deadline, self._lazy_deadline)

    def _spawn(self, task: Callable[..., Awaitable[None]], *arguments: object) -> None:
        # Else this is the end, and what a task would do comes with the link's.
        if self._nursery is not None:
            self._nursery.start_soon(task, *arguments)
