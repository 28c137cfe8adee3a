"""A connection, as a resource of trio or asyncio."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final, Generic, Literal, TypeVar, overload

from cryptography import x509

from hoststack.api.datagrams import Datagrams
from hoststack.api.errors import ConnectionClosedError, MigrationError
from hoststack.api.incoming import Incoming
from hoststack.api.leaving import Leaving
from hoststack.boundary import messages as m
from hoststack.link.base import Endpoint
from hoststack.native.session._session import lib
from hoststack.quic.seam import ABORTED_CODE, MAX_REASON_CHARACTERS, CloseInfo, EarlyData
from hoststack.quic.tls import CIPHER_SUITES

if TYPE_CHECKING:
    from hoststack.api.router import Router

#: How long `aclose` waits for acknowledgements of data on finished streams.
LINGER_SECONDS = 10.0

#: The close reason sent with ABORTED_CODE.
_ABORTED: Final = "aborted"

#: How long `migrate` waits for a connection ID from the peer and its answer on the new path.
MIGRATION_SECONDS = 10.0


Both = TypeVar("Both")
Sending = TypeVar("Sending")
Receiving = TypeVar("Receiving")


class AboutConnection(Leaving, Generic[Both, Sending, Receiving]):
    """A connection, made by `Stack.connect` and `Listener.accept`.

    Its handshake is complete, unless `early_data` is "pending".
    """

    def __init__(self, router: Router, notice: m.Connected | m.Accepted) -> None:
        self._router = router
        self._notice = notice
        self._local, self._remote = notice.local, notice.remote
        self._handshake = notice.handshake
        self._info: CloseInfo | None = None
        self._is_closing = False
        self._side = router.hold(notice.handle)
        """Its struct hs_end_connection (native/session/end.h)."""
        self._openers = (router.new_lot(), router.new_lot())
        """Tasks that wait for the peer to allow a bidirectional, or unidirectional, stream."""
        self._sleepers = router.new_lot()
        self._datagrams = Datagrams(router, self._signal_sent, self._signal_consumed, self._check)

    @property
    def handle(self) -> int:
        """The session's 64-bit handle: worker << 32 | index."""
        return self._notice.handle

    @property
    def local(self) -> tuple[str, int]:
        """This side's current address and port."""
        return self._local

    @property
    def remote(self) -> tuple[str, int]:
        """The peer's current address and port."""
        return self._remote

    @property
    def alpn(self) -> str | None:
        """The application protocol that the handshake agreed on."""
        return self._notice.alpn

    @property
    def cipher(self) -> str | None:
        """The cipher of the connection's packets, by the names of `TlsConfig.ciphers`.

        None while `early_data` is "pending".
        """
        return self._handshake.cipher

    @property
    def early_data(self) -> EarlyData:
        """Whether data was sent before the handshake was complete (0-RTT, RFC 9001 section 4.6).

        "pending" until the handshake is complete. Data received in this state may be a replay of
        recorded packets (section 9.2): do nothing with it that must not happen twice, or await
        `wait_handshake` first. Afterwards "accepted" or, for a client, "rejected": the server
        refused the early data, and it was sent again.
        """
        return self._handshake.early_data

    @property
    def is_resumed(self) -> bool:
        """Whether the handshake resumed an earlier session, without certificates."""
        return self._handshake.is_resumed

    @property
    def tls_version(self) -> int | None:
        """0x0304: QUIC's handshake is TLS 1.3 (RFC 9001 section 4.2). None as `cipher`."""
        return None if self.cipher is None else 0x0304

    @property
    def cipher_suite(self) -> int | None:
        """The number of the cipher suite (RFC 8446 section B.4). None as `cipher`."""
        return None if self.cipher is None else CIPHER_SUITES[self.cipher]

    @property
    def server_name(self) -> str | None:
        """The name that the client asked for (SNI, RFC 6066 section 3), in lower case; None if it
        sent none. On the client's side the name, or address, that the certificate had to be for.

        A client may send any name of letters, digits, dots, hyphens and underscores.
        """
        return self._handshake.server_name

    @property
    def peer_certificates(self) -> tuple[x509.Certificate, ...]:
        """The certificates that the peer sent in this connection's handshake, the leaf first.

        Empty while `early_data` is "pending", from a client that was not asked or has none, and, on
        the client's side, if the session was resumed: the earlier session's certificate applies.
        They are checked if the `TlsConfig` says so. Of a chain of more than 32 KiB the rest is
        left out.
        """
        return tuple(map(x509.load_der_x509_certificate, self._handshake.certificates))

    @property
    def peer_certificate(self) -> x509.Certificate | None:
        """The first of `peer_certificates`, the peer's own; None if there is none."""
        leaf = self._handshake.certificates[:1]
        return x509.load_der_x509_certificate(leaf[0]) if leaf else None

    @property
    def own_certificate(self) -> x509.Certificate | None:
        """The certificate that this side presented; None if it presented none, as in a resumed
        session."""
        der = self._handshake.own_certificate
        return None if der is None else x509.load_der_x509_certificate(der)

    @property
    def close_info(self) -> CloseInfo | None:
        """Why the connection ended; None while it is open."""
        return self._info

    def __repr__(self) -> str:
        host, port = self.remote
        return f"<Connection {self.handle:#x} with {host} port {port}>"

    @overload
    async def open_stream(self, *, unidirectional: Literal[False] = False) -> Both: ...
    @overload
    async def open_stream(self, *, unidirectional: Literal[True]) -> Sending: ...

    async def open_stream(self, *, unidirectional: bool = False) -> Both | Sending:
        """Open a stream; waits while the peer's limit on streams forbids it.

        Raises ConnectionClosedError, ClosedResourceError after `aclose`, and OSError if this
        application may have no more memory for FIFOs (ENOMEM) or sessions (EMFILE).
        """
        await self._router.checkpoint_if_cancelled()
        self._check()
        try:
            opened: Both | Sending = await self._router.open_stream(
                self, unidirectional=unidirectional
            )
        except OSError as error:
            self._check()
            if error.errno != errno.ENOTCONN:
                raise
            raise self._router.closed_error("this connection was closed") from None
        return opened

    def streams(self) -> Incoming[Both | Receiving]:
        """Return the streams that the peer opens, in order, for `async for`.

        The iteration ends when the connection is closed with code 0 by either side; it raises
        ConnectionClosedError when it ends in another way. Several tasks may iterate: each stream
        goes to one of them.
        """
        waiting = self._sleepers
        return Incoming(self._router, self._next_stream, waiting.park, waiting.unpark_all)

    def _next_stream(self) -> Both | Receiving | None:
        stream: Both | Receiving | None = self._router.accept(self)
        if stream is None:
            self._check()
        return stream

    @property
    def max_datagram_bytes(self) -> int:
        """The largest datagram that `send_datagram` accepts now; 0 if this side or the peer offers
        none (`QuicConfig.datagram_fifo_bytes`). It changes with the path."""
        return self._datagrams.max_bytes

    async def send_datagram(self, data: bytes | bytearray | memoryview) -> None:
        """Send a datagram (RFC 9221), once. It arrives whole, in no order, or is lost.

        Returns when the datagram is queued; waits while the queue is full, since congestion control
        applies to datagrams. With early data it waits for the handshake. Raises ValueError if the
        datagram is too large for the peer or the path, and as `open_stream` does.
        """
        await self._leave_early_data()
        await self._datagrams.send(data)

    async def receive_datagram(self) -> bytes:
        """Receive the next datagram from the peer. Datagrams are dropped while the queue is full.

        Raises ValueError if this side offers none, and what `open_stream` raises.
        """
        await self._leave_early_data()
        return await self._datagrams.receive()

    def datagrams(self) -> Incoming[bytes]:
        """Return the peer's datagrams, for `async for`. Ends and raises as `streams` does."""
        return Incoming(
            self._router, self._next_datagram, self._wait_for_datagram, self._wake_receivers
        )

    def _next_datagram(self) -> bytes | None:
        if self.early_data == "pending":
            self._check()
            return None
        return self._datagrams.take()

    async def _wait_for_datagram(self) -> None:
        if self.early_data == "pending":
            await self._sleepers.park()
        else:
            await self._datagrams.wait()

    def _wake_receivers(self) -> None:
        self._sleepers.unpark_all()
        self._datagrams.wake()

    async def statistics(self) -> dict[str, int | float]:
        """Return the engine's figures: RTT (seconds), congestion window, bytes in flight and more.

        docs/engines.md lists them. Figures that an engine does not have are missing.
        Raises ConnectionClosedError, and ClosedResourceError after `aclose`.
        """
        await self._router.checkpoint_if_cancelled()
        self._check()
        reply = await self._router.call(lambda token: m.GetStatistics(token, self.handle))
        if not isinstance(reply, m.Statistics):
            self._check()
            raise self._router.closed_error("this connection was closed")
        return reply.figures

    def update_keys(self) -> None:
        """Change the keys of both directions soon (RFC 9001 section 6); never blocks.

        Does nothing while the peer has not confirmed the last change. The engine also changes keys
        by itself, long before their limits (`QuicConfig.packets_per_key`).
        """
        self._router.post(m.UpdateKey(self.handle))

    async def migrate(self, local: str | None = None) -> None:
        """Move this client's connection to another local port (RFC 9000 section 9).

        `local` is an address of this machine, with or without a port ("10.0.0.9",
        "[fd00::9]:4000"); the default is the source address of the route to the peer. Returns when
        the peer has answered on the new path, which carries all further packets. Raises
        MigrationError if the peer does not answer or forbids migration, or the address or port is
        unavailable; the connection then stays on the old path. Raises ValueError for an invalid
        address, and what `open_stream` raises. If cancelled, the migration may still happen.
        """
        endpoint = None if local is None else Endpoint.parse(local, 0)
        await self._leave_early_data()
        await self._router.checkpoint_if_cancelled()
        self._check()
        call = self._router.call(lambda token: m.Migrate(token, self.handle, endpoint))
        reply = await self._router.within(MIGRATION_SECONDS, call)
        if isinstance(reply, m.Done):
            return
        self._check()
        if isinstance(reply, m.Failed):
            raise MigrationError(reply.errno, f"{self!r}: {reply.text}")
        raise MigrationError(
            errno.ETIMEDOUT,
            f"{self!r}: within {MIGRATION_SECONDS:.0f} s the peer has sent no connection ID for "
            "the new path, or has not answered on it",
        )

    async def wait_handshake(self) -> None:
        """Wait until the handshake is complete; no data received after that is a replay.

        Returns at once unless `early_data` is "pending". Raises ConnectionClosedError.
        """
        await self._router.checkpoint_if_cancelled()
        while self.early_data == "pending":
            if self._info is not None:
                raise ConnectionClosedError(self._info)
            await self._sleepers.park()
        await self._router.shielded_checkpoint()

    async def wait_closed(self) -> CloseInfo:
        """Wait until the connection is closed, and return why."""
        await self._router.checkpoint_if_cancelled()
        while self._info is None:
            await self._sleepers.park()
        await self._router.shielded_checkpoint()
        return self._info

    async def aclose(self, code: int = 0, reason: str = "") -> None:
        """Close the connection with an application code.

        Waits up to LINGER_SECONDS until the peer has acknowledged the data of finished streams
        (`send_eof`, or closed); all other data is discarded. If cancelled, it closes at once. A
        `code` of 0 becomes `ABORTED_CODE` if the end is not clean: it was cancelled, the peer has
        not acknowledged everything, or a `send_all` was interrupted on a stream that is still open.

        The end of the `async with` block does the same. When an exception leaves the block, the
        connection is closed at once with `ABORTED_CODE`.
        """
        self._is_closing = True
        self._sleepers.unpark_all()
        self._datagrams.close()
        try:
            if self._has_unacknowledged():
                await self._router.within(LINGER_SECONDS, self._wait_acknowledged())
            await self._router.checkpoint_if_cancelled()
        except BaseException:
            self._abort(code, reason)
            raise
        if self._has_unacknowledged():
            self._abort(code, reason)
        else:
            self.close_now(code, reason)
        await self._router.shielded_checkpoint()

    def close_now(self, code: int = 0, reason: str = "") -> None:
        """Close at once, without waiting for acknowledgements; never blocks.

        A `code` of 0 becomes `ABORTED_CODE` if a `send_all` was interrupted on a stream that is
        still open: its data is incomplete. The reason is cut after MAX_REASON_CHARACTERS, and lone
        surrogates, which UTF-8 cannot encode, become question marks.
        """
        reason = reason[:MAX_REASON_CHARACTERS].encode(errors="replace").decode()
        self._is_closing = True
        self._datagrams.close()
        if self._info is None:
            if code == 0 and self._is_cut_short():
                code, reason = ABORTED_CODE, reason or _ABORTED
            self._router.post(m.CloseConnection(self.handle, code, reason))

    async def _on_block_end(self, *, aborts: bool) -> None:
        """Close the connection: see `aclose`."""
        if not aborts:
            await self.aclose()
        else:
            self._abort()
            await self._router.shielded_checkpoint()

    def _abort(self, code: int = 0, reason: str = "") -> None:
        """Close at once; a code of 0 becomes ABORTED_CODE."""
        if code == 0:
            code, reason = ABORTED_CODE, reason or _ABORTED
        self.close_now(code, reason)

    async def _leave_early_data(self) -> None:
        """Wait for the handshake, without a checkpoint if there is nothing to wait for."""
        if self.early_data == "pending":
            await self.wait_handshake()

    def _signal_sent(self) -> None:
        self._router.signal_sent(self.handle)

    def _signal_consumed(self) -> None:
        self._router.signal_consumed(self.handle, is_urgent=True)

    def _check(self) -> None:
        if self._is_closing:
            raise self._router.closed_error("this connection was closed")
        if self._info is not None:
            raise ConnectionClosedError(self._info)

    def _has_unacknowledged(self) -> bool:
        """Return whether finished streams have data that is not acknowledged; if so, `_on_wake`
        follows."""
        return bool(lib.hs_end_unacknowledged(self._side, True))

    async def _wait_acknowledged(self) -> None:
        while self._info is None and self._has_unacknowledged():
            await self._sleepers.park()

    def _is_cut_short(self) -> bool:
        return bool(lib.hs_end_cut_short(self._side))

    # --- from the router ---

    def _abandon(self) -> None:
        self.close_now()

    def _on_datagrams_ready(self, notice: m.DatagramsReady) -> None:
        self._datagrams.on_ready(notice)

    def _on_datagram_event(self, code: int) -> None:
        self._datagrams.on_event(code)

    def _on_wake(self) -> None:
        """Wake tasks: a stream can be accepted, or all data is acknowledged."""
        self._sleepers.unpark_all()

    def _on_handshake_done(self, notice: m.HandshakeDone) -> None:
        self._handshake = notice.handshake
        self._sleepers.unpark_all()

    def _on_path_changed(self, notice: m.PathChanged) -> None:
        self._local, self._remote = notice.local, notice.remote

    def _take(self) -> None:
        """Signal the worker that the program accepted this connection."""
        self._router.signal_taken(self.handle)

    def _on_closed(self, info: CloseInfo) -> None:
        self._info = info
        for waiting in (self._sleepers, *self._openers):
            waiting.unpark_all()
        self._datagrams.wake()
