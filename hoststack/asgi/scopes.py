"""Scopes: what an application is told about a request, and about its connection."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import unquote_to_bytes

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from hoststack.http3.about_server import Request
from hoststack.http3.fields import Fields
from hoststack.text import printable

_TLS_1_3: Final = 0x0304
#: By the scope's type.
_EXTENSIONS: Final = {
    "http": (
        "http.response.trailers",
        "http.response.early_hint",
        "http.response.pathsend",
        "http.response.zerocopysend",
    ),
    "websocket": ("websocket.http.response",),
}

EARLY_DATA: Final = "hoststack.early_data"
REQUEST_ID: Final = "hoststack.request_id"


class BadRequestError(Exception):
    """A request that no application gets: it is answered with 400, and these fields."""

    def __init__(self, text: str, fields: Fields | None = None) -> None:
        super().__init__(text)
        self.fields = fields


class Peer:
    """What the requests of a connection have in common."""

    def __init__(self, connection: Any, root_path: str) -> None:
        self.connection = connection
        self._root_path = root_path
        self._raw_root_path = root_path.encode()
        self._id = f"{connection.handle:x}-"
        self._extensions: dict[str, dict[str, dict[str, Any]]] = {}
        """By the scope's type, once the handshake is complete."""

    def request_id(self, request: Request) -> str:
        """Return the connection's handle and the stream ID, which log lines have too."""
        return f"{self._id}{request.stream_id}"

    def scope(self, request: Request, state: dict[str, Any]) -> dict[str, Any]:
        """Return the scope of an HTTP request. Raises BadRequestError."""
        scope = self._common("http", request, state)
        scope["method"] = request.method.decode("latin-1").upper()
        return scope

    def websocket_scope(self, request: Request, state: dict[str, Any]) -> dict[str, Any]:
        """Return the scope of a WebSocket. Raises BadRequestError."""
        scope = self._common("websocket", request, state)
        scope["scheme"] = "wss"
        scope["subprotocols"] = [
            name.strip().decode("latin-1")
            for value in _values(request.headers, b"sec-websocket-protocol")
            for name in value.split(b",")
            if name.strip()
        ]
        return scope

    def webtransport_scope(self, request: Request, state: dict[str, Any]) -> dict[str, Any]:
        """Return the scope of a WebTransport session. Raises BadRequestError."""
        scope = self._common("webtransport", request, state)
        scope["subprotocols"] = request.webtransport_protocols
        return scope

    def _common(self, kind: str, request: Request, state: dict[str, Any]) -> dict[str, Any]:
        target = request.path or b""
        raw_path, _, query = target.partition(b"?")
        decoded = unquote_to_bytes(raw_path) if b"%" in raw_path else raw_path
        connection = self.connection
        extensions = self._extensions.get(kind)
        if extensions is None:
            extensions = self._make_extensions(kind)
        extensions = extensions.copy()
        extensions[REQUEST_ID] = {"id": f"{self._id}{request.stream_id}"}
        if connection.early_data == "pending":
            extensions[EARLY_DATA] = {"wait_handshake": connection.wait_handshake}
        return {
            "type": kind,
            "asgi": {"version": "3.0", "spec_version": "2.5"},
            "http_version": "3",
            "scheme": "https" if request.scheme is None else request.scheme.decode("latin-1"),
            "path": self._root_path + decoded.decode("utf-8", "replace"),
            "raw_path": self._raw_root_path + raw_path,
            "query_string": query,
            "root_path": self._root_path,
            "headers": headers_of(request),
            "client": connection.remote,
            "server": connection.local,
            "state": state.copy(),
            "extensions": extensions,
        }

    def _make_extensions(self, kind: str) -> dict[str, dict[str, Any]]:
        connection = self.connection
        names = _EXTENSIONS.get(kind, ())
        extensions: dict[str, dict[str, Any]] = {name: {} for name in names}
        own = connection.own_certificate
        extensions["tls"] = {
            "server_cert": None if own is None else _pem(own),
            **_about_client(connection),
            "tls_version": _TLS_1_3,
            "cipher_suite": connection.cipher_suite,
        }
        if connection.early_data != "pending":
            self._extensions[kind] = extensions
        return extensions


def _about_client(connection: Any) -> dict[str, Any]:
    """Return what the TLS extension has about a client's certificates, the client's own first."""
    error = None
    try:
        chain = connection.peer_certificates
        name = chain[0].subject.rfc4514_string() if chain else None
    except ValueError as why:  # accepted by the handshake, and not by cryptography
        chain, name, error = (), None, printable(f"can't be read: {why}", 200)
    return {
        "client_cert_chain": list(map(_pem, chain)),
        "client_cert_name": name,
        "client_cert_error": error,
    }


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


def headers_of(request: Request) -> Fields:
    """Return a request's fields as applications expect them: `host` first, which is the authority,
    and one `cookie` (RFC 9114 sections 4.2.1, 4.3.1). Raises BadRequestError."""
    headers, authority = request.headers, request.authority
    names = [name for name, _ in headers]
    if authority is not None:
        if b"host" in names:
            if any(value != authority for value in _values(headers, b"host")):
                raise BadRequestError("its host is not its :authority")
            headers = [field for field in headers if field[0] != b"host"]
        headers = [(b"host", authority), *headers]
    elif names.count(b"host") > 1:
        raise BadRequestError("it has several hosts")
    if names.count(b"cookie") > 1:
        cookies = b"; ".join(_values(headers, b"cookie"))
        headers = [field for field in headers if field[0] != b"cookie"]
        headers.append((b"cookie", cookies))
    return headers


def _values(headers: Fields, name: bytes) -> list[bytes]:
    return [value for found, value in headers if found == name]


def is_early(scope: Any) -> bool:
    """Whether a request may be a replay of recorded packets (RFC 8470): do nothing that must not
    happen twice, or await `scope["extensions"]["hoststack.early_data"]["wait_handshake"]()`."""
    return EARLY_DATA in scope.get("extensions", ())


async def respond_too_early(send: Any) -> None:
    """Answer with 425: the client repeats the request after the handshake."""
    await send({"type": "http.response.start", "status": 425, "headers": []})
    await send({"type": "http.response.body"})
