"""Hoststack in asyncio: the same stack, connections and listeners as in trio, and streams as
asyncio's readers and writers. See docs/howto/asyncio.md."""

from hoststack.aio.attach import attach
from hoststack.aio.connection import Connection
from hoststack.aio.embedded import open_stack
from hoststack.aio.errors import BrokenError, ClosedError
from hoststack.aio.listener import Listener
from hoststack.aio.stack import Stack
from hoststack.aio.stream import ReceiveStream, SendStream, Stream

__all__ = [
    "BrokenError",
    "ClosedError",
    "Connection",
    "Listener",
    "ReceiveStream",
    "SendStream",
    "Stack",
    "Stream",
    "attach",
    "open_stack",
]
