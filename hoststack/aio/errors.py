"""Exceptions of the asyncio API, beside those of hoststack itself.

All that end a connection or a stream are ConnectionErrors.
"""

from __future__ import annotations


class ClosedError(ConnectionError):
    """This program itself has closed what it uses, or has sent its end."""


class BrokenError(ConnectionError):
    """What is used can't go on: this side reset it, or the other one broke a rule."""
