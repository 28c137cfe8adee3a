"""VCL's configuration: the file that VCL_CONFIG names, in VPP's format, and the environment.

    vcl {
      api-socket-name /run/hoststack/api.sock
      rx-fifo-size 4M
      app-scope-global
    }

A key stands on a line of its own, followed by its value; `#` starts a comment. Names may have `_`
for `-`, as in VPP. The environment overrides the file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from hoststack.boundary.attaching import DEFAULT_PATH
from hoststack.boundary.scope import DEFAULT_NAMESPACE, Scope
from hoststack.sizes import parse_size

#: The environment variable that names the file.
CONFIG_VARIABLE: Final = "VCL_CONFIG"


class VclConfigError(ValueError):
    """An invalid configuration; the message says where and why."""


@dataclass(frozen=True, slots=True)
class VclConfig:
    """The settings of a VCL application. Sizes in bytes, times in seconds."""

    api_socket_name: str = DEFAULT_PATH
    rx_fifo_bytes: int | None = None
    """None means QuicConfig's default."""
    tx_fifo_bytes: int | None = None
    namespace: str = DEFAULT_NAMESPACE
    secret: str = ""
    scope_local: bool = False
    scope_global: bool = True
    session_timeout_s: float = 10.0
    """How long blocking connects and listens may take."""
    accept_timeout_s: float | None = None
    """How long a blocking accept waits; None means forever."""
    tls_ca: str | None = None
    """Authorities, PEM, that clients check certificates against. With None they accept any
    certificate, as in VPP."""

    alpn: tuple[str, ...] = ()
    """The application protocols (RFC 7301) of QUIC sessions that name none."""

    @property
    def scopes(self) -> frozenset[Scope]:
        scopes: set[Scope] = set()
        if self.scope_local:
            scopes.add("local")
        if self.scope_global:
            scopes.add("global")
        return frozenset(scopes)


def _size(text: str) -> int:
    size = parse_size(text)
    if not 1 <= size <= 1 << 32:
        raise ValueError("a FIFO has 1 byte to 4 GiB")
    return size


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 1e9:
        raise ValueError("a number of seconds is expected, more than 0")
    return seconds


def _path(text: str) -> str:
    if not Path(text).is_absolute():
        raise ValueError("an absolute path is expected")
    return text


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


#: The settings: the field, and the parser of its value; None for keys without a value.
_KEYS: Final[dict[str, tuple[str, Callable[[str], Any] | None]]] = {
    "api-socket-name": ("api_socket_name", _path),
    "app-socket-api": ("api_socket_name", _path),
    "rx-fifo-size": ("rx_fifo_bytes", _size),
    "tx-fifo-size": ("tx_fifo_bytes", _size),
    "namespace-id": ("namespace", str),
    "namespace-secret": ("secret", str),
    "app-scope-local": ("scope_local", None),
    "app-scope-global": ("scope_global", None),
    "session-timeout": ("session_timeout_s", _seconds),
    "accept-timeout": ("accept_timeout_s", _seconds),
    "tls-ca": ("tls_ca", _path),
    "alpn": ("alpn", _names),
}
#: VPP's settings that have no equivalent here: they are accepted and ignored. The value says
#: whether the key has a value.
_WITHOUT_EFFECT: Final = {
    "heapsize": True,
    "segment-baseva": True,
    "segment-size": True,
    "add-segment-size": True,
    "preallocated-fifo-pairs": True,
    "event-queue-size": True,
    "listen-queue-size": True,
    "tls-engine": True,
    "app-timeout": True,
    "uid": True,
    "gid": True,
    "use-mq-eventfd": False,
    "multi-thread-workers": False,
    "huge-page": False,
}
#: Environment variables, which override the file.
_VARIABLES: Final = {
    "VCL_APP_NAMESPACE_ID": "namespace-id",
    "VCL_APP_NAMESPACE_SECRET": "namespace-secret",
    "VCL_APP_SCOPE_LOCAL": "app-scope-local",
    "VCL_APP_SCOPE_GLOBAL": "app-scope-global",
    "VCL_VPP_SAPI_SOCKET": "app-socket-api",
    "VCL_VPP_API_SOCKET": "api-socket-name",
}


def load_config(environment: Mapping[str, str] | None = None) -> VclConfig:
    """Read the environment, and the file that it names; raises VclConfigError."""
    given = os.environ if environment is None else environment
    path = given.get(CONFIG_VARIABLE)
    config = VclConfig()
    if path:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not text"
            raise VclConfigError(f"{CONFIG_VARIABLE}={path}: {why}") from None
        config = parse_config(text, path)
    fields: dict[str, Any] = {}
    scopes = {"scope_local": False, "scope_global": False}
    for variable, key in _VARIABLES.items():
        value = given.get(variable)
        if value is None:
            continue
        field, read = _KEYS[key]
        if read is None:
            scopes[field] = True
        else:
            fields[field] = _read(read, value, variable)
    if any(scopes.values()):
        fields |= scopes
    return replace(config, **fields)


def parse_config(text: str, name: str = VclConfig.__name__) -> VclConfig:
    """Parse a file's text; raises VclConfigError with its name and the line."""
    fields: dict[str, Any] = {}
    scopes: dict[str, bool] = {}
    is_open = is_over = False
    for number, line in enumerate(text.splitlines(), 1):
        where = f"{name}:{number}"
        words = line.partition("#")[0].split()
        if words[:1] == ["vcl"] and not is_open:
            if words[1:2] != ["{"]:
                raise VclConfigError(f"{where}: write `vcl {{`, and its keys on the lines below")
            is_open, words = True, words[2:]
        ends = words[-1:] == ["}"]
        words = words[:-1] if ends else words
        if words and (not is_open or is_over):
            raise VclConfigError(f"{where}: {words[0]!r} is outside of `vcl {{ ... }}`")
        if words:
            _take(words, where, fields, scopes)
        if ends:
            if not is_open or is_over:
                raise VclConfigError(f"{where}: unmatched `}}`")
            is_over = True
    if is_open and not is_over:
        raise VclConfigError(f"{name}: the closing `}}` is missing")
    if scopes:
        fields |= {"scope_local": False, "scope_global": False} | scopes
    return VclConfig(**fields)


def _take(words: list[str], where: str, fields: dict[str, Any], scopes: dict[str, bool]) -> None:
    key, values = words[0].replace("_", "-"), words[1:]
    if key in _WITHOUT_EFFECT:
        _one_value(where, key, values, needs=_WITHOUT_EFFECT[key])
        return
    if key not in _KEYS:
        raise VclConfigError(f"{where}: unknown key {words[0]!r}: use one of {', '.join(_KEYS)}")
    field, read = _KEYS[key]
    _one_value(where, key, values, needs=read is not None)
    if read is None:
        scopes[field] = True
    else:
        fields[field] = _read(read, values[0], f"{where}: {key}")


def _one_value(where: str, key: str, values: list[str], *, needs: bool) -> None:
    if len(values) != int(needs):
        wanted = "one value" if needs else "nothing"
        raise VclConfigError(f"{where}: after {key} expected {wanted}, not {' '.join(values)!r}")


def _read(read: Callable[[str], Any], value: str, where: str) -> Any:
    try:
        return read(value)
    except ValueError as error:
        raise VclConfigError(f"{where} {value!r}: {error}") from None
