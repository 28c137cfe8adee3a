"""WebSockets of applications, over extended CONNECT (RFC 9220)."""

from __future__ import annotations

import logging
import sys
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage
from wsproto.extensions import PerMessageDeflate

from hoststack import StreamStoppedError, http3
from hoststack.asgi import AsgiConfig, DisconnectedError
from hoststack.asgi.websocket import WebSocketExchange
from tests.asgi.serving import SERVER, run, serving, talking
from tests.http3.peers import SMALL, TRUSTING

OFF = AsgiConfig(lifespan="off")
ACCEPT = {"type": "websocket.accept"}
VERSION = ("sec-websocket-version", "13")


class Peer:
    """A client's WebSocket."""

    def __init__(self, response: http3.Response, extensions: list[Any]) -> None:
        self.response = response
        self.frames = Connection(ConnectionType.CLIENT, extensions)
        self.events: list[Event] = []

    async def send(self, event: Event) -> None:
        await self.response.send_all(self.frames.send(event))

    async def next(self) -> Any:
        """The next frame; None at the end."""
        while not self.events:
            data = await self.response.receive_some()
            if not data:
                return None
            self.frames.receive_data(data)
            self.events += self.frames.events()
        return self.events.pop(0)


@asynccontextmanager
async def open_websocket(
    client: http3.ClientConnection, path: str = "/", *headers: tuple[str, str], deflate: Any = None
) -> AsyncIterator[Peer]:
    all_headers = [VERSION, *headers]
    if deflate is not None:
        offer = f"{deflate.name}; {deflate.offer()}"
        all_headers.append(("sec-websocket-extensions", offer))
    response = await client.open("CONNECT", path, all_headers, protocol="websocket")
    async with response:
        await response.wait_headers()
        if deflate is not None:
            deflate.finalize((response.header("sec-websocket-extensions") or b"").decode())
        yield Peer(response, [deflate] if deflate else [])


async def echo(scope: Any, receive: Any, send: Any) -> None:
    assert (await receive())["type"] == "websocket.connect"
    await send({**ACCEPT, "subprotocol": next(iter(scope["subprotocols"]), None)})
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})


def test_messages_both_ways() -> None:
    async def main() -> None:
        async with (
            talking(echo, OFF) as client,
            open_websocket(client, "/", ("sec-websocket-protocol", "a, b")) as peer,
        ):
            assert peer.response.status == 200
            assert peer.response.header("sec-websocket-protocol") == b"a"
            await peer.send(TextMessage("é"))
            assert (await peer.next()).data == "é"
            await peer.send(BytesMessage(b"\0\xff"))
            assert (await peer.next()).data == b"\0\xff"
            await peer.send(TextMessage("in ", message_finished=False))
            await peer.send(TextMessage("parts"))
            assert (await peer.next()).data == "in parts"
            await peer.send(Ping(b"payload"))
            assert await peer.next() == Pong(b"payload")
            await peer.send(CloseConnection(1001, "leaving"))
            assert (await peer.next()).code == 1001
            assert await peer.next() is None

    run(main)


def test_scopes() -> None:
    seen: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)
        await send({**ACCEPT, "headers": [(b"x-a", b"1"), (b"sec-websocket-accept", b"no")]})
        await send({"type": "websocket.close", "code": 4000, "reason": "é" * 100})
        assert await receive() == {"type": "websocket.connect"}
        message = await receive()
        assert (message["type"], message["code"]) == ("websocket.disconnect", 4000)

    async def main() -> None:
        async with (
            talking(application, OFF) as client,
            open_websocket(client, "/a?b=c") as peer,
        ):
            assert peer.response.header("x-a") == b"1"
            assert peer.response.header("sec-websocket-accept") is None
            closed = await peer.next()
            assert (closed.code, closed.reason) == (4000, "é" * 61)
            await peer.send(closed.response())
            assert await peer.next() is None
        [scope] = seen
        assert (scope["type"], scope["scheme"], scope["http_version"]) == ("websocket", "wss", "3")
        assert (scope["path"], scope["query_string"], scope["subprotocols"]) == ("/a", b"b=c", [])
        assert scope["headers"] == [(b"host", b"10.0.0.1"), (b"sec-websocket-version", b"13")]

    run(main)


