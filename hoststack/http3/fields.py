"""Header and trailer fields: pairs of bytes, the name in lower case."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

#: As received: names in lower case, in the order of the message, without pseudo-header fields.
Fields = list[tuple[bytes, bytes]]
#: To be sent; str is encoded as Latin-1, and names become lower case.
FieldsToSend = Iterable[tuple[bytes | str, bytes | str]]

#: Those of HTTP/1's connections (RFC 9114 section 4.2).
_OF_CONNECTIONS: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)


def to_bytes(value: bytes | str) -> bytes:
    """Return a name or value as bytes; raises ValueError for what Latin-1 does not have."""
    return value if isinstance(value, bytes) else value.encode("latin-1")


def to_fields(fields: FieldsToSend) -> Fields:
    """Return fields as they are sent. Raises ValueError for those that HTTP/3 does not have, and
    for pseudo-header fields."""
    made = [(to_bytes(name).lower(), to_bytes(value)) for name, value in fields]
    for name, _ in made:
        if name[:1] == b":" or name in _OF_CONNECTIONS:
            raise ValueError(f"HTTP/3 has no such header field: {name!r}")
    return made


def to_text(fields: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Return fields as name NUL value NUL ...; a NUL in them is found by who reads that."""
    return b"\0".join([part for field in fields for part in field]) + b"\0" if fields else b""


def from_text(text: bytes) -> Fields:
    """Return the fields of a text that `to_text` would make."""
    parts = text.split(b"\0")
    return list(zip(parts[0:-1:2], parts[1::2], strict=True))


def get(fields: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """Return the first value of a name."""
    return next((value for found, value in fields if found == name), None)
