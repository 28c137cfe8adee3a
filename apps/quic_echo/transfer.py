"""The bytes of one stream, in both directions."""

from __future__ import annotations

import trio

from apps.quic_echo.record import Record
from hoststack import (
    ConnectionClosedError,
    ReceiveStream,
    SendStream,
    Stream,
    StreamResetError,
    StreamStoppedError,
)

#: Small at first: a thousand streams with little data need no buffer of a megabyte each.
_FIRST_BUFFER_BYTES = 16384


class Transfer:
    """Sends, receives, reflects and checks data of one stream as the options say."""

    def __init__(self, record: Record, stream: Stream | SendStream | ReceiveStream) -> None:
        self._record = record
        self._options = record.options
        self._stream = stream
        self._sender = stream if isinstance(stream, SendStream) else None
        self._receiver = stream if isinstance(stream, ReceiveStream) else None
        self._name = f"connection {stream.connection.handle:#x} stream {stream.stream_id}"
        self._sent = 0
        self._received = 0
        self._peer_ended = trio.Event()
        self._is_finishing = False

    async def run(self) -> None:
        """Run until both directions are done. Failures are recorded, and the peer gets a reset, as
        its received data is incomplete."""
        is_whole = False
        try:
            async with trio.open_nursery() as nursery:
                if self._receiver is not None:
                    nursery.start_soon(self._receive, self._receiver)
                if self._sender is not None and not self._reflects:
                    nursery.start_soon(self._send, self._sender)
            is_whole = True
            self._check_amount()
        except* StreamResetError as group:
            self._record.counts.reset.s += 1
            self._record.fail(f"{self._name}: {group.exceptions[0]}")
        except* StreamStoppedError as group:
            expected = self._options.rx_bytes
            if expected is not None and self._received > expected:
                self._check_amount()  # the peer stopped because we did
            else:
                self._record.fail(f"{self._name}: {group.exceptions[0]}")
        except* ConnectionClosedError as group:
            self._on_connection_closed(group.exceptions[0])
        self._record.log(2, f"{self._name}: received {self._received}, sent {self._sent} bytes")
        if self._options.stream_close == "N":
            self._record.counts.clean.s += 1
        elif is_whole:
            await self._stream.aclose()
        else:
            await trio.aclose_forcefully(self._stream)

    @property
    def _reflects(self) -> bool:
        return self._options.tx_bytes is None and self._receiver is not None

    async def _send(self, stream: SendStream) -> None:
        """Send the test data, in slices of the pattern."""
        tx_bytes = self._options.tx_bytes or 0
        pattern = memoryview(self._record.pattern)
        while self._sent < tx_bytes:
            size = min(self._options.tx_buf_bytes, tx_bytes - self._sent)
            start = self._sent & 0xFF
            await stream.send_all(pattern[start : start + size])
            self._count_sent(size)
        await self._finish(stream)

    async def _receive(self, stream: ReceiveStream) -> None:
        """Read until the peer's end; check the data, and reflect it if requested."""
        record, options = self._record, self._options
        echo = self._sender if self._reflects else None
        view = memoryview(bytearray(min(options.rx_buf_bytes, _FIRST_BUFFER_BYTES)))
        while size := await stream.receive_into(view):
            data = view[:size]
            if size == len(view) < options.rx_buf_bytes:
                view = memoryview(bytearray(min(2 * size, options.rx_buf_bytes)))
            if options.check != "off":
                record.check_bytes(self._name, self._received, data)
            self._received += size
            record.rx_bytes += size
            record.timing.last("lastbyte")
            if echo is not None:
                await echo.send_all(data)
                self._count_sent(size)
            if options.rx_bytes is not None and self._received >= options.rx_bytes:
                if self._received > options.rx_bytes:
                    # Discard the rest, however long it is.
                    stream.stop_sending(1)
                    break
                if options.stream_close == "N":
                    break
                if echo is not None and options.stream_close == "Y":
                    await self._end(echo)
        else:
            record.counts.closed.s += 1
        self._peer_ended.set()
        if echo is not None:
            await self._finish(echo)

    async def _finish(self, stream: SendStream) -> None:
        """End the sending direction as sclose says; wait until the peer has everything."""
        if self._options.stream_close == "W" and self._receiver is not None:
            await self._peer_ended.wait()
        if self._options.stream_close != "N":
            await self._end(stream)
            try:
                await stream.wait_acknowledged()
            except ConnectionClosedError as error:
                # A peer that has everything may close in order without a last acknowledgement.
                if error.code:
                    raise
        if not self._received:
            self._record.timing.last("lastbyte")

    async def _end(self, stream: SendStream) -> None:
        if not self._is_finishing:
            self._is_finishing = True
            await stream.send_eof()
            self._record.counts.active.s += 1

    def _count_sent(self, size: int) -> None:
        self._sent += size
        self._record.tx_bytes += size

    def _check_amount(self) -> None:
        expected = self._options.rx_bytes
        if self._receiver is None or expected is None or self._received == expected:
            return
        if self._received > expected:
            self._record.fail(
                f"{self._name}: more than the {expected} bytes came that were expected: "
                "RX here and TX of the peer must be the same"
            )
        else:
            self._record.fail(f"{self._name}: {self._received} of {expected} bytes came")

    def _on_connection_closed(self, error: BaseException) -> None:
        """Handle the end of the connection: in order if all known work was done."""
        is_clean = isinstance(error, ConnectionClosedError) and error.code == 0
        has_all = self._options.rx_bytes in (None, self._received)
        has_sent = self._options.tx_bytes in (None, self._sent)
        if is_clean and has_all and has_sent and self._options.stream_close == "N":
            return
        if is_clean:
            self._record.fail(
                f"{self._name}: {error}, before the stream was done "
                f"({self._received} bytes received, {self._sent} sent)"
            )
