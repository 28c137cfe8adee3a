"""What a connection returns for `async for`, and connections without a block."""

from __future__ import annotations

import inspect

import pytest
import trio
import trio.testing

from hoststack import ConnectionClosedError, QuicConfig, Stack, TlsConfig
from tests.api.conftest import URI, MakePair, run

DATAGRAMS = QuicConfig(datagram_fifo_bytes=4096)


def test_an_iteration_is_no_generator_and_may_be_dropped(make_pair: MakePair) -> None:
    async def main() -> None:
        async with make_pair() as pair:
            for expected in (b"one", b"two"):
                await (await pair.connected.open_stream()).send_all(expected)
                streams = pair.accepted.streams()
                assert not inspect.isasyncgen(streams)
                async for stream in streams:
                    assert await stream.receive_some() == expected
                    break

    run(main)


@pytest.mark.parametrize("what", ["streams", "datagrams"])
def test_closing_an_iteration_wakes_its_tasks_alone(make_pair: MakePair, what: str) -> None:
    async def main() -> None:
        async with make_pair(DATAGRAMS if what == "datagrams" else None) as pair:
            incoming = getattr(pair.accepted, what)()
            async with trio.open_nursery() as nursery:

                async def iterate() -> None:
                    with pytest.raises(trio.ClosedResourceError):
                        await anext(incoming)

                nursery.start_soon(iterate)
                nursery.start_soon(iterate)
                await trio.testing.wait_all_tasks_blocked()
                await incoming.aclose()
            with pytest.raises(trio.ClosedResourceError):
                await anext(incoming)
            other = getattr(pair.accepted, what)()
            if what == "datagrams":
                await pair.connected.send_datagram(b"more")
                assert await anext(other) == b"more"
            else:
                await (await pair.connected.open_stream()).send_all(b"more")
                assert await (await anext(other)).receive_some() == b"more"

    run(main)


@pytest.mark.parametrize("code", [0, 7])
def test_an_iteration_ends_with_its_connection(make_pair: MakePair, code: int) -> None:
    async def main() -> None:
        async with make_pair() as pair:
            streams = pair.accepted.streams()
            await pair.connected.aclose(code)
            if code:
                with pytest.raises(ConnectionClosedError):
                    await anext(streams)
            else:
                with pytest.raises(StopAsyncIteration):
                    await anext(streams)
                with pytest.raises(trio.EndOfChannel):
                    await streams.receive()

    run(main)


def test_a_connection_without_a_block(
    make_pair: MakePair, server_tls: TlsConfig, client_tls: TlsConfig
) -> None:
    async def main() -> None:
        async with make_pair() as pair:
            client: Stack = pair.client
            uri = URI.replace("4433", "4434")
            async with await pair.server.listen(uri, tls=server_tls, alpn=["test"]) as listener:
                connection = await client.open_connection(uri, tls=client_tls, alpn=["test"])
                accepted = await listener.accept()
                await connection.aclose(3)
                assert (await accepted.wait_closed()).code == 3
                async with await client.open_connection(uri, tls=client_tls, alpn=["test"]):
                    accepted = await listener.accept()
                assert (await accepted.wait_closed()).code == 0

    run(main)
