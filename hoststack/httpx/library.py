"""httpx, or httpx2: the library that a request comes from, whose classes and exceptions it gets."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import cache
from types import ModuleType
from typing import Any, Final

import trio

from hoststack.api.errors import ConnectError, ConnectionClosedError, StreamStoppedError
from hoststack.http3.errors import Http3Error

#: The first one that is installed has the base classes of the transports.
NAMES: Final = ("httpx", "httpx2")


def base() -> ModuleType:
    """Return the library whose base classes the transports have. Raises ImportError."""
    for name in NAMES:
        if importlib.util.find_spec(name) is not None:
            module = importlib.import_module(name)
            if hasattr(module, "AsyncBaseTransport"):
                return module
    raise ImportError(
        "hoststack.httpx needs httpx (0.27 or newer, before 1.0) or httpx2: "
        "pip install 'hoststack[httpx]'"
    )


def library_of(request: Any) -> Any:
    """Return the library whose Request this is."""
    return sys.modules[type(request).__module__.partition(".")[0]]


def translated(library: Any, error: Exception) -> Exception:
    """Return the library's exception for an error of a connection or a request."""
    text = str(error)
    made: type[Exception]
    match error:
        case ConnectError():
            made = library.ConnectTimeout if error.kind == "timeout" else library.ConnectError
            text = error.strerror or text
        case StreamStoppedError():
            made = library.WriteError
        case ConnectionClosedError(by_peer=False):
            made = library.ReadError
        case Http3Error() | ConnectionClosedError() | ConnectionResetError():
            made = library.RemoteProtocolError
        case trio.BrokenResourceError() | trio.ClosedResourceError() | OSError():
            made = library.ReadError
        case ValueError():
            made = library.LocalProtocolError
        case _:
            return error
    found = made(text)
    found.__cause__ = error
    return found


@cache
def content_class(library: Any, mixin: type, *, is_async: bool) -> type[Any]:
    """Return the class of a response's content: the library checks that it is one of its own."""
    own = library.AsyncByteStream if is_async else library.SyncByteStream
    return type(mixin.__name__, (mixin, own), {})
