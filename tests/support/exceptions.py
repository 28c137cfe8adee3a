"""One exception of each class that a handler may meet: `exceptions()`."""

from __future__ import annotations

import asyncio
import builtins
import errno
import json
import pickle
import ssl
import struct
import subprocess
import zlib
from collections.abc import Iterator
from typing import Final

import msgspec
import trio

from hoststack import TlsConfigError
from hoststack.boundary.application import ImpossibleRequestError
from hoststack.boundary.channel import ChannelClosedError
from hoststack.boundary.codec import CodecError
from hoststack.boundary.rings import EventRingCorruptError
from hoststack.link.base import LinkError
from hoststack.native.memory.fifo import FifoCorruptError


class UnprintableError(Exception):
    """Its text can't be had."""

    def __str__(self) -> str:
        raise ValueError("no text")


def _of_builtins() -> list[Exception]:
    made: list[Exception] = []
    for kind in vars(builtins).values():
        if not isinstance(kind, type) or not issubclass(kind, Exception):
            continue
        if issubclass(kind, ExceptionGroup):
            made.append(kind("some", [ValueError("one"), ExceptionGroup("in", [KeyError("x")])]))
        elif issubclass(kind, UnicodeEncodeError | UnicodeTranslateError):
            text = "\ud800", 0, 1, "no"
            made.append(kind("utf-8", *text) if kind is UnicodeEncodeError else kind(*text))
        elif issubclass(kind, UnicodeDecodeError):
            made.append(kind("utf-8", b"\xff", 0, 1, "no"))
        elif kind not in (StopIteration, StopAsyncIteration):  # which coroutines can't raise
            made.append(kind("thrown by a test"))
    return made


_EXCEPTIONS: Final[tuple[Exception, ...]] = (
    *_of_builtins(),
    *(OSError(number, name) for number, name in sorted(errno.errorcode.items())),
    OSError(),
    ValueError("\x1b[31m\r\nforged"),
    ValueError("\ud800"),
    struct.error("x"),
    zlib.error("x"),
    ssl.SSLError(1, "x"),
    json.JSONDecodeError("x", "", 0),
    pickle.PickleError("x"),
    subprocess.CalledProcessError(1, "x"),
    asyncio.InvalidStateError("x"),
    msgspec.DecodeError("x"),
    msgspec.ValidationError("x"),
    trio.BrokenResourceError("x"),
    trio.ClosedResourceError("x"),
    trio.BusyResourceError("x"),
    trio.EndOfChannel(),
    trio.WouldBlock(),
    trio.TooSlowError(),
    trio.RunFinishedError("x"),
    trio.TrioInternalError("x"),
    CodecError("x"),
    ChannelClosedError("x"),
    EventRingCorruptError(),
    FifoCorruptError("x"),
    ImpossibleRequestError("x"),
    LinkError(errno.EIO, "x"),
    TlsConfigError("x"),
    UnprintableError(),
)


def exceptions() -> Iterator[Exception]:
    """All of them, one after the other."""
    for error in _EXCEPTIONS:
        yield error
        # Else it would keep the frames of who handled it, and their descriptors.
        error.__traceback__ = error.__context__ = None
