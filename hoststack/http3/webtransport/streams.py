"""Streams of sessions: those of hoststack's API, with codes of their own."""

from __future__ import annotations

from typing import Any, Final, cast

from hoststack.api.about_stream import BYTES, HINTS, RESET, STOPPED, AboutReceiving, AboutSending
from hoststack.api.errors import StreamResetError, StreamStoppedError
from hoststack.http3.webtransport.wire import from_http3, to_http3
from hoststack.native.session._session import ffi, lib


class _Sending:
    """What a session changes in AboutSending."""

    __slots__ = ()

    def reset(self, code: int = 0) -> None:
        """Stop sending at once with a code of the application, below 2**32 (RESET_STREAM); never
        blocks."""
        AboutSending.reset(cast(AboutSending, self), to_http3(code))

    def _sending_error(self, result: int) -> Exception:
        stream = cast(AboutSending, self)
        if result == STOPPED:
            return StreamStoppedError(from_http3(stream._state().stop_code))
        return AboutSending._sending_error(stream, result)


class _Receiving:
    """What a session changes in AboutReceiving."""

    __slots__ = ()

    def stop_sending(self, code: int = 0) -> None:
        """Ask the peer to stop sending, with a code of the application, below 2**32; never
        blocks."""
        AboutReceiving.stop_sending(cast(AboutReceiving, self), to_http3(code))

    def _receiving_error(self, result: int) -> Exception:
        stream = cast(AboutReceiving, self)
        if result == RESET:
            return StreamResetError(from_http3(stream._state().reset_code))
        return AboutReceiving._receiving_error(stream, result)


_CLASSES: Final[dict[type, type]] = {}


def _class_for(base: type) -> type:
    changes = [_Sending] if issubclass(base, AboutSending) else []
    if issubclass(base, AboutReceiving):
        changes.append(_Receiving)  # type: ignore[arg-type]
    return type(base.__name__, (*changes, base), {"__slots__": (), "__doc__": base.__doc__})


def adopt(stream: Any) -> Any:
    """Make a stream one of a session, with the session's codes; returns it. It stays the stream
    that it is, so its bytes take no other way."""
    base = type(stream)
    if base not in _CLASSES:
        _CLASSES[base] = _class_for(base)
    stream.__class__ = _CLASSES[base]
    return stream


def refuse(stream: Any, code: int) -> None:
    """End both directions of a stream with a code of HTTP/3, and close it."""
    if isinstance(stream, AboutSending):
        AboutSending.reset(stream, code)
    if isinstance(stream, AboutReceiving):
        AboutReceiving.stop_sending(stream, code)
    stream._close()


def end(stream: Any, code: int) -> None:
    """End both directions of a stream that the program has, with a code of HTTP/3."""
    if isinstance(stream, AboutSending):
        AboutSending.reset(stream, code)
    if isinstance(stream, AboutReceiving):
        AboutReceiving.stop_sending(stream, code)


async def send(stream: Any, data: bytes) -> None:
    """Send all of `data`, in any loop. Raises as `send_all`."""
    while data:
        result = lib.hs_end_write(stream._end, ffi.from_buffer("uint8_t[]", data), len(data))
        if result < 0:
            raise stream._sending_error(result)
        data = data[result & BYTES :]
        if result >> HINTS:
            stream._act(result)
        if data:
            await stream._wait_for_room()


def finish(stream: Any) -> None:
    """Send the end of a stream, in any loop. Raises as `send_eof`."""
    result = lib.hs_end_finish(stream._end)
    if result < 0:
        raise stream._sending_error(result)
    stream._act(result)


async def receive(stream: Any, max_bytes: int) -> bytes:
    """Receive the next bytes, in any loop; b"" only at the end. Raises as `receive_some`."""
    while (data := stream._read(max_bytes)) is None:
        await stream._wait_for_bytes()
    return bytes(data)
