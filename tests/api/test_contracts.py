"""trio's own checks of stream contracts, over the memory link."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from hoststack import Stream
from hoststack.api.router import Router
from tests.api.conftest import SMALL, MakePair, Pair, first_stream, run


class _Makers:
    """Pairs of stream ends over one connection."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair

    async def fresh(self) -> tuple[Stream, Stream]:
        """A stream that both sides have: the peer learns of it with its first byte."""
        ours = await self._pair.connected.open_stream()
        await ours.send_all(b"!")
        theirs = await first_stream(self._pair.accepted)
        assert await theirs.receive_some(1) == b"!"
        return ours, theirs

    async def clogged(self) -> tuple[Stream, Stream]:
        """A stream with no room for another byte in either direction."""
        ours, theirs = await self.fresh()
        for end in (ours, theirs):
            with trio.move_on_after(5) as scope:
                while True:
                    await end.send_all(b"\0" * 1024)
            assert scope.cancelled_caught
        return ours, theirs


@pytest.mark.parametrize("impaired", [False, True], ids=["clean", "lossy"])
def test_half_closeable_stream(
    make_pair: MakePair, impaired: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Router, "calls_in_a_row", 1)
    options = {"loss": 0.05, "reorder": 0.05, "seed": 1} if impaired else {}

    async def main() -> None:
        async with make_pair(SMALL, **options) as pair:
            makers = _Makers(pair)
            await trio.testing.check_half_closeable_stream(makers.fresh, makers.clogged)

    run(main)
