"""HTTP/3 by nghttp3: see native/http3/http3.h."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any, Final

from hoststack.http3.config import Http3Config
from hoststack.http3.errors import GoingAwayError, ProtocolError
from hoststack.http3.fields import Fields, from_text, to_text
from hoststack.http3.seam import Event, Kind, Section, Written
from hoststack.http3.webtransport.wire import settings_of
from hoststack.native.http3._http3 import ffi, lib
from hoststack.native.session._session import ffi as session_ffi
from hoststack.native.session._session import lib as session_lib

#: Streams that one call writes to.
_ROOM: Final = 64
_EVENT: Final = struct.Struct("<qQIIHHI")
_SETTING: Final = struct.Struct("<QQ")
_IS_LAST: Final = int(lib.HS_HTTP3_IS_LAST)
_WITH_FIELDS: Final = frozenset((Kind.SECTION, Kind.TRAILERS))


def _address(pointer: Any) -> int:
    return int(session_ffi.cast("uintptr_t", pointer))


def _ends() -> Any:
    """The functions of native/session/end.h, for the other shared object."""
    ends = ffi.new("struct hs_http3_ends *")
    for name in ("read", "look", "skip", "write", "finish", "prioritize"):
        function = session_ffi.addressof(session_lib, f"hs_end_{name}")
        setattr(ends, name, ffi.cast(ffi.typeof(getattr(ends, name)), _address(function)))
    return ends


_ENDS: Final = _ends()


class Nghttp3Layer:
    """A seam.Layer."""

    def __init__(self, config: Http3Config, *, is_server: bool) -> None:
        more = list(settings_of(config).items())
        settings = ffi.new(
            "struct hs_http3_config *",
            {
                "max_section_bytes": config.max_section_bytes,
                "max_fields": config.max_fields,
                "table_bytes": config.table_bytes,
                "blocked_streams": config.blocked_streams,
                "max_streams": config.max_streams,
                "is_server": is_server,
                "has_connect_protocol": config.connect_protocol,
                "has_datagrams": config.has_datagrams,
                "has_webtransport": bool(more),
                "more_count": len(more),
                "more_settings": more,
            },
        )
        made = lib.hs_http3_new(settings, _ENDS)
        if not made:
            raise MemoryError("no memory for HTTP/3")
        self._it = ffi.gc(made, lib.hs_http3_free)
        self._lent: dict[int, Any] = {}
        """Content that nghttp3 has pointers to, by stream."""
        self._why = ffi.new("const char **")
        self._batch = ffi.new("struct hs_http3_batch *")
        self._written = ffi.new("struct hs_http3_written[]", _ROOM)

    @property
    def error(self) -> ProtocolError | None:
        code = lib.hs_http3_error(self._it, self._why)
        return ProtocolError.of(code, ffi.string(self._why[0]).decode()) if code else None

    def _end(self, stream: Any) -> Any:
        return ffi.cast("struct hs_end *", _address(stream._end))

    def bind(self, critical: Sequence[Any]) -> None:
        ids = [stream.stream_id for stream in critical]
        self._check(lib.hs_http3_bind(self._it, ids, [self._end(stream) for stream in critical]))

    def add(self, stream: Any) -> None:
        self._check(lib.hs_http3_add(self._it, stream.stream_id, self._end(stream)))

    def close(self, stream_id: int, code: int) -> None:
        lib.hs_http3_close(self._it, stream_id, code)
        self._lent.pop(stream_id, None)

    def read(self, stream_id: int, max_bytes: int) -> int:
        return int(lib.hs_http3_read(self._it, stream_id, max_bytes))

    def stop(self, stream_id: int) -> None:
        lib.hs_http3_stop(self._it, stream_id)

    def events(self) -> Iterable[Event]:
        count = lib.hs_http3_events(self._it, self._batch)
        if not count:
            return ()
        found: list[Event] = []
        batch = self._batch
        raw = ffi.buffer(batch.events, count * _EVENT.size)
        text = ffi.buffer(batch.text, batch.text_bytes) if batch.text_bytes else b""
        for stream_id, code, offset, size, kind, flags, _ in _EVENT.iter_unpack(raw):
            data: bytes = text[offset : offset + size]
            is_last = bool(flags & _IS_LAST)
            if kind == Kind.DATA:
                found.append(Event(kind, stream_id, code, data, None, None, is_last))
            elif kind in _WITH_FIELDS:
                found.append(Event(kind, stream_id, code, b"", from_text(data), None, is_last))
            elif kind == Kind.SETTINGS:
                settings = dict(_SETTING.iter_unpack(data))
                found.append(Event(kind, stream_id, code, b"", None, settings))
            else:
                found.append(Event(kind, stream_id, code, b"", None, None, is_last))
        return found

    def send_section(
        self, stream_id: int, kind: Section, fields: Fields, *, is_last: bool = False
    ) -> None:
        text = to_text(fields)
        self._check(
            lib.hs_http3_send_section(
                self._it, stream_id, kind, text, len(text), len(fields), is_last
            )
        )

    def send_data(self, stream_id: int, data: bytes | memoryview, *, is_last: bool) -> None:
        lent = ffi.from_buffer("uint8_t[]", data)
        self._check(lib.hs_http3_send_data(self._it, stream_id, lent, len(lent), is_last))
        self._lent[stream_id] = lent

    def abandon(self, stream_id: int) -> None:
        lib.hs_http3_abandon(self._it, stream_id)

    def unblock(self, stream_id: int) -> None:
        lib.hs_http3_unblock(self._it, stream_id)

    def respond(self, stream_id: int, fields: Fields, data: bytes | memoryview) -> list[Written]:
        text, lent = to_text(fields), ffi.from_buffer("uint8_t[]", data)
        self._lent[stream_id] = lent
        count = lib.hs_http3_respond(
            self._it,
            stream_id,
            *(text, len(text), len(fields), lent, len(lent)),
            *(self._written, _ROOM),
        )
        self._check(count)
        found = self._found(count)
        return found if count < _ROOM else found + self.write()

    def write(self) -> list[Written]:
        found: list[Written] = []
        count = _ROOM
        while count == _ROOM:
            count = lib.hs_http3_write(self._it, self._written, _ROOM)
            found += self._found(count)
        return found

    def _found(self, count: int) -> list[Written]:
        found: list[Written] = []
        for i in range(count):
            each = self._written[i]
            found.append(Written(each.stream_id, each.state, each.hints))
        return found

    def shutdown(self, *, is_notice: bool) -> None:
        lib.hs_http3_shutdown(self._it, is_notice)

    def priority(self, stream_id: int) -> tuple[int, bool]:
        found = lib.hs_http3_priority(self._it, stream_id)
        return (found >> 1, bool(found & 1)) if found >= 0 else (3, False)

    def set_priority(self, stream_id: int, urgency: int, *, is_incremental: bool) -> None:
        self._check(lib.hs_http3_set_priority(self._it, stream_id, urgency, is_incremental))

    def update_priority(self, stream_id: int, value: bytes) -> None:
        self._check(lib.hs_http3_update_priority(self._it, stream_id, value, len(value)))

    def _check(self, result: int) -> None:
        if result >= 0 or result == lib.HS_HTTP3_FAILED:
            return  # who writes or reads next finds `error`
        if result == lib.HS_HTTP3_INVALID:
            raise ValueError("a field has characters that it must not have")
        if result == lib.HS_HTTP3_GOING_AWAY:
            raise GoingAwayError
        if result == lib.HS_HTTP3_NO_MEMORY:
            raise MemoryError("no memory for HTTP/3")
        raise RuntimeError("a message can't be continued with this, or is over")
