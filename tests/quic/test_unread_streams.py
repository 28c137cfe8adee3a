"""What no program reads of some streams does not hold up the others of their connection."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

import hoststack
from hoststack import QuicConfig, TlsConfig
from hoststack.link.memory import MemoryNetwork

pytestmark = pytest.mark.usefixtures("engine")

URI = "quic://10.0.0.1:4433"
TLS = TlsConfig.self_signed(["localhost"])
#: Of each stream, as no FIFO is larger; and of the connection: 20 streams.
STREAM_BYTES = 8 << 10
CONFIG = QuicConfig(rx_fifo_bytes=STREAM_BYTES, connection_window_bytes=20 * STREAM_BYTES)
#: What the last stream carries: more than a connection's window.
DATA = bytes(range(251)) * 1000


@pytest.mark.parametrize("reader", ["server", "client"])
@pytest.mark.parametrize("unread", [12, 15, 18, 19], ids=lambda streams: f"{5 * streams}%")
def test_unread_streams_hold_nobody_up(unread: int, reader: str) -> None:
    async def main() -> None:
        network = MemoryNetwork(delay_s=0.005)
        async with (
            hoststack.open_stack(link=network.link("10.0.0.1"), config=CONFIG) as server,
            hoststack.open_stack(link=network.link("10.0.0.2"), config=CONFIG) as client,
            await server.listen(URI, tls=TLS, alpn=["test"]) as listener,
            client.connect(URI, tls=TlsConfig(verify=False), alpn=["test"]) as connected,
            await listener.accept() as accepted,
            trio.open_nursery() as nursery,
        ):
            reads, writes = (accepted, connected)[:: 1 if reader == "server" else -1]

            async def send(data: bytes) -> None:
                stream = await writes.open_stream(unidirectional=True)
                await stream.send_all(data)
                await stream.send_eof()

            for _ in range(unread):
                nursery.start_soon(send, bytes(2 * STREAM_BYTES))
            held: list[Any] = []
            async for stream in reads.streams():
                held.append(stream)
                if len(held) == unread:
                    break
            await trio.sleep(1)  # their windows are full
            nursery.start_soon(send, DATA)
            got = b""
            with trio.fail_after(10):
                async for stream in reads.streams():
                    async for chunk in stream:
                        got += chunk
                    break
            assert got == DATA
            for stream in held:
                assert b"".join([chunk async for chunk in stream]) == bytes(2 * STREAM_BYTES)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
