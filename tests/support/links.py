"""Links without an engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from hoststack.link.base import Link
from hoststack.link.xdp.link import AfXdpLink
from hoststack.link.xdp.steering import Steering

#: Longer than any test takes: the deadline of one that would wait for ever.
PATIENCE_S = 60


@asynccontextmanager
async def running(*links: Link) -> AsyncIterator[None]:
    """The links' upkeep, and a deadline for what is done within."""
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            for link in links:
                nursery.start_soon(link.run)
            yield
            nursery.cancel_scope.cancel()


def steering_of(link: AfXdpLink) -> Steering:
    """The program of a link that has one of its own."""
    assert link.steering is not None
    return link.steering
