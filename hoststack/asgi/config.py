"""What a server of ASGI applications allows them and their clients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from hoststack.http3.fields import FieldsToSend, to_fields


class ApplicationError(Exception):
    """An application that can't be served; the message is one line that says why, and what to
    do."""


@dataclass(frozen=True, kw_only=True)
class AsgiConfig:
    """Limits and choices of a server. Sizes are in bytes, times in seconds."""

    root_path: str = ""
    """The path below which a proxy in front publishes the application, and which it removes:
    `scope["root_path"]`, and the beginning of `scope["path"]`."""
    lifespan: Literal["auto", "on", "off"] = "auto"
    """Whether the application gets lifespan events: "on" requires them, "auto" goes on without
    them where the application raises."""
    startup_seconds: float = 60.0
    """For the application's startup; then ApplicationError."""
    shutdown_seconds: float = 30.0
    """For the application's shutdown; then it is cancelled."""
    drain_seconds: float = 30.0
    """For requests in progress after `Server.shut_down`; then they are cancelled."""
    answer_seconds: float | None = 300.0
    """From a request to the beginning of its response; then 504, and the application's task is
    cancelled. None: no limit."""
    silence_seconds: float | None = 3600.0
    """In an HTTP response, in which the application neither sends nor waits for the client; then
    the response is reset, and the application's task is cancelled. None: no limit."""
    headers: FieldsToSend = ((b"server", b"hoststack"),)
    """Added to each response, where the application does not send a field of that name."""
    date_header: bool = True
    """Add `date`, as RFC 9110 section 6.6.1 requires."""
    max_message_bytes: int = 16 << 20
    """A WebSocket message's size, decompressed; a larger one closes the WebSocket (1009)."""
    max_queued_messages: int = 32
    """WebSocket messages that wait for the application; then the client waits."""
    ping_seconds: float | None = 20.0
    """Between pings on a WebSocket; a client that has sent nothing since the one before is gone
    (1011). None: no pings."""
    websocket_compression: bool = True
    """Accept permessage-deflate (RFC 7692)."""

    def __post_init__(self) -> None:
        if self.root_path and (not self.root_path.startswith("/") or self.root_path[-1] == "/"):
            raise ValueError(
                f"root_path is a path like /api, which does not end in /: not {self.root_path!r}"
            )
        if self.lifespan not in ("auto", "on", "off"):
            raise ValueError(f"lifespan is auto, on or off, not {self.lifespan!r}")
        for name in ("startup_seconds", "shutdown_seconds", "drain_seconds"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative")
        for name in ("answer_seconds", "silence_seconds", "ping_seconds"):
            value: Any = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be more than 0, or None")
        for name in ("max_message_bytes", "max_queued_messages"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be more than 0")
        object.__setattr__(self, "headers", tuple(to_fields(self.headers)))
