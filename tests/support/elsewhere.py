"""A second trio program at the same time, in the namespace of the other side."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

import trio

from tests.support.netns import Side

T = TypeVar("T")

#: Longer than any test takes: the deadline of a program that would wait for ever.
PATIENCE_S = 240


class Elsewhere(Generic[T]):
    """The program, seen from the one that started it."""

    def __init__(self) -> None:
        self.begun = trio.Event()
        self.over = trio.Event()
        self.value: T
        """What it gave to `task_status.started`."""


@asynccontextmanager
async def elsewhere(
    side: Side, program: Callable[..., Awaitable[Any]]
) -> AsyncIterator[Elsewhere[Any]]:
    """Run `program(task_status=...)` on a thread in a namespace, cancelled at the end of the block.

    Like `trio.Nursery.start` it waits until the program says that it has begun. What the program
    raises comes out of the block.
    """
    home = trio.lowlevel.current_trio_token()
    there: Elsewhere[Any] = Elsewhere()
    token: trio.lowlevel.TrioToken
    scope: trio.CancelScope

    async def main() -> None:
        nonlocal token, scope
        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                token, scope = trio.lowlevel.current_trio_token(), nursery.cancel_scope
                there.value = await nursery.start(program)
                home.run_sync_soon(there.begun.set)

    def run() -> None:
        with side.inside():
            trio.run(main)

    async def wait() -> None:
        await trio.to_thread.run_sync(run)
        there.over.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await there.begun.wait()
        try:
            yield there
        finally:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(scope.cancel)
