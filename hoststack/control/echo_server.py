"""`test echo server`: an internal application that sends received data back."""

from __future__ import annotations

import logging
from functools import partial
from typing import Final

import trio

from hoststack.api.connection import Connection
from hoststack.api.errors import ListenError, UriError
from hoststack.api.listener import Listener
from hoststack.api.stream import ReceiveStream, Stream
from hoststack.boundary.containment import contained, fault_text
from hoststack.boundary.protocols import PROTOCOLS
from hoststack.boundary.uri import parse_uri
from hoststack.control.commands import ECHO_ALPN, ECHO_PROTOCOLS
from hoststack.control.grammar import Command, CommandError
from hoststack.control.settings import echo_config
from hoststack.control.worker_side import Data, Server, WorkerSide
from hoststack.quic.tls import TlsConfig

logger = logging.getLogger(__name__)

_BUFFER_BYTES: Final = 64 << 10


async def test_echo_server(command: Command, side: WorkerSide) -> Data:
    """Start an echo server, or stop them."""
    if command.arguments.get("stop"):
        return await _stop(side, command)
    return await _start(side, command)


async def _start(side: WorkerSide, command: Command) -> Data:
    arguments = command.arguments
    uri = str(arguments["uri"])
    no_echo = bool(arguments.get("no_echo"))
    parsed = parse_uri(uri, ECHO_PROTOCOLS)
    features = PROTOCOLS[parsed.scheme]
    if features.is_kernels and side.index:
        # One worker owns the kernel's port; clients can connect from all workers.
        return {"left_out": True}
    if uri in side.servers:
        raise CommandError(
            f"there is an echo server on {uri} already: `test echo server stop uri {uri}` ends it"
        )
    if side.workers > 1 and not (features.is_kernels or parsed.port):
        raise CommandError(f"{uri}: each worker would use another port: name one")
    config = echo_config(command, side, parsed.scheme)
    try:
        tls = TlsConfig.self_signed(["localhost"]) if features.tls else None
        alpn = ECHO_ALPN if features.tls else ()
        listener = await side.stack("echo_server").listen(uri, tls=tls, alpn=alpn, config=config)
    except (ListenError, UriError) as error:
        raise CommandError(getattr(error, "strerror", None) or str(error)) from None
    server = side.servers[uri] = Server(listener.local)
    side.nursery.start_soon(_serve, side, uri, server, listener, no_echo)
    return {"uri": uri, "local": list(listener.local), "echo": not no_echo}


async def _stop(side: WorkerSide, command: Command) -> Data:
    wanted = command.arguments.get("uri")
    stopped = [uri for uri in side.servers if wanted in (None, uri)]
    for uri in stopped:
        server = side.servers[uri]
        server.scope.cancel()
        await server.ended.wait()
    return {"stopped": stopped, "running": list(side.servers)}


async def _serve(
    side: WorkerSide, uri: str, server: Server, listener: Listener, no_echo: bool
) -> None:
    try:
        with contained(partial(_log_end, uri)), server.scope:
            async with listener, trio.open_nursery() as nursery:
                while True:
                    nursery.start_soon(_serve_connection, await listener.accept(), no_echo)
    finally:
        del side.servers[uri]
        server.ended.set()


def _log_end(uri: str, error: Exception) -> None:
    """Log why a server ended, its interface was deleted for example; the worker runs on."""
    logger.error("the echo server on %s has ended: %s", uri, fault_text(error))


async def _serve_connection(connection: Connection, no_echo: bool) -> None:
    async with connection:
        try:
            async with trio.open_nursery() as nursery:
                async for stream in connection.streams():
                    nursery.start_soon(_serve_stream, stream, no_echo)
        except* trio.BrokenResourceError:
            pass  # It ended with another code than 0, which the client reports.


async def _serve_stream(stream: Stream | ReceiveStream, no_echo: bool) -> None:
    echo = stream if isinstance(stream, Stream) and not no_echo else None
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    try:
        async with stream:
            while size := await stream.receive_into(buffer):
                if echo is not None:
                    await echo.send_all(buffer[:size])
    except trio.BrokenResourceError:
        pass  # The client has reset it, or is gone.
