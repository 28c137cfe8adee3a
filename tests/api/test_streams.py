"""Streams and connections of the public API, over the memory link."""

from __future__ import annotations

import random
from typing import Any

import pytest
import trio
import trio.testing

import hoststack
from hoststack import (
    Connection,
    ConnectionClosedError,
    QuicConfig,
    ReceiveStream,
    SendStream,
    StreamResetError,
    StreamStoppedError,
    TlsConfig,
)
from hoststack.link.memory import MemoryNetwork
from tests.api.conftest import (
    CLIENT,
    SERVER,
    SMALL,
    URI,
    MakePair,
    Pair,
    Transport,
    first_stream,
    run,
)


def _pattern(count: int) -> bytes:
    return random.Random(count).randbytes(count)


async def _read_all(stream: Any) -> bytes:
    return b"".join([chunk async for chunk in stream])


async def _echo(connection: Connection) -> None:
    async def one(stream: Any) -> None:
        async with stream:
            async for chunk in stream:
                await stream.send_all(chunk)

    async with trio.open_nursery() as nursery:
        async for stream in connection.streams():
            nursery.start_soon(one, stream)


@pytest.mark.parametrize(
    "impairments",
    [
        {},
        {"loss": 0.05},
        {"reorder": 0.2},
        {"duplicate": 0.2},
        {"corrupt": 0.05},
        {"loss": 0.03, "reorder": 0.1, "duplicate": 0.1, "corrupt": 0.03, "delay_s": 0.02},
    ],
    ids=lambda options: "+".join(options) or "clean",
)
def test_every_byte_comes_back(make_pair: MakePair, impairments: dict[str, float]) -> None:
    sizes = [0, 1, 1200, 4096, 100_000, 400_000]

    async def main() -> None:
        async with make_pair(seed=7, **impairments) as pair, trio.open_nursery() as nursery:
            nursery.start_soon(_echo, pair.accepted)

            async def one(size: int) -> None:
                stream = await pair.connected.open_stream()
                async with stream, trio.open_nursery() as inner:
                    inner.start_soon(_send, stream, _pattern(size))
                    assert await _read_all(stream) == _pattern(size)

            async with trio.open_nursery() as clients:
                for size in sizes:
                    clients.start_soon(one, size)
            # A CONNECTION_CLOSE may be lost as well, so the server is not waited for.
            nursery.cancel_scope.cancel()

    async def _send(stream: Any, data: bytes) -> None:
        await stream.send_all(data)
        await stream.send_eof()

    run(main)


def test_unidirectional_both_ways(make_pair: MakePair) -> None:
    async def main() -> None:
        async with make_pair() as pair:
            for here, there in (
                (pair.connected, pair.accepted),
                (pair.accepted, pair.connected),
            ):
                sending = await here.open_stream(unidirectional=True)
                assert type(sending) is SendStream
                await sending.send_all(b"one way")
                await sending.aclose()
                receiving = await first_stream(there)
                assert type(receiving) is ReceiveStream
                assert await _read_all(receiving) == b"one way"
                await sending.wait_acknowledged()

    run(main)


def test_reset_carries_its_code_after_the_bytes_that_came(make_pair: MakePair) -> None:
    async def main() -> None:
        async with make_pair() as pair:
            ours = await pair.connected.open_stream()
            await ours.send_all(b"x")
            theirs = await first_stream(pair.accepted)
            assert await theirs.receive_some() == b"x"
            ours.reset(77)
            with pytest.raises(StreamResetError) as caught:
                await theirs.receive_some()
            assert caught.value.code == 77
            with pytest.raises(trio.BrokenResourceError):
                await ours.send_all(b"more")
            # The other direction lives on.
            await theirs.send_all(b"still here")
            assert await ours.receive_some() == b"still here"

    run(main)


