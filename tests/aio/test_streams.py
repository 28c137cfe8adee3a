"""Streams as asyncio's readers and writers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from hoststack import ABORTED_CODE, ConnectionClosedError, StreamResetError, StreamStoppedError, aio
from tests.aio.conftest import Open, connected, echo

Run = Callable[[Callable[[], Awaitable[None]]], None]
MUCH = bytes(range(256)) * 40_000  # more than both FIFOs hold


def test_requests(run: Run, open_stack: Open) -> None:
    async def ask(connection: aio.Connection, data: bytes) -> None:
        async with await connection.open_stream() as stream:
            stream.write(data)
            stream.write_eof()
            assert await stream.read() == data

    async def main() -> None:
        async with (
            open_stack() as stack,
            connected(stack, echo) as connection,
            asyncio.TaskGroup() as group,
        ):
            for number in range(200):
                group.create_task(ask(connection, b"%d" % number * 30))

    run(main)


def test_what_has_no_room_is_kept_until_it_has(run: Run, open_stack: Open) -> None:
    async def main() -> None:
        async with open_stack() as stack, connected(stack, echo) as connection:
            stream = await connection.open_stream()
            stream.write(MUCH[:1000])
            stream.write(MUCH[1000:])
            stream.write_eof()
            with pytest.raises(aio.ClosedError, match="end was sent"):
                stream.write(b"more")
            assert await stream.readexactly(len(MUCH)) == MUCH
            await stream.drain()
            assert await stream.read(1) == b""
            with pytest.raises(asyncio.IncompleteReadError):
                await stream.readexactly(1)
            await stream.wait_acknowledged()

    run(main)


def test_a_closed_stream_still_sends_what_was_written(run: Run, open_stack: Open) -> None:
    received: asyncio.Queue[bytes]

    async def take(connection: aio.Connection) -> None:
        async for stream in connection.streams():
            assert isinstance(stream, aio.ReceiveStream)
            received.put_nowait(await stream.read())

    async def main() -> None:
        nonlocal received
        received = asyncio.Queue()
        async with open_stack() as stack, connected(stack, take) as connection:
            async with await connection.open_stream(unidirectional=True) as stream:
                stream.write(MUCH)
            assert stream.is_closing()
            await stream.wait_acknowledged()
            assert await received.get() == MUCH

    run(main)


def test_an_exception_aborts(run: Run, open_stack: Open) -> None:
    codes: asyncio.Queue[int]

    async def take(connection: aio.Connection) -> None:
        async for stream in connection.streams():
            with pytest.raises(StreamResetError) as caught:
                await stream.read()
            codes.put_nowait(caught.value.code)

    async def fail(connection: aio.Connection) -> None:
        async with await connection.open_stream() as stream:
            stream.write(MUCH)
            raise ZeroDivisionError

    async def main() -> None:
        nonlocal codes
        codes = asyncio.Queue()
        async with open_stack() as stack, connected(stack, take) as connection:
            with pytest.raises(ZeroDivisionError):
                await fail(connection)
            assert await codes.get() == ABORTED_CODE

    run(main)


def test_codes_of_the_peer(run: Run, open_stack: Open) -> None:
    async def refuse(connection: aio.Connection) -> None:
        async for stream in connection.streams():
            assert isinstance(stream, aio.Stream)
            stream.stop_sending(7)
            stream.reset(8)

    async def write_for_ever(stream: aio.Stream) -> None:
        while True:
            stream.write(MUCH)
            await stream.drain()

    async def main() -> None:
        async with open_stack() as stack, connected(stack, refuse) as connection:
            stream = await connection.open_stream()
            with pytest.raises(StreamStoppedError) as stopped:
                await write_for_ever(stream)
            assert stopped.value.code == 7
            with pytest.raises(ConnectionResetError) as reset:
                await stream.read()
            assert isinstance(reset.value, StreamResetError)
            assert reset.value.code == 8
            stream.write(b"nothing comes of it")
            with pytest.raises(BrokenPipeError):
                await stream.drain()

    run(main)


def test_a_task_that_waits_can_be_cancelled(run: Run, open_stack: Open) -> None:
    async def main() -> None:
        async with open_stack() as stack, connected(stack, echo) as connection:
            stream = await connection.open_stream()
            reading = asyncio.create_task(stream.read())
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="another task"):
                await stream.read(1)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            stream.write(b"still there")
            assert await stream.readexactly(11) == b"still there"
            # Nobody reads what comes back, so sending fills up.
            stream.write(MUCH)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await stream.drain()
            assert stream.is_closing() is False

    run(main)


def test_the_end_of_a_connection(run: Run, open_stack: Open) -> None:
    async def leave(connection: aio.Connection) -> None:
        async for _ in connection.streams():
            connection.close_now(5, "enough")

    async def main() -> None:
        async with open_stack() as stack, connected(stack, leave) as connection:
            stream = await connection.open_stream()
            stream.write(b"x")
            with pytest.raises(ConnectionClosedError, match="enough"):
                await stream.read()
            with pytest.raises(ConnectionError):
                await connection.open_stream()
            info = await connection.wait_closed()
            assert (info.code, info.by_peer) == (5, True)

    run(main)
