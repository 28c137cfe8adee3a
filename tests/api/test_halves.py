"""One direction of a stream by itself: what the worker does within the application's own calls."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from hoststack.halves import SendingHalf
from hoststack.native.fifo import Fifo
from tests.api.conftest import run


def test_an_end_that_comes_with_what_is_sent_is_heard() -> None:
    """Telling the worker may have its turn at once, and that may find that the peer reads no
    more: the rest, for which there is no room, must not wait for a wake-up that was before it."""
    fifo = Fifo(4096)
    fifo.arm_read()
    half = SendingHalf(
        fifo,
        lambda: half.fail(trio.BrokenResourceError("stopped")),
        lambda code: pytest.fail("nobody resets it"),
    )

    async def main() -> None:
        with trio.fail_after(1), pytest.raises(trio.BrokenResourceError, match="stopped"):
            await half.send_all(bytes(10_000))

    run(main)