def test_who_stopped_receiving_waits_for_nothing(make_pair: MakePair) -> None:
    async def receive(stream: Any) -> None:
        with pytest.raises(trio.BrokenResourceError, match=r"stopped receiving \(code 0x7\)"):
            await stream.receive_some()

    async def main() -> None:
        async with make_pair() as pair:
            ours = await pair.connected.open_stream()
            await ours.send_all(b"came")
            theirs = await first_stream(pair.accepted)
            assert await theirs.receive_some(2) == b"ca"
            with trio.fail_after(5):
                theirs.stop_sending(7)
                assert await theirs.receive_some() == b"me"
                await receive(theirs)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(receive, ours)
                    await trio.testing.wait_all_tasks_blocked()
                    ours.stop_sending(7)
                await receive(ours)

    run(main)


def test_stop_sending_carries_its_code(make_pair: MakePair) -> None:
    async def main() -> None:
        async with make_pair(SMALL) as pair:
            ours = await pair.connected.open_stream()
            await ours.send_all(b"x")
            theirs = await first_stream(pair.accepted)
            theirs.stop_sending(88)
            with pytest.raises(StreamStoppedError) as caught:
                await ours.send_all(bytes(10_000_000))
            assert caught.value.code == 88

    run(main)


def test_sender_blocks_until_the_receiving_application_reads(make_pair: MakePair) -> None:
    async def main() -> None:
        async with make_pair(SMALL) as pair:
            ours = await pair.connected.open_stream()
            await ours.send_all(b"!")
            theirs = await first_stream(pair.accepted)
            sent = 1
            with trio.move_on_after(10):
                while True:
                    await ours.send_all(bytes(100))
                    sent += 100
            assert sent <= SMALL.rx_fifo_bytes + SMALL.tx_fifo_bytes
            # A stalled stream does not stall its neighbours.
            other = await pair.connected.open_stream()
            await other.send_all(b"neighbour")
            assert await (await first_stream(pair.accepted)).receive_some() == b"neighbour"
            got = 0
            while got < sent:
                got += len(await theirs.receive_some())

    run(main)


def test_open_stream_waits_for_the_peers_limit(make_pair: MakePair) -> None:
    config = QuicConfig(max_streams_bidi=2, max_streams_uni=2)

    async def main() -> None:
        async with make_pair(config) as pair, trio.open_nursery() as nursery:
            first = await pair.connected.open_stream()
            second = await pair.connected.open_stream()
            with trio.move_on_after(10) as scope:
                await pair.connected.open_stream()
            assert scope.cancelled_caught
            # The other kind has a limit of its own.
            await pair.connected.open_stream(unidirectional=True)
            nursery.start_soon(_echo, pair.accepted)
            await first.send_all(b"x")
            await first.send_eof()
            assert await _read_all(first) == b"x"
            await second.aclose()
            with trio.fail_after(60):
                third = await pair.connected.open_stream()
                await third.send_all(b"third")
                await third.send_eof()
                assert await _read_all(third) == b"third"
            await pair.connected.aclose()

    run(main)


def test_close_code_and_reason_reach_the_peer(make_pair: MakePair) -> None:
    async def main() -> None:
        async with make_pair() as pair:
            ours = await pair.connected.open_stream()
            await ours.send_all(b"x")
            theirs = await first_stream(pair.accepted)
            await pair.connected.aclose(42, "enough")
            info = await pair.accepted.wait_closed()
            assert (info.code, info.is_application, info.reason, info.by_peer) == (
                42,
                True,
                "enough",
                True,
            )
            assert await theirs.receive_some() == b"x"
            with pytest.raises(ConnectionClosedError) as caught:
                await theirs.receive_some()
            assert caught.value.code == 42
            with pytest.raises(ConnectionClosedError):
                await theirs.send_all(b"x")
            with pytest.raises(ConnectionClosedError):
                await pair.accepted.open_stream()
            with pytest.raises(ConnectionClosedError):
                await first_stream(pair.accepted)
            with pytest.raises(trio.ClosedResourceError):
                await pair.connected.open_stream()

    run(main)


