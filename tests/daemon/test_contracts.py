"""trio's own checks of stream contracts, between applications that are attached to a daemon."""

from __future__ import annotations

import pytest
import trio
import trio.testing

import hoststack
from hoststack import Connection, QuicConfig, Stream
from hoststack.api.router import Router
from tests.daemon.conftest import PATIENCE_S, Daemon
from tests.daemon.echoing import TLS, TRUSTING

pytestmark = pytest.mark.alone
FIFO_BYTES = 4096
SMALL = QuicConfig(rx_fifo_bytes=FIFO_BYTES, tx_fifo_bytes=FIFO_BYTES)


class _Makers:
    """Pairs of stream ends over one connection."""

    def __init__(self, connected: Connection, accepted: Connection) -> None:
        self._connected = connected
        self._accepted = accepted

    async def fresh(self) -> tuple[Stream, Stream]:
        """A stream that both sides have: the peer learns of it with its first byte."""
        ours = await self._connected.open_stream()
        await ours.send_all(b"!")
        async for theirs in self._accepted.streams():
            assert isinstance(theirs, Stream)
            assert await theirs.receive_some(1) == b"!"
            return ours, theirs
        raise AssertionError("the connection ended instead")

    async def clogged(self) -> tuple[Stream, Stream]:
        """A stream with no room for another byte in either direction."""
        ours, theirs = await self.fresh()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._fill, ours)
            nursery.start_soon(self._fill, theirs)
        return ours, theirs

    @staticmethod
    async def _fill(end: Stream) -> None:
        await end.send_all(bytes(FIFO_BYTES))
        is_full = False
        while not is_full:
            with trio.move_on_after(0.5) as scope:
                await end.send_all(bytes(64))
            is_full = scope.cancelled_caught


def test_half_closeable_stream(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Router, "calls_in_a_row", 1)

    async def main() -> None:
        with trio.fail_after(PATIENCE_S):
            async with (
                hoststack.attach(daemon.api, config=SMALL) as server,
                hoststack.attach(daemon.api, config=SMALL) as client,
                await server.listen("quic://127.0.0.1:7783", tls=TLS, alpn=["test"]) as listener,
                client.connect("quic://127.0.0.1:7783", tls=TRUSTING, alpn=["test"]) as connected,
                await listener.accept() as accepted,
            ):
                makers = _Makers(connected, accepted)
                await trio.testing.check_half_closeable_stream(makers.fresh, makers.clogged)

    trio.run(main)
