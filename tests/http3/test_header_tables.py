"""QPACK's dynamic table: used in both directions, and nothing waits for what was not sent."""

from __future__ import annotations

from typing import Any

import pylsqpack
import trio

from hoststack import Connection, http3
from tests.http3.peers import (
    REQUEST,
    ask,
    frame,
    raw_client,
    run,
    settings,
    talking,
    unidirectional,
)

CUSTOM = ("x-custom", "a value that is in no static table")


async def _parts(stream: Any) -> tuple[int, bytes]:
    """A frame's type and payload, the first of a stream."""
    data = b"".join([chunk async for chunk in stream])
    size = data[1] if data[1] < 0x40 else int.from_bytes(data[1:3]) & 0x3FFF
    start = 2 if data[1] < 0x40 else 3
    return data[0], data[start : start + size]


def insertions(data: bytes) -> int:
    """How many entries the instructions of an encoder stream insert (RFC 9204 section 4.3)."""
    at = count = 0

    def integer(prefix_bits: int) -> int:
        nonlocal at
        most = (1 << prefix_bits) - 1
        value, shift = data[at] & most, 0
        at += 1
        while value >= most and (not shift or data[at - 1] & 0x80):
            value += (data[at] & 0x7F) << shift
            shift += 7
            at += 1
        return value

    while at < len(data):
        first = data[at]
        if first & 0x80:
            integer(6)
        elif first & 0x40:
            name_bytes = integer(5)
            at += name_bytes
        else:
            integer(5)
        if first & 0xC0:
            value_bytes = integer(7)
            at += value_bytes
        count += first & 0xE0 != 0x20
    return count


def test_responses_refer_to_entries_that_were_acknowledged_and_to_no_others() -> None:
    """The client offers a table and 100 blocked streams, and decodes each response at once."""

    async def handler(request: http3.Request) -> None:
        await request.respond(200, [CUSTOM], b"hello")

    async def main() -> None:
        decoder, encoder = pylsqpack.Decoder(4096, 100), pylsqpack.Encoder()
        references: list[bool] = []
        instructions = bytearray()

        async def take_critical(connection: Connection) -> None:
            async for stream in connection.streams():
                kind = await stream.receive_some(1)
                if kind == b"\x02":
                    break
            while data := await stream.receive_some():
                decoder.feed_encoder(data)
                instructions.extend(data)

        async with raw_client(handler) as connection, trio.open_nursery() as nursery:
            await unidirectional(connection, b"\x00" + settings((0x01, 4096), (0x07, 100)))
            await unidirectional(connection, b"\x02")
            acknowledgements = await unidirectional(connection, b"\x03")
            nursery.start_soon(take_critical, connection)
            acknowledged = 0
            for _ in range(6):
                stream = await ask(connection, frame(0x01, encoder.encode(0, list(REQUEST))[1]))
                kind, section = await _parts(stream)
                assert kind == 1
                references.append(section[0] != 0)
                # raises StreamBlocked for what refers to entries that are not there
                control, headers = decoder.feed_header(stream.stream_id, section)
                assert dict(headers)[b"x-custom"] == CUSTOM[1].encode()
                await trio.sleep(1)
                inserted = insertions(bytes(instructions))
                if inserted > acknowledged:
                    await acknowledgements.send_all(bytes([inserted - acknowledged]))
                    acknowledged = inserted
                await acknowledgements.send_all(control)
                await trio.sleep(1)
            nursery.cancel_scope.cancel()
        assert references[0] is False
        assert references[-1] is True

    run(main)


def test_requests_and_responses_become_shorter(layer: str) -> None:
    """Both our sides have tables: the same fields cost less when they are sent again."""
    long = [(f"x-field-{i}", "a rather long value, " * 3 + "x") for i in range(10)]

    async def handler(request: http3.Request) -> None:
        assert len(request.headers) == 10
        await request.respond(200, long)

    async def main() -> None:
        async with talking(handler) as client:
            sent: list[float] = []
            received: list[float] = []
            for _ in range(8):
                before = await client.connection.statistics()
                await (await client.request("GET", "/", long)).aclose()
                await trio.sleep(1)
                after = await client.connection.statistics()
                sent.append(after["tx_bytes"] - before["tx_bytes"])
                received.append(after["rx_bytes"] - before["rx_bytes"])
            # pylsqpack acknowledges no entry before a section refers to it
            least = 1 if layer == "aioquic" else 3
            assert sent[-1] <= sent[0] / least, sent
            assert received[-1] <= received[0] / least, received

    run(main)


def test_a_table_of_nothing() -> None:
    async def handler(request: http3.Request) -> None:
        await request.respond(200, [CUSTOM])

    async def main() -> None:
        async with talking(handler, http3.Http3Config(table_bytes=0)) as client:
            for _ in range(3):
                async with await client.request("GET", "/", [CUSTOM]) as response:
                    assert response.header(CUSTOM[0]) == CUSTOM[1].encode()

    run(main)
