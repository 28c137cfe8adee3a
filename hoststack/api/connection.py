"""A connection, as a trio resource."""

from __future__ import annotations

import trio

from hoststack.api.about_connection import AboutConnection
from hoststack.api.stream import ReceiveStream, SendStream, Stream


class Connection(AboutConnection[Stream, SendStream, ReceiveStream], trio.abc.AsyncResource):
    __doc__ = AboutConnection.__doc__
