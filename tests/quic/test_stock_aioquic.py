"""Our engine against aioquic as it comes, as client and as server, over a network in memory."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import trio
import trio.testing
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

import hoststack
from hoststack import Connection, QuicConfig, Stack, StreamResetError, StreamStoppedError, TlsConfig
from hoststack.link.memory import MemoryNetwork
from hoststack.quic.cid import CID_BYTES
from tests.support.stock_peer import StockPeer

OURS, STOCK = "10.0.0.1", "10.0.0.2"
PORT = 4433
URI = f"quic://{OURS}:{PORT}"
DATA = bytes(range(253)) * 1500
TLS = TlsConfig.self_signed(["localhost"])


pytestmark = pytest.mark.usefixtures("engine")


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def client_configuration(**options: Any) -> QuicConfiguration:
    return QuicConfiguration(
        is_client=True, alpn_protocols=["test"], verify_mode=ssl.CERT_NONE, **options
    )


def server_configuration(**options: Any) -> QuicConfiguration:
    configuration = QuicConfiguration(is_client=False, alpn_protocols=["test"], **options)
    assert isinstance(TLS.certificate, bytes)
    assert isinstance(TLS.key, bytes)
    configuration.certificate = x509.load_pem_x509_certificate(TLS.certificate)
    configuration.private_key = load_pem_private_key(TLS.key, None)  # type: ignore[assignment]
    return configuration


@dataclass
class Meeting:
    """Our stack and connection, and the stock peer's."""

    network: MemoryNetwork
    stack: Stack
    ours: Connection
    stock: StockPeer
    nursery: trio.Nursery

    @property
    def quic(self) -> QuicConnection:
        assert self.stock.quic is not None
        return self.stock.quic


@asynccontextmanager
async def stock_client(
    config: QuicConfig | None = None, stock: dict[str, Any] | None = None, **impairments: float
) -> AsyncIterator[Meeting]:
    """A stock client, connected to our server."""
    network = MemoryNetwork(seed=3, **impairments)  # type: ignore[arg-type]
    async with (
        hoststack.open_stack(link=network.link(OURS), config=config) as stack,
        await stack.listen(URI, tls=TLS, alpn=["test"]) as listener,
        trio.open_nursery() as nursery,
    ):
        peer = StockPeer(network.link(STOCK))
        await peer.connect(client_configuration(**(stock or {})), OURS, PORT)
        nursery.start_soon(peer.run)
        yield Meeting(network, stack, await listener.accept(), peer, nursery)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def stock_server(
    config: QuicConfig | None = None, stock: dict[str, Any] | None = None, **impairments: float
) -> AsyncIterator[Meeting]:
    """Our client, connected to a stock server."""
    network = MemoryNetwork(seed=3, **impairments)  # type: ignore[arg-type]
    async with (
        hoststack.open_stack(link=network.link(OURS), config=config) as stack,
        trio.open_nursery() as nursery,
    ):
        peer = StockPeer(network.link(STOCK), PORT)
        peer.accept(server_configuration(**(stock or {})))
        nursery.start_soon(peer.run)
        trusting = TlsConfig(verify=False)
        async with stack.connect(
            f"quic://{STOCK}:{PORT}", tls=trusting, alpn=["test"]
        ) as connection:
            yield Meeting(network, stack, connection, peer, nursery)
        nursery.cancel_scope.cancel()


BOTH = pytest.mark.parametrize("meet", [stock_client, stock_server], ids=lambda meet: meet.__name__)


async def next_stream(connection: Connection) -> Any:
    async for stream in connection.streams():
        return stream
    raise AssertionError("the connection ended")


async def read_all(stream: Any) -> bytes:
    return b"".join([chunk async for chunk in stream])


@BOTH
@pytest.mark.parametrize(
    "impairments", [{}, {"loss": 0.03, "reorder": 0.1, "delay_s": 0.01}], ids=["clean", "lossy"]
)
def test_streams_both_ways(meet: Any, impairments: dict[str, float]) -> None:
    async def main() -> None:
        async with meet(**impairments) as m:
            for unidirectional in (False, True):
                # Theirs, to us.
                stream_id = m.quic.get_next_available_stream_id(unidirectional)
                m.quic.send_stream_data(stream_id, DATA, end_stream=True)
                m.stock.poke()
                theirs = await next_stream(m.ours)
                assert await read_all(theirs) == DATA
                if not unidirectional:
                    await theirs.send_all(b"thanks")
                    await theirs.send_eof()
                    assert await m.stock.stream_ends(stream_id) == b"thanks"
                # Ours, to them.
                ours: Any = await m.ours.open_stream(unidirectional=unidirectional)
                await ours.send_all(DATA)
                await ours.aclose() if unidirectional else await ours.send_eof()
                assert await m.stock.stream_ends(ours.stream_id) == DATA

    run(main)


@BOTH
def test_reset_and_stop_carry_their_codes(meet: Any) -> None:
    async def main() -> None:
        async with meet() as m:
            ours = await m.ours.open_stream()
            await ours.send_all(b"x")
            await m.stock.wait_for(events.StreamDataReceived)
            m.quic.reset_stream(ours.stream_id, 77)
            m.quic.stop_stream(ours.stream_id, 78)
            m.stock.poke()
            with pytest.raises(StreamResetError) as reset:
                await ours.receive_some()
            assert reset.value.code == 77
            with pytest.raises(StreamStoppedError) as stopped:
                await ours.send_all(bytes(10_000_000))
            assert stopped.value.code == 78
            other = await m.ours.open_stream()
            await other.send_all(b"y")
            other.reset(79)
            other.stop_sending(80)
            assert (await m.stock.wait_for(events.StreamReset)).error_code in (78, 79)
            await m.stock.until(
                lambda: (
                    {e.error_code for e in m.stock.events if isinstance(e, events.StreamReset)}
                    >= {79}
                )
            )
            assert (await m.stock.wait_for(events.StopSendingReceived)).error_code == 80

    run(main)


