"""What need not wait lets other tasks run in one of many calls (schedule-points.md)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio

from hoststack.api.router import Router
from tests.api.conftest import MakePair, Pair, first_stream, run

CALLS = 10 * Router.calls_in_a_row
Call = Callable[[], Awaitable[object]]


async def _schedule_points(call: Call, calls: int) -> int:
    """How often another task ran during so many calls."""
    ran = 0

    async def count() -> None:
        nonlocal ran
        while True:
            ran += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        await trio.lowlevel.checkpoint()
        before = ran
        for _ in range(calls):
            await call()
        found = ran - before
        nursery.cancel_scope.cancel()
    return found


async def _small_calls(pair: Pair) -> dict[str, Call]:
    """Calls that find what they want."""
    ours = await pair.connected.open_stream()
    await ours.send_all(bytes(CALLS + 1))
    theirs = await first_stream(pair.accepted)
    await theirs.receive_some(1)
    await trio.sleep(1)
    view = bytearray(1)
    return {
        "receive_some": lambda: theirs.receive_some(1),
        "receive_into": lambda: theirs.receive_into(view),
        "send_all": lambda: theirs.send_all(b"x"),
        "wait_send_all_might_not_block": ours.wait_send_all_might_not_block,
        "open_stream": pair.connected.open_stream,
    }


@pytest.mark.parametrize(
    "name",
    ["receive_some", "receive_into", "send_all", "wait_send_all_might_not_block"],
)
def test_one_in_many_small_calls_is_a_schedule_point(make_pair: MakePair, name: str) -> None:
    async def main() -> None:
        async with make_pair() as pair:
            call = (await _small_calls(pair))[name]
            assert 9 <= await _schedule_points(call, CALLS) <= 11

    run(main)


def test_each_large_call_is_a_schedule_point(make_pair: MakePair) -> None:
    async def main() -> None:
        async with make_pair() as pair:
            stream = await pair.connected.open_stream()
            large = bytes(1024 * Router.calls_in_a_row)
            assert await _schedule_points(lambda: stream.send_all(large), 10) >= 9

    run(main)


@pytest.mark.parametrize(
    "name",
    ["receive_some", "receive_into", "send_all", "wait_send_all_might_not_block", "open_stream"],
)
def test_each_call_is_a_cancellation_point(make_pair: MakePair, name: str) -> None:
    async def main() -> None:
        async with make_pair() as pair:
            call = (await _small_calls(pair))[name]
            for _ in range(Router.calls_in_a_row + 1):
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await call()
                assert scope.cancelled_caught

    run(main)
