"""A daemon's settings: a TOML file, and the same as options of the command line."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, get_args

from hoststack.boundary.attaching import DEFAULT_PATH
from hoststack.session.namespaces import Namespaces
from hoststack.worker.engines import EngineName

LinkName = Literal["auto", "af_xdp", "udp"]
XdpMode = Literal["auto", "native", "generic"]

#: Where the debug CLI listens.
DEFAULT_CLI_PATH: Final = "/run/hoststack/cli.sock"


class ConfigError(ValueError):
    """An invalid setting; the message names it and says what is valid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonConfig:
    """A daemon's settings. In a file, names have hyphens: `max-applications = 16`."""

    interface: str | None = None
    """The interface to serve; None only with link udp."""
    link: LinkName = "auto"
    mode: XdpMode = "auto"
    """XDP's."""
    engine: EngineName = "auto"
    workers: int = 1
    """Worker processes; over af_xdp at most one for each receive queue."""
    socket: str = DEFAULT_PATH
    """The socket at which applications attach."""
    cli_socket: str = DEFAULT_CLI_PATH
    """The socket at which `hoststack ctl` attaches; empty for none."""
    group: str | None = None
    """The group whose members may attach; None allows only root and the daemon's own user."""
    user: str | None = None
    """The user that workers become when the daemon runs as root; None is `hoststack` if there is
    such a user, else `nobody`."""
    max_applications: int = 64
    max_sessions: int = 65536
    """Limit of one application, in each worker."""
    fifo_memory_bytes: int = 4 << 30
    """Memory for the FIFOs of one application, in each worker."""
    drain_seconds: float = 10.0
    """How long open connections may take to end after SIGTERM."""
    watchdog_seconds: float = 10.0
    """Replace a worker that has not answered for so long, counting only time in which it could
    have; 0 means never."""
    host: int = 0
    """The host in the server ID of connection IDs, for a load balancer."""
    busy_poll_us: int = 0
    namespaces: Mapping[str, str] = field(default_factory=dict)
    """Secrets of application namespaces by ID; `default` always exists, and needs none."""

    def __post_init__(self) -> None:
        """Check the settings; raises ConfigError."""
        for name, (least, most) in _LIMITS.items():
            if not least <= getattr(self, name) <= most:
                raise ConfigError(
                    f"{_hyphens(name)} is {least} to {most}, not {getattr(self, name)}"
                )
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"{_hyphens(name)} is {', '.join(choices)}, not {getattr(self, name)!r}"
                )
        for name in _TEXTS:
            if getattr(self, name) == "":
                raise ConfigError(f"{_hyphens(name)} is empty: name one, or leave it out")
        for name in ("socket", "cli_socket"):
            if len(os.fsencode(getattr(self, name))) > _MOST_PATH_BYTES:
                raise ConfigError(
                    f"{_hyphens(name)} has {_MOST_PATH_BYTES} bytes at most: use a shorter path"
                )
        if self.socket == self.cli_socket:
            raise ConfigError("cli-socket is the same as socket: use another path for one of them")
        try:
            for id, secret in self.namespaces.items():
                Namespaces().add(id, secret)
        except ValueError as error:
            raise ConfigError(f"namespaces: {error}") from None
        if self.interface is None and self.link == "af_xdp":
            raise ConfigError("link af_xdp needs an interface: give one (-i IFACE)")


_LIMITS: Final[dict[str, tuple[float, float]]] = {
    "workers": (1, 128),
    "max_applications": (1, 4096),
    "max_sessions": (1, 1 << 24),
    "fifo_memory_bytes": (1 << 20, 1 << 40),
    "drain_seconds": (0, 3600),
    "watchdog_seconds": (0, 3600),
    "host": (0, 0xFFFF),
    "busy_poll_us": (0, 1000),
}
#: Settings that may not be empty.
_TEXTS: Final = ("interface", "socket", "group", "user")
_MOST_PATH_BYTES: Final = 107  # unix(7)
_CHOICES: Final = {
    "link": get_args(LinkName),
    "mode": get_args(XdpMode),
    "engine": get_args(EngineName),
}
#: The Python types of TOML values, and their names for users.
_TYPES: Final[dict[str, tuple[tuple[type, ...], str]]] = {
    **{name: ((int,), "a whole number") for name in _LIMITS},
    "drain_seconds": ((int, float), "a number"),
    "watchdog_seconds": ((int, float), "a number"),
    "namespaces": ((dict,), "a table"),
}


def settings() -> list[str]:
    """Return the names of all settings, as a file spells them."""
    return [_hyphens(each.name) for each in fields(DaemonConfig)]


def read_config(path: str | Path) -> dict[str, Any]:
    """Read a file's settings, by the names of DaemonConfig's fields; raises ConfigError."""
    try:
        raw = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
    found: dict[str, Any] = {}
    for key, value in raw.items():
        name = key.replace("-", "_")
        if key not in settings():
            raise ConfigError(
                f"{path}: there is no setting {key!r}: there are {', '.join(settings())}"
            )
        kinds, wanted = _TYPES.get(name, ((str,), "a text in quotes"))
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise ConfigError(f"{path}: {key} is {wanted}, not {_as_toml(value)}")
        if isinstance(value, dict) and not all(isinstance(s, str) for s in value.values()):
            raise ConfigError(f"{path}: {key} has a secret in quotes for each namespace")
        found[name] = value
    return found


def _as_toml(value: object) -> str:
    return repr(value).lower() if isinstance(value, bool) else repr(value)


def _hyphens(name: str) -> str:
    return name.replace("_", "-")
