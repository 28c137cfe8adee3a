"""GOAWAY, and what ends with a connection."""

from __future__ import annotations

from typing import Any

import pytest
import trio

import hoststack
from hoststack import Connection, ConnectionClosedError, http3
from hoststack.http3 import ErrorCode, GoingAwayError, Http3Config
from tests.http3.peers import (
    REQUEST,
    SERVER,
    TRUSTING,
    ask,
    closed,
    code_of_reset,
    frame,
    greet,
    number,
    raw_server,
    run,
    section,
    serving,
    settings,
    unidirectional,
)

Requests = list[http3.Request]


def going(config: Http3Config, connections: list[http3.ServerConnection], delay_s: float) -> Any:
    """A server of connections that answers after a delay."""

    async def serve(connection: Connection) -> None:
        async def answer(request: http3.Request) -> None:
            async with request:
                await trio.sleep(delay_s)
                await request.respond(200)

        async with (
            http3.serve_connection(connection, config) as http,
            trio.open_nursery() as nursery,
        ):
            connections.append(http)
            async for request in http:
                nursery.start_soon(answer, request)

    return serve


def test_a_graceful_shutdown() -> None:
    connections: list[http3.ServerConnection] = []

    async def main() -> None:
        async with raw_server(going(Http3Config(), connections, 5)) as client:
            results: list[Any] = []

            async def one() -> None:
                try:
                    results.append((await client.request("GET", "/")).status)
                except GoingAwayError:
                    results.append("going")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(one)
                await trio.sleep(1)
                connections[0].shut_down()
                connections[0].shut_down()
                await client.wait_going_away()
                assert client.is_going_away
                nursery.start_soon(one)
            assert sorted(map(str, results)) == ["200", "going"]
            info = await client.connection.wait_closed()
            assert (info.code, info.is_application, info.by_peer) == (0x100, True, True)

    run(main)


def test_requests_after_the_last_goaway_are_rejected() -> None:
    connections: list[http3.ServerConnection] = []

    async def main() -> None:
        serve = going(Http3Config(drain_seconds=1), connections, 20)
        async with raw_server(serve) as client:
            connection = client.connection
            ask_directly = client._layer
            assert ask_directly is not None
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.request, "GET", "/")
                await trio.sleep(1)
                connections[0].shut_down()
                await trio.sleep(0.2)
                # on its way when the first GOAWAY arrived: still accepted
                early = await ask(connection, section(REQUEST))
                await trio.sleep(3)
                late = await ask(connection, section(REQUEST))
                assert await code_of_reset(late) == ErrorCode.REQUEST_REJECTED
                assert await early.receive_some()

    run(main)


def test_requests_that_a_server_has_not_processed() -> None:
    """Those at and above the identifier are safe to repeat; those below it go on."""

    async def serve(connection: Connection) -> None:
        control = await unidirectional(connection, b"\x00" + settings())
        streams = []
        async for stream in connection.streams():
            if stream.stream_id % 4 == 0:
                streams.append(stream)
            if len(streams) == 3:
                break
        streams.sort(key=lambda stream: stream.stream_id)
        await control.send_all(frame(0x07, number(4)))
        await trio.sleep(1)
        await streams[0].send_all(section([(b":status", b"200")]))
        await streams[0].send_eof()
        await closed(connection)

    async def main() -> None:
        results: dict[int, Any] = {}
        async with raw_server(serve) as client:

            async def one(index: int) -> None:
                try:
                    results[index] = (await client.request("GET", "/")).status
                except GoingAwayError as error:
                    results[index] = error.code

            async with trio.open_nursery() as nursery:
                for index in range(3):
                    nursery.start_soon(one, index)
            assert sorted(results.values()) == [200, 0x10B, 0x10B]
            with pytest.raises(GoingAwayError):
                await client.request("GET", "/")

    run(main)


def test_what_ends_with_the_connection() -> None:
    async def serve(connection: Connection) -> None:
        await greet(connection)
        await trio.sleep(1)
        connection.close_now(0x107, "go")
        await closed(connection)

    async def main() -> None:
        async with raw_server(serve) as client:
            with pytest.raises(ConnectionClosedError):
                await client.request("GET", "/")
            with pytest.raises(trio.BrokenResourceError):
                await client.request("GET", "/")

    run(main)


def test_a_servers_iteration_ends_with_its_client() -> None:
    ends: list[str] = []

    async def serve(connection: Connection) -> None:
        try:
            async with http3.serve_connection(connection) as http:
                async for request in http:
                    async with request:
                        await request.respond(200)
            ends.append("clean")
        except ConnectionClosedError as error:
            ends.append(f"{error.code:#x}")

    async def main() -> None:
        for code in (0x100, 0x102):
            async with raw_server(serve) as client:
                assert (await client.request("GET", "/")).status == 200
                client.close_now(code)
                await trio.sleep(1)

    run(main)
    assert ends == ["clean", "0x102"]


@pytest.mark.parametrize("code", [0, ErrorCode.NO_ERROR, 5])
@pytest.mark.parametrize("awaits", [False, True])
def test_a_handler_that_closes_its_connection_ends_no_other(code: int, *, awaits: bool) -> None:
    async def handler(request: http3.Request) -> None:
        if request.path == b"/close":
            if awaits:
                await request.connection.aclose(code)
            else:
                request.connection.close_now(code)
        else:
            await request.respond(200)

    async def main() -> None:
        async with serving(handler) as stack:
            for path in ("/close", "/", "/close"):
                async with http3.open_client(stack, SERVER, tls=TRUSTING) as client:
                    if path == "/":
                        assert (await client.request("GET", path)).status == 200
                    else:
                        with pytest.raises(ConnectionClosedError):
                            await client.request("GET", path)

    run(main)


def test_names_of_servers() -> None:
    from hoststack.http3.about_client import with_port

    assert with_port("example.com") == "example.com:443"
    assert with_port("example.com:1") == "example.com:1"
    assert with_port("[::1]") == "[::1]:443"
    assert with_port("[::1]:5") == "[::1]:5"
    assert hoststack.TlsConfig.self_signed([SERVER]) is not None
