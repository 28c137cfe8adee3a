"""WebTransport in asyncio, with our client, and with aioquic's."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from aioquic.asyncio import QuicConnectionProtocol
from aioquic.asyncio import connect as connect_aioquic
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import DatagramReceived, HeadersReceived, WebTransportStreamDataReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import QuicEvent, StreamDataReceived

from hoststack import QuicConfig, TlsConfig, aio, http3
from hoststack.http3 import Http3Config, SessionEnd
from hoststack.http3 import aio as http3_aio
from hoststack.http3.webtransport import wire

TLS: Final = TlsConfig.self_signed(["127.0.0.1"])
QUIC: Final = QuicConfig(datagram_fifo_bytes=65536)
CONFIG: Final = Http3Config(webtransport_sessions=4)
PATIENCE_S: Final = 60


ended: list[asyncio.Future[SessionEnd]] = []
"""What a test waits for."""


async def echo(request: http3.Request) -> None:
    async with await request.accept_webtransport() as session, asyncio.TaskGroup() as group:
        group.create_task(echo_datagrams(session))
        async for stream in session.streams():
            async with stream:
                data = await stream.read()
                back = stream
                if not hasattr(stream, "write"):
                    back = await session.open_stream(unidirectional=True)
                back.write(data)
                back.close()
        end = await session.wait_closed()
        if ended:
            ended.pop().set_result(end)


async def echo_datagrams(session: http3.Session) -> None:
    async for data in session.datagrams():
        await session.send_datagram(data)


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[aio.Stack, int]]:
    """A stack with a server, and the server's port."""
    async with aio.open_stack(link="udp") as stack:
        listening: asyncio.Future[aio.Listener] = asyncio.get_running_loop().create_future()
        uri = "quic://127.0.0.1:0"
        server = asyncio.create_task(
            http3_aio.serve(
                stack, uri, echo, tls=TLS, config=CONFIG, quic=QUIC, listening=listening
            )
        )
        yield stack, (await listening).local[1]
        server.cancel()
        await asyncio.gather(server, return_exceptions=True)


def test_our_client() -> None:
    async def main() -> None:
        async with (
            asyncio.timeout(PATIENCE_S),
            serving() as (stack, port),
            http3_aio.open_client(
                stack,
                f"127.0.0.1:{port}",
                tls=TlsConfig(ca=TLS.certificate),
                config=CONFIG,
                quic=QUIC,
            ) as client,
            await client.open_webtransport("/") as session,
        ):
            async with await session.open_stream() as stream:
                stream.write(b"both ways")
                stream.write_eof()
                assert await stream.read() == b"both ways"
            async with await session.open_stream(unidirectional=True) as one_way:
                one_way.write(b"one way")
            async with await session.streams().receive() as back:
                assert await back.read() == b"one way"
            await session.send_datagram(b"a datagram")
            assert await session.receive_datagram() == b"a datagram"

    asyncio.run(main())


class Peer(QuicConnectionProtocol):
    """aioquic's client, and what it receives."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.http = H3Connection(self._quic, enable_webtransport=True)
        self.events: asyncio.Queue[Any] = asyncio.Queue()
        self.opened: dict[int, int] = {}
        """Bidirectional streams, and their sessions."""

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, StreamDataReceived) and event.stream_id in self.opened:
            # aioquic takes what comes back on a stream of its own for frames of HTTP/3
            session_id = self.opened[event.stream_id]
            self.events.put_nowait(
                WebTransportStreamDataReceived(
                    event.data, event.stream_id, event.end_stream, session_id
                )
            )
            return
        for found in self.http.handle_event(event):
            self.events.put_nowait(found)

    async def next(self, kind: type) -> Any:
        while not isinstance(event := await self.events.get(), kind):
            pass
        return event

    async def read(self) -> tuple[int, bytes]:
        """A stream to its end."""
        data = b""
        while True:
            event = await self.next(WebTransportStreamDataReceived)
            data += event.data
            if event.stream_ended:
                return event.stream_id, data

    def send(self, session_id: int, data: bytes, *, is_unidirectional: bool) -> int:
        stream_id = self.http.create_webtransport_stream(
            session_id, is_unidirectional=is_unidirectional
        )
        if not is_unidirectional:
            self.opened[stream_id] = session_id
        self._quic.send_stream_data(stream_id, data, end_stream=True)
        self.transmit()
        return stream_id


def test_aioquic_as_a_client() -> None:
    configuration = QuicConfiguration(
        is_client=True,
        alpn_protocols=["h3"],
        verify_mode=ssl.CERT_NONE,
        max_datagram_frame_size=65536,
    )

    async def main() -> None:
        async with (
            asyncio.timeout(PATIENCE_S),
            serving() as (_, port),
            connect_aioquic(
                "127.0.0.1", port, configuration=configuration, create_protocol=Peer
            ) as found,
        ):
            assert isinstance(found, Peer)
            session_id = found._quic.get_next_available_stream_id()
            fields = [(b":method", b"CONNECT"), (b":scheme", b"https"), (b":path", b"/")]
            fields += [(b":authority", b"localhost"), (b":protocol", b"webtransport")]
            found.http.send_headers(session_id, fields)
            found.transmit()
            assert (b":status", b"200") in (await found.next(HeadersReceived)).headers
            stream_id = found.send(session_id, b"both ways", is_unidirectional=False)
            assert await found.read() == (stream_id, b"both ways")
            found.send(session_id, b"one way", is_unidirectional=True)
            assert (await found.read())[1] == b"one way"
            for number in range(10):
                found.http.send_datagram(session_id, b"%d" % number)
                found.transmit()
                assert (await found.next(DatagramReceived)).data == b"%d" % number
            end: asyncio.Future[SessionEnd] = asyncio.get_running_loop().create_future()
            ended.append(end)
            found.http.send_data(session_id, wire.close_session(5, "bye"), end_stream=True)
            found.transmit()
            assert await end == SessionEnd(5, "bye")

    asyncio.run(main())
