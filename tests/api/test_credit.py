"""Credit: a peer may begin as much as the program lets wait, and no more; nobody is thrown out."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from hoststack import Connection, QuicConfig, StreamResetError, StreamStoppedError
from hoststack.native.session._session import lib
from tests.api.conftest import MakePair, first_stream, run

FEW = 8
CONFIG = QuicConfig(
    rx_fifo_bytes=4096,
    tx_fifo_bytes=4096,
    max_streams_bidi=FEW,
    max_streams_uni=FEW,
    idle_timeout_s=0,
)


def untaken(connection: Connection) -> int:
    """How many streams wait for the program."""
    return int(lib.hs_end_untaken(connection._side))


async def open_and_reset(connection: Connection, *, unidirectional: bool) -> int:
    """Streams that can be opened, given one byte and reset, before the peer's limit is reached."""
    count = 0
    with trio.move_on_after(3):
        while True:
            stream: Any
            if unidirectional:
                stream = await connection.open_stream(unidirectional=True)
            else:
                stream = await connection.open_stream()
                stream.stop_sending(9)
            await stream.send_all(b"x")
            # The reset of a stream that has sent nothing tells the peer of no stream.
            await trio.testing.wait_all_tasks_blocked()
            stream.reset(7)
            count += 1
    return count


async def read_all(stream: Any) -> bytes:
    return b"".join([chunk async for chunk in stream])


async def send_for_ever(stream: Any) -> None:
    while True:
        await stream.send_all(b"more")
        await trio.sleep(0.01)


@pytest.mark.parametrize("unidirectional", [False, True])
def test_streams_that_are_reset_at_once_wait_for_a_slow_program(
    make_pair: MakePair, *, unidirectional: bool
) -> None:
    async def main() -> None:
        async with make_pair(config=CONFIG) as pair:
            slow, hasty = pair.accepted, pair.connected
            for _ in range(3):
                assert await open_and_reset(hasty, unidirectional=unidirectional) == FEW
                assert untaken(slow) == FEW
                for _ in range(FEW):
                    stream = await first_stream(slow)
                    with pytest.raises(StreamResetError):
                        await read_all(stream)
                    await stream.aclose()
            # And the other way: a server does it to its client.
            assert await open_and_reset(slow, unidirectional=unidirectional) == FEW
            assert untaken(hasty) == FEW

    run(main)


def test_streams_of_a_connection_that_is_over_hold_nothing(make_pair: MakePair) -> None:
    async def main() -> None:
        async with make_pair(config=CONFIG) as pair:
            await open_and_reset(pair.connected, unidirectional=False)
            await pair.connected.aclose()
            await pair.accepted.wait_closed()
            await trio.sleep(100)
            # They can still be taken.
            assert len([stream async for stream in pair.accepted.streams()]) == FEW

    run(main)


def test_a_stream_that_was_taken_gives_its_credit_back_though_the_program_holds_it(
    make_pair: MakePair,
) -> None:
    async def main() -> None:
        async with make_pair(config=CONFIG) as pair:
            held = []
            for _ in range(3 * FEW):
                with trio.fail_after(30):
                    stream = await pair.connected.open_stream(unidirectional=True)
                    await stream.send_all(b"hello")
                    await stream.send_eof()
                    theirs = await first_stream(pair.accepted)
                    assert await theirs.receive_some() == b"hello"
                    assert await theirs.receive_some() == b""
                held.append(theirs)

    run(main)


def test_an_end_needs_no_credit(make_pair: MakePair) -> None:
    """One stream waits for the connection's window; the end of another, resets and requests to stop
    need none, and what is not sent yet of a third waits its turn."""
    config = QuicConfig(rx_fifo_bytes=65536, tx_fifo_bytes=131072, connection_window_bytes=65536)

    async def send_bulk(stream: Any) -> None:
        await stream.send_all(bytes(65536 + 100))
        await stream.send_eof()

    async def main() -> None:
        async with make_pair(config=config) as pair, trio.open_nursery() as nursery:
            here, there = pair.connected, pair.accepted
            bulk, command, given_up, later = [await here.open_stream() for _ in range(4)]
            for stream in (bulk, command, given_up, later):
                await stream.send_all(b"!")
            theirs = [await first_stream(there) for _ in range(4)]
            nursery.start_soon(send_bulk, bulk)
            await trio.sleep(1)
            with trio.fail_after(5):
                await command.send_eof()
                assert await theirs[1].receive_some() == b"!"
                assert await theirs[1].receive_some() == b""
                assert await theirs[2].receive_some() == b"!"
                given_up.reset(5)
                with pytest.raises(StreamResetError):
                    await theirs[2].receive_some()
                # What comes the other way is not held up, nor is what is said about it.
                await theirs[1].send_all(b"answer")
                assert await command.receive_some() == b"answer"
                command.stop_sending(6)
                with pytest.raises(StreamStoppedError):
                    await send_for_ever(theirs[1])
            await later.send_all(b"late")
            await later.send_eof()
            with trio.fail_after(5):
                total = 0
                async for chunk in theirs[0]:
                    total += len(chunk)
                assert total == 65536 + 101
                assert await read_all(theirs[3]) == b"!late"

    run(main)


