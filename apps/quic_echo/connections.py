"""The streams of one connection, and its close: the same for both sides."""

from __future__ import annotations

import trio

from apps.quic_echo.record import Record
from apps.quic_echo.transfer import Transfer
from hoststack import Connection, ConnectionClosedError, Stream


async def drive(record: Record, connection: Connection) -> None:
    """Open the streams, or accept the peer's; when they are done, close as qclose says."""
    name = f"connection {connection.handle:#x}"
    try:
        try:
            if record.options.opens_streams:
                await _open_streams(record, connection)
            else:
                await _accept_streams(record, connection, name)
        except* ConnectionClosedError:
            pass  # _close reports why.
        await _close(record, connection, name)
    except BaseException:  # Cancelled, by itself or in a group
        connection.close_now(1, "interrupted")
        raise


async def _open_streams(record: Record, connection: Connection) -> None:
    options = record.options
    async with trio.open_nursery() as nursery:
        for _ in range(options.streams or 0):
            record.timing.first("sconnect")
            stream = (
                await connection.open_stream(unidirectional=True)
                if options.is_unidirectional
                else await connection.open_stream()
            )
            record.counts.connected.s += 1
            record.timing.last("sconnected")
            nursery.start_soon(Transfer(record, stream).run)


async def _accept_streams(record: Record, connection: Connection, name: str) -> None:
    options = record.options
    accepted = 0
    streams = connection.streams()
    async with trio.open_nursery() as nursery:
        while options.streams is None or accepted < options.streams:
            stream = await anext(streams, None)
            if stream is None:
                break
            accepted += 1
            record.timing.first("sconnect")
            record.timing.last("sconnected")
            record.counts.accepted.s += 1
            if options.is_unidirectional and isinstance(stream, Stream):
                record.fail(f"{name}: the peer's streams are bidirectional: tell it uni as well")
            nursery.start_soon(Transfer(record, stream).run)
    if options.streams is not None and accepted < options.streams:
        record.fail(
            f"{name}: the peer closed it after {accepted} of {options.streams} streams: "
            "nclients N/M must be the same on both sides"
        )


async def _close(record: Record, connection: Connection, name: str) -> None:
    counts = record.counts
    if connection.close_info is None:
        if record.options.connection_close == "N":
            counts.clean.q += 1
            return
        if record.options.connection_close == "Y":
            await connection.aclose(1 if record.exit_status else 0)
    info = await connection.wait_closed()
    record.log(2, f"{name}: closed by {'the peer' if info.by_peer else 'this side'}, {info.code}")
    if info.code and (info.by_peer or not record.exit_status):
        counts.reset.q += 1
        record.fail(f"{name}: {ConnectionClosedError(info)}")
    elif info.by_peer:
        counts.closed.q += 1
    else:
        counts.active.q += 1
