"""The files of a folder, as an ASGI application."""

from __future__ import annotations

import errno
import logging
import mimetypes
import os
import stat
from email.utils import formatdate, parsedate_to_datetime
from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

from hoststack.asgi.config import ApplicationError
from hoststack.asgi.file_parts import CHUNK_BYTES, OpenFile
from hoststack.asgi.kept_files import KeptFile, KeptFiles
from hoststack.http3.fields import Fields, get
from hoststack.text import printable

logger = logging.getLogger("hoststack.asgi")

_INDEX: Final = b"index.html"
_FALLBACK_TYPE: Final = b"application/octet-stream"
#: Types of text beside text/..., whose characters are said to be UTF-8.
_OF_TEXT: Final = frozenset(
    ("application/javascript", "application/json", "application/xml", "image/svg+xml")
)
#: Suffixes of what was compressed beforehand, and their codings, the preferred one first.
_CODINGS: Final = ((b".br", b"br"), (b".gz", b"gzip"))
#: Request fields on which it depends whether a file, or which part of it, is sent.
_CONDITIONS: Final = frozenset(
    (
        b"if-match",
        b"if-none-match",
        b"if-modified-since",
        b"if-unmodified-since",
        b"if-range",
        b"range",
    )
)
_NOT_THERE: Final = frozenset(
    (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO, errno.EACCES)
)
_ZERO_COPY: Final = "http.response.zerocopysend"


class _NotFoundError(Exception):
    """There is no such file, or none that may be sent."""


