"""What is sent first of a connection's streams (RFC 9218), as the program says."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from hoststack import Connection
from tests.api.conftest import MakePair, Pair, Transport, run

BYTES = 400_000


@pytest.fixture(autouse=True)
def _with_an_engine_that_obeys(transport: Transport, engine: str) -> None:
    if transport == "cut-through":
        pytest.skip("nothing is sent: both applications share the FIFO")
    if engine == "aioquic":
        pytest.skip("aioquic's streams take turns")


class Race:
    """Streams that the connecting side writes at once; what the other side has of each, in the
    order of their opening, whenever one is complete."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self.streams: list[Any] = []
        self.ends: list[tuple[int, dict[int, int]]] = []

    async def open(self, urgency: int | None = None, *, is_incremental: bool = True) -> Any:
        stream = await self._pair.connected.open_stream(unidirectional=True)
        if urgency is not None:
            stream.set_priority(urgency, is_incremental=is_incremental)
        self.streams.append(stream)
        return stream

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._receive, self._pair.accepted, len(self.streams))
            for stream in self.streams:
                await stream.send_all(bytes(BYTES))
                await stream.send_eof()

    async def _receive(self, accepted: Connection, count: int) -> None:
        got: dict[int, int] = {}

        async def one(stream: Any, number: int) -> None:
            async for chunk in stream:
                got[number] = got.get(number, 0) + len(chunk)
            assert got[number] == BYTES
            self.ends.append((number, dict(got)))

        async with trio.open_nursery() as nursery:
            for _ in range(count):
                stream = await accepted.streams().receive()
                nursery.start_soon(one, stream, stream.stream_id // 4)

    @property
    def order(self) -> list[int]:
        return [number for number, _ in self.ends]


def test_the_most_urgent_is_sent_first(make_pair: MakePair) -> None:
    async def main() -> None:
        async with make_pair(delay_s=0.01) as pair:
            race = Race(pair)
            for urgency in (7, None, 5, 0, 4):
                await race.open(urgency)
            await race.run()
            assert race.order[:2] == [3, 1]
            _, got = race.ends[0]
            assert max(got.get(number, 0) for number in (0, 2, 4)) < BYTES / 2

    run(main)


def test_the_least_urgent_does_not_stand_still(make_pair: MakePair) -> None:
    async def main() -> None:
        async with make_pair(delay_s=0.01) as pair:
            race = Race(pair)
            for urgency in (7, 0, 0, 0):
                await race.open(urgency)
            await race.run()
            assert race.order[-1] == 0
            _, got = race.ends[2]
            assert BYTES / 16 < got[0] < BYTES / 2

    run(main)


@pytest.mark.parametrize("is_incremental", [True, False])
def test_those_of_one_urgency_take_turns_or_come_one_by_one(
    make_pair: MakePair, is_incremental: bool
) -> None:
    async def main() -> None:
        async with make_pair(delay_s=0.01) as pair:
            race = Race(pair)
            for _ in range(4):
                await race.open(2, is_incremental=is_incremental)
            await race.run()
            _, got = race.ends[0]
            if is_incremental:
                assert min(got.values()) > BYTES / 2
            else:
                assert race.order == [0, 1, 2, 3]
                assert got.get(3, 0) < BYTES / 4

    run(main)


def test_one_that_takes_turns_goes_on_beside_one_that_does_not(make_pair: MakePair) -> None:
    async def main() -> None:
        async with make_pair(delay_s=0.01) as pair:
            race = Race(pair)
            await race.open(2, is_incremental=False)
            await race.open(2, is_incremental=True)
            await race.run()
            _, got = race.ends[0]
            assert min(got.values()) > BYTES / 2

    run(main)


def test_a_program_that_changes_its_mind(make_pair: MakePair) -> None:
    """The stream is sent earlier at once, though it waits with all that it has."""

    async def main() -> None:
        async with make_pair(delay_s=0.01) as pair, trio.open_nursery() as nursery:
            race = Race(pair)
            for _ in range(3):
                await race.open(3)
            late = await race.open(7)
            nursery.start_soon(race.run)
            await trio.sleep(0.03)
            late.set_priority(0)
        assert race.order[0] == 3

    run(main)


def test_what_is_no_urgency_and_what_has_no_effect(make_pair: MakePair) -> None:
    async def main() -> None:
        async with make_pair() as pair:
            stream = await pair.connected.open_stream()
            for urgency in (-1, 8):
                with pytest.raises(ValueError, match="must be between 0 and 7"):
                    stream.set_priority(urgency)
            await stream.send_eof()
            stream.set_priority(0)
            await stream.aclose()
            stream.set_priority(1)

    run(main)
