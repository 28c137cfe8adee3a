"""Listening for connections, as a trio listener."""

from __future__ import annotations

import trio

from hoststack.api.about_listener import AboutListener
from hoststack.api.connection import Connection


class Listener(AboutListener[Connection], trio.abc.Listener[Connection]):
    __doc__ = AboutListener.__doc__
