"""WebTransport sessions of applications."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from hoststack import QuicConfig, StreamResetError, StreamStoppedError, TlsConfig, aio, asgi, http3
from hoststack.asgi import AsgiConfig, DisconnectedError, StaticFiles
from hoststack.http3 import Http3Config, Session, SessionRefusedError
from hoststack.http3 import aio as http3_aio
from tests.asgi.serving import PATIENCE_S, SERVER, run, serving
from tests.http3.peers import TRUSTING, pattern

OFF = AsgiConfig(lifespan="off")
QUIC = QuicConfig(datagram_fifo_bytes=65536)
CONFIG = Http3Config(webtransport_sessions=2)
ACCEPT = {"type": "webtransport.accept"}


@asynccontextmanager
async def in_session(
    application: Any, path: str = "/", config: AsgiConfig = OFF, **options: Any
) -> AsyncIterator[Session]:
    async with (
        serving(application, config, quic=QUIC, http3_config=CONFIG) as (_, stack),
        http3.open_client(stack, SERVER, tls=TRUSTING, config=CONFIG) as client,
        await client.open_webtransport(path, **options) as session,
    ):
        yield session


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Send back what comes: on the stream itself, or on one of its own."""
    assert (await receive())["type"] == "webtransport.connect"
    await send({**ACCEPT, "subprotocol": next(iter(scope["subprotocols"]), None)})
    kept: dict[int, bytes] = {}
    while (message := await receive())["type"] != "webtransport.disconnect":
        match message["type"].removeprefix("webtransport."):
            case "datagram.receive":
                await send({"type": "webtransport.datagram.send", "data": message["data"]})
            case "stream.receive" if message["stream"] & 2:
                number = message["stream"]
                kept[number] = kept.get(number, b"") + message["data"]
                if not message["more_data"]:
                    opening = {"type": "webtransport.stream.open", "unidirectional": True}
                    await send({**opening, "id": number})
            case "stream.receive":
                await send({**message, "type": "webtransport.stream.send"})
            case "stream.opened":
                answer = {"type": "webtransport.stream.send", "stream": message["stream"]}
                await send({**answer, "data": kept.pop(message["id"]), "more_data": False})


async def echoes(session: Session, data: bytes) -> None:
    """A stream of each kind, and datagrams."""
    stream = await session.open_stream()
    async with stream, trio.open_nursery() as nursery:

        async def send() -> None:
            await stream.send_all(data)
            await stream.send_eof()

        nursery.start_soon(send)
        assert b"".join([chunk async for chunk in stream]) == data
    async with await session.open_stream(unidirectional=True) as one_way:
        await one_way.send_all(data)
    async for back in session.streams():
        assert b"".join([chunk async for chunk in back]) == data
        break
    await session.send_datagram(b"datagram")
    assert await session.receive_datagram() == b"datagram"


def test_streams_and_datagrams() -> None:
    async def main() -> None:
        async with in_session(echo, protocols=["a", "b"]) as session:
            assert session.protocol == "a"
            for size in (1, 300_000):
                await echoes(session, pattern(size))

    run(main)


def test_in_asyncio() -> None:
    async def main() -> None:
        tls = TlsConfig.self_signed(["127.0.0.1"])
        async with (
            asyncio.timeout(PATIENCE_S),
            aio.open_stack(link="udp", config=QUIC) as stack,
            asgi.open_server(echo, OFF) as server,
        ):
            listening: asyncio.Future[aio.Listener] = asyncio.get_running_loop().create_future()
            uri = "quic://127.0.0.1:0"
            task = asyncio.create_task(
                server.serve(stack, uri, tls=tls, http3=CONFIG, listening=listening)
            )
            authority = f"127.0.0.1:{(await listening).local[1]}"
            async with (
                http3_aio.open_client(stack, authority, tls=TRUSTING, config=CONFIG) as client,
                await client.open_webtransport("/") as session,
            ):
                stream = await session.open_stream()
                stream.write(pattern(100_000))
                stream.write_eof()
                assert await stream.read() == pattern(100_000)
                await session.send_datagram(b"datagram")
                assert await session.receive_datagram() == b"datagram"
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())


def test_scopes_and_closes() -> None:
    seen: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)
        await send({**ACCEPT, "headers": [(b"x-a", b"1")]})
        await send({"type": "webtransport.close", "code": 7, "reason": "enough"})
        assert await receive() == {"type": "webtransport.connect"}
        seen.append(await receive())
        with pytest.raises(RuntimeError, match="nothing comes after"):
            await send({"type": "webtransport.datagram.send", "data": b""})

    async def main() -> None:
        async with in_session(application, "/a?b=c") as session:
            assert await session.wait_closed() == (7, "enough")
            await trio.sleep(1)

    run(main)
    scope, end = seen
    assert scope["type"] == "webtransport"
    assert (scope["path"], scope["query_string"]) == ("/a", b"b=c")
    assert scope["subprotocols"] == []
    assert end == {"type": "webtransport.disconnect", "code": 7, "reason": "enough"}


def test_a_client_that_closes() -> None:
    ends: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send(ACCEPT)
        while (message := await receive())["type"] != "webtransport.disconnect":
            pass
        ends.append(message)
        with pytest.raises(DisconnectedError):
            await send({"type": "webtransport.datagram.send", "data": b"late"})

    async def main() -> None:
        async with in_session(application) as session:
            await session.close(9, "bye")
            await trio.sleep(1)

    run(main)
    assert [(end["code"], end["reason"]) for end in ends] == [(9, "bye")]


