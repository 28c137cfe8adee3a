"""The settings of `hoststack serve`: the one table that options, environment and file come from."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

from hoststack.asgi.config import AsgiConfig
from hoststack.http3 import Http3Config

#: Exit statuses of the command.
EXIT_USAGE: Final = 2
EXIT_FAILED_AT_START: Final = 3

_HTTP3: Final = Http3Config()
_ASGI: Final = AsgiConfig()

#: Settings of AsgiConfig and Http3Config, by their names there.
_OF_ASGI: Final = {
    "root_path": "root_path",
    "lifespan": "lifespan",
    "startup_seconds": "startup_timeout",
    "shutdown_seconds": "shutdown_timeout",
    "drain_seconds": "graceful_timeout",
    "answer_seconds": "answer_timeout",
    "silence_seconds": "silence_timeout",
    "max_message_bytes": "limit_message_bytes",
    "ping_seconds": "ping_interval",
}
_OF_HTTP3: Final = {
    "max_section_bytes": "limit_header_bytes",
    "max_fields": "limit_header_fields",
    "max_body_bytes": "limit_body_bytes",
    "max_streams": "limit_streams",
    "max_resets": "limit_resets",
    "webtransport_sessions": "webtransport",
    "head_seconds": "head_timeout",
    "idle_seconds": "idle_timeout",
    "slow_seconds": "slow_timeout",
}

T = TypeVar("T")


class ServeError(Exception):
    """The command cannot go on. The message, one line, says why and what to do."""

    def __init__(self, text: str, status: int = EXIT_USAGE) -> None:
        super().__init__(text)
        self.status = status
        """The command's exit status."""


