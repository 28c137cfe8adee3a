"""The engine worker: runs the engine for the lifetime of the stack.

In a turn the worker processes the applications' requests, receives a burst from the link, sends,
and notifies the applications. Turns have three causes, with a task each: datagrams that come, a
deadline, and applications that have something to send. The last of these lets others say what they
have before it runs a turn, so that what belongs together leaves in one packet. There is no task,
lock or timer per packet or connection.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import trio

from hoststack.boundary.application import LAZY_S, Application
from hoststack.link.base import Link
from hoststack.quic.seam import ABORTED_CODE, Engine, EngineOwner, Turn
from hoststack.session.layer import SessionLayer

#: Most turns of a shutdown, to send the CONNECTION_CLOSE packets.
_LAST_TURNS = 64

#: Most turns in a row, without a checkpoint, while applications always have work.
_MOST_IN_A_ROW = 8

#: Scheduling passes in which a program may answer what has just arrived: as many as it takes to
#: wake a task, to have that start another one, and to run that.
_ANSWER_PASSES = 4

#: Between turns of deadlines that have passed while the link is not writable.
_BLOCKED_S = 0.01

#: Longest busy poll in microseconds: other tasks of the loop wait that long.
MOST_SPIN_US = 1000


class Worker:
    """One link, one engine, one session layer, and the loop that runs them.

    Start `run` in a nursery; `attach` applications before or while it runs.
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
        """Create a worker with its engine.

        `first_session` is the first session index, so that handles differ from those of a worker
        that this one replaces. With `spin_us` the worker never sleeps: a turn without events polls
        the link for that many microseconds.

        Raises ValueError if the engine can't poll busily, or for more than MOST_SPIN_US.
        """
        self.link = link
        self.layer = SessionLayer(index, link, make_engine, self._spawn, first_session)
        if not 0 <= spin_us <= MOST_SPIN_US:
            raise ValueError(f"busy polling is for 0 to {MOST_SPIN_US} microseconds, not {spin_us}")
        if spin_us and not self.layer.engine.can_spin:
            raise ValueError(
                f"the {self.layer.engine.name} engine can't poll busily over link {link.name}: "
                "this needs the native engine, over af_xdp or udp"
            )
        self._spin_s = spin_us / 1e6
        self._nursery: trio.Nursery | None = None
        self._is_woken = False
        self._parked: trio.lowlevel.Task | None = None
        """The task of `_loop`, while it waits for `wake`."""
        self._may_turn_over = False
        self._is_held = False
        """Whether acknowledgements wait for answers, to share their packets."""
        self._is_blocked = False
        """Whether datagrams wait until the link is writable."""
        self._listening: trio.CancelScope | None = None
        """Cancelled to wait for the link to be writable, not readable."""
        self._timer: trio.CancelScope | None = None
        self._timer_deadline = math.inf
        """That of `_timer`: the next turn's, or earlier."""
        self._lazy_deadline = math.inf
        self._error: BaseException | None = None
        self._idle: trio.Event | None = None
        self._turned: trio.Event | None = None
        link.on_trouble = self._on_trouble

    def _on_trouble(self, reason: str) -> None:
        """Close all connections: the link failed. Listeners stay, in case it works again."""
        for connection in self.layer.engine.connections():
            self.layer.engine.close(connection, ABORTED_CODE, reason)
        self.wake()

    def attach(self, application: Application) -> None:
        """Serve an application; its requests wake this worker from now on."""
        application.worker = self
        self.layer.attach(application)

    def detach(
        self, application: Application, *, is_gone: bool = True, code: int = ABORTED_CODE
    ) -> None:
        """Close an application's sessions with a code and stop serving it, if it is not gone after
        notifying it; see SessionLayer.detach."""
        self.layer.detach(application, is_gone=is_gone, code=code)
        self.wake()

    def wake(self) -> None:
        """Schedule a turn: there is work."""
        self._is_woken = True
        self._unpark()

    def _unpark(self) -> None:
        task, self._parked = self._parked, None
        if task is not None:
            trio.lowlevel.reschedule(task)

    def wake_within(self, seconds: float) -> None:
        """Schedule a turn within this time, unless there is an earlier one."""
        self._lazy_deadline = min(self._lazy_deadline, trio.current_time() + seconds)
        self._set_timer()

    def _set_timer(self) -> None:
        # A timer that is early costs less than one that is set anew for each packet.
        deadline = self._deadline()
        if deadline < self._timer_deadline and self._timer is not None:
            self._timer_deadline = self._timer.deadline = deadline

    def turn_over(self) -> None:
        """Run a turn inline: scheduling the worker's task would take longer than sending.

        Only one inline turn runs until the worker's task has run: when many tasks send at the same
        time, data of the others is sent in one burst.
        """
        if self._may_turn_over:
            self._may_turn_over = False
            self._run_turn()
        else:
            self.wake()

    def _run_turn(self) -> None:
        """Run a turn in any task."""
        try:
            turn, _ = self._turn()
        except BaseException as error:
            # Raise it in the worker's task.
            self._error = error
            self.wake()
        else:
            if self._wants_more(turn):
                self.wake()

    def _wants_more(self, turn: Turn) -> bool:
        """Note what a turn leaves; return whether another one can follow at once."""
        if turn.blocked:
            self._is_blocked = True
            if self._listening is not None:
                self._listening.cancel()
        self._set_timer()
        if turn.more or self._is_woken or self.layer.arm_applications():
            return True
        if turn.held:
            self._is_held = True
            self._unpark()
        return False

    async def wait_turn(self) -> None:
        """Schedule a turn, and wait until it has run."""
        if self._turned is None:
            self._turned = trio.Event()
        self.wake()
        await self._turned.wait()

    async def wait_idle(self) -> None:
        """Wait until there is no connection left."""
        while self.layer.connections():
            self._idle = trio.Event()
            await self._idle.wait()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run turns until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self.link.run)
            if not self._spin_s:
                nursery.start_soon(self._listen)
                nursery.start_soon(self._keep_time)
            task_status.started()
            try:
                await (self._spin() if self._spin_s else self._loop())
            finally:
                self._nursery = None
                self._may_turn_over = False

    def close(self, code: int, reason: str) -> None:
        """Close all connections, and send that to the peers. The link's owner closes the link."""
        try:
            # Process pending requests first: for example a close with another code.
            if self._nursery is not None:
                self.layer.take_from_applications()
            self.layer.shutdown(code, reason)
            for _ in range(_LAST_TURNS):
                turn = self.layer.engine.turn(trio.current_time())
                self.layer.give_to_applications(turn.events)
                if turn.blocked or not turn.more:
                    break
        finally:
            self.layer.end()

    async def _loop(self) -> None:
        """Run the turns that `wake` asks for."""
        self._is_woken = True
        in_a_row = 0
        while True:
            if self._error is not None:
                raise self._error
            if not self._is_woken:
                in_a_row = 0
                self._may_turn_over = True
                if not self._is_held:
                    await self._park()
                # The task that woke this may have more to send, for example the end of a stream.
                await trio.lowlevel.cancel_shielded_checkpoint()
                if self._is_held:
                    await self._wait_for_answers()
                continue
            turn, has_woken = self._turn()
            in_a_row += 1
            self._is_woken = self._wants_more(turn)
            if turn.more or has_woken or in_a_row >= _MOST_IN_A_ROW:
                in_a_row = 0
                self._may_turn_over = True
                await trio.lowlevel.checkpoint()

    async def _wait_for_answers(self) -> None:
        """Give programs time to answer, or have the acknowledgements sent without answers."""
        for _ in range(_ANSWER_PASSES):
            if self._is_woken or not self._is_held:
                return
            await trio.lowlevel.cancel_shielded_checkpoint()
        self._is_woken = True

    async def _park(self) -> None:
        """Wait for `wake`."""
        self._parked = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            self._parked = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    async def _listen(self) -> None:
        """Run a turn whenever the link is readable or, after one that was blocked, writable."""
        while True:
            with trio.CancelScope() as self._listening:
                while not self._is_blocked:
                    await self.link.wait_readable()
                    if self._parked is not None:
                        self._may_turn_over = True
                        self._run_turn()
                    # Else a turn is due, which also receives: one for both costs half.
            self._listening = None
            if self._is_blocked:
                await self.link.wait_writable()
                self._is_blocked = False
                self._run_turn()

    async def _keep_time(self) -> None:
        """Run a turn at each deadline."""
        while True:
            self._timer_deadline = self._deadline()
            if self._is_blocked:
                # What is due may have to wait for the link.
                least = trio.current_time() + _BLOCKED_S
                self._timer_deadline = max(self._timer_deadline, least)
            with trio.CancelScope(deadline=self._timer_deadline) as self._timer:
                await trio.sleep_forever()
            if trio.current_time() >= self._deadline():
                self._run_turn()

    async def _spin(self) -> None:
        """Run turns all the time."""
        while True:
            if self._error is not None:
                raise self._error
            turn, has_woken = self._turn(self._spin_s)
            self._may_turn_over = not turn.blocked
            await trio.lowlevel.checkpoint()
            if has_woken and not (turn.more or self._is_woken):
                # Tasks woken by this turn may be scheduled after this one.
                await trio.lowlevel.checkpoint()
            self._may_turn_over = False

    def _turn(self, spin_s: float = 0.0) -> tuple[Turn, bool]:
        """Run one turn; return its result, and whether it woke an application."""
        layer = self.layer
        self._is_woken = self._is_held = False
        self._lazy_deadline = math.inf
        layer.take_from_applications()
        turn = layer.engine.turn(trio.current_time(), spin_s)
        if layer.kernel.move_datagrams():
            turn = turn._replace(blocked=True)
        has_woken = layer.give_to_applications(turn.events)
        if self._turned is not None:
            self._turned.set()
            self._turned = None
        if layer.wants_turn():
            self._is_woken = True
        elif layer.streams.has_credit:
            self.wake_within(LAZY_S)
        if self._idle is not None and not layer.connections():
            self._idle.set()
            self._idle = None
        # Drop the events, so that a sleeping worker holds no closed contexts.
        return turn._replace(events=()) if turn.events else turn, has_woken

    def _deadline(self) -> float:
        deadline = self.layer.engine.next_deadline
        return self._lazy_deadline if deadline is None else min(deadline, self._lazy_deadline)

    def _spawn(self, task: Callable[..., Awaitable[None]], *arguments: object) -> None:
        # Without a nursery the worker is closing, and the link's close ends what the task is for.
        if self._nursery is not None:
            self._nursery.start_soon(task, *arguments)
