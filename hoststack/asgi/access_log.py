"""The access log: a line a request, a write a batch."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Literal, NamedTuple, Self

from hoststack.asgi.config import ApplicationError
from hoststack.http3.fields import Fields, get
from hoststack.text import printable

logger = logging.getLogger(__name__)

Format = Literal["common", "combined", "json"]

_MODE: Final = 0o640
_MOST_BYTES: Final = 1 << 20  #: of lines that wait for `flush`
_MONTHS: Final = (
    *("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"),
)


class Entry(NamedTuple):
    """A request that is over."""

    client: str
    """Its address."""
    method: str
    target: bytes
    """Path and query, as the client sent them."""
    protocol: str
    """Such as HTTP/3."""
    status: int
    """Of the response; 499 if the client was gone before."""
    body_bytes: int
    """Of the response's content, sent."""
    seconds: float
    """From the request's arrival to the response's end."""
    headers: Fields
    """Of the request, for referer and user-agent."""
    request_id: str
    """The connection's handle and the stream ID."""


class AccessLog:
    """Lines for requests, in a file, or to a file descriptor.

    `add` never blocks; `flush` writes all lines since the last one at once, which may. A write that
    fails is reported once, and the lines are lost; they are counted in `lost_lines`.
    """

    def __init__(self, target: str | int = "-", format: Format = "combined") -> None:
        """`target` is a path, "-" for standard output, or a file descriptor, which stays open.
        Raises ApplicationError if the file can't be opened."""
        makers: dict[str, Callable[[Entry], str]] = {
            "common": _common,
            "combined": _combined,
            "json": _json,
        }
        if format not in makers:
            raise ValueError(f"the format is common, combined or json, not {format!r}")
        self._make = makers[format]
        self._path = target if isinstance(target, str) and target != "-" else None
        self._fd = target if isinstance(target, int) else -1
        self._lines: list[str] = []
        self._bytes = 0
        self._has_failed = False
        self.lost_lines = 0
        """That could not be written."""
        self.on_first_line: Callable[[], object] | None = None
        """Called when the first line since the last `flush` was added."""
        if target == "-":
            self._fd = sys.stdout.fileno()
        elif self._path is not None:
            self._fd = self._open(self._path)

    def _open(self, path: str) -> int:
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            return os.open(path, flags, _MODE)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise ApplicationError(
                f"the access log {path!r} can't be opened: {why}: check path and permissions"
            ) from None

    def add(self, entry: Entry) -> None:
        """Add a line for a request."""
        line = self._make(entry)
        self._lines.append(line)
        self._bytes += len(line)
        if self._bytes > _MOST_BYTES:
            self.flush()
        elif len(self._lines) == 1 and self.on_first_line is not None:
            self.on_first_line()

    def flush(self) -> None:
        """Write the lines since the last call."""
        if not self._lines:
            return
        lines, self._lines, self._bytes = self._lines, [], 0
        lines.append("")
        data = "\n".join(lines).encode(errors="backslashreplace")
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as error:
            self.lost_lines += len(lines) - 1
            if not self._has_failed:
                self._has_failed = True
                logger.error(
                    "the access log can't be written: %s: make room, and have it reopened",
                    error.strerror,
                )

    def reopen(self) -> None:
        """Open the file again by its path, after a program such as logrotate moved it. Raises
        ApplicationError, and goes on with the old file then."""
        self.flush()
        if self._path is not None:
            new = self._open(self._path)
            os.close(self._fd)
            self._fd = new
            self._has_failed = False

    def close(self) -> None:
        """Write what is left, and close the file."""
        self.flush()
        if self._path is not None and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class _Clock:
    """The time as text, made once a second."""

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def now(self) -> str:
        second = int(time.time())
        if second != self._second:
            self._second = second
            local = time.localtime(second)
            month = _MONTHS[local.tm_mon - 1]
            self._text = time.strftime(f"%d/{month}/%Y:%H:%M:%S %z", local)
        return self._text


_clock: Final = _Clock()


def _quoted(text: object) -> str:
    r"""Return text from outside for a field in quotes: one line, `"` and `\` escaped."""
    data = text if isinstance(text, bytes) else str(text).encode(errors="surrogatepass")
    if b"\\" in data or b'"' in data:
        data = data.replace(b"\\", rb"\x5c").replace(b'"', rb"\x22")
    shown = data.decode("latin-1")
    return shown if shown.isascii() and shown.isprintable() else printable(data)


def _common(entry: Entry) -> str:
    """The Common Log Format."""
    request = f"{_quoted(entry.method)} {_quoted(entry.target)} {entry.protocol}"
    return f'{entry.client} - - [{_clock.now()}] "{request}" {entry.status} {entry.body_bytes}'


def _combined(entry: Entry) -> str:
    """The same with referer and user agent, as Apache httpd and nginx have it."""
    referer, agent = get(entry.headers, b"referer"), get(entry.headers, b"user-agent")
    return (
        f'{_common(entry)} "{_quoted(referer or "-")}" "{_quoted(agent or "-")}"'
        f" {entry.request_id} {entry.seconds:.6f}"
    )


def _json(entry: Entry) -> str:
    """An object a line."""
    fields: dict[str, object] = {
        "time": f"{time.time():.6f}",
        "id": entry.request_id,
        "client": entry.client,
        "method": entry.method,
        "target": entry.target.decode(errors="backslashreplace"),
        "protocol": entry.protocol,
        "status": entry.status,
        "body_bytes": entry.body_bytes,
        "seconds": round(entry.seconds, 6),
    }
    for key, name in (("host", b"host"), ("referer", b"referer"), ("user_agent", b"user-agent")):
        value = get(entry.headers, name)
        if value is not None:
            fields[key] = value.decode(errors="backslashreplace")
    return json.dumps(fields, separators=(",", ":"))
