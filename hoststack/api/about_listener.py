"""Listening for connections, in trio or asyncio."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from hoststack.api.about_connection import AboutConnection
from hoststack.api.errors import ListenError
from hoststack.api.leaving import Leaving
from hoststack.boundary import messages as m
from hoststack.boundary.protocols import not_supported
from hoststack.quic.tls import TlsConfig

if TYPE_CHECKING:
    from hoststack.api.router import Router

C = TypeVar("C", bound=AboutConnection[Any, Any, Any])


class AboutListener(Leaving, Generic[C]):
    """A listening endpoint. Made by `Stack.listen`."""

    def __init__(self, router: Router, handle: int, local: tuple[str, int]) -> None:
        self._router = router
        self._handle = handle
        self._local = local
        self._accepted: deque[C] = deque()
        self._sleepers = router.new_lot()
        self._alpn: tuple[str, ...] = ()
        self._closed = False
        self._lost: str | None = None

    @property
    def handle(self) -> int:
        """The session's 64-bit handle: worker << 32 | index."""
        return self._handle

    @property
    def local(self) -> tuple[str, int]:
        """The address and port that it listens on, with the port that was picked for port 0."""
        return self._local

    async def replace_tls(self, tls: TlsConfig) -> None:
        """Use other certificates, and the other choices of a TlsConfig, in handshakes that begin
        from now on.

        Connections, and handshakes that have begun, are not affected. Clients resume with the
        tickets that they have, and send early data, unless `ciphers` or `client_certificates`
        change. Another application of the same group that listens there gets the new ones as well.
        If cancelled, the replacement may still happen.

        Raises ListenError, and the old ones stay, if the engine or the daemon can't use them; its
        `kind` says why. Raises OSError with ENOTSUP for TCP and UDP, and what `accept` raises for a
        listener that is closed or lost. Certificates and keys themselves are checked when the
        TlsConfig is made.
        """
        await self._router.checkpoint_if_cancelled()
        self._check()
        if not self._alpn:
            raise not_supported("tcp and udp", "certificates")
        reply = await self._router.call(
            lambda token: m.ReplaceTls(token, self._handle, tls, self._alpn)
        )
        if isinstance(reply, m.Failed):
            self._check()
            host, port = self._local
            raise ListenError(reply.errno, f"{host} port {port}: {reply.text}")

    def _check(self) -> None:
        if self._closed:
            raise self._router.closed_error("this listener was closed")
        if self._lost is not None:
            raise self._router.broken_error(f"this listener is gone: {self._lost}")

    async def accept(self) -> C:
        """Wait for the next connection, and return it.

        Raises trio.ClosedResourceError after `aclose`, and trio.BrokenResourceError if the listener
        is lost: the daemon has ended, or none of its workers can have the listener. In asyncio
        these are hoststack.aio's ClosedError and BrokenError.
        """
        await self._router.checkpoint()
        while not self._accepted:
            self._check()
            await self._sleepers.park()
        connection = self._accepted.popleft()
        connection._take()
        return connection

    async def aclose(self) -> None:
        """Stop listening. Connections that `accept` returned continue; others are closed."""
        self.close()
        await self._router.checkpoint()

    async def _on_block_end(self, *, aborts: bool) -> None:
        """Stop listening: see `aclose`."""
        await self.aclose()

    def close(self) -> None:
        """Stop listening as `aclose` does, without a checkpoint."""
        if not self._closed:
            self._closed = True
            self._router.forget_listener(self._handle)
            self._router.post(m.Unlisten(self._handle))
            while self._accepted:
                connection = self._accepted.popleft()
                connection._take()
                connection._abandon()
            self._sleepers.unpark_all()

    def _abandon(self) -> None:
        self.close()

    def _on_lost(self, why: str) -> None:
        self._lost = why
        self._sleepers.unpark_all()

    def _on_accepted(self, connection: C) -> None:
        self._accepted.append(connection)
        self._sleepers.unpark(count=1)
