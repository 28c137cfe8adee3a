"""A connection, in asyncio."""

from __future__ import annotations

from hoststack.aio.stream import ReceiveStream, SendStream, Stream
from hoststack.api.about_connection import AboutConnection


class Connection(AboutConnection[Stream, SendStream, ReceiveStream]):
    __doc__ = AboutConnection.__doc__