def test_streams_that_wait_for_a_window_take_turns(make_pair: MakePair) -> None:
    config = QuicConfig(rx_fifo_bytes=65536, tx_fifo_bytes=65536, connection_window_bytes=32768)
    each = 200_000

    async def main() -> None:
        async with make_pair(config=config) as pair:
            got = [0] * 4
            rest: list[list[int]] = []

            async def send() -> None:
                stream = await pair.connected.open_stream()
                await stream.send_all(bytes(each))
                await stream.send_eof()

            async def receive(number: int, stream: Any) -> None:
                async for chunk in stream:
                    got[number] += len(chunk)
                rest.append([each - count for count in got])

            async with trio.open_nursery() as nursery:
                for _ in got:
                    nursery.start_soon(send)
                for number in range(len(got)):
                    nursery.start_soon(receive, number, await first_stream(pair.accepted))
            assert got == [each] * 4
            # When the first one was done, the others were not far behind.
            assert max(rest[0]) < each * 4 // 5

    run(main)


@pytest.mark.parametrize("few", [1, 2, 3, 8, 9])
def test_many_tasks_that_want_streams_get_them_in_turn(make_pair: MakePair, few: int) -> None:
    """The peer hears of credit now and then: never so late that it could not go on."""

    async def echo(stream: Any) -> None:
        async with stream:
            await stream.send_all(await read_all(stream))

    async def ask(connection: Connection, number: int) -> None:
        async with await connection.open_stream() as stream:
            await stream.send_all(b"%d" % number)
            await stream.send_eof()
            assert await read_all(stream) == b"%d" % number

    async def main() -> None:
        config = QuicConfig(max_streams_bidi=few)
        async with (
            make_pair(config=config, seed=few, reorder=0.3) as pair,
            trio.open_nursery() as nursery,
        ):

            async def serve() -> None:
                async for stream in pair.accepted.streams():
                    nursery.start_soon(echo, stream)

            nursery.start_soon(serve)
            with trio.fail_after(25):
                async with trio.open_nursery() as asking:
                    for number in range(100):
                        asking.start_soon(ask, pair.connected, number)
            nursery.cancel_scope.cancel()

    run(main)


class Rounds(trio.abc.Instrument):
    """Counts the scheduler's rounds."""

    count = 0

    def before_io_wait(self, timeout: float) -> None:
        self.count += 1


def test_credit_for_several_streams_is_used_at_once(make_pair: MakePair) -> None:
    """A task that woke the next one would leave most of them waiting while packets leave."""

    async def main() -> None:
        rounds = Rounds()
        trio.lowlevel.add_instrument(rounds)
        opened_in: list[int] = []

        async def open_one(connection: Connection) -> None:
            async with await connection.open_stream(unidirectional=True):
                opened_in.append(rounds.count)

        async with make_pair(config=CONFIG) as pair, trio.open_nursery() as nursery:
            for _ in range(3 * FEW):
                nursery.start_soon(open_one, pair.connected)
            await trio.testing.wait_all_tasks_blocked()
            for done in (FEW, 2 * FEW, 3 * FEW):
                assert len(opened_in) == done
                assert len(set(opened_in[-FEW:])) <= 2, "one in 32 operations is a schedule point"
                for _ in range(FEW):
                    assert await read_all(await first_stream(pair.accepted)) == b""
                await trio.sleep(1)
        trio.lowlevel.remove_instrument(rounds)

    run(main)


async def answer_all(connection: Connection) -> None:
    async def answer(stream: Any) -> None:
        async with stream:
            await stream.send_all(await read_all(stream))

    async with trio.open_nursery() as nursery:
        async for stream in connection.streams():
            nursery.start_soon(answer, stream)


async def ask(stream: Any) -> None:
    async with stream:
        await stream.send_all(b"a")
        await stream.send_eof()
        assert await read_all(stream) == b"a"


@pytest.mark.parametrize("most", [1, 2, 3, 16])
def test_a_peer_may_open_all_its_streams_before_it_sends_anything(
    make_pair: MakePair, most: int
) -> None:
    """The other side does not know of them, and thinks that the peer has credit left."""
    config = QuicConfig(max_streams_bidi=most, idle_timeout_s=0)

    async def main() -> None:
        async with make_pair(config=config) as pair, trio.open_nursery() as nursery:
            nursery.start_soon(answer_all, pair.accepted)
            for _ in range(3):
                with trio.fail_after(10):
                    streams = [await pair.connected.open_stream() for _ in range(most)]
                for stream in streams:
                    await ask(stream)
            nursery.cancel_scope.cancel()

    run(main)


def test_a_stream_whose_first_packet_came_last_is_counted_once(make_pair: MakePair) -> None:
    most = 16
    config = QuicConfig(max_streams_bidi=most, idle_timeout_s=0)

    async def main() -> None:
        async with make_pair(config=config) as pair, trio.open_nursery() as nursery:
            nursery.start_soon(answer_all, pair.accepted)
            await trio.sleep(1)
            first, *others = [await pair.connected.open_stream() for _ in range(most)]
            pair.network.impairments.loss = 1
            await first.send_all(b"a")
            await trio.testing.wait_all_tasks_blocked()
            pair.network.impairments.loss = 0
            async with trio.open_nursery() as asking:
                for stream in others:
                    asking.start_soon(ask, stream)
                await first.send_eof()
                assert await read_all(first) == b"a"
                await first.aclose()
            for _ in range(3):
                began = trio.current_time()
                await ask(await pair.connected.open_stream())
                assert trio.current_time() - began < 0.02  # it was not held back for long
            nursery.cancel_scope.cancel()

    run(main)
