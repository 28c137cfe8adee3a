"""Connections of HTTP/3, by origin: made when a request needs one, and used by all that follow."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

import anyio
import trio

from hoststack.api.errors import ConnectError
from hoststack.http3 import ALPN, Http3Config
from hoststack.http3.about_client import AboutClientConnection
from hoststack.httpx.alternatives import Origin
from hoststack.httpx.host import Host
from hoststack.quic.seam import QuicConfig
from hoststack.quic.tls import TlsConfig

logger = logging.getLogger(__name__)

_FOREVER: Final = float("inf")


class Key(NamedTuple):
    """What requests have in common that may use one connection."""

    origin: Origin
    place: Origin
    """Where to connect to: the origin, or its alternative."""
    server_name: str
    """Whom the certificate must be for."""


@dataclass
class Limits:
    """Of a pool; None for none. As httpx.Limits."""

    max_connections: int | None = 100
    max_keepalive_connections: int | None = 20
    keepalive_expiry: float | None = 5.0


@dataclass(eq=False)
class Pooled:
    """A connection of the pool, from the first attempt on."""

    key: Key
    client: AboutClientConnection | None = None
    error: Exception | None = None
    users: int = 0
    """Requests that wait for it, or are on it."""
    ready: anyio.Event = field(default_factory=anyio.Event)
    changed: anyio.Event = field(default_factory=anyio.Event)
    """`users` became, or is no longer, 0; or the connection should end."""
    is_unwanted: bool = False
    cancel: Callable[[], None] = lambda: None

    @property
    def is_usable(self) -> bool:
        """Whether a request may wait for it, or use it."""
        if self.error is not None or self.is_unwanted:
            return False
        return self.client is None or not self.client.is_going_away

    def notify(self) -> None:
        """Wake the connection's own task."""
        self.changed.set()
        self.changed = anyio.Event()


class Pool:
    """Connections of one loop."""

    def __init__(
        self,
        host: Host,
        tls: TlsConfig,
        limits: Limits,
        *,
        quic: QuicConfig,
        http3: Http3Config,
    ) -> None:
        self._host = host
        self._tls = tls
        self._limits = limits
        self._quic = quic
        self._http3 = http3
        self._connections: list[Pooled] = []
        """The one that was used last is the last one."""
        self._freed = anyio.Event()
        self._is_closed = False

    def spawn(self, function: Any, *arguments: Any) -> Callable[[], None]:
        """Run a function in a task beside the connections; returns what cancels it."""
        return self._host.spawn(function, *arguments)

    async def acquire(self, key: Key) -> Pooled:
        """Return a connection, which may not be ready; the caller releases it.

        Waits while the limit on connections forbids another one.
        """
        while True:
            if self._is_closed:
                raise RuntimeError("this HTTP/3 transport was closed")
            pooled = self._find(key)
            if pooled is None and self._has_room():
                pooled = Pooled(key)
                self._connections.append(pooled)
                pooled.cancel = self._host.spawn(self._run, pooled)
            if pooled is not None:
                pooled.users += 1
                pooled.notify()
                return pooled
            await self._freed.wait()

    def release(self, pooled: Pooled) -> None:
        """Let a connection go; one that is idle stays open for a time. Never blocks."""
        pooled.users -= 1
        if pooled.users:
            return
        if pooled.client is None:
            # Nobody waits for it any more. Its task removes it from the list.
            pooled.is_unwanted = True
            pooled.cancel()
            return
        pooled.notify()
        idle = [one for one in self._connections if not one.users and not one.is_unwanted]
        most = self._limits.max_keepalive_connections
        if most is not None:
            for one in idle[: max(0, len(idle) - most)]:
                self._close(one)
        self._wake()

    async def aclose(self) -> None:
        """Close all connections; requests on them fail."""
        self._is_closed = True
        for pooled in list(self._connections):
            self._close(pooled)
            if pooled.client is None:
                pooled.cancel()
        self._wake()
        while self._connections:
            await self._freed.wait()

    def _find(self, key: Key) -> Pooled | None:
        for pooled in reversed(self._connections):
            if pooled.key == key and pooled.is_usable:
                self._connections.remove(pooled)
                self._connections.append(pooled)
                return pooled
        return None

    def _has_room(self) -> bool:
        """Return whether another connection may be made; an idle one makes room for it."""
        most = self._limits.max_connections
        if most is None or len(self._connections) < most:
            return True
        idle = next((one for one in self._connections if not one.users), None)
        if idle is not None:
            self._close(idle)
        return False  # until it has gone, which wakes the caller

    def _close(self, pooled: Pooled) -> None:
        pooled.is_unwanted = True
        pooled.notify()

    def _wake(self) -> None:
        self._freed.set()
        self._freed = anyio.Event()

    # --- a connection's task ---

    async def _run(self, pooled: Pooled) -> None:
        """Connect, and stay until the connection has ended or is not needed any more."""
        try:
            await self._serve(pooled)
        except (OSError, ValueError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            pooled.error = error
        except Exception as error:
            logger.exception("a connection to %s port %d failed", *pooled.key.place)
            pooled.error = error
        finally:
            if pooled.error is None and pooled.client is None:
                pooled.error = ConnectError(None, "the transport was closed")
            pooled.is_unwanted = True
            self._connections.remove(pooled)
            pooled.ready.set()
            self._wake()

    async def _serve(self, pooled: Pooled) -> None:
        key = pooled.key
        connection = await self._host.stack.open_connection(
            f"quic://{authority_of(key.place)}",
            tls=replace(self._tls, server_name=self._tls.server_name or key.server_name),
            alpn=[ALPN],
            config=self._quic,
        )
        authority = authority_of(key.origin)
        async with (
            connection,
            self._host.speak(connection, authority, self._http3) as client,
        ):
            pooled.client = client
            pooled.ready.set()
            cancel = self._host.spawn(self._watch, pooled)
            try:
                await self._wait_for_end(pooled)
                pooled.is_unwanted = True  # no request may take it while it closes
            finally:
                cancel()

    async def _wait_for_end(self, pooled: Pooled) -> None:
        while not pooled.is_unwanted or (pooled.users and not self._is_closed):
            assert pooled.client is not None
            if pooled.client.connection.close_info is not None:
                return
            if pooled.client.is_going_away and not pooled.users:
                return
            changed = pooled.changed
            expiry_s = self._limits.keepalive_expiry
            with anyio.move_on_after(_FOREVER if pooled.users or expiry_s is None else expiry_s):
                await changed.wait()
                continue
            return

    async def _watch(self, pooled: Pooled) -> None:
        """Have the connection's task look when the server goes away, or the connection ends."""
        assert pooled.client is not None
        await pooled.client.wait_going_away()
        pooled.notify()
        await pooled.client.connection.wait_closed()
        pooled.notify()


def authority_of(origin: Origin) -> str:
    """Return host and port in URI syntax."""
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    return f"{host}:{origin.port}"
