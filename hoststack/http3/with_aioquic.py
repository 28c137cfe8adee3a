"""HTTP/3 by aioquic's HTTP/3 layer, where nghttp3 is not there."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, cast

import pylsqpack
from aioquic._buffer import Buffer, BufferReadError
from aioquic.buffer import encode_uint_var
from aioquic.h3 import connection as h3
from aioquic.h3.events import DataReceived, H3Event, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import StreamDataReceived, StreamReset

from hoststack.api.about_stream import BYTES, HINTS, RESET, STOPPED
from hoststack.http3.config import Http3Config
from hoststack.http3.errors import ErrorCode, GoingAwayError, ProtocolError
from hoststack.http3.fields import Fields, get
from hoststack.http3.seam import BLOCKED, FAILED, FULL, SENT, Event, Kind, Section, Written
from hoststack.http3.webtransport.wire import StreamHead, settings_of
from hoststack.native.session._session import ffi, lib

_ROOM_BYTES: Final = 65536
#: What a field costs beside its characters (RFC 9114 section 4.2.2).
_FIELD_BYTES: Final = 32
_PRIORITY_UPDATE: Final = 0xF0700
_PRIORITY_UPDATE_OF_PUSH: Final = 0xF0701
_CONTROL_FRAMES: Final = (h3.FrameType.GOAWAY, _PRIORITY_UPDATE, _PRIORITY_UPDATE_OF_PUSH)
_LAST_STREAM_TYPE: Final = h3.StreamType.QPACK_DECODER
#: Of the peer's control stream, until a frame is complete.
_MAX_CONTROL_BYTES: Final = 4096
_NO_MORE: Final = (1 << 62) - 4
_URGENCY: Final = re.compile(rb"(?:^|[ ,])u=([0-7])(?:$|[ ,;])")
_INCREMENTAL: Final = re.compile(rb"(?:^|[ ,])i(?:=\?1)?(?:$|[ ,;])")
_DEFAULT_PRIORITY: Final = (3, False)


class _TooLargeError(h3.ProtocolError):
    """A section is above the limits; the reason is its stream's ID. Raised before aioquic looks at
    each character."""

    error_code = h3.ErrorCode.H3_EXCESSIVE_LOAD


class _Quic:
    """H3Connection's QuicConnection: what it sends is queued for `AioquicLayer.write`."""

    _quic_logger = None
    _remote_max_datagram_frame_size = 65535

    def __init__(self, layer: AioquicLayer, ids: Sequence[int], *, is_client: bool) -> None:
        self.configuration = QuicConfiguration(is_client=is_client)
        self._layer = layer
        self._unused_ids = deque(ids)

    def get_next_available_stream_id(self, is_unidirectional: bool = False) -> int:
        assert is_unidirectional, "requests have streams already"
        return self._unused_ids.popleft()

    def send_stream_data(self, stream_id: int, data: bytes, end_stream: bool = False) -> None:
        self._layer._queue(stream_id, data, end_stream)

    def reset_stream(self, stream_id: int, error_code: int) -> None:
        self._layer._found.append(Event(Kind.RESET, stream_id, error_code))

    def close(self, error_code: int, reason_phrase: str = "") -> None:
        self._layer._on_error(error_code, reason_phrase)


