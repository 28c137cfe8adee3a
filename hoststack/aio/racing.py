"""Connection attempts that race each other in asyncio; api/racing.py does the same in trio."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from hoststack.aio.connection import Connection
from hoststack.api.errors import ConnectError
from hoststack.api.racing import ATTEMPT_DELAY_S, all_failed
from hoststack.api.resolving import Address

Attempt = Callable[[Address], Coroutine[Any, Any, Connection]]


async def first_connection(
    addresses: Sequence[Address], attempt: Attempt, describe: str
) -> Connection:
    """Return the connection of the first attempt that succeeds, and cancel the others. Raises
    ConnectError if all fail."""
    failures: list[ConnectError] = []
    waiting = deque(addresses)
    running: set[asyncio.Task[Connection]] = set()
    try:
        while waiting or running:
            if waiting:
                running.add(asyncio.create_task(attempt(waiting.popleft())))
            done, _ = await asyncio.wait(
                running,
                timeout=ATTEMPT_DELAY_S if waiting else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in done:
                running.discard(task)
                try:
                    return task.result()
                except ConnectError as error:
                    failures.append(error)
    finally:
        for task in running:
            task.cancel()
        for result in await asyncio.gather(*running, return_exceptions=True):
            if isinstance(result, Connection):
                result.close_now()
    raise all_failed(failures, describe)
