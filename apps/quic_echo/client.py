"""The client: N connections first, then the streams in each."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Final

import trio

from apps.quic_echo.connections import drive
from apps.quic_echo.record import Record
from hoststack import ConnectError, Connection, Stack, TlsConfig

#: Concurrent handshakes; more would time out in each other's queue.
_SIMULTANEOUS_CONNECTS: Final = 32


async def run_client(record: Record, stack: Stack) -> None:
    """Run until all connections are closed. Raises UriError and TlsConfigError."""
    client = _Client(record, stack)
    async with trio.open_nursery() as nursery:
        record.timing.first("qconnect")
        for _ in range(client.wanted):
            nursery.start_soon(client.run_connection)


class _Client:
    def __init__(self, record: Record, stack: Stack) -> None:
        options = record.options
        self._record = record
        self._stack = stack
        self._tls = TlsConfig(
            verify=options.is_verifying or options.ca is not None,
            ca=options.ca,
            server_name=options.server_name,
        )
        self.wanted = options.connections or 1
        self._limit = trio.Semaphore(_SIMULTANEOUS_CONNECTS)
        self._all_connected = record.goal.join()

    async def run_connection(self) -> None:
        record = self._record
        async with AsyncExitStack() as closing:
            async with self._limit:
                try:
                    connection = await self._connect(closing)
                except ConnectError as error:
                    record.fail(error.strerror or str(error))
                    record.stop()
                    return
            record.log(2, f"connection {connection.handle:#x} with {connection.remote}")
            record.counts.connected.q += 1
            record.timing.last("qconnected")
            record.goal.count()
            await self._all_connected.wait()
            await drive(record, connection)

    async def _connect(self, closing: AsyncExitStack) -> Connection:
        return await closing.enter_async_context(
            self._stack.connect(
                self._record.options.uri, tls=self._tls, alpn=[self._record.options.alpn]
            )
        )
