"""Requests of httpx as HTTP/3 sends them, and which ones it does not."""

from __future__ import annotations

from collections.abc import AsyncIterable
from typing import Any, Final

from hoststack.http3.fields import Fields
from hoststack.httpx.alternatives import Origin
from hoststack.httpx.pool import Key, authority_of
from hoststack.httpx.transfer import Head

_HTTPS_PORT: Final = 443
#: Fields of HTTP/1's connections (RFC 9114 section 4.2), and the one that :authority stands for.
_NOT_SENT: Final = frozenset(
    (b"connection", b"host", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)


def origin_of(library: Any, request: Any) -> Origin:
    """Return the origin of an https: URL. Raises the library's exceptions for what HTTP/3 can't
    request."""
    url = request.url
    if url.scheme != "https":
        raise library.UnsupportedProtocol(
            f"{str(url)!r}: HTTP/3 is for https:// only; `fallback=` sends other requests elsewhere"
        )
    if not url.host:
        raise library.UnsupportedProtocol(
            f"{str(url)!r} has no host: write it as https://HOST/PATH"
        )
    if request.method == "CONNECT":
        raise library.UnsupportedProtocol("CONNECT is not supported over HTTP/3 here")
    host = url.raw_host.decode("ascii").strip("[]")
    return Origin(host, url.port or _HTTPS_PORT)


def head_of(library: Any, request: Any, origin: Origin, place: Origin | None = None) -> Head:
    """Return a request's head; `place` is the origin's alternative, if that is used."""
    name = request.extensions.get("sni_hostname") or origin.host
    if isinstance(name, bytes):
        name = name.decode("ascii", errors="replace")
    raw = request.headers.raw
    lowered = [(field.lower(), value) for field, value in raw]
    fields: Fields = [
        (field, value)
        for field, value in lowered
        if field not in _NOT_SENT and not (field == b"te" and value.lower() != b"trailers")
    ]
    if place is not None:
        fields.append((b"alt-used", authority_of(place).encode("ascii")))  # RFC 7838 section 5
    authority = next((value for field, value in lowered if field == b"host"), b"")
    authority = authority or request.url.netloc
    return Head(
        library=library,
        key=Key(origin, place or origin, name),
        method=request.method.encode("latin-1"),
        url=b"https://" + authority + request.url.raw_path,
        fields=fields,
        timeouts=request.extensions.get("timeout", {}),
    )


def known_content(library: Any, request: Any) -> bytes | None:
    """Return content that is there as a whole, which can be sent again; None of other content."""
    if isinstance(request.stream, library.ByteStream):
        return b"".join(request.stream)
    return None


def async_content(library: Any, request: Any) -> bytes | AsyncIterable[bytes]:
    """Return a request's content for an asynchronous transport. Raises RuntimeError."""
    known = known_content(library, request)
    if known is not None:
        return known
    if not isinstance(request.stream, library.AsyncByteStream):
        raise RuntimeError("an asynchronous client can't send the content of a synchronous one")
    stream: AsyncIterable[bytes] = request.stream
    return stream
