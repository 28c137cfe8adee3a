"""A server and clients over the memory link, and peers that write what they want."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import pylsqpack
import trio
import trio.testing

import hoststack
from hoststack import (
    CloseInfo,
    Connection,
    QuicConfig,
    SendStream,
    Stack,
    Stream,
    StreamResetError,
    TlsConfig,
    http3,
)
from hoststack.link.memory import MemoryNetwork

SERVER, CLIENT = "10.0.0.1", "10.0.0.2"
URI: Final = f"quic://{SERVER}:443"
TRUSTING: Final = TlsConfig(verify=False)
#: Of a test, by the clock that jumps: a deadline that is only reached when something hangs.
PATIENCE_S: Final = 300
SMALL: Final = QuicConfig(rx_fifo_bytes=4096, tx_fifo_bytes=4096)

Handler = Callable[[http3.Request], Awaitable[object]]
Body = Callable[[], Coroutine[Any, Any, None]]


def run(main: Body, *, patience_s: float = 0) -> None:
    """Run a test in trio, on a clock that jumps when nothing has happened for so long: also while a
    thread works, as for keys."""

    async def limited() -> None:
        with trio.fail_after(PATIENCE_S):
            await main()

    trio.run(limited, clock=trio.testing.MockClock(autojump_threshold=patience_s))


async def hello(request: http3.Request) -> None:
    await request.respond(200, [], b"hello")


@asynccontextmanager
async def serving(
    handler: Handler = hello,
    config: http3.Http3Config | None = None,
    *,
    quic: QuicConfig | None = None,
    client_quic: QuicConfig | None = None,
    **impairments: Any,
) -> AsyncIterator[Stack]:
    """The stack of a client that reaches a server with this handler."""
    network = MemoryNetwork(**impairments)
    tls = TlsConfig.self_signed([SERVER])
    async with (
        hoststack.open_stack(link=network.link(SERVER), config=quic) as server,
        hoststack.open_stack(link=network.link(CLIENT), config=client_quic or quic) as stack,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(partial(http3.serve, server, URI, handler, tls=tls, config=config))
        yield stack
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def talking(
    handler: Handler = hello, config: http3.Http3Config | None = None, **options: Any
) -> AsyncIterator[http3.ClientConnection]:
    """A client of a server with this handler."""
    async with (
        serving(handler, config, **options) as stack,
        http3.open_client(stack, SERVER, tls=TRUSTING, config=config) as client,
    ):
        yield client


# --- peers of our own making ----------------------------------------------------------------------


def number(value: int) -> bytes:
    """A variable-length integer."""
    for shift, size in enumerate((1, 2, 4, 8)):
        if value < 1 << (8 * size - 2):
            return (value | shift << (8 * size - 2)).to_bytes(size)
    raise AssertionError


def frame(kind: int, payload: bytes = b"") -> bytes:
    return number(kind) + number(len(payload)) + payload


def settings(*pairs: tuple[int, int]) -> bytes:
    return frame(0x04, b"".join(number(key) + number(value) for key, value in pairs))


def section(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A HEADERS frame, compressed with the static table alone."""
    return frame(0x01, pylsqpack.Encoder().encode(0, list(fields))[1])


REQUEST: Final = (
    (b":method", b"GET"),
    (b":scheme", b"https"),
    (b":authority", SERVER.encode()),
    (b":path", b"/"),
)
POST: Final = ((b":method", b"POST"), *REQUEST[1:])
RESPONSE: Final = ((b":status", b"200"),)


async def unidirectional(connection: Connection, data: bytes) -> SendStream:
    stream = await connection.open_stream(unidirectional=True)
    await stream.send_all(data)
    return stream


async def greet(connection: Connection, *pairs: tuple[int, int]) -> SendStream:
    """Open the critical streams; returns the control stream."""
    control = await unidirectional(connection, b"\x00" + settings(*pairs))
    await unidirectional(connection, b"\x02")
    await unidirectional(connection, b"\x03")
    return control


@asynccontextmanager
async def raw_client(
    handler: Handler = hello, config: http3.Http3Config | None = None, **options: Any
) -> AsyncIterator[Connection]:
    """A connection to a server, on which a test writes what it wants."""
    async with (
        serving(handler, config, **options) as stack,
        stack.connect(URI, tls=TRUSTING, alpn=["h3"]) as connection,
    ):
        yield connection


async def ask(connection: Connection, data: bytes, *, is_end: bool = True) -> Stream:
    """Send something on a new request stream."""
    stream = await connection.open_stream()
    await stream.send_all(data)
    if is_end:
        await stream.send_eof()
    return stream


async def code_of_reset(stream: Stream) -> int:
    """The code that the peer resets a stream with."""
    try:
        while await stream.receive_some():
            pass
    except StreamResetError as error:
        return error.code
    raise AssertionError("the stream ended, and was not reset")


async def is_alive(connection: Connection) -> bool:
    """Whether a request on this connection is answered."""
    stream = await ask(connection, section(REQUEST))
    return bool(await stream.receive_some())


Server = Callable[[Connection], Awaitable[object]]


@asynccontextmanager
async def raw_server(serve: Server, **options: Any) -> AsyncIterator[http3.ClientConnection]:
    """A client of a server that writes what it wants."""
    network = MemoryNetwork()
    tls = TlsConfig.self_signed([SERVER])
    config, quic = options.pop("config", None), options.pop("quic", None)
    async with (
        hoststack.open_stack(link=network.link(SERVER), config=quic, **options) as server,
        hoststack.open_stack(link=network.link(CLIENT), config=quic, **options) as stack,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(partial(server.serve, URI, serve, tls=tls, alpn=["h3"]))
        async with http3.open_client(stack, SERVER, tls=TRUSTING, config=config) as client:
            yield client
        nursery.cancel_scope.cancel()


async def closed(connection: Connection) -> CloseInfo:
    return await connection.wait_closed()


def pattern(size_bytes: int) -> bytes:
    return (bytes(range(251)) * (size_bytes // 251 + 1))[:size_bytes]


def chunks(data: bytes, size_bytes: int) -> Sequence[bytes]:
    return [data[at : at + size_bytes] for at in range(0, len(data), size_bytes)]