def test_what_was_sent_before_aclose_arrives_in_spite_of_loss(make_pair: MakePair) -> None:
    async def main() -> None:
        for seed in range(10):
            async with make_pair(loss=0.2, seed=seed) as pair:
                stream = await pair.connected.open_stream()
                await stream.send_all(_pattern(50_000))
                await stream.send_eof()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(pair.connected.aclose)
                    theirs = await first_stream(pair.accepted)
                    assert await _read_all(theirs) == _pattern(50_000)

    run(main)


def test_aclose_ends_though_the_peer_does_not_read(make_pair: MakePair) -> None:
    async def main() -> None:
        async with make_pair(SMALL) as pair:
            stream = await pair.connected.open_stream()
            with trio.move_on_after(5):
                await stream.send_all(bytes(100_000))
            await stream.aclose()
            with trio.fail_after(60):
                await pair.connected.aclose()

    run(main)


def test_connections_without_an_answer_fail_with_one_line(make_pair: MakePair) -> None:
    async def main() -> None:
        async with make_pair() as pair:
            with pytest.raises(hoststack.ConnectError, match="no answer from"):
                async with pair.client.connect("quic://10.0.0.1:9", alpn=["test"]):
                    pytest.fail("nobody listens there")

    run(main)


def test_alpn_mismatch_is_named(make_pair: MakePair) -> None:
    async def main() -> None:
        async with make_pair() as pair:
            tls = hoststack.TlsConfig(verify=False)
            with pytest.raises(hoststack.ConnectError, match="ALPN"):
                async with pair.client.connect(URI, tls=tls, alpn=["other"]):
                    pytest.fail("no common protocol")

    run(main)


def test_certificate_is_verified_by_default(make_pair: MakePair, transport: Transport) -> None:
    if transport == "cut-through":
        pytest.skip("there are no certificates: namespace and secret tell who an application is")

    async def main() -> None:
        async with make_pair() as pair:
            with pytest.raises(hoststack.ConnectError, match="certificate"):
                async with pair.client.connect(URI, alpn=["test"]):
                    pytest.fail("self-signed")

    run(main)


def test_listening_twice_is_refused_and_after_closing_allowed(make_pair: MakePair) -> None:
    async def main() -> None:
        async with make_pair() as pair:
            tls = hoststack.TlsConfig.self_signed(["localhost"])
            with pytest.raises(hoststack.ListenError, match="listener"):
                await pair.server.listen(URI, tls=tls, alpn=["test"])
            listener = await pair.server.listen("quic://10.0.0.1:5000", tls=tls, alpn=["test"])
            await listener.aclose()
            await (
                await pair.server.listen("quic://10.0.0.1:5000", tls=tls, alpn=["test"])
            ).aclose()

    run(main)


def test_cancelled_connect_leaves_nothing(make_pair: MakePair) -> None:
    async def main() -> None:
        async with make_pair() as pair:
            with trio.move_on_after(0.5) as scope:
                async with pair.client.connect("quic://10.0.0.1:9", alpn=["test"]):
                    pytest.fail("nobody listens there")
            assert scope.cancelled_caught
            await _settled(pair)

    async def _settled(pair: Pair) -> None:
        stream = await pair.connected.open_stream()
        await stream.send_all(b"alive")
        assert await (await first_stream(pair.accepted)).receive_some() == b"alive"

    run(main)


def test_serve_survives_handlers_whose_peer_is_gone(make_pair: MakePair) -> None:
    async def handler(connection: Connection) -> None:
        async for stream in connection.streams():
            await stream.receive_some()
            while True:
                await stream.send_all(bytes(1000))

    async def main() -> None:
        tls = hoststack.TlsConfig.self_signed(["localhost"])
        async with make_pair() as pair, trio.open_nursery() as nursery:
            listener = await nursery.start(
                lambda task_status: pair.server.serve(
                    "quic://10.0.0.1:0", handler, tls=tls, alpn=["test"], task_status=task_status
                )
            )
            uri = f"quic://10.0.0.1:{listener.local[1]}"
            for code in (0, 9):
                async with pair.client.connect(
                    uri, tls=hoststack.TlsConfig(verify=False), alpn=["test"]
                ) as connection:
                    stream = await connection.open_stream()
                    await stream.send_all(b"go")
                    assert await stream.receive_some()
                    await connection.aclose(code)
            nursery.cancel_scope.cancel()

    run(main)


