"""What is different in asyncio: tasks, cancellation, the end of a server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, TextMessage

from hoststack import ListenError, TlsConfig, aio, asgi
from hoststack.asgi import ApplicationError, AsgiConfig
from hoststack.http3 import aio as http3_aio
from tests.asgi.serving import answering, serving_in_asyncio

OFF = AsgiConfig(lifespan="off", answer_seconds=1)
STARTED = {"type": "lifespan.startup.complete"}


async def page(client: http3_aio.ClientConnection, path: str) -> tuple[int | None, bytes]:
    async with await client.request("GET", path) as response:
        return response.status, await response.read()


def test_applications_that_fail_hang_and_cancel_themselves(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ends: list[str] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        match scope["path"]:
            case "/hangs":
                try:
                    await asyncio.sleep(1000)
                except asyncio.CancelledError:
                    ends.append("cancelled")
                    raise
            case "/fails":
                raise KeyError("a bug")
            case "/cancels":
                raise asyncio.CancelledError
            case "/parallel":  # as frameworks stream: they receive in another task
                listening = asyncio.create_task(receive_all(receive))
                await answering(b"a", b"b")(scope, receive, send)
                ends.append(await listening)
            case _:
                await answering(b"x")(scope, receive, send)

    async def receive_all(receive: Any) -> str:
        kind = ""
        while kind != "http.disconnect":
            kind = (await receive())["type"]
        return kind

    async def main() -> None:
        async with serving_in_asyncio(application, OFF) as (server, client):
            pages = await asyncio.gather(
                *(
                    page(client, f"/{name}")
                    for name in ("hangs", "fails", "cancels", "parallel", "")
                )
            )
            assert [status for status, _ in pages] == [504, 500, 500, 200, 200]
            assert pages[3][1] == b"ab"
            await server._until_idle()
            assert sorted(ends) == ["cancelled", "http.disconnect"]
            assert server.statistics.requests == 5
            assert server.statistics.errors == 3

    asyncio.run(main())
    assert "a bug" in caplog.text


def test_a_websocket() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"] * 2})

    async def main() -> None:
        frames = Connection(ConnectionType.CLIENT)
        version = [("sec-websocket-version", "13")]
        async with (
            serving_in_asyncio(application, OFF) as (_, client),
            await client.open("CONNECT", "/", version, protocol="websocket") as response,
        ):
            await response.send_all(frames.send(TextMessage("ab")))
            frames.receive_data(await response.receive_some())
            assert [event.data for event in frames.events()] == ["abab"]  # type: ignore[attr-defined]
            await response.send_all(frames.send(CloseConnection(1000)))
            frames.receive_data(await response.receive_some())
            assert [type(event) for event in frames.events()] == [CloseConnection]

    asyncio.run(main())


def test_a_graceful_end() -> None:
    events: list[str] = []
    began, is_leaving = asyncio.Event(), asyncio.Event()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send(STARTED)
            await receive()
            events.append("shutdown")
            await send({"type": "lifespan.shutdown.complete"})
            return
        began.set()
        await is_leaving.wait()
        await answering(b"whole")(scope, receive, send)
        events.append("request")

    async def main() -> None:
        async with serving_in_asyncio(application) as (server, client):
            asked = asyncio.create_task(page(client, "/"))
            await began.wait()
            server.shut_down()
            is_leaving.set()
            assert await asked == (200, b"whole")
            await client.connection.wait_closed()
        assert events == ["request", "shutdown"]

    asyncio.run(main())


def test_what_keeps_a_server_from_starting() -> None:
    async def failing(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    async def main() -> None:
        tls = TlsConfig.self_signed(["127.0.0.1"])
        async with aio.open_stack(link="udp") as stack:
            with pytest.raises(ApplicationError, match="no database"):
                await asgi.serve(failing, stack, "quic://127.0.0.1:0", tls=tls)
            with pytest.raises(OSError, match="tcp has no TLS here"):
                await asgi.serve(answering(b""), stack, "tcp://127.0.0.1:0", tls=tls)
            with pytest.raises(ListenError):
                await asgi.serve(answering(b""), stack, "quic://192.0.2.1:0", tls=tls)

    asyncio.run(main())
