"""DATAGRAM frames (RFC 9221)."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from aioquic.quic.events import DatagramFrameReceived

import hoststack
from hoststack import Connection, ConnectionClosedError, QuicConfig, SessionCache
from hoststack.api.router import Router
from hoststack.link.base import Path
from hoststack.link.memory import MemoryNetwork
from hoststack.worker import engines
from tests.quic import test_native_features as native_features
from tests.quic.test_native_features import CLIENT, SERVER, TLS, TRUSTING, URI, run
from tests.quic.test_stock_aioquic import stock_client, stock_server

CONFIG = QuicConfig(datagram_fifo_bytes=64 * 1024)

pytestmark = pytest.mark.usefixtures("engine")


def meeting(network: MemoryNetwork, *configs: QuicConfig) -> Any:
    """Two stacks and a connection, with the engine of this run."""
    return native_features.meeting(network, *configs, engine="auto", client_engine="auto")


async def receive_all(connection: Connection, count: int) -> list[bytes]:
    return [await connection.receive_datagram() for _ in range(count)]


def test_both_ways_and_of_all_sizes() -> None:
    async def main() -> None:
        async with meeting(MemoryNetwork(), CONFIG) as (_, _, accepted, connected):
            for here, there in ((connected, accepted), (accepted, connected)):
                most = here.max_datagram_bytes
                sizes = [0, 1, 62, 63, 64, 65, 1000, most - 1, most]
                sent = [random.Random(size).randbytes(size) for size in sizes]
                for datagram in sent:
                    await here.send_datagram(datagram)
                assert await receive_all(there, len(sent)) == sent

    run(main)


def test_each_kind_of_buffer_is_sent() -> None:
    async def main() -> None:
        async with meeting(MemoryNetwork(), CONFIG) as (_, _, accepted, connected):
            for data in (b"data", bytearray(b"data"), memoryview(b"data").cast("i")):
                await connected.send_datagram(data)
                assert await accepted.receive_datagram() == b"data"

    run(main)


def test_more_than_the_fifos_hold_goes_round_their_ends() -> None:
    async def main() -> None:
        config = QuicConfig(datagram_fifo_bytes=8000)
        async with meeting(MemoryNetwork(), config) as (_, _, accepted, connected):
            rng = random.Random(3)
            for _ in range(500):
                sent = [rng.randbytes(rng.randrange(1100)) for _ in range(rng.randrange(1, 6))]
                for datagram in sent:
                    await connected.send_datagram(datagram)
                assert await receive_all(accepted, len(sent)) == sent

    run(main)


@pytest.mark.parametrize("seed", range(3))
def test_some_are_lost_but_none_is_cut_or_doubled(seed: int) -> None:
    async def main() -> None:
        network = MemoryNetwork(
            seed=seed, loss=0.1, reorder=0.1, duplicate=0.1, corrupt=0.02, delay_s=0.01
        )
        async with meeting(network, CONFIG) as (_, _, accepted, connected):
            sent = [random.Random(i).randbytes(i) for i in range(100, 1100)]
            received: list[bytes] = []
            async with trio.open_nursery() as nursery:
                nursery.start_soon(collect, accepted, received)
                for datagram in sent:
                    await connected.send_datagram(datagram)
                await trio.sleep(10)
                nursery.cancel_scope.cancel()
            assert len(set(received)) == len(received)
            assert set(received) <= set(sent)
            figures = await connected.statistics()
            assert figures["tx_datagram_frames"] == len(sent)
            assert 0.7 * len(sent) < len(received) < len(sent)
            there = await accepted.statistics()
            assert there["rx_datagram_frames"] == len(received)
            assert there["rx_datagram_frames_dropped"] == 0

    async def collect(connection: Connection, into: list[bytes]) -> None:
        async for datagram in connection.datagrams():
            into.append(datagram)

    run(main)


def test_the_limit_is_named_and_grows_with_the_path() -> None:
    async def main() -> None:
        async with meeting(MemoryNetwork(delay_s=0.01), CONFIG) as (_, _, accepted, connected):
            at_first = connected.max_datagram_bytes
            # 1200 bytes less a short header, a packet number, a tag, the frame's type and length.
            assert at_first == 1200 - 1 - 12 - 4 - 16 - 1 - 2
            with pytest.raises(ValueError, match=f"{at_first + 1} bytes: .* at most {at_first}"):
                await connected.send_datagram(bytes(at_first + 1))
            await trio.sleep(2)
            assert connected.max_datagram_bytes == at_first + 1472 - 1200
            largest = bytes(connected.max_datagram_bytes)
            await connected.send_datagram(largest)
            assert await accepted.receive_datagram() == largest

    run(main)


def test_a_small_fifo_is_a_limit_too() -> None:
    async def main() -> None:
        config = QuicConfig(datagram_fifo_bytes=1024)
        async with meeting(MemoryNetwork(), config) as (_, _, accepted, connected):
            # The peer's frames may have 1024 bytes, and a message of ours has two before it.
            assert connected.max_datagram_bytes == 1024 - 3
            await connected.send_datagram(bytes(1021))
            assert await accepted.receive_datagram() == bytes(1021)

    run(main)


def test_who_offers_none() -> None:
    async def main() -> None:
        async with meeting(MemoryNetwork(), QuicConfig(), CONFIG) as (_, _, accepted, connected):
            assert connected.max_datagram_bytes == accepted.max_datagram_bytes == 0
            with pytest.raises(ValueError, match="the peer accepts no datagrams"):
                await connected.send_datagram(b"x")
            for refused in (accepted.send_datagram(b"x"), accepted.receive_datagram()):
                with pytest.raises(ValueError, match=r"QuicConfig\.datagram_fifo_bytes"):
                    await refused

    run(main)


def test_what_finds_no_room_is_dropped_and_counted() -> None:
    async def main() -> None:
        config = QuicConfig(datagram_fifo_bytes=4096)
        async with meeting(MemoryNetwork(), config) as (_, _, accepted, connected):
            for number in range(100):
                await connected.send_datagram(number.to_bytes(4, "big") + bytes(1000))
            await trio.sleep(1)
            figures = await accepted.statistics()
            assert figures["rx_datagram_frames"] == 4
            assert figures["rx_datagram_frames_dropped"] == 96
            first = await receive_all(accepted, 4)
            assert [int.from_bytes(each[:4], "big") for each in first] == [0, 1, 2, 3]
            await connected.send_datagram(b"there is room again")
            assert await accepted.receive_datagram() == b"there is room again"

    run(main)


def test_a_sender_waits_while_the_path_takes_no_more() -> None:
    async def main() -> None:
        network = MemoryNetwork(delay_s=0.01)
        config = QuicConfig(datagram_fifo_bytes=4096)
        async with meeting(network, config) as (_, _, accepted, connected):
            network.impairments.loss = 1.0
            sent = 0
            with trio.move_on_after(1) as scope:
                while True:
                    await connected.send_datagram(bytes(1000))
                    sent += 1
            assert scope.cancelled_caught
            # The congestion window and the FIFO, then no more.
            assert 4 <= sent < 100
            network.impairments.loss = 0.0
            with trio.fail_after(60):
                await connected.send_datagram(b"at last")
                while await accepted.receive_datagram() != b"at last":
                    pass

    run(main)


def test_streams_and_datagrams_share_the_path() -> None:
    async def main() -> None:
        # Without losses the window would grow for ever.
        network = MemoryNetwork(seed=5, delay_s=0.01, loss=0.02)
        async with meeting(network, CONFIG) as (_, _, accepted, connected):
            stream = await connected.open_stream(unidirectional=True)
            figures = {"streamed": 0, "datagrams": 0}

            async def send_stream() -> None:
                while True:
                    await stream.send_all(bytes(100_000))

            async def send_datagrams() -> None:
                while True:
                    await connected.send_datagram(bytes(1000))

            async def read_stream() -> None:
                async for theirs in accepted.streams():
                    async for chunk in theirs:
                        figures["streamed"] += len(chunk)

            async def read_datagrams() -> None:
                async for datagram in accepted.datagrams():
                    figures["datagrams"] += len(datagram)

            with trio.move_on_after(2):
                async with trio.open_nursery() as nursery:
                    for each in (send_stream, send_datagrams, read_stream, read_datagrams):
                        nursery.start_soon(each)
            # Bytes of both go in packets that take turns.
            assert figures["streamed"] > 500_000
            assert 0.5 < figures["streamed"] / figures["datagrams"] < 2.5

    run(main)


def test_checkpoints_and_cancellation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Router, "calls_in_a_row", 1)

    async def main() -> None:
        async with meeting(MemoryNetwork(), CONFIG) as (_, _, accepted, connected):
            with trio.testing.assert_checkpoints():
                await connected.send_datagram(b"x")
            await trio.sleep(1)
            with trio.testing.assert_checkpoints():
                assert await accepted.receive_datagram() == b"x"
            with trio.move_on_after(1):
                await accepted.receive_datagram()
            with trio.CancelScope() as scope:
                scope.cancel()
                await connected.send_datagram(b"never sent")
            await connected.send_datagram(b"y")
            assert await accepted.receive_datagram() == b"y"

    run(main)


def test_the_end_of_a_connection() -> None:
    async def main() -> None:
        async with meeting(MemoryNetwork(), CONFIG) as (_, _, accepted, connected):
            await connected.send_datagram(b"last")
            await trio.sleep(1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(expect_closed, connected)
                await trio.testing.wait_all_tasks_blocked()
                await connected.aclose(7, "enough")
            with pytest.raises(trio.ClosedResourceError):
                await connected.send_datagram(b"x")
            assert (await accepted.wait_closed()).code == 7
            assert await accepted.receive_datagram() == b"last"
            for over in (accepted.receive_datagram(), accepted.send_datagram(b"x")):
                with pytest.raises(ConnectionClosedError):
                    await over

    async def expect_closed(connection: Connection) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await connection.receive_datagram()

    run(main)


def test_iteration_ends_with_the_connection() -> None:
    async def main() -> None:
        async with meeting(MemoryNetwork(), CONFIG) as (_, _, accepted, connected):
            await connected.send_datagram(b"a")
            await connected.send_datagram(b"b")
            await trio.sleep(1)
            await connected.aclose()
            assert [datagram async for datagram in accepted.datagrams()] == [b"a", b"b"]

    run(main)


HOSTILE = {
    "a length without a message": lambda tx, rx: tx.write(b"\xff\xff"),
    "half a length": lambda tx, rx: tx.write(b"\x01"),
    "a length beyond the end": lambda tx, rx: tx.write(b"\x06\x00four."),
    "an impossible tail": lambda tx, rx: _overwrite(tx, 0, 1 << 62),
    "a tail that went back": lambda tx, rx: (tx.write_message(b"x"), _overwrite(tx, 0, 1)),
    "an impossible head": lambda tx, rx: _overwrite(rx, 64, 1 << 40),
}


def _overwrite(fifo: Any, at: int, value: int) -> None:
    fifo._memory[at : at + 8] = value.to_bytes(8, "little")


@pytest.mark.parametrize("do_harm", HOSTILE.values(), ids=HOSTILE)
def test_rubbish_in_the_fifos_ends_its_connection_alone(do_harm: Any) -> None:
    async def main() -> None:
        network = MemoryNetwork()
        async with (
            meeting(network, CONFIG) as (server, client, accepted, connected),
            client.connect(URI, tls=TRUSTING, alpn=["test"]) as other,
        ):
            stream = await other.open_stream()
            datagrams = connected._datagrams
            do_harm(datagrams._tx, datagrams._rx)
            datagrams._signal_sent()
            await accepted.send_datagram(b"what finds an impossible head")
            info = await connected.wait_closed()
            assert (info.code, info.is_application, info.by_peer) == (1, False, False)
            assert (await accepted.wait_closed()).code == 1
            await stream.send_all(b"well")
            assert other.close_info is None
            await other.send_datagram(b"well")
            assert server.counters().connections == client.counters().connections

    run(main)


def test_a_message_that_the_path_has_become_too_narrow_for_is_dropped() -> None:
    async def main() -> None:
        async with meeting(MemoryNetwork(), CONFIG) as (_, _, accepted, connected):
            datagrams = connected._datagrams
            assert datagrams._tx is not None
            assert datagrams._tx.write_message(bytes(connected.max_datagram_bytes + 400))
            await connected.send_datagram(b"this one goes")
            assert await accepted.receive_datagram() == b"this one goes"
            assert (await connected.statistics())["tx_datagram_frames_dropped"] == 1

    run(main)


@pytest.mark.parametrize("meet", [stock_client, stock_server], ids=lambda meet: meet.__name__)
def test_with_a_stock_peer(meet: Any) -> None:
    async def main() -> None:
        async with meet(CONFIG, {"max_datagram_frame_size": 1000}) as m:
            assert m.ours.max_datagram_bytes == 1000 - 3
            for size in (0, 1, 997):
                await m.ours.send_datagram(bytes(size))
                await m.stock.until(
                    lambda size=size: any(
                        isinstance(event, DatagramFrameReceived) and event.data == bytes(size)
                        for event in m.stock.events
                    )
                )
            for size in (0, 1, 1000):
                m.quic.send_datagram_frame(bytes(size))
                m.stock.poke()
                assert await m.ours.receive_datagram() == bytes(size)

    run(main)


def test_what_a_stock_peer_sends_that_was_not_offered_ends_the_connection() -> None:
    async def main() -> None:
        async with stock_client(QuicConfig(), {"max_datagram_frame_size": 1000}) as m:
            m.quic.send_datagram_frame(b"unasked for")
            m.stock.poke()
            # RFC 9221 section 3: "MUST terminate the connection with an error of type
            # PROTOCOL_VIOLATION".
            assert (await m.ours.wait_closed()).code == 0x0A

    run(main)


def test_a_repeated_packet_brings_no_second_datagram() -> None:
    class Repeating(MemoryNetwork):
        def _carry(self, data: bytes, path: Path) -> None:
            for _ in range(3):
                super()._carry(data, path)

    async def main() -> None:
        async with meeting(Repeating(), CONFIG) as (_, _, accepted, connected):
            await connected.send_datagram(b"once")
            await connected.send_datagram(b"again")
            assert await receive_all(accepted, 2) == [b"once", b"again"]
            with trio.move_on_after(1) as scope:
                await accepted.receive_datagram()
            assert scope.cancelled_caught

    run(main)


def test_datagrams_wait_for_the_handshake(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One in a 0-RTT packet may be a replay, and has no place to say so."""
    if engines.why_not_native():
        pytest.skip("only the native engine's clients send 0-RTT, and it was not built")
    monkeypatch.setattr(engines, "available_engines", lambda: [engine, "native"])

    async def echo(connection: Connection) -> None:
        async for datagram in connection.datagrams():
            await connection.send_datagram(datagram)

    async def main() -> None:
        network = MemoryNetwork(delay_s=0.1)
        config = QuicConfig(early_data=True, datagram_fifo_bytes=4096)
        async with (
            hoststack.open_stack(link=network.link(SERVER), config=config) as server,
            hoststack.open_stack(
                link=network.link(CLIENT), engine="native", config=config
            ) as client,
            trio.open_nursery() as nursery,
        ):
            await nursery.start(partial(server.serve, URI, echo, tls=TLS, alpn=["test"]))
            tls = replace(TRUSTING, sessions=SessionCache())
            for state in ("none", "pending"):
                async with client.connect(URI, tls=tls, alpn=["test"]) as connection:
                    assert connection.early_data == state
                    if state == "pending":
                        stream = await connection.open_stream()
                        await stream.send_all(b"before the handshake")
                    await connection.send_datagram(b"after it")
                    assert await connection.receive_datagram() == b"after it"
                    assert connection.early_data in ("none", "accepted")
                    await connection.migrate()
                    await connection.send_datagram(b"elsewhere")
                    assert await connection.receive_datagram() == b"elsewhere"
            nursery.cancel_scope.cancel()

    run(main)
