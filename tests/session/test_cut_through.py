"""Cut-through: what is particular to it. That streams are as over the wire, tests/api shows."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
import trio
import trio.testing

import hoststack
from hoststack import Connection, QuicConfig, Stack, TlsConfig
from hoststack.link.memory import MemoryNetwork
from hoststack.native.memory._memory import ffi
from hoststack.native.memory.fifo import Fifo
from tests.support.streams import exchange

TLS = TlsConfig.self_signed(["localhost"])
HOST = "10.0.0.1"
URI = f"quic://{HOST}:4433"
SMALL = QuicConfig(rx_fifo_bytes=4096, tx_fifo_bytes=4096)


@dataclass
class Scene:
    stack: Stack
    server: Stack
    client: Stack
    connected: Connection
    accepted: Connection


def play(
    script: Callable[[Scene], Awaitable[None]],
    client_config: QuicConfig = SMALL,
    server_config: QuicConfig = SMALL,
) -> None:
    """Run `script` on a connection between two applications of one stack."""

    async def main() -> None:
        async with (
            hoststack.open_stack(link=MemoryNetwork().link(HOST)) as stack,
            stack.application("s", scopes=["local"], config=server_config) as server,
            stack.application("c", scopes=["local"], config=client_config) as client,
            await server.listen(URI, tls=TLS, alpn=["b", "a"]) as listener,
            client.connect(URI, alpn=["a", "b"]) as connected,
            await listener.accept() as accepted,
        ):
            with trio.fail_after(600):
                await script(Scene(stack, server, client, connected, accepted))

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def sessions(scene: Scene) -> int:
    return len(scene.stack._worker.layer.sessions)


async def pair_of_streams(scene: Scene) -> tuple[Any, Any]:
    ours = await scene.connected.open_stream()
    await ours.send_all(b"!")
    async for theirs in scene.accepted.streams():
        assert await theirs.receive_some() == b"!"
        return ours, theirs
    raise AssertionError("the connection ended instead")


def test_no_packet_is_sent_and_both_sides_see_one_connection() -> None:
    async def script(scene: Scene) -> None:
        one, other = scene.connected, scene.accepted
        assert one.remote == other.local == (HOST, 4433)
        assert one.local == other.remote
        assert one.local[0] == HOST
        assert one.local[1] >= 49152
        # The listener's first that the client has too.
        assert one.alpn == other.alpn == "b"
        assert (one.early_data, one.is_resumed, one.peer_certificate, one.cipher) == (
            "none",
            False,
            None,
            None,
        )
        await exchange(one, other, b"x" * 100_000)
        await exchange(other, one, b"y" * 50_000)
        # The last stream is over when both sides have heard of it.
        while (found := await one.statistics())["streams"]:
            await trio.lowlevel.checkpoint()
        assert found == {
            "cut_through": 1,
            "streams": 0,
            "tx_bytes": 100_000,
            "rx_bytes": 50_000,
        }
        assert (await other.statistics())["rx_bytes"] == 100_000
        assert scene.stack.counters().tx_datagrams == 0
        assert scene.stack.link.statistics()["tx_datagrams"] == 0

    play(script)


def test_what_needs_a_network_is_refused_or_nothing() -> None:
    async def script(scene: Scene) -> None:
        with pytest.raises(hoststack.MigrationError, match="cut through"):
            await scene.connected.migrate()
        scene.connected.update_keys()
        await exchange(scene.connected, scene.accepted, b"still there")

    play(script)


def test_streams_are_numbered_as_over_the_wire() -> None:
    async def script(scene: Scene) -> None:
        for here, expected in ((scene.connected, (0, 2, 4, 6)), (scene.accepted, (1, 3, 5, 7))):
            opened = [
                (await here.open_stream(unidirectional=unidirectional)).stream_id
                for unidirectional in (False, True, False, True)
            ]
            assert tuple(opened) == expected

    play(script)


def test_a_stream_is_news_with_its_first_byte_and_earlier_ones_with_it() -> None:
    async def script(scene: Scene) -> None:
        streams = [await scene.connected.open_stream() for _ in range(3)]
        news: list[int] = []

        async def watch() -> None:
            async for stream in scene.accepted.streams():
                news.append(stream.stream_id)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await trio.sleep(1)
            assert news == []
            await streams[1].send_all(b"x")
            await trio.sleep(1)
            assert news == [0, 4]
            streams[2].stop_sending(5)
            await trio.sleep(1)
            assert news == [0, 4, 8]
            nursery.cancel_scope.cancel()

    play(script)


def test_streams_that_are_over_leave_nothing() -> None:
    async def script(scene: Scene) -> None:
        before = sessions(scene)
        for _ in range(300):
            ours, theirs = await pair_of_streams(scene)
            await ours.send_eof()
            await theirs.send_all(b"answer")
            await theirs.aclose()
            assert b"".join([chunk async for chunk in ours]) == b"answer"
            await ours.aclose()
        await trio.sleep(1)
        assert sessions(scene) == before
        layer = scene.stack._worker.layer
        assert all(not c.streams for c in layer.cut_through._clients)

    play(script, QuicConfig(max_streams_bidi=4), QuicConfig(max_streams_bidi=4))


@pytest.mark.parametrize("seed", range(4))
def test_random_traffic_arrives_whole(seed: int) -> None:
    """Readers and writers that pause, in both directions, over FIFOs of all sizes."""
    chance = random.Random(seed)
    sizes = [chance.choice([0, 1, 1000, 4096, 4097, 70_000]) for _ in range(30)]

    async def send(stream: Any, data: bytes) -> None:
        at = 0
        while at < len(data):
            count = chance.choice([1, 100, 5000])
            await stream.send_all(data[at : at + count])
            at += count
            if chance.random() < 0.2:
                await trio.sleep(chance.random() / 100)
        await stream.send_eof()

    async def echo(stream: Any) -> None:
        data = bytearray()
        while chunk := await stream.receive_some(chance.choice([1000, 4096, 100_000])):
            data += chunk
            if chance.random() < 0.2:
                await trio.sleep(chance.random() / 100)
        await send(stream, bytes(data))

    async def one(connection: Connection, size: int) -> None:
        data = random.Random(size).randbytes(size)
        stream = await connection.open_stream()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, stream, data)
            assert b"".join([chunk async for chunk in stream]) == data

    async def script(scene: Scene) -> None:
        async with trio.open_nursery() as echoes:

            async def serve() -> None:
                async for stream in scene.accepted.streams():
                    echoes.start_soon(echo, stream)

            echoes.start_soon(serve)
            async with trio.open_nursery() as nursery:
                for size in sizes:
                    nursery.start_soon(one, scene.connected, size)
            echoes.cancel_scope.cancel()

    config = QuicConfig(rx_fifo_bytes=chance.choice([1024, 4096, 65536]), max_streams_bidi=5)
    play(script, config, config)


def test_the_end_of_a_stream_waits_for_nobody_who_reads() -> None:
    async def script(scene: Scene) -> None:
        ours, theirs = await pair_of_streams(scene)
        await ours.send_all(b"last words")
        await ours.aclose()
        with trio.fail_after(1):
            await ours.wait_acknowledged()
            await scene.connected.aclose(7, "enough")
            info = await scene.accepted.wait_closed()
        assert (info.code, info.reason, info.by_peer) == (7, "enough", True)
        assert await theirs.receive_some() == b"last words"
        assert await theirs.receive_some() == b""

    play(script)


def test_a_reset_that_comes_after_the_end_changes_nothing() -> None:
    async def script(scene: Scene) -> None:
        ours, theirs = await pair_of_streams(scene)
        await ours.send_all(b"all of it")
        await ours.send_eof()
        await ours.wait_acknowledged()
        ours.reset(9)
        await trio.sleep(1)
        assert await theirs.receive_some() == b"all of it"
        assert await theirs.receive_some() == b""

    play(script)


def test_the_stack_that_ends_closes_what_is_open() -> None:
    async def main() -> None:
        ends = []
        async with hoststack.open_stack(link=MemoryNetwork().link(HOST)) as stack:
            server = stack.application("s", scopes=["local"])
            client = stack.application("c", scopes=["local"])
            listener = await (await server.__aenter__()).listen(URI, tls=TLS, alpn=["test"])
            ends.append(await (await client.__aenter__()).connect(URI, alpn=["test"]).__aenter__())
            ends.append(await listener.accept())
        for end in ends:
            with trio.fail_after(1):
                assert (await end.wait_closed()).code == 0

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_connect_that_is_cancelled_at_once_leaves_nothing() -> None:
    async def script(scene: Scene) -> None:
        before = sessions(scene)
        with trio.CancelScope() as scope:
            scope.cancel()
            async with scene.client.connect(URI, alpn=["a"]):
                pytest.fail("it was cancelled")
        await trio.sleep(1)
        assert sessions(scene) <= before + 1  # what nobody has accepted yet
        with pytest.raises(hoststack.ConnectError, match="ALPN"):
            async with scene.client.connect(URI, alpn=["z"]):
                pytest.fail("no common protocol")
        assert scene.stack._worker.layer._local_scope._ports._taken.keys() == {
            ("default", scene.connected.local[1])
        }

    play(script)


# --- datagrams -------------------------------------------------------------------------------

WITH_DATAGRAMS = QuicConfig(datagram_fifo_bytes=4096)


def test_datagrams_go_both_ways_and_none_is_lost() -> None:
    async def script(scene: Scene) -> None:
        assert scene.connected.max_datagram_bytes == 4094
        for here, there in (
            (scene.connected, scene.accepted),
            (scene.accepted, scene.connected),
        ):
            messages = [bytes([i % 256]) * (i * 37 % 1500) for i in range(100)]
            async with trio.open_nursery() as nursery:

                async def send(here: Connection = here, messages: list[bytes] = messages) -> None:
                    for message in messages:
                        await here.send_datagram(message)

                nursery.start_soon(send)
                await trio.sleep(1)  # until the FIFO is full
                assert [await there.receive_datagram() for _ in messages] == messages
            with pytest.raises(ValueError, match="at most 4094"):
                await here.send_datagram(bytes(4095))

    play(script, WITH_DATAGRAMS, WITH_DATAGRAMS)


def test_datagrams_take_two() -> None:
    async def script(scene: Scene) -> None:
        with pytest.raises(ValueError, match="the peer accepts no datagrams"):
            await scene.connected.send_datagram(b"x")
        with pytest.raises(ValueError, match="this side offers no datagrams"):
            await scene.accepted.send_datagram(b"x")

    play(script, WITH_DATAGRAMS, SMALL)


def test_the_end_of_a_connection_ends_datagrams() -> None:
    async def script(scene: Scene) -> None:
        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                assert [data async for data in scene.accepted.datagrams()] == [b"x"]

            nursery.start_soon(receive)
            await scene.connected.send_datagram(b"x")
            await trio.sleep(1)
            await scene.connected.aclose()

    play(script, WITH_DATAGRAMS, WITH_DATAGRAMS)


# --- an application that writes rubbish into what it shares ----------------------------------


def rubbish(fifo: Fifo, chance: random.Random) -> None:
    """Overwrite the header, as an application in another process could."""
    header = ffi.buffer(fifo._consumer.shared, 128)
    at = chance.randrange(0, 128, 8)
    header[at : at + 8] = chance.choice(
        [bytes(8), b"\xff" * 8, chance.randbytes(8), (1 << 40).to_bytes(8, "little")]
    )


def rx_of(scene: Scene, stream: Any) -> Fifo:
    """The FIFO that a stream reads from."""
    _, (rx, _) = scene.stack._worker.layer.streams._fifos[stream.handle]
    assert rx is not None
    return rx


def test_rubbish_in_a_shared_fifo_breaks_that_stream_and_nothing_else() -> None:
    chance = random.Random(1)

    async def script(scene: Scene) -> None:
        broken = 0
        for _ in range(200):
            ours, theirs = await pair_of_streams(scene)
            rubbish(rx_of(scene, theirs), chance)
            for move in (
                lambda theirs=theirs: theirs.receive_some(),
                lambda ours=ours: ours.send_all(b"x" * 10),
                lambda ours=ours: ours.send_eof(),
                lambda theirs=theirs: theirs.receive_some(),
            ):
                with trio.move_on_after(1):
                    try:
                        await move()
                    except trio.BrokenResourceError:
                        broken += 1
            for stream in (ours, theirs):
                await stream.aclose()
                stream.reset()
        assert broken
        await exchange(scene.connected, scene.accepted, b"well-behaved" * 1000)

    config = QuicConfig(max_streams_bidi=1000, rx_fifo_bytes=4096)
    play(script, config, config)


def test_rubbish_in_the_fifos_of_datagrams_is_an_error_of_the_connection() -> None:
    chance = random.Random(2)

    async def script(scene: Scene) -> None:
        broken = 0
        for _ in range(200):
            fifo = scene.accepted._datagrams._rx
            assert fifo is not None
            rubbish(fifo, chance)
            for move in (
                lambda: scene.connected.send_datagram(b"x"),
                lambda: scene.accepted.receive_datagram(),
            ):
                with trio.move_on_after(1):
                    try:
                        await move()
                    except trio.BrokenResourceError:
                        broken += 1
        assert broken
        await exchange(scene.connected, scene.accepted, b"well-behaved" * 1000)

    play(script, WITH_DATAGRAMS, WITH_DATAGRAMS)
