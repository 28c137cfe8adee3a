"""The URLs of `hoststack get`, and the files that their content goes to."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit

_HTTPS_PORT: Final = 443
#: Characters allowed in URLs; all others are percent-encoded (RFC 3986 section 2).
_URL_CHARACTERS: Final = "%/?:@!$&'()*+,;=~"

Place = tuple[str, int]


@dataclass(frozen=True)
class Target:
    """One URL."""

    url: str
    host: str
    port: int
    path: str
    name: str
    """Of the file that -O writes."""
    output: Path | None = None
    """None: standard output."""

    @property
    def authority(self) -> str:
        """Host and port in URI syntax; 443 is left out."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _HTTPS_PORT else f"{host}:{self.port}"


def _quoted(text: str) -> str:
    # An argument that is no UTF-8 is encoded as the bytes that it is.
    return quote(text, safe=_URL_CHARACTERS, errors="surrogateescape")


def parse_target(url: str) -> Target:
    """Parse a URL; raises ValueError with a line for the user."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{url!r} is not a URL: {error}") from None
    if parts.scheme != "https" or not parts.hostname:
        raise ValueError(f"{url!r}: write it as https://HOST[:PORT]/PATH")
    if parts.username is not None:
        raise ValueError(f"{url!r}: user names are not supported: leave the user out")
    path = _quoted(parts.path or "/")
    if parts.query:
        path += "?" + _quoted(parts.query)
    name = parts.path.rpartition("/")[2]
    return Target(
        url=url,
        host=parts.hostname,
        port=_HTTPS_PORT if port is None else port,
        path=path,
        name=name if name not in ("", ".", "..") and "\0" not in name else "index.html",
    )


def place_outputs(
    targets: Sequence[Target], outputs: Sequence[Path], *, by_name: bool
) -> list[Target]:
    """Return the targets with their files; raises ValueError with a line for the user."""
    if by_name:
        if outputs:
            raise ValueError("-O and -o: give one of the two")
        placed = [replace(target, output=Path(target.name)) for target in targets]
    elif not outputs:
        return list(targets)
    elif len(outputs) == 1 and outputs[0].is_dir():
        placed = [replace(target, output=outputs[0] / target.name) for target in targets]
    elif len(outputs) == len(targets):
        placed = [
            replace(target, output=output) for target, output in zip(targets, outputs, strict=True)
        ]
    else:
        raise ValueError("-o: give one for each URL, or a folder for all")
    if len({target.output for target in placed}) < len(placed):
        raise ValueError("-o, -O: two URLs would go to the same file: name different files")
    return placed


def parse_place(text: str) -> tuple[Place, str]:
    """Parse HOST:PORT:ADDRESS; raises ValueError with a line for the user."""
    try:
        host, port, address = text.split(":", 2)
        return (host.lower(), int(port)), ipaddress.ip_address(address.strip("[]")).compressed
    except ValueError:
        raise ValueError(f"--resolve {text}: write it as HOST:PORT:ADDRESS") from None