class _Encoder:
    """Compresses with references to entries of the dynamic table that were acknowledged, and no
    others: some clients don't wait for the encoder stream (RFC 9204 section 2.1.2)."""

    def __init__(self, encoder: pylsqpack.Encoder, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self.encode = encoder.encode
        self.feed_decoder = encoder.feed_decoder
        self._apply = encoder.apply_settings

    def apply_settings(self, max_table_capacity: int, blocked_streams: int) -> bytes:
        return self._apply(min(max_table_capacity, self._most_bytes), 0)


class _H3(h3.H3Connection):
    """aioquic's layer with our settings, and without push."""

    def __init__(self, quic: _Quic, config: Http3Config, *, is_server: bool) -> None:
        self._config, self._is_server = config, is_server
        self.without_content: set[int] = set()
        """Requests whose responses have no content, whatever their content-length."""
        super().__init__(cast(QuicConnection, quic))

    def _init_connection(self) -> None:
        self._max_push_id = None
        config = self._config
        self._decoder = pylsqpack.Decoder(config.table_bytes, config.blocked_streams)
        encoder = _Encoder(self._encoder, config.table_bytes)
        self._encoder = cast(pylsqpack.Encoder, encoder)
        super()._init_connection()

    def _get_local_settings(self) -> dict[int, int]:
        config = self._config
        settings: dict[int, int] = {
            h3.Setting.MAX_FIELD_SECTION_SIZE: config.max_section_bytes,
            h3.Setting.QPACK_MAX_TABLE_CAPACITY: config.table_bytes,
            h3.Setting.QPACK_BLOCKED_STREAMS: config.blocked_streams,
        }
        settings.update(settings_of(config))
        if config.has_datagrams:
            settings[h3.Setting.H3_DATAGRAM] = 1
        if config.connect_protocol and self._is_server:
            settings[h3.Setting.ENABLE_CONNECT_PROTOCOL] = 1
        return settings

    def _decode_headers(self, stream_id: int, frame_data: bytes | None) -> Fields:
        headers = super()._decode_headers(stream_id, frame_data)
        cost = sum(len(name) + len(value) + _FIELD_BYTES for name, value in headers)
        if cost > self._config.max_section_bytes or len(headers) > self._config.max_fields:
            raise _TooLargeError(f"{stream_id}")
        if self._is_client and (b":status", b"304") in headers[:1]:
            self.without_content.add(stream_id)
        return headers

    def _check_content_length(self, stream: h3.H3Stream) -> None:
        if stream.stream_id not in self.without_content or stream.content_length:
            super()._check_content_length(stream)

    def cancel(self, stream_id: int) -> None:
        """Decode no more of a request's stream."""
        assert self._local_decoder_stream_id is not None
        stream = self._stream.get(stream_id)
        self._quic.send_stream_data(
            self._local_decoder_stream_id, self._decoder.cancel_stream(stream_id)
        )
        if stream is not None:
            stream.blocked = False
            stream.buffer = b""
            stream.receiving_ended = True

    def forget(self, stream_id: int) -> None:
        self._stream.pop(stream_id, None)
        self.without_content.discard(stream_id)


class AioquicLayer:
    """A seam.Layer."""

    def __init__(self, config: Http3Config, *, is_server: bool) -> None:
        self._config = config
        self._is_server = is_server
        self._error: ProtocolError | None = None
        self._fed = -1
        """The stream whose bytes H3Connection reads."""
        self._found: list[Event] = []
        self._streams: dict[int, Any] = {}
        self._received: set[int] = set()
        """Streams that are read no more."""
        self._final: set[int] = set()
        """Streams whose header section was received: another one is trailers."""
        self._pending: dict[int, deque[memoryview]] = {}
        self._ended: set[int] = set()
        self._full: set[int] = set()
        self._critical: list[int] = []
        self._priorities: dict[int, tuple[int, bool]] = {}
        self._controls: dict[int, ControlFrames] = {}
        self._rejected: set[int] = set()
        self._heads: dict[int, StreamHead] = {}
        """Of streams that may belong to sessions."""
        self._has_settings = False
        self._last_request = -4
        self._goaway_sent = _NO_MORE + 4
        self._goaway_received = 1 << 62
        self._room = ffi.new("uint8_t[]", _ROOM_BYTES)

    @property
    def error(self) -> ProtocolError | None:
        return self._error

    def bind(self, critical: Sequence[Any]) -> None:
        self._critical = [stream.stream_id for stream in critical]
        self._streams.update((stream.stream_id, stream) for stream in critical)
        quic = _Quic(self, self._critical, is_client=not self._is_server)
        self._h3 = _H3(quic, self._config, is_server=self._is_server)

    def add(self, stream: Any) -> None:
        self._streams[stream.stream_id] = stream
        is_peers = self._is_server or stream.stream_id % 4 != 0
        if self._config.webtransport_sessions and is_peers:
            self._heads[stream.stream_id] = StreamHead(stream.stream_id)
        if stream.stream_id % 4 == 0:
            self._last_request = max(self._last_request, stream.stream_id)

    def close(self, stream_id: int, code: int) -> None:
        for kept in (
            self._streams,
            self._pending,
            self._priorities,
            self._controls,
            self._heads,
        ):
            kept.pop(stream_id, None)
        for noted in (self._received, self._final, self._ended, self._full, self._rejected):
            noted.discard(stream_id)
        self._h3.forget(stream_id)

    # --- receiving ---

    def read(self, stream_id: int, max_bytes: int) -> int:
        if self._error is not None:
            return FAILED
        stream = self._streams[stream_id]
        if self._is_server and stream_id % 4 == 0 and stream_id >= self._goaway_sent:
            self._reject(stream_id, ErrorCode.REQUEST_REJECTED)
        if stream_id in self._received:
            return 0
        known = self._h3._stream.get(stream_id)
        if known is not None and known.blocked:
            return BLOCKED
        head = self._heads.get(stream_id)
        if head is not None:
            return self._read_head(stream, head)
        result = int(lib.hs_end_read(stream._end, self._room, min(max_bytes, _ROOM_BYTES), False))
        if result >= 0:
            data: bytes = ffi.buffer(self._room, result & BYTES)[:]
            self._feed(stream_id, data, is_end=not data)
        elif result == RESET and stream_id % 4:
            self._handle(stream_id, StreamReset(error_code=0, stream_id=stream_id))
        return result if self._error is None else FAILED

    def _read_head(self, stream: Any, head: StreamHead) -> int:
        """Read a byte of a stream that may belong to a session: what follows is the program's."""
        stream_id: int = stream.stream_id
        result = int(lib.hs_end_read(stream._end, self._room, 1, False))
        if result < 0:
            return result
        data: bytes = ffi.buffer(self._room, result & BYTES)[:]
        if head.feed(data):
            return result
        del self._heads[stream_id]
        if head.session_id is not None:
            self._received.add(stream_id)
            self._found.append(Event(Kind.WEBTRANSPORT, stream_id, head.session_id))
        elif stream_id % 4 == 1:
            self._received.add(stream_id)
            if head.data:
                self._on_error(ErrorCode.STREAM_CREATION_ERROR, "a server opens no requests")
        else:
            if head.data:
                self._feed(stream_id, head.data, is_end=False)
            if not data:
                self._feed(stream_id, b"", is_end=True)
        return result if self._error is None else FAILED

    def _feed(self, stream_id: int, data: bytes, *, is_end: bool) -> None:
        if is_end:
            self._received.add(stream_id)
        self._handle(stream_id, StreamDataReceived(data, is_end, stream_id))
        known = self._h3._stream.get(stream_id)
        if stream_id % 4:
            self._look_at_unidirectional(stream_id, data)
        elif known is not None and not known.blocked:
            is_frame_too_long = len(known.buffer) > self._config.max_section_bytes
            if is_frame_too_long and stream_id not in self._received:
                self._refuse_section(stream_id)

    def _look_at_unidirectional(self, stream_id: int, data: bytes) -> None:
        """Act on what aioquic ignores, and on a frame that it would collect in any length."""
        known = self._h3._stream.get(stream_id)
        if known is not None and len(known.buffer) > _MAX_CONTROL_BYTES and self._error is None:
            self._error = ProtocolError.of(ErrorCode.EXCESSIVE_LOAD, "a frame is too long")
        if self._error is not None:
            return
        frames = self._controls.setdefault(stream_id, ControlFrames())
        try:
            for kind, payload in frames.feed(data):
                self._on_control_frame(kind, payload)
        except (h3.ProtocolError, BufferReadError) as error:
            code = getattr(error, "error_code", ErrorCode.FRAME_ERROR)
            self._on_error(code, "an invalid frame on the control stream")
        if frames.stream_type is None:
            return
        has_end = stream_id in self._received
        if frames.stream_type <= _LAST_STREAM_TYPE and has_end:
            self._on_error(ErrorCode.CLOSED_CRITICAL_STREAM, "a critical stream was closed")
        elif frames.stream_type > _LAST_STREAM_TYPE and not has_end:
            self._received.add(stream_id)
            code = ErrorCode.STREAM_CREATION_ERROR
            self._found.append(Event(Kind.STOP, stream_id, code))

    def _on_control_frame(self, kind: int, payload: bytes) -> None:
        buffer = Buffer(data=payload)
        identifier = buffer.pull_uint_var()
        if kind == h3.FrameType.GOAWAY:
            if not buffer.eof():
                raise h3.FrameError
            is_request = self._is_server or identifier % 4 == 0
            if not is_request or identifier > self._goaway_received:
                raise h3.IdError
            self._goaway_received = identifier
            self._found.append(Event(Kind.GOAWAY, -1, identifier))
        elif kind == _PRIORITY_UPDATE_OF_PUSH:
            raise h3.IdError
        elif not self._is_server:
            raise h3.FrameUnexpected
        elif identifier % 4 or identifier > self._last_request + 4 * self._config.max_streams:
            raise h3.IdError
        elif identifier in self._streams or identifier > self._last_request:
            self._priorities[identifier] = parse_priority(payload[buffer.tell() :])

    def _handle(self, stream_id: int, event: Any) -> None:
        self._fed = stream_id
        for found in self._h3.handle_event(event):
            self._convert(found)
        self._fed = -1
        settings = self._h3.received_settings
        if settings is not None and not self._has_settings:
            self._has_settings = True
            self._found.append(Event(Kind.SETTINGS, -1, settings=settings))

    def _convert(self, found: H3Event) -> None:
        if isinstance(found, HeadersReceived):
            self._on_section(found.stream_id, found.headers, is_last=found.stream_ended)
        elif isinstance(found, DataReceived):
            kind = Kind.DATA if found.data else Kind.END
            self._found.append(
                Event(kind, found.stream_id, data=found.data, is_last=found.stream_ended)
            )

    def _on_section(self, stream_id: int, fields: Fields, *, is_last: bool) -> None:
        kind = Kind.TRAILERS if stream_id in self._final else Kind.SECTION
        if kind == Kind.SECTION:
            is_right = (
                _is_request(fields, self._config) if self._is_server else fields[0][1] >= b"100"
            )
            if not is_right:
                self._reject(stream_id, ErrorCode.MESSAGE_ERROR)
                return
            if not fields[0][1].startswith(b"1") or self._is_server:
                self._final.add(stream_id)
            priority = get(fields, b"priority")
            if priority is not None:
                self._priorities.setdefault(stream_id, parse_priority(priority))
        self._found.append(Event(kind, stream_id, fields=fields, is_last=is_last))

    def _refuse_section(self, stream_id: int) -> None:
        self._found.append(Event(Kind.TOO_LARGE, stream_id))
        self.stop(stream_id)

    def _reject(self, stream_id: int, code: int) -> None:
        if stream_id not in self._rejected:
            self._rejected.add(stream_id)
            self._found.append(Event(Kind.STOP, stream_id, code))
            self._found.append(Event(Kind.RESET, stream_id, code))
            self.stop(stream_id)

    def _on_error(self, code: int, reason: str) -> None:
        """Note why aioquic gave up. A malformed message ends with its stream, and no more than that
        (RFC 9114 section 4.1.2)."""
        if code == ErrorCode.EXCESSIVE_LOAD:
            self._h3._is_done = False
            self._refuse_section(int(reason))
        elif code == ErrorCode.MESSAGE_ERROR and self._fed % 4 == 0:
            self._h3._is_done = False
            self._reject(self._fed, code)
        elif self._error is None:
            self._error = ProtocolError.of(code, reason)

    def stop(self, stream_id: int) -> None:
        if stream_id not in self._received or stream_id in self._final:
            self._received.add(stream_id)
            self._h3.cancel(stream_id)

    def events(self) -> Iterable[Event]:
        found, self._found = self._found, []
        return found

    # --- sending ---

    def send_section(
        self, stream_id: int, kind: Section, fields: Fields, *, is_last: bool = False
    ) -> None:
        if self._goaway_received < 1 << 62 and kind == Section.REQUEST:
            raise GoingAwayError
        try:
            for name, value in fields:
                h3.validate_header_name(name)
                h3.validate_header_value(name, value)
        except h3.MessageError:
            raise ValueError("a field has characters that it must not have") from None
        is_end = is_last or kind == Section.TRAILER
        self._check_sending(stream_id, kind)
        if (b":method", b"HEAD") in fields[:1]:
            self._h3.without_content.add(stream_id)
        self._h3.send_headers(stream_id, fields, is_end)

    def _check_sending(self, stream_id: int, kind: Section | None) -> None:
        known = self._h3._stream.get(stream_id)
        state = h3.HeadersState.INITIAL if known is None else known.headers_send_state
        is_first = kind not in (None, Section.TRAILER)
        is_begun = state != h3.HeadersState.INITIAL
        is_over = known is not None and known.sending_ended
        if stream_id not in self._streams or is_first == is_begun or is_over:
            raise RuntimeError("a message can't be continued with this, or is over")

    def send_data(self, stream_id: int, data: bytes | memoryview, *, is_last: bool) -> None:
        self._check_sending(stream_id, None)
        if not data and is_last:
            self._h3._stream[stream_id].finish_sending()
            self._queue(stream_id, b"", True)
        else:
            self._h3.send_data(stream_id, bytes(data), is_last)

    def respond(self, stream_id: int, fields: Fields, data: bytes | memoryview) -> list[Written]:
        self.send_section(stream_id, Section.RESPONSE, fields)
        self.send_data(stream_id, data, is_last=True)
        return self.write()

    def _queue(self, stream_id: int, data: bytes, is_end: bool) -> None:
        if data or is_end:
            self._pending.setdefault(stream_id, deque()).append(memoryview(data))
        if is_end:
            self._ended.add(stream_id)

    def abandon(self, stream_id: int) -> None:
        self._pending.pop(stream_id, None)
        self._full.discard(stream_id)
        self._ended.discard(stream_id)
        known = self._h3._stream.get(stream_id)
        if known is not None:
            known.sending_ended = True

    def unblock(self, stream_id: int) -> None:
        self._full.discard(stream_id)

    def write(self) -> list[Written]:
        order = sorted(self._pending, key=self._rank)
        return [self._write_stream(stream_id) for stream_id in order if stream_id not in self._full]

    def _rank(self, stream_id: int) -> tuple[int, int]:
        urgency = self._priorities.get(stream_id, _DEFAULT_PRIORITY)[0]
        return (-1 if stream_id in self._critical else urgency, stream_id)

    def _write_stream(self, stream_id: int) -> Written:
        end, pending = self._streams[stream_id]._end, self._pending[stream_id]
        hints = self._prioritize(stream_id, end)
        while pending:
            data = pending[0]
            result = lib.hs_end_write(end, ffi.from_buffer("uint8_t[]", data), len(data))
            if result < 0:
                return self._give_up(stream_id, result, hints)
            hints |= result >> HINTS
            if result & BYTES < len(data):
                pending[0] = data[result & BYTES :]
                self._full.add(stream_id)
                return Written(stream_id, FULL, hints)
            pending.popleft()
        del self._pending[stream_id]
        if stream_id in self._ended:
            self._ended.discard(stream_id)
            result = lib.hs_end_finish(end)
            if result < 0:
                return self._give_up(stream_id, result, hints)
            hints |= result >> HINTS
        return Written(stream_id, SENT, hints)

    def _prioritize(self, stream_id: int, end: Any) -> int:
        """Have the stack send critical streams first, and a response as urgently as its client
        asks; return hints."""
        if stream_id in self._critical:
            result = lib.hs_end_prioritize(end, 0, True)
        elif self._is_server:
            result = lib.hs_end_prioritize(end, *self.priority(stream_id))
        else:
            return 0
        return int(result >> HINTS) if result > 0 else 0

    def _give_up(self, stream_id: int, result: int, hints: int) -> Written:
        if stream_id in self._critical and result == STOPPED:
            self._on_error(ErrorCode.CLOSED_CRITICAL_STREAM, "a critical stream was stopped")
        self.abandon(stream_id)
        return Written(stream_id, result, hints)

    def shutdown(self, *, is_notice: bool) -> None:
        identifier = _NO_MORE if is_notice else self._last_request + 4
        if not self._is_server:
            identifier = 0
        if identifier < self._goaway_sent:
            self._goaway_sent = identifier
            self._send_control(h3.FrameType.GOAWAY, encode_uint_var(identifier))

    def _send_control(self, kind: int, payload: bytes) -> None:
        self._queue(self._critical[0], h3.encode_frame(kind, payload), False)

    def priority(self, stream_id: int) -> tuple[int, bool]:
        return self._priorities.get(stream_id, _DEFAULT_PRIORITY)

    def set_priority(self, stream_id: int, urgency: int, *, is_incremental: bool) -> None:
        self._priorities[stream_id] = urgency, is_incremental

    def update_priority(self, stream_id: int, value: bytes) -> None:
        self._send_control(_PRIORITY_UPDATE, encode_uint_var(stream_id) + value)


class ControlFrames:
    """Finds the frames of a control stream that aioquic ignores."""

    def __init__(self) -> None:
        self.stream_type: int | None = None
        self._data = b""
        self._skipped_bytes = 0

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Take what arrived; yields type and payload. Raises ProtocolError."""
        self._data += data
        while True:
            skipped = self._data[: self._skipped_bytes]
            self._skipped_bytes -= len(skipped)
            self._data = self._data[len(skipped) :]
            buffer = Buffer(data=self._data)
            try:
                if self.stream_type is None:
                    self.stream_type = buffer.pull_uint_var()
                    self._data = self._data[buffer.tell() :]
                    continue
                if self.stream_type != h3.StreamType.CONTROL:
                    self._data = b""
                    return
                kind, size = buffer.pull_uint_var(), buffer.pull_uint_var()
            except BufferReadError:
                return
            if kind not in _CONTROL_FRAMES:
                self._skipped_bytes = size
                self._data = self._data[buffer.tell() :]
                continue
            if size > _MAX_CONTROL_BYTES:
                raise h3.FrameError
            if len(self._data) < buffer.tell() + size:
                return
            yield kind, buffer.pull_bytes(size)
            self._data = self._data[buffer.tell() :]


def parse_priority(value: bytes) -> tuple[int, bool]:
    """Return urgency, and whether the response is incremental (RFC 9218 section 4)."""
    urgency = _URGENCY.search(value)
    return (int(urgency[1]) if urgency else 3, _INCREMENTAL.search(value) is not None)


def _is_request(fields: Fields, config: Http3Config) -> bool:
    """Return whether the pseudo-header fields that aioquic does not check are right."""
    pseudo = {name: value for name, value in fields if name[:1] == b":"}
    if b":protocol" in pseudo and not config.connect_protocol:
        return False
    if pseudo[b":method"] == b"CONNECT" and b":protocol" not in pseudo:
        return b":scheme" not in pseudo and b":path" not in pseudo
    if b":protocol" in pseudo and pseudo[b":method"] != b"CONNECT":
        return False
    return bool(pseudo.get(b":scheme")) and bool(pseudo.get(b":path"))
