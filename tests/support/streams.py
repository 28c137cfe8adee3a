"""What tests do with streams."""

from __future__ import annotations

import trio

from hoststack import Connection


async def exchange(here: Connection, there: Connection, data: bytes) -> None:
    """Bytes from here to there on a new stream, all of them."""
    stream = await here.open_stream(unidirectional=True)
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            await stream.send_all(data)
            await stream.send_eof()

        nursery.start_soon(send)
        async for theirs in there.streams():
            assert b"".join([chunk async for chunk in theirs]) == data
            break
