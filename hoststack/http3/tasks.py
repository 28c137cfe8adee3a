"""Tasks of a connection in trio."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from hoststack.http3.about_connection import Spawn


@asynccontextmanager
async def tasks() -> AsyncIterator[Spawn]:
    """Have tasks that end with the block; yields what starts one."""
    error: BaseException | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield nursery.start_soon
        except trio.Cancelled:
            raise
        except BaseException as caught:
            # Raised again outside the nursery, which would put it into an ExceptionGroup.
            error = caught
        finally:
            nursery.cancel_scope.cancel()
    if error is not None:
        raise error
