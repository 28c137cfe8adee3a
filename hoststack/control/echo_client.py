"""`test echo clients`: internal applications that connect, send, and measure."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Final

import trio

from hoststack.api.connection import Connection
from hoststack.api.errors import ConnectError, UriError
from hoststack.api.stream import SendStream, Stream
from hoststack.boundary.protocols import PROTOCOLS
from hoststack.boundary.uri import parse_uri
from hoststack.control.commands import ECHO_ALPN, ECHO_PROTOCOLS
from hoststack.control.grammar import Command, CommandError
from hoststack.control.settings import echo_config
from hoststack.control.worker_side import Data, WorkerSide
from hoststack.quic.tls import TlsConfig

#: Concurrent handshakes; more would time out in each other's queue.
_SIMULTANEOUS_CONNECTS: Final = 32
_BUFFER_BYTES: Final = 64 << 10
#: The byte at offset i of a stream is i modulo 256, as in VPP.
_PATTERN: Final = bytes(range(256)) * (_BUFFER_BYTES // 256 + 1)

# VPP's defaults.
_DEFAULT_BYTES: Final = 8192
_DEFAULT_TIMEOUT_S: Final = 20.0


async def test_echo_clients(command: Command, side: WorkerSide) -> Data:
    """Run this worker's share of the clients; they send when all of them are connected."""
    wanted = int(command.arguments.get("clients", 1))
    share = wanted // side.workers + (side.index < wanted % side.workers)
    return await _Test(command, side, share).run()


class _Test:
    """The clients of one worker."""

    def __init__(self, command: Command, side: WorkerSide, clients: int) -> None:
        arguments = command.arguments
        self._uri = str(arguments["uri"])
        protocol = parse_uri(self._uri, ECHO_PROTOCOLS).scheme
        self._features = PROTOCOLS[protocol]
        self._clients = clients
        self._streams = int(arguments.get("streams", 1))
        if self._features.streams == "one" and self._streams > 1:
            raise CommandError(
                f"{self._uri}: such a connection is one stream: use nclients {self._streams}, and "
                "leave out streams"
            )
        self._bytes = int(arguments.get("bytes", _DEFAULT_BYTES))
        self._checks = bool(arguments.get("check"))
        self._returns = not arguments.get("no_return")
        self._connect_timeout_s = float(arguments.get("connect_timeout_s", _DEFAULT_TIMEOUT_S))
        self._test_timeout_s = float(arguments.get("test_timeout_s", _DEFAULT_TIMEOUT_S))
        self._config = echo_config(command, side, protocol)
        self._stack = side.stack("echo_client")
        self._limit = trio.Semaphore(_SIMULTANEOUS_CONNECTS)
        self._all_connected = trio.Event()
        self._go = trio.Event()
        self._all_done = trio.Event()
        self._failure: str | None = None
        self._connected = 0
        self._done = 0
        self._tx_bytes = 0
        self._rx_bytes = 0

    async def run(self) -> Data:
        """Run the test and return the measurements; raises CommandError for the first failure."""
        began = trio.current_time()
        data: Data = {
            "uri": self._uri,
            "handshakes": self._clients,
            "streams": self._clients * self._streams,
            "duplex": "full" if self._returns else "half",
        }
        if not self._clients:
            return data
        async with trio.open_nursery() as nursery:
            for _ in range(self._clients):
                nursery.start_soon(self._run_client)
            with trio.move_on_after(self._connect_timeout_s) as late:
                await self._all_connected.wait()
            if late.cancelled_caught:
                self._fail(
                    f"timeout: {self._connected} of {self._clients} connections within "
                    f"{self._connect_timeout_s:g} s (syn-timeout)"
                )
            data["handshake_seconds"] = data["started"] = trio.current_time() - began
            self._go.set()
            with trio.move_on_after(self._test_timeout_s) as late:
                await self._all_done.wait()
            if late.cancelled_caught:
                self._fail(
                    f"timeout: {self._done} of {data['streams']} streams done within "
                    f"{self._test_timeout_s:g} s (test-timeout), {self._tx_bytes} bytes sent and "
                    f"{self._rx_bytes} received"
                )
            data["finished"] = trio.current_time() - began
            if self._failure is not None:
                nursery.cancel_scope.cancel()
        if self._failure is not None:
            raise CommandError(self._failure)
        return data | {"tx_bytes": self._tx_bytes, "rx_bytes": self._rx_bytes}

    def _fail(self, why: str) -> None:
        """Cancel the test; the first reason counts."""
        self._failure = self._failure or why
        self._all_connected.set()
        self._all_done.set()

    async def _run_client(self) -> None:
        async with AsyncExitStack() as closing:
            async with self._limit:
                try:
                    tls = TlsConfig(verify=False) if self._features.tls else None
                    alpn = ECHO_ALPN if self._features.tls else ()
                    connection = await closing.enter_async_context(
                        self._stack.connect(self._uri, tls=tls, alpn=alpn, config=self._config)
                    )
                except (ConnectError, UriError) as error:
                    self._fail(getattr(error, "strerror", None) or str(error))
                    return
            self._connected += 1
            if self._connected == self._clients:
                self._all_connected.set()
            await self._go.wait()
            try:
                await self._run_streams(connection)
            except* trio.BrokenResourceError as group:
                self._fail(f"{self._uri}: {_first(group)}")

    async def _run_streams(self, connection: Connection) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(self._streams):
                if self._returns:
                    nursery.start_soon(self._run_echo, await connection.open_stream(), self._bytes)
                elif self._features.streams == "one":
                    # The server closes its side once it has received everything.
                    nursery.start_soon(self._run_echo, await connection.open_stream(), 0)
                else:
                    nursery.start_soon(
                        self._run_one_way, await connection.open_stream(unidirectional=True)
                    )

    async def _run_one_way(self, stream: SendStream) -> None:
        await self._send(stream)
        await stream.wait_acknowledged()
        self._note_done()

    async def _run_echo(self, stream: Stream, expected: int) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send, stream)
            received = await self._receive(stream)
        if received and not expected:
            self._fail(
                f"stream {stream.stream_id}: {received} bytes came back: clients with no-return "
                "need a server with no-echo"
            )
        elif received != expected:
            self._fail(
                f"stream {stream.stream_id}: {received} of {expected} bytes came back: a server "
                "with no-echo needs clients with no-return"
            )
        self._note_done()

    def _note_done(self) -> None:
        self._done += 1
        if self._done == self._clients * self._streams:
            self._all_done.set()

    async def _send(self, stream: SendStream) -> None:
        pattern = memoryview(_PATTERN)
        sent = 0
        while sent < self._bytes:
            start = sent & 0xFF
            size = min(_BUFFER_BYTES, self._bytes - sent)
            await stream.send_all(pattern[start : start + size])
            sent += size
            self._tx_bytes += size
        await stream.send_eof()

    async def _receive(self, stream: Stream) -> int:
        """Read until the end of the stream; return the number of bytes."""
        buffer = bytearray(_BUFFER_BYTES)
        received = 0
        while size := await stream.receive_into(buffer):
            start = received & 0xFF
            if self._checks and buffer[:size] != _PATTERN[start : start + size]:
                self._fail(
                    f"stream {stream.stream_id}: wrong bytes came back, from offset "
                    f"{received + _first_difference(buffer[:size], _PATTERN[start:])} on"
                )
            received += size
            self._rx_bytes += size
        return received


def _first_difference(data: bytearray, expected: bytes) -> int:
    pairs = zip(data, expected, strict=False)
    return next(place for place, (came, sent) in enumerate(pairs) if came != sent)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first exception in a group, which may be nested."""
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first
