"""What leaves a `with contained`: cancellation and interrupts alone, and nothing of it stays."""

from __future__ import annotations

import gc
import weakref

import pytest
import trio
import trio.testing

from hoststack.boundary.containment import contained


@pytest.mark.parametrize(
    "error",
    [
        ValueError("it"),
        ExceptionGroup("", [ValueError("it"), KeyError("other")]),
        ExceptionGroup("", [ExceptionGroup("", [ValueError("it")])]),
    ],
)
def test_faults_end_there(error: Exception) -> None:
    faults: list[Exception] = []
    with contained(faults.append):
        raise error
    assert [str(fault) for fault in faults] == ["it"]


def test_an_interrupt_goes_on() -> None:
    faults: list[Exception] = []
    with pytest.raises(KeyboardInterrupt), contained(faults.append):
        raise KeyboardInterrupt
    interrupt = KeyboardInterrupt()
    with pytest.raises(BaseExceptionGroup) as info, contained(faults.append):
        raise BaseExceptionGroup("", [interrupt, ValueError("it")])
    assert info.value.exceptions == (interrupt,)
    assert [str(fault) for fault in faults] == ["it"]


class Held:
    """Something that a task has while it is cancelled."""


def test_nothing_stays_of_what_is_cancelled() -> None:
    kept: list[weakref.ref[Held]] = []

    async def hold() -> None:
        held = Held()
        kept.append(weakref.ref(held))
        await trio.sleep_forever()

    async def main() -> None:
        with trio.CancelScope() as scope, contained(lambda _: None):
            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(hold)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        assert len(kept) == 2
        assert [each() for each in kept] == [None, None]

    gc.collect()
    gc.disable()
    try:
        trio.run(main)
    finally:
        gc.enable()
