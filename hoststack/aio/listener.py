"""Listening for connections, in asyncio."""

from __future__ import annotations

from hoststack.aio.connection import Connection
from hoststack.api.about_listener import AboutListener


class Listener(AboutListener[Connection]):
    __doc__ = AboutListener.__doc__