class StaticFiles:
    """Answers GET and HEAD with the files below a folder.

    A path that ends in `/` is that folder's index.html. Symbolic links may lead to places below the
    folder, to no others. Next to `page.html`, `page.html.br` and `page.html.gz` are sent to clients
    that accept these codings. Ranges (one at a time), conditional requests and validators are as in
    RFC 9110 sections 13 and 14. Small files are kept in memory (16 MiB of them), and looked at
    before each answer: one that has changed is read again.
    """

    def __init__(self, root: str | os.PathLike[str], *, max_age_s: int | None = None) -> None:
        """Open the folder. `max_age_s` is sent as `cache-control`. Raises ApplicationError."""
        self._root = os.path.realpath(os.fsencode(root)).rstrip(b"/")
        try:
            fd = os.open(self._root or b"/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ApplicationError(
                f"the folder {os.fspath(root)!r} can't be opened: {error.strerror}: "
                "check path and permissions"
            ) from None
        os.close(fd)
        self._kept = KeptFiles()
        self._common: Fields = [
            (b"x-content-type-options", b"nosniff"),
            (b"vary", b"accept-encoding"),
        ]
        if max_age_s is not None:
            self._common.append((b"cache-control", b"max-age=%d" % max_age_s))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Be an ASGI application."""
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] != "http":  # websocket or webtransport
            await receive()
            await send({"type": f"{scope['type']}.close"})
        elif scope["method"] not in ("GET", "HEAD"):
            await _send_status(send, 405, [(b"allow", b"GET, HEAD")])
        else:
            await self._answer(scope, send)

    async def _answer(self, scope: Any, send: Any) -> None:
        root_path = scope.get("root_path", "").encode()
        target: bytes = scope.get("raw_path") or quote_from_bytes(scope["path"].encode()).encode()
        try:
            names, is_folder = names_of(target.removeprefix(root_path))
            path = b"/".join((self._root, *names, *([_INDEX] if is_folder else [])))
            file = await self._open(path)
            if stat.S_ISDIR(file.status.st_mode):
                file.close()
                if is_folder:  # index.html is one
                    raise _NotFoundError
                await self._redirect(send, root_path, names, scope["query_string"])
                return
        except _NotFoundError:
            await _send_status(send, 404)
            return
        except OSError as error:
            logger.error(
                "%s can't be read, and 503 is sent: %s: check permissions and limits",
                printable(target),
                error.strerror,
            )
            await _send_status(send, 503)
            return
        coding = b""
        try:
            for suffix, name in _codings(scope["headers"]):
                compressed = await self._try_open(path + suffix)
                if compressed is not None:
                    file.close()
                    file, coding = compressed, name
                    break
            await self._send_file(scope, send, file, path, coding)
        finally:
            file.close()

    async def _open(self, path: bytes) -> OpenFile | KeptFile:
        """Open a regular file or a folder below the root. Raises _NotFoundError and OSError."""
        try:
            kept = self._kept.get(path)
            if kept is not None:
                return kept
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError as error:
            if error.errno in _NOT_THERE:
                raise _NotFoundError from None
            raise
        file = OpenFile(fd)
        # Where it is in truth, whatever links there were on the way at that moment.
        real = os.readlink(b"/proc/self/fd/%d" % fd)
        mode = file.status.st_mode
        if not real.startswith(self._root + b"/") or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            file.close()
            raise _NotFoundError
        if stat.S_ISDIR(mode):
            return file
        try:
            return await self._kept.read(path, file)
        except BaseException:
            file.close()
            raise

    async def _try_open(self, path: bytes) -> OpenFile | KeptFile | None:
        if not os.access(path, os.F_OK):  # as nearly always, and cheaper than an exception
            return None
        try:
            file = await self._open(path)
        except (_NotFoundError, OSError):
            return None
        if stat.S_ISREG(file.status.st_mode):
            return file
        file.close()
        return None

    async def _redirect(
        self, send: Any, root_path: bytes, names: list[bytes], query: bytes
    ) -> None:
        """Send a client that left out the last slash to the folder."""
        path = "/".join(quote_from_bytes(name) for name in names)
        location = root_path + f"/{path}/".encode() + (b"?" + query if query else b"")
        await _send_status(send, 308, [(b"location", location)])

    async def _send_file(
        self, scope: Any, send: Any, file: OpenFile | KeptFile, path: bytes, coding: bytes
    ) -> None:
        status, headers = file.status, scope["headers"]
        tag = b'"%x-%x%s"' % (status.st_mtime_ns, status.st_size, b"-" + coding if coding else b"")
        modified = int(status.st_mtime)
        fields = [
            *self._common,
            (b"etag", tag),
            (b"last-modified", _http_date(modified)),
            (b"accept-ranges", b"bytes"),
        ]
        # Most requests have no condition and no range: one look at their names is enough.
        is_plain = _CONDITIONS.isdisjoint([name for name, _ in headers])
        verdict = 0 if is_plain else _precondition(headers, tag, modified)
        if verdict:
            await send({"type": "http.response.start", "status": verdict, "headers": fields})
            await send({"type": "http.response.body"})
            return
        fields.append((b"content-type", content_type(os.fsdecode(path))))
        if coding:
            fields.append((b"content-encoding", coding))
        size = file.size_bytes
        start, count, code = 0, size, 200
        if not is_plain and scope["method"] == "GET" and _range_applies(headers, tag, modified):
            found = _range(get(headers, b"range") or b"", size)
            if found is not None and not found[1]:
                await _send_status(send, 416, [(b"content-range", b"bytes */%d" % size)])
                return
            if found is not None:
                start, count = found
                code = 206
                end = start + count - 1
                fields.append((b"content-range", b"bytes %d-%d/%d" % (start, end, size)))
        fields.append((b"content-length", b"%d" % count))
        await send({"type": "http.response.start", "status": code, "headers": fields})
        await _send_content(scope, send, file, start, count)


async def _send_content(
    scope: Any, send: Any, file: OpenFile | KeptFile, start: int, count: int
) -> None:
    if scope["method"] == "HEAD":
        await send({"type": "http.response.body"})
    elif isinstance(file, KeptFile) or count <= CHUNK_BYTES:
        await send({"type": "http.response.body", "body": bytes(await file.read(start, count))})
    elif _ZERO_COPY in scope.get("extensions", ()):
        await send({"type": _ZERO_COPY, "file": file, "offset": start, "count": count})
    else:
        async for part in file.part(start, count):
            await send({"type": "http.response.body", "body": bytes(part), "more_body": True})
        await send({"type": "http.response.body"})


async def _send_status(send: Any, status: int, extra: Fields | None = None) -> None:
    """Send a response with a status and nothing else."""
    headers = [(b"content-type", b"text/plain"), *(extra or ())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"%d\n" % status})


async def _live(receive: Any, send: Any) -> None:
    for kind in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{kind}.complete"})


def names_of(path: bytes) -> tuple[list[bytes], bool]:
    """Split a path into names, and return whether it names a folder. Raises _NotFoundError for one
    that no file can have."""
    if not path.startswith(b"/"):
        raise _NotFoundError
    parts = path.split(b"/")
    names = []
    for part in parts:
        name = unquote_to_bytes(part) if b"%" in part else part
        if name in (b"", b"."):
            continue
        if name == b".." or b"/" in name or b"\0" in name:
            raise _NotFoundError
        names.append(name)
    return names, not names or parts[-1] in (b"", b".")


@lru_cache(maxsize=4096)
def _http_date(seconds: int) -> bytes:
    return formatdate(seconds, usegmt=True).encode()


@lru_cache(maxsize=1024)
def _type_of_suffix(suffix: str) -> bytes:
    guessed, coding = mimetypes.guess_type(f"x{suffix}")
    if guessed is None or coding is not None:
        return _FALLBACK_TYPE
    if guessed.startswith("text/") or guessed in _OF_TEXT:
        return f"{guessed}; charset=utf-8".encode()
    return guessed.encode()


def content_type(path: str) -> bytes:
    """Return the content type of a file by its name."""
    return _type_of_suffix(os.path.splitext(path)[1].lower())


def _codings(headers: Fields) -> list[tuple[bytes, bytes]]:
    """Return what the client accepts (RFC 9110 section 12.5.3)."""
    accepted = get(headers, b"accept-encoding")
    if not accepted:
        return []
    weights = {}
    for item in accepted.lower().split(b","):
        name, _, parameters = item.partition(b";")
        key, _, weight = parameters.strip().partition(b"=")
        weights[name.strip()] = not (key.strip() == b"q" and _is_zero(weight))
    anything = weights.get(b"*", False)
    return [each for each in _CODINGS if weights.get(each[1], anything)]


def _is_zero(weight: bytes) -> bool:
    try:
        return float(weight) == 0
    except ValueError:
        return True


def _precondition(headers: Fields, tag: bytes, modified: int) -> int:
    """Return 304 or 412, or 0 if the request goes on (RFC 9110 section 13.2.2)."""
    match = get(headers, b"if-match")
    if match is not None:
        if match.strip() != b"*" and tag not in _tags(match):
            return 412
    else:
        since = _date(get(headers, b"if-unmodified-since"))
        if since is not None and modified > since:
            return 412
    none = get(headers, b"if-none-match")
    if none is not None:
        weak = {found.removeprefix(b"W/") for found in _tags(none)}
        return 304 if none.strip() == b"*" or tag in weak else 0
    since = _date(get(headers, b"if-modified-since"))
    return 304 if since is not None and modified <= since else 0


def _tags(value: bytes) -> list[bytes]:
    return [tag.strip() for tag in value.split(b",")]


def _date(value: bytes | None) -> float | None:
    if value is None:
        return None
    try:
        return parsedate_to_datetime(value.decode("latin-1")).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def _range_applies(headers: Fields, tag: bytes, modified: int) -> bool:
    """Whether `if-range` allows a part (RFC 9110 section 13.1.5)."""
    condition = get(headers, b"if-range")
    return condition is None or condition == tag or _date(condition) == modified


def _range(value: bytes, size: int) -> tuple[int, int] | None:
    """Return start and count of a range; a count of 0 if the file has nothing there, None if the
    whole file is to be sent: no range, several, or an invalid one (RFC 9110 section 14.2)."""
    unit, equals, ranges = value.partition(b"=")
    first, dash, last = ranges.strip().partition(b"-")
    if not equals or not dash or unit.strip().lower() != b"bytes":
        return None
    if not all(not part or (part.isdigit() and len(part) < 20) for part in (first, last)):
        return None
    if first:
        start = int(first)
        end = min(int(last), size - 1) if last else size - 1
        if last and int(last) < start:
            return None
    elif last:
        start, end = max(0, size - int(last)), size - 1
    else:
        return None
    return start, max(0, end - start + 1)
