"""Commands of the debug CLI in a worker process: started, cancelled, answered in pieces."""

from __future__ import annotations

import contextlib
import logging
from typing import Final

import trio

from hoststack.boundary.channel import Channel, ChannelClosedError
from hoststack.boundary.containment import contained, fault_text
from hoststack.control.run import run_line
from hoststack.control.worker_side import WorkerSide
from hoststack.daemon import orders

logger = logging.getLogger(__name__)

#: Size of an answer's pieces: each must fit into a message of the channel.
_PIECE_BYTES: Final = 1 << 15


class Commands:
    """The commands in progress, by number."""

    def __init__(self, channel: Channel, side: WorkerSide, nursery: trio.Nursery) -> None:
        self._channel = channel
        self._side = side
        self._nursery = nursery
        self._scopes: dict[int, trio.CancelScope] = {}

    def start(self, order: orders.Command) -> None:
        """Run a command and send its answer to the supervisor."""
        self._scopes[order.number] = trio.CancelScope()
        self._nursery.start_soon(self._run, order)

    def cancel(self, order: orders.CancelCommand) -> None:
        """Cancel a command; no effect if it has ended."""
        scope = self._scopes.get(order.number)
        if scope is not None:
            scope.cancel()

    async def _run(self, order: orders.Command) -> None:
        try:
            # Also contains what a cancelled command raises beside its cancellation.
            with contained(_log_fault), self._scopes[order.number]:
                answer = await run_line(order.line, self._side)
                # Without its supervisor this process ends anyway.
                with contextlib.suppress(ChannelClosedError):
                    for start in range(0, max(1, len(answer)), _PIECE_BYTES):
                        end = start + _PIECE_BYTES
                        piece = orders.Answer(order.number, answer[start:end], end >= len(answer))
                        self._channel.send(orders.encode(piece))
        finally:
            del self._scopes[order.number]


def _log_fault(error: Exception) -> None:
    logger.error("a debug command failed: %s", fault_text(error), exc_info=error)