def test_denials() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        kind = "websocket.http.response"
        if scope["path"] == "/close":
            await send({"type": "websocket.close"})
        else:
            assert kind in scope["extensions"]
            await send({"type": f"{kind}.start", "status": 401, "headers": [(b"x-a", b"1")]})
            await send({"type": f"{kind}.body", "body": b"not ", "more_body": True})
            await send({"type": f"{kind}.body", "body": b"you"})
        with pytest.raises(RuntimeError, match="closed, and nothing comes after"):
            await send(ACCEPT)
        await receive()
        assert (await receive())["type"] == "websocket.disconnect"

    async def main() -> None:
        async with talking(application, OFF) as client:
            async with open_websocket(client, "/close") as peer:
                assert peer.response.status == 403
            async with open_websocket(client) as peer:
                assert (peer.response.status, peer.response.header("x-a")) == (401, b"1")
                assert await peer.response.read() == b"not you"

    run(main)


@pytest.mark.parametrize("version", [[], [("sec-websocket-version", "8")], [VERSION, VERSION]])
def test_versions(version: list[tuple[str, str]]) -> None:
    async def main() -> None:
        async with talking(echo, OFF) as client:
            response = await client.open("CONNECT", "/", version, protocol="websocket")
            await response.wait_headers()
            assert response.status == 400
            assert response.header("sec-websocket-version") == b"13"

    run(main)


def test_compression() -> None:
    async def main() -> None:
        async with talking(echo, OFF) as client:
            async with open_websocket(client, deflate=PerMessageDeflate()) as peer:
                for text in ("a" * 100_000, "b"):
                    await peer.send(TextMessage(text))
                    received = ""
                    while len(received) < len(text):
                        received += (await peer.next()).data
                    assert received == text
            for offer in ("permessage-deflate; client_max_window_bits=x", "x", ", ;", "\xff"):
                headers = ("sec-websocket-extensions", offer)
                async with open_websocket(client, "/", headers) as peer:
                    assert peer.response.header("sec-websocket-extensions") is None
                    await peer.send(TextMessage("plain"))
                    assert (await peer.next()).data == "plain"

    run(main)


def _raw(
    opcode: int, payload: bytes, *, fin: bool = True, rsv1: bool = False, mask: bool = True
) -> bytes:
    """A frame (RFC 6455 section 5.2), masked with zeros."""
    first = fin << 7 | rsv1 << 6 | opcode
    bit = 0x80 if mask else 0
    size = len(payload)
    if size < 126:
        length = bytes([bit | size])
    elif size < 1 << 16:
        length = bytes([bit | 126]) + size.to_bytes(2)
    else:
        length = bytes([bit | 127]) + size.to_bytes(8)
    return bytes([first]) + length + (bytes(4) if mask else b"") + payload


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (_raw(1, b"\xff"), 1007),
        (_raw(3, b""), 1002),
        (_raw(0, b"x"), 1002),
        (_raw(1, b"x", mask=False), 1002),
        (_raw(1, b"x", rsv1=True), 1002),
        (_raw(9, bytes(126)), 1002),
        (_raw(9, b"", fin=False), 1002),
        (_raw(8, b"x"), 1002),
        (_raw(8, (999).to_bytes(2)), 1002),
        (_raw(8, (1000).to_bytes(2) + b"\xff"), 1007),
        (_raw(1, b"a", fin=False) + _raw(1, b"b"), 1002),
        (_raw(2, bytes(5000)), 1009),
        (_raw(1, "\N{EURO SIGN}".encode() * 2000), 1009),
        (_raw(2, bytes(3000), fin=False) + _raw(0, bytes(3000)), 1009),
        (b"\x82\xff" + (1 << 62).to_bytes(8) + bytes(4) + bytes(6000), 1009),
    ],
)
def test_frames_against_the_rules(data: bytes, code: int) -> None:
    ends: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        ends.append(await receive())

    async def main() -> None:
        async with (
            talking(application, AsgiConfig(lifespan="off", max_message_bytes=4000)) as client,
            open_websocket(client) as peer,
        ):
            await peer.response.send_all(data)
            assert (await peer.next()).code == code
        [end] = ends
        assert (end["type"], end["code"]) == ("websocket.disconnect", code)

    run(main)


