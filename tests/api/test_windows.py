"""A stream's window: what a peer may send grows with the program that reads it, and only then."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from hoststack import QuicConfig
from hoststack.quic.seam import LEAST_RX_FIFO_BYTES
from tests.api.conftest import MakePair, Transport, first_stream, run

FIFO_BYTES = 256 << 10
CONFIG = QuicConfig(rx_fifo_bytes=FIFO_BYTES, tx_fifo_bytes=FIFO_BYTES, idle_timeout_s=0)
ALL_BYTES = 4 * FIFO_BYTES
#: The program does something else meanwhile, and the peer sends all that it may.
LONG_S = 5


@pytest.fixture(autouse=True)
def _with_windows(transport: Transport) -> None:
    if transport == "cut-through":
        pytest.skip("no peer grants credit: both applications share the whole FIFO")


async def send_all(stream: Any) -> None:
    await stream.send_all(bytes(ALL_BYTES))


async def read_at_least(stream: Any, count: int) -> int:
    got = 0
    while got < count:
        got += len(await stream.receive_some(8192))
    return got


def test_a_program_that_reads_what_comes_gets_the_whole_fifo(make_pair: MakePair) -> None:
    async def main() -> None:
        async with make_pair(config=CONFIG) as pair, trio.open_nursery() as nursery:
            nursery.start_soon(send_all, await pair.connected.open_stream())
            stream = await first_stream(pair.accepted)
            await read_at_least(stream, 2 * LEAST_RX_FIFO_BYTES)
            await trio.sleep(LONG_S)
            assert len(await stream.receive_some(ALL_BYTES)) > FIFO_BYTES // 2
            nursery.cancel_scope.cancel()

    run(main)


def test_a_program_that_does_not_read_keeps_the_first_window(
    make_pair: MakePair, engine: str
) -> None:
    async def main() -> None:
        async with make_pair(config=CONFIG) as pair, trio.open_nursery() as nursery:
            nursery.start_soon(send_all, await pair.connected.open_stream())
            stream = await first_stream(pair.accepted)
            # aioquic's engine does not look at the time.
            for _ in range(4 if engine == "native" else 1):
                await trio.sleep(LONG_S)
                assert len(await stream.receive_some(ALL_BYTES)) == LEAST_RX_FIFO_BYTES
            # As soon as it reads what comes, it gets all.
            await read_at_least(stream, 2 * LEAST_RX_FIFO_BYTES)
            await trio.sleep(LONG_S)
            assert len(await stream.receive_some(ALL_BYTES)) > FIFO_BYTES // 2
            nursery.cancel_scope.cancel()

    run(main)


def test_a_window_grows_though_the_stored_bytes_wrap_around(make_pair: MakePair) -> None:
    """A program that reads slowly at first, and always leaves what the peer then fills up."""

    async def main() -> None:
        async with make_pair(config=CONFIG) as pair, trio.open_nursery() as nursery:
            nursery.start_soon(send_all, await pair.connected.open_stream())
            stream = await first_stream(pair.accepted)
            got = 0
            for step in range(80):
                await trio.sleep(LONG_S if step < 20 else 0.01)
                got += len(await stream.receive_some(3000))
            await trio.sleep(LONG_S)
            # In two pieces, if it wraps around.
            waiting = [len(await stream.receive_some(ALL_BYTES)) for _ in range(2)]
            assert sum(waiting) > FIFO_BYTES // 2
            got += sum(waiting)
            assert got + await read_at_least(stream, ALL_BYTES - got) == ALL_BYTES
            nursery.cancel_scope.cancel()

    run(main)
