"""The server: echoes to all clients, or does what TX and RX say."""

from __future__ import annotations

import trio

from apps.quic_echo.connections import drive
from apps.quic_echo.record import Record
from hoststack import Stack, TlsConfig


async def run_server(record: Record, stack: Stack) -> None:
    """Serve until the expected connections are done; for ever if their number is unknown.

    Raises UriError, TlsConfigError, and ListenError where the port is not available.
    """
    options = record.options
    if options.certificate is None:
        tls = TlsConfig.self_signed(["localhost"])
    else:
        tls = TlsConfig(certificate=options.certificate, key=options.key)
    async with await stack.listen(options.uri, tls=tls, alpn=[options.alpn]) as listener:
        host, port = listener.local
        record.log(1, f"listening on {host} port {port}, link {stack.link_name}")
        all_accepted = record.goal.join()
        async with trio.open_nursery() as nursery:
            accepting = trio.CancelScope()
            nursery.start_soon(_cancel_after, all_accepted, accepting)
            with accepting:
                while True:
                    connection = await listener.accept()
                    record.timing.first("qconnect")
                    record.timing.last("qconnected")
                    record.counts.accepted.q += 1
                    record.log(2, f"connection {connection.handle:#x} with {connection.remote}")
                    nursery.start_soon(drive, record, connection)
                    if record.goal.count():
                        break


async def _cancel_after(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