def test_a_message_in_many_frames() -> None:
    frames = _raw(2, b"", fin=False) + (_raw(0, b"", fin=False) + _raw(0, b"x", fin=False)) * 2000
    held: list[int] = []

    async def main() -> None:
        async with (
            serving(echo, AsgiConfig(lifespan="off", max_message_bytes=2001)) as (server, stack),
            http3.open_client(stack, SERVER, tls=TRUSTING) as client,
            open_websocket(client) as peer,
        ):
            await peer.response.send_all(frames)
            await trio.sleep(1)
            [exchange] = server.running
            assert isinstance(exchange, WebSocketExchange)
            assert exchange._part is not None
            held.append(sys.getsizeof(exchange._part))
            await peer.response.send_all(_raw(0, b"y"))
            assert (await peer.next()).data == b"x" * 2000 + b"y"
        assert held[0] < 10_000

    run(main)


def test_a_ping_while_a_close_frame_waits(caplog: pytest.LogCaptureFixture) -> None:
    """The client reads nothing, so that the pong comes behind the application's close frame."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send(ACCEPT)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, {"type": "websocket.send", "bytes": bytes(100_000)})
            await trio.testing.wait_all_tasks_blocked()
            await send({"type": "websocket.close"})

    async def main() -> None:
        async with talking(application, OFF, quic=SMALL) as client:
            async with open_websocket(client) as peer:
                await trio.sleep(1)
                await peer.send(Ping())
                await trio.sleep(1)
                while not isinstance(event := await peer.next(), CloseConnection):
                    assert isinstance(event, BytesMessage)
                assert event.code == 1000
            async with open_websocket(client):  # the server is there
                pass

    run(main)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_compressed_bomb() -> None:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = b"".join(compressor.compress(bytes(1 << 20)) for _ in range(64))
    bomb += compressor.flush(zlib.Z_SYNC_FLUSH)

    async def main() -> None:
        async with (
            talking(echo, AsgiConfig(lifespan="off", max_message_bytes=1 << 20)) as client,
            open_websocket(client, deflate=PerMessageDeflate()) as peer,
        ):
            await peer.response.send_all(_raw(2, bomb, rsv1=True))
            assert (await peer.next()).code == 1009

    run(main)


@pytest.mark.parametrize("how", ["reset", "end", "close"])
def test_clients_that_leave_without_a_close_frame(how: str) -> None:
    ends: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        ends.append(await receive())
        with pytest.raises(DisconnectedError):
            await send({"type": "websocket.send", "text": "x"})
        ends.append(await receive())

    async def main() -> None:
        async with talking(application, OFF) as client:
            async with open_websocket(client) as peer:
                if how == "reset":
                    peer.response.reset()
                elif how == "end":
                    await peer.response.send_eof()
            await trio.sleep(1)
        assert [each["code"] for each in ends] == [1006, 1006]

    run(main)


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([{"type": "websocket.send", "text": "x"}], "comes first"),
        ([{"type": "http.response.start", "status": 200}], "comes first"),
        ([], "returned without an answer"),
        ([{**ACCEPT, "subprotocol": "a\nb"}], "characters"),
        ([{**ACCEPT, "headers": 5}], "pairs of bytes"),
    ],
)
def test_what_is_invalid_before_it_is_open(
    messages: list[Any], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)

    async def main() -> None:
        async with talking(application, OFF) as client, open_websocket(client) as peer:
            assert peer.response.status == 500

    run(main)
    assert told in caplog.text


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (ACCEPT, "websocket.send or websocket.close comes next"),
        ({"type": "websocket.send"}, "either `bytes` or `text`"),
        ({"type": "websocket.send", "text": b"x"}, "either `bytes` or `text`"),
        ({"type": "websocket.send", "bytes": "x"}, "not str"),
        ({"type": "websocket.send", "bytes": 1 << 40}, "not int"),
        ({"type": "websocket.close", "code": 5}, "1000 to 4999"),
        ({"type": "websocket.close", "code": 70_000}, "1000 to 4999"),
        ({"type": "websocket.close", "code": "1000"}, "`code` is an int"),
        ({"type": "websocket.close", "reason": b"x"}, "`reason` a str"),
        ({"type": "websocket.close", "reason": "\ud800"}, "surrogates"),
    ],
)
def test_what_is_invalid_when_it_is_open(
    message: Any, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send(ACCEPT)
        await send(message)

    async def main() -> None:
        async with talking(application, OFF) as client, open_websocket(client) as peer:
            closed = await peer.next()
            assert closed.code == 1011
            await peer.send(closed.response())
            assert await peer.next() is None

    run(main)
    assert told in caplog.text


def test_an_application_that_returns_closes_its_websocket() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send(ACCEPT)

    async def main() -> None:
        async with talking(application, OFF) as client, open_websocket(client) as peer:
            assert (await peer.next()).code == 1000  # and the client sends no close frame
            assert await peer.next() is None
            await trio.sleep(6)
            with pytest.raises(StreamStoppedError):
                await peer.response.send_all(b"x")

    run(main)


def test_pings_of_a_client_that_is_gone() -> None:
    ends: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        ends.append(await receive())

    async def main() -> None:
        config = AsgiConfig(lifespan="off", ping_seconds=2)
        async with talking(application, config) as client, open_websocket(client) as peer:
            for _ in range(2):
                ping = await peer.next()
                assert isinstance(ping, Ping)
                await peer.send(ping.response())
            assert isinstance(await peer.next(), Ping)
            assert (await peer.next()).code == 1011
        assert [each["code"] for each in ends] == [1011]

    run(main)


def test_an_application_that_does_not_receive_stops_its_client() -> None:
    sent = 0

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send(ACCEPT)
        await trio.sleep_forever()

    async def main() -> None:
        nonlocal sent
        config = AsgiConfig(lifespan="off", max_queued_messages=3)
        async with (
            talking(application, config, quic=SMALL) as client,
            open_websocket(client) as peer,
        ):
            with trio.move_on_after(5):
                while True:
                    await peer.send(BytesMessage(bytes(1000)))
                    sent += 1000
        assert 3000 <= sent < 64_000

    run(main)


def test_a_server_that_ends_closes_websockets() -> None:
    ends: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        ends.append(await receive())

    async def main() -> None:
        async with (
            serving(application, OFF) as (server, stack),
            http3.open_client(stack, SERVER, tls=TRUSTING) as client,
            open_websocket(client) as peer,
        ):
            server.shut_down()
            closed = await peer.next()
            assert closed.code == 1012
            await peer.send(closed.response())
            assert await peer.next() is None
            await server._until_idle()
        assert [each["code"] for each in ends] == [1012]

    run(main)


def test_without_wsproto(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("hoststack.asgi.core._websocket_exchange", lambda: None)

    async def main() -> None:
        async with talking(echo, OFF) as client:
            for _ in range(2):
                async with open_websocket(client) as peer:
                    assert peer.response.status == 501

    run(main)
    assert caplog.text.count("pip install hoststack[asgi]") == 1