def test_resets_and_stops_of_the_application() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send(ACCEPT)
        while (message := await receive())["type"] != "webtransport.disconnect":
            if message["type"] == "webtransport.stream.receive":
                number = message["stream"]
                await send({"type": "webtransport.stream.reset", "stream": number, "code": 3})
                await send({"type": "webtransport.stream.stop", "stream": number, "code": 4})

    async def main() -> None:
        async with in_session(application) as session, await session.open_stream() as stream:
            await stream.send_all(b"x")
            with pytest.raises(StreamResetError) as reset:
                await stream.receive_some()
            assert reset.value.code == 3
            await trio.sleep(1)
            with pytest.raises(StreamStoppedError) as stopped:
                await stream.send_all(b"x")
            assert stopped.value.code == 4

    run(main)


def test_resets_and_stops_of_the_client() -> None:
    told: dict[str, Any] = {}

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send(ACCEPT)
        while (message := await receive())["type"] != "webtransport.disconnect":
            told[message["type"]] = message.get("code")
            if message["type"] == "webtransport.stream.reset":
                await send({**message, "type": "webtransport.stream.send", "data": b"late"})

    async def main() -> None:
        async with in_session(application) as session:
            stream = await session.open_stream()
            await stream.send_all(b"x")
            await trio.sleep(1)
            stream.stop_sending(5)
            stream.reset(6)
            await trio.sleep(1)

    run(main)
    assert told["webtransport.stream.stop"] == 5
    assert told["webtransport.stream.reset"] == 6


def test_what_an_application_cannot_know_yet(caplog: pytest.LogCaptureFixture) -> None:
    """That the client has stopped a stream, or ended it: the message waits behind another one."""
    kinds: list[str] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send(ACCEPT)
        while (message := await receive())["type"] != "webtransport.disconnect":
            kinds.append(message["type"].removeprefix("webtransport."))
            if message.get("more_data"):
                await trio.sleep(2)
                await send({**message, "type": "webtransport.stream.send"})
                await send({"type": "webtransport.stream.stop", "stream": message["stream"]})

    async def main() -> None:
        async with in_session(application) as session:
            stream = await session.open_stream()
            await stream.send_all(b"a")
            await trio.sleep(1)
            stream.stop_sending()
            await stream.send_all(b"b")
            await stream.send_eof()
            await trio.sleep(20)

    run(main)
    assert kinds == ["connect", *["stream.receive"] * 3, "stream.stop"]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("how", ["files", "close", "returns", "raises", "out of order"])
def test_sessions_that_are_refused(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = StaticFiles(tmp_path)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if how == "files":
            await files(scope, receive, send)
        elif how == "close":
            await send({"type": "webtransport.close"})
        elif how == "raises":
            raise ValueError("no")
        elif how == "out of order":
            await send({"type": "webtransport.datagram.send", "data": b""})

    async def main() -> None:
        async with (
            serving(application, OFF, quic=QUIC, http3_config=CONFIG) as (_, stack),
            http3.open_client(stack, SERVER, tls=TRUSTING, config=CONFIG) as client,
        ):
            with pytest.raises(SessionRefusedError) as refused:
                await client.open_webtransport("/")
        assert refused.value.status == (403 if how in ("files", "close") else 500)

    run(main)
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == (how not in ("files", "close"))


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ({"type": "webtransport.stream.send", "stream": 40, "data": b""}, "nothing can be sent"),
        ({"type": "webtransport.datagram.send", "data": 1 << 40}, "`data` is bytes, not int"),
        ({"type": "webtransport.close", "code": 1 << 32}, "between 0 and"),
        ({"type": "webtransport.close", "code": "0"}, "`code` is an int"),
        ({"type": "webtransport.close", "reason": "x" * 1025}, "longer than 1024"),
    ],
)
def test_an_application_that_fails_in_a_session(
    message: Any, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send(ACCEPT)
        await send(message)

    async def main() -> None:
        async with in_session(application) as session:
            assert (await session.wait_closed()).code == 1011

    run(main)
    assert told in caplog.text


def test_a_client_that_stops_the_answer_to_its_session(caplog: pytest.LogCaptureFixture) -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep(1)
        await send(ACCEPT)

    async def main() -> None:
        async with (
            serving(application, OFF, quic=QUIC, http3_config=CONFIG) as (_, stack),
            http3.open_client(stack, SERVER, tls=TRUSTING, config=CONFIG) as client,
        ):
            fields = [("sec-webtransport-http3-draft02", "1")]
            request = await client.open("CONNECT", "/", fields, protocol="webtransport")
            request._stream.stop_sending(0x10C)
            await trio.sleep(2)

    run(main)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_slow_application_has_its_client_wait() -> None:
    held = trio.Event()
    received = 0

    async def application(scope: Any, receive: Any, send: Any) -> None:
        nonlocal received
        await send(ACCEPT)
        await held.wait()
        while (message := await receive())["type"] != "webtransport.disconnect":
            received += len(message.get("data", b""))

    async def main() -> None:
        config = AsgiConfig(lifespan="off", max_queued_messages=2)
        async with in_session(application, config=config) as session:
            stream = await session.open_stream()
            sent = 0
            with trio.move_on_after(5):
                while True:
                    await stream.send_all(bytes(65536))
                    sent += 65536
            assert sent < 16 << 20
            held.set()
            await trio.sleep(5)
            assert received >= sent

    run(main)


def test_a_server_that_ends_says_so() -> None:
    async def main() -> None:
        async with (
            serving(echo, OFF, quic=QUIC, http3_config=CONFIG) as (server, stack),
            http3.open_client(stack, SERVER, tls=TRUSTING, config=CONFIG) as client,
            await client.open_webtransport("/") as session,
        ):
            server.shut_down()
            assert (await session.wait_closed()).code == 1012

    run(main)