def test_closing_a_stack_tells_the_peer(make_pair: MakePair) -> None:
    async def main() -> None:
        async with make_pair() as pair:
            tls = hoststack.TlsConfig(verify=False)
            third = pair.network.link("10.0.0.3")
            listener = await pair.server.listen(
                "quic://10.0.0.1:5001",
                tls=hoststack.TlsConfig.self_signed(["localhost"]),
                alpn=["test"],
            )
            async with hoststack.open_stack(link=third) as stack:
                connecting = stack.connect("quic://10.0.0.1:5001", tls=tls, alpn=["test"])
                await connecting.__aenter__()
                accepted = await listener.accept()
            with trio.fail_after(1):
                info = await accepted.wait_closed()
            assert info.by_peer
            assert info.code == 0

    run(main)


def test_an_exception_leaves_open_stack_as_it_was_raised() -> None:
    async def main() -> None:
        from hoststack.link.memory import MemoryNetwork

        with pytest.raises(KeyError, match="mine"):
            async with hoststack.open_stack(link=MemoryNetwork().link("10.0.0.1")):
                raise KeyError("mine")

    run(main)


def test_an_end_that_nobody_reads_ends_the_stream(make_pair: MakePair) -> None:
    """The FIN comes when all bytes were read; a stream that stayed would use up the limit."""

    async def main() -> None:
        async with (
            make_pair(QuicConfig(max_streams_bidi=4)) as pair,
            trio.open_nursery() as nursery,
        ):

            async def serve() -> None:
                async for theirs in pair.accepted.streams():
                    await theirs.receive_some()
                    await theirs.send_all(b"ok")
                    await trio.sleep(1)  # on the clock that jumps: the FIN is here by then
                    await theirs.aclose()

            nursery.start_soon(serve)
            with trio.fail_after(1000):
                for _ in range(20):
                    ours = await pair.connected.open_stream()
                    await ours.send_all(b"request")
                    assert await ours.receive_some() == b"ok"
                    await ours.send_eof()
                    assert await ours.receive_some() == b""
                    await ours.aclose()
            nursery.cancel_scope.cancel()

    run(main)


def test_who_waits_for_a_connection_hears_of_the_end_of_the_stack(server_tls: TlsConfig) -> None:
    async def wait_for_a_connection(listener: hoststack.Listener) -> None:
        with trio.fail_after(1), pytest.raises(trio.ClosedResourceError):
            await listener.accept()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            link = MemoryNetwork().link(SERVER)
            async with hoststack.open_stack(link=link) as stack:
                listener = await stack.listen(URI, tls=server_tls, alpn=["test"])
                nursery.start_soon(wait_for_a_connection, listener)
                await trio.testing.wait_all_tasks_blocked()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_client_that_was_just_in_time_is_told_of_the_end(server_tls: TlsConfig) -> None:
    """It finishes its handshake when the server has stopped listening: that knows of it, but not
    yet that it is done."""

    async def main() -> None:
        network = MemoryNetwork(delay_s=0.1)
        async with (
            hoststack.open_stack(link=network.link(SERVER)) as server,
            hoststack.open_stack(link=network.link(CLIENT)) as client,
            await server.listen(URI, tls=server_tls, alpn=["test"]),
            trio.open_nursery() as nursery,
        ):

            async def drain() -> None:
                # The client's first flight is there, the server's is under way.
                await trio.sleep(0.15)
                server._worker.layer.stop_listening()

            nursery.start_soon(drain)
            with trio.fail_after(5):
                async with client.connect(
                    URI, tls=TlsConfig(verify=False), alpn=["test"]
                ) as connection:
                    info = await connection.wait_closed()
            assert (info.code, info.by_peer) == (2, True)

    run(main)