def _setting(
    default: Any, help: str, metavar: str = "", *, least: float = 0, most: float | None = None
) -> Any:
    """Return a field with what its option says, and the bounds of its number."""
    return dataclasses.field(
        default=default, metadata={"help": help, "metavar": metavar, "least": least, "most": most}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """What to serve, and how. In files and options, names have hyphens. Raises ServeError."""

    app: str | None = _setting(None, "the ASGI application, such as main:app", "MODULE:APP")
    app_dir: str = _setting(".", "the folder that MODULE is imported from", "FOLDER")
    factory: bool = _setting(False, "APP is a function that returns the application")
    root: str | None = _setting(None, "serve the files of this folder instead of APP", "FOLDER")
    root_path: str = _setting("", "the path at which a proxy mounts the application", "PATH")
    runtime: Literal["asyncio", "trio"] = _setting("asyncio", "the library that APP is written for")
    loop: Literal["auto", "asyncio", "uvloop"] = _setting(
        "auto", "the event loop of asyncio; auto is uvloop where it is installed"
    )
    lifespan: Literal["auto", "on", "off"] = _setting(
        "auto", "ASGI's lifespan; auto goes on without it where APP does not support it"
    )

    bind: tuple[str, ...] = _setting(
        ("127.0.0.1:4433",), "listen there; IPv6 is [ADDRESS]:PORT, port 0 is any", "ADDRESS:PORT"
    )
    interface: str | None = _setting(
        None, "use AF_XDP on this interface (default: UDP sockets)", "IFACE"
    )
    link: Literal["auto", "af_xdp", "udp"] = _setting("auto", "where packets come from")
    engine: Literal["auto", "native", "aioquic"] = _setting("auto", "the QUIC engine")
    tcp: bool = _setting(
        False, "answer HTTP/1.1 and HTTP/2 on the same TCP ports, with Alt-Svc (hoststack[tcp])"
    )
    certfile: tuple[str, ...] = _setting(
        (), "a certificate chain in PEM; several are chosen by name (default: self-signed)", "FILE"
    )
    keyfile: tuple[str, ...] = _setting((), "the key of each certificate, in its order", "FILE")

    workers: int = _setting(
        0, "engine processes; 0 runs engine and application in one process", "N", most=128
    )
    apps: int = _setting(
        0, "application processes; 0 means as many as workers, at least 1", "M", most=1024
    )
    cli_socket: str = _setting("", "where `hoststack ctl` attaches (with --workers)", "PATH")

    access_log: str | None = _setting(None, "write a line for each request; - is stdout", "FILE")
    access_log_format: Literal["common", "combined", "json"] = _setting(
        "combined", "the format of these lines"
    )

    limit_header_bytes: int = _setting(_HTTP3.max_section_bytes, "of a header section", "BYTES")
    limit_header_fields: int = _setting(_HTTP3.max_fields, "in a header section", "N")
    limit_body_bytes: int | None = _setting(None, "of a request's content", "BYTES")
    limit_streams: int = _setting(
        _HTTP3.max_streams, "requests at a time, of one connection", "N", least=1, most=1 << 16
    )
    limit_resets: int = _setting(
        _HTTP3.max_resets, "requests that a connection may reset beyond those answered", "N"
    )
    webtransport: int = _setting(
        0, "WebTransport sessions at a time, of one connection; 0: none", "N"
    )
    head_timeout: float = _setting(
        _HTTP3.head_seconds, "from the beginning of a request to the end of its headers", "SECONDS"
    )
    idle_timeout: float = _setting(
        _HTTP3.idle_seconds, "close a connection without requests after that", "SECONDS"
    )
    slow_timeout: float | None = _setting(
        _HTTP3.slow_seconds,
        "give up a response of which the client takes less than 16 KiB in that time, and a request "
        "of which it sends less",
        "SECONDS",
    )
    limit_message_bytes: int = _setting(
        _ASGI.max_message_bytes, "of a WebSocket message", "BYTES", least=1
    )
    answer_timeout: float | None = _setting(
        _ASGI.answer_seconds, "from a request to the beginning of its response", "SECONDS"
    )
    silence_timeout: float | None = _setting(
        _ASGI.silence_seconds,
        "in a response, in which APP neither sends nor waits for its client",
        "SECONDS",
    )
    ping_interval: float | None = _setting(
        _ASGI.ping_seconds, "between pings on a WebSocket", "SECONDS"
    )
    startup_timeout: float = _setting(
        _ASGI.startup_seconds, "for the startup of APP's lifespan", "SECONDS"
    )
    shutdown_timeout: float = _setting(
        _ASGI.shutdown_seconds, "for the shutdown of APP's lifespan", "SECONDS"
    )
    graceful_timeout: float = _setting(
        10.0, "how long requests in progress may take to end at SIGTERM", "SECONDS"
    )

    reload: bool = _setting(False, "restart the application when its source files change")
    reload_dir: tuple[str, ...] = _setting(
        (), "a folder whose *.py files are watched (default: --app-dir)", "FOLDER"
    )

    def __post_init__(self) -> None:
        """Check what depends on no file."""
        for field in dataclasses.fields(self):
            value, least, most = getattr(self, field.name), *_bounds(field)
            if isinstance(value, int | float) and not least <= value <= (most or float("inf")):
                bounds = f"at least {least}" if most is None else f"{least} to {most}"
                raise ServeError(f"{option_of(field.name)} is {bounds}, not {value}")
        if (self.app is None) == (self.root is None):
            raise ServeError(
                "name what to serve: an application, as in `hoststack serve main:app`, or a "
                "folder of files with --root"
            )
        if len(self.certfile) != len(self.keyfile):
            raise ServeError(
                f"there are {len(self.certfile)} --certfile and {len(self.keyfile)} --keyfile: "
                "give a key for each certificate, in the same order"
            )
        if not self.bind:
            raise ServeError("bind is empty: name an ADDRESS:PORT to listen on")
        if self.apps > 1 and not self.workers:
            raise ServeError(
                f"--apps {self.apps} needs engines in processes of their own: add --workers 1, "
                "or more"
            )
        if self.cli_socket and not self.workers:
            raise ServeError("--cli-socket is the daemon's: add --workers 1, or more")
        if self.runtime == "trio" and self.loop != "auto":
            raise ServeError("--loop chooses a loop of asyncio: leave it out with --runtime trio")
        self.http3()
        self.asgi()

    @property
    def applications(self) -> int:
        """The number of application processes."""
        return self.apps or max(self.workers, 1)

    def asgi(self) -> AsgiConfig:
        """Return the settings of the bridge to the application. Raises ServeError."""
        return self._made(AsgiConfig, _OF_ASGI)

    def http3(self) -> Http3Config:
        """Return the limits of HTTP/3. Raises ServeError."""
        return self._made(Http3Config, _OF_HTTP3)

    def _made(self, make: Callable[..., T], names: Mapping[str, str]) -> T:
        try:
            return make(**{theirs: getattr(self, ours) for theirs, ours in names.items()})
        except ValueError as error:
            text = str(error)
            for theirs, ours in names.items():
                text = re.sub(rf"\b{theirs}\b", option_of(ours), text)
            raise ServeError(text) from None


def _bounds(field: dataclasses.Field[Any]) -> tuple[float, float | None]:
    return field.metadata["least"], field.metadata["most"]


def option_of(name: str) -> str:
    """Return the option of a setting."""
    return f"--{name.replace('_', '-')}"