@BOTH
def test_the_peer_updates_its_keys(meet: Any) -> None:
    async def main() -> None:
        async with meet() as m:
            for turn in range(4):
                stream_id = m.quic.get_next_available_stream_id(True)
                m.quic.send_stream_data(stream_id, DATA, end_stream=True)
                m.stock.poke()
                assert await read_all(await next_stream(m.ours)) == DATA
                await trio.sleep(1)
                m.quic.request_key_update()
                assert turn < 4
            ours = await m.ours.open_stream(unidirectional=True)
            await ours.send_all(DATA)
            await ours.aclose()
            assert await m.stock.stream_ends(ours.stream_id) == DATA

    run(main)


def test_a_client_whose_port_changes_is_followed() -> None:
    async def main() -> None:
        async with stock_client() as m:
            first = m.ours.remote
            m.quic.send_stream_data(0, DATA[:1000])
            m.stock.poke()
            theirs = await next_stream(m.ours)
            begin = await theirs.receive_some()
            await m.stock.rebind()
            m.quic.send_stream_data(0, DATA, end_stream=True)
            m.stock.poke()
            assert begin + await read_all(theirs) == DATA[:1000] + DATA
            await theirs.send_all(DATA)
            await theirs.send_eof()
            assert await m.stock.stream_ends(0) == DATA
            assert first[1] != m.stock.port

    run(main)


@BOTH
def test_an_idle_timeout_of_0_means_none(meet: Any) -> None:
    async def main() -> None:
        async with meet(config=QuicConfig(idle_timeout_s=60), stock={"idle_timeout": 0.0}) as m:
            # It keeps its own side from timing out at once, which is what aioquic takes 0 for.
            m.quic._configuration.idle_timeout = 3600.0
            await trio.sleep(40)
            assert m.ours.close_info is None
            ours = await m.ours.open_stream()
            await ours.send_all(b"still here")
            await ours.send_eof()
            assert await m.stock.stream_ends(ours.stream_id) == b"still here"

    run(main)


@BOTH
def test_all_connection_ids_are_ours(meet: Any) -> None:
    async def main() -> None:
        async with meet() as m:
            await trio.sleep(1)
            known = [m.quic._peer_cid, *m.quic._peer_cid_available]
            assert len(known) >= 4
            for cid in known:
                assert len(cid.cid) == CID_BYTES
                assert cid.cid[0] == CID_BYTES - 1
                assert cid.cid[1:4] == bytes(3)
            # The peer changes to each of them in turn, and asks for more.
            for _ in range(12):
                m.quic.change_connection_id()
                stream_id = m.quic.get_next_available_stream_id(True)
                m.quic.send_stream_data(stream_id, b"hello", end_stream=True)
                m.stock.poke()
                assert await read_all(await next_stream(m.ours)) == b"hello"
                await trio.sleep(0.5)

    run(main)


def test_a_close_that_was_lost_is_said_again() -> None:
    async def main() -> None:
        async with stock_client() as m:
            m.network.impairments.loss = 1.0
            await m.ours.aclose(7, "enough")
            await trio.sleep(0.01)
            m.network.impairments.loss = 0.0
            m.quic.send_ping(1)
            m.stock.poke()
            closed = await m.stock.wait_for(events.ConnectionTerminated)
            assert (closed.error_code, closed.reason_phrase) == (7, "enough")

    run(main)


def test_windows_move_only_as_the_application_reads() -> None:
    config = QuicConfig(rx_fifo_bytes=64 << 10, connection_window_bytes=80 << 10)

    async def main() -> None:
        async with stock_client(config=config) as m:
            # A stream that nobody reads keeps its first window; the third finds the connection's
            # nearly full.
            for stream_id, window in ((0, 32 << 10), (4, 32 << 10), (8, 16 << 10)):
                m.quic.send_stream_data(stream_id, DATA, end_stream=True)
                m.stock.poke()
                await trio.sleep(5)
                assert m.quic._streams[stream_id].sender.highest_offset == window

            async def read_it(stream: Any) -> None:
                assert await read_all(stream) == DATA

            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(read_it, await next_stream(m.ours))

    run(main)


def test_a_datagram_frame_ends_only_its_own_connection() -> None:
    """We do not offer them, so one is a violation (RFC 9221 section 3); nothing wedges."""

    async def main() -> None:
        async with stock_client(stock={"max_datagram_frame_size": 65536}) as m:
            m.quic._remote_max_datagram_frame_size = 65536
            m.quic.send_datagram_frame(bytes(1000))
            m.stock.poke()
            info = await m.ours.wait_closed()
            assert not info.by_peer
            another = StockPeer(m.network.link("10.0.0.3"))
            await another.connect(client_configuration(), OURS, PORT)
            m.nursery.start_soon(another.run)
            await another.wait_for(events.HandshakeCompleted)

    run(main)


def test_an_unknown_version_is_answered() -> None:
    async def main() -> None:
        # The client begins with a version that the server lacks, and goes on with one it has.
        stock = {"original_version": 0x1A2A3A4A, "supported_versions": [0x1A2A3A4A, 1]}
        async with stock_client(stock=stock) as m:
            m.quic.send_stream_data(0, b"hello", end_stream=True)
            m.stock.poke()
            assert await read_all(await next_stream(m.ours)) == b"hello"

    run(main)
